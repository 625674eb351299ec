"""The proofs of every family, run once per session, and the support table that is written from them.

`python -m tests.capture.proofs.proved` rewrites docs/models.md.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from tests.families import KEPT
from traceformer.capture.proofs.check import ALONE, CheckResult, Proof, check_model, random_examples
from traceformer.capture.proofs.recipes import BY_RECIPE
from traceformer.models.families import FAMILIES
from traceformer.models.family import Architecture, Family, builds
from traceformer.models.tiny import tiny_model
from traceformer.sites import SITES, Selection

__all__ = ["COLUMNS", "PAGE", "proved", "support_page"]

PAGE = Path(__file__).parents[3] / "docs" / "models.md"

_PATTERN = ("attn_pattern",)
_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post")
_MLP = ("mlp_up", "mlp_act", "mlp_mid", "mlp_down", "mlp_out")
COLUMNS = {
    "recording changes nothing": lambda site, fact: "nothing is recorded" in fact or site == "hidden",
    "patterns by recipe": lambda site, fact: fact.startswith(BY_RECIPE),
    "patterns are eager's": lambda site, fact: site in _PATTERN and "eager" in fact,
    "patterns from q, k, mask": lambda site, fact: site == "attn_scores" or site in _PATTERN,
    "v, z, W_O": lambda site, fact: site in ("v", "z", "attn_out") or "through the model's own" in fact,
    "projections, q, k": lambda site, fact: site in ("q_proj", "k_proj", "v_proj", "kv_latent", "q", "k"),
    "norms": lambda site, fact: site in ("attn_norm", "mlp_norm", "final_norm"),
    "residual stream": lambda site, fact: site in _STREAM,
    "MLP": lambda site, fact: site in _MLP,
    "experts": lambda site, fact: SITES[site].of_experts,
    "embedding, logits": lambda site, fact: site in ("token_embed", "logits"),
}
"""Column of the support table -> whether a fact about a site belongs there; the first that says so takes it."""
PADDING = "padded = alone"


@cache
def proved(family: str) -> CheckResult:
    """Returns what is proved of a family's tiny random model in float32."""
    model = tiny_model(family)
    return check_model(model, random_examples(model.config), name=family)


def column_of(proof: Proof) -> str:
    if proof.fact == ALONE:
        return PADDING
    site = proof.key.rpartition(".")[2]
    return next(column for column, takes in COLUMNS.items() if takes(site, proof.fact))


def support_page() -> str:
    """Returns the page that lists every family, as Markdown: with its proofs' largest errors those that are kept."""
    results = {family: proved(family) for family in KEPT}
    columns = (*COLUMNS, PADDING)
    return "\n".join(
        (
            "# Models: what is supported, and what is proved",
            "",
            "Written from the proofs by `python -m tests.capture.proofs.proved`; a test fails when it is out of step.",
            "",
            f"{len(FAMILIES)} families have a row in `traceformer/models/table`. Every fact is tested on a tiny random",
            "model of its real class, in float32, on a padded batch, under the model's own attention and under eager",
            "attention: of these families, which have all kinds of blocks, in every run of the tests. A number is the",
            "largest error of all facts of its column, over all layers, heads, positions and stacks, relative to",
            "max(1, the largest expected value), rounded up to a power of ten; 0 is equality to the last bit.",
            "`traceformer check MODEL` tests the same facts on any model, one by one.",
            "",
            f"| family | facts | {' | '.join(columns)} |",
            f"|---|--:|{'--:|' * len(columns)}",
            *(_family(family, result, columns) for family, result in results.items()),
            "",
            "Classifiers, reward models and question answerers of these families are loaded as what their checkpoint",
            "is, and have `class_logits` or `token_class_logits` in place of `logits`; `traceformer check` proves",
            "these likewise.",
            "",
            "## Families whose blocks are like these",
            "",
            "Their rows pass the same proofs, which `make test-slow` runs. A site that is missing is one that such",
            "blocks do not have, or whose attention is computed out of sight.",
            "",
            "| families | missing |",
            "|---|---|",
            *_alike(),
            "",
            "## What a family's config must say",
            "",
            "Models of other configs are refused by name.",
            "",
            "| family | where | else |",
            "|---|---|---|",
            *(line for family, row in _sorted_rows() for line in _required(family, row)),
            "",
            "## Sites that a family does not have",
            "",
            "| family | site | why |",
            "|---|---|---|",
            *(line for family, result in results.items() for line in _refused(family, result)),
            "",
        )
    )


def _family(family: str, result: CheckResult, columns: tuple[str, ...]) -> str:
    errors: dict[str, float] = {}
    for proof in result.proofs:
        column = column_of(proof)
        errors[column] = max(proof.error, errors.get(column, 0.0))
    cells = (_rounded_up(errors[column]) if column in errors else "-" for column in columns)
    return f"| {family} | {len(result.proofs)} | {' | '.join(cells)} |"


def _sorted_rows() -> list[tuple[str, Family]]:
    return [(family, FAMILIES[family]) for family in sorted(FAMILIES)]


def _alike() -> Iterator[str]:
    """A line for each kind of block that has more families than those that are kept proved."""
    families: dict[int, list[str]] = {}
    kinds = [(each, *build) for each, row in _sorted_rows() for build in builds(row.blocks)]
    for family, flags, architecture in kinds:
        families.setdefault(id(architecture), []).append(f"{family} ({flags})" if flags else family)
    for _, _, architecture in kinds:
        names = families.pop(id(architecture), [])
        if set(names) - set(KEPT):
            yield f"| {' '.join(f'`{name}`' for name in names)} | {' '.join(_missing(architecture))} |"


def _missing(architecture: Architecture) -> Iterator[str]:
    for site in Selection(("all",)).sites:
        if not SITES[site].of_few and not architecture.keys(site):
            yield f"`{site}`"


def _required(family: str, row: Family) -> Iterator[str]:
    for each in row.requires:
        yield f"| {family} | `{each.setting}` is {' or '.join(f'`{value}`' for value in each.allowed)} | {each.why} |"


def _rounded_up(error: float) -> str:
    return f"1e{math.ceil(math.log10(error))}" if error else "0"


def _refused(family: str, result: CheckResult) -> Iterator[str]:
    missed = {site: why for site, why in result.refused.items() if not site.endswith("class_logits")}
    for why in dict.fromkeys(missed.values()):
        sites = [f"`{site}`" for site, reason in missed.items() if reason == why]
        yield f"| {family} | {' '.join(sites)} | {why} |"


if __name__ == "__main__":
    torch.set_num_threads(1)  # as tests run: sums in another order round otherwise
    PAGE.write_text(support_page(), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")
