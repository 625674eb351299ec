"""docs/families.md, written from what the last sweep of all families found, which is kept beside this file.

`python -m tests.sweep` writes both.
"""

import collections
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.sweep.outcomes import OUTCOMES, Outcome, Result

__all__ = ["PAGE", "RESULTS", "Kept", "Sweep", "families_page", "last_sweep", "write"]

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "families.md"
RESULTS = HERE / "results.json"
LENS = "transformer-lens-4.3.0"
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s'\"/<>]+/)+")  # of the machine that swept: what they hold is named without


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of a family's result: what does not change from one sweep to the next.

    Attributes:
        row: `own`, `found`, or empty where nothing is recorded.
        left_out: Why a site is not recorded -> the sites of which that is true.
        error: The largest one of all that is recorded, rounded up to a power of ten.
        in_lens: Whether TransformerLens has an adapter for it.
    """

    family: str
    outcome: Outcome
    row: str = ""
    facts: int = 0
    why: str = ""
    left_out: Mapping[str, Sequence[str]]
    generated: bool = False
    error: str = "0"
    in_lens: bool = False

    @classmethod
    def of(cls, result: Result) -> "Kept":
        left_out: dict[str, list[str]] = {}
        for site, why in result.refused.items():
            if result.recorded and not site.endswith("class_logits") and "it has no decoder" not in why:
                left_out.setdefault(why, []).append(site)
        worst = max(result.errors.values(), default=0.0)
        failed = f": {'; '.join(result.failed)}" if result.failed and result.outcome == "PARTLY" else ""
        return cls(
            family=result.family,
            outcome=result.outcome,
            row=result.row,
            facts=result.facts if result.recorded else 0,
            why=_shortened(_FOLDERS.sub("", f"{result.why}{failed}"), 300),
            left_out=left_out,
            generated=bool(result.generated),
            in_lens=result.family in _lens_families(),
            error=f"1e{math.ceil(math.log10(worst))}" if worst else "0",
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep of all families found, and under which transformers."""

    transformers: str
    families: Mapping[str, Kept]


def write(results: Iterable[Result]) -> Path:
    """Keeps the results of a sweep of all families, and returns the page that is written from them."""
    import transformers

    kept = [Kept.of(result) for result in sorted(results, key=lambda each: each.family.lower())]
    lines = ",\n".join(json.dumps(_stated(each), ensure_ascii=False) for each in kept)
    RESULTS.write_text(f'{{"transformers": "{transformers.__version__}", "families": [\n{lines}\n]}}\n', "utf-8")
    last_sweep.cache_clear()
    PAGE.write_text(families_page(), encoding="utf-8")
    return PAGE


def _stated(kept: Kept) -> dict[str, Any]:
    """Its fields, but for those that say nothing."""
    fields = {name: getattr(kept, name) for name in Kept.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value or name == "left_out"}


@cache
def last_sweep() -> Sweep:
    """Returns what the last sweep of all families found."""
    stated: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return Sweep(stated["transformers"], {each["family"]: Kept(**each) for each in stated["families"]})


def families_page() -> str:
    """Returns the page that says of every text model type what can be recorded of it, as Markdown."""
    sweep = last_sweep()
    kept = sweep.families.values()
    counts = collections.Counter(each.outcome for each in kept)
    recorded = [each for each in kept if each.row]
    ran = [each for each in kept if each.outcome != "CANNOT BUILD"]
    refused = [each for each in kept if not each.row and each.outcome != "CANNOT BUILD"]
    named = LENS.replace("transformer-lens-", "TransformerLens ")
    return "\n".join(
        (
            "# Families: every text model type of transformers, tried",
            "",
            f"Written from a sweep of transformers {sweep.transformers} by `python -m tests.sweep`: a tiny random",
            "model of each type's real class is loaded from a folder, checked, recorded over texts of different",
            "lengths in one batch, and made to generate; what is recorded is compared with what the model itself",
            "returns of each text alone, under its own attention and under eager attention. `docs/models.md` has the",
            "families whose proofs are tested with every change.",
            "",
            f"Of {len(kept)} types {len(ran)} could be built and run on tokens alone: "
            + ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
            + ".",
            f"{len(recorded)} are recorded wholly or in part, {sum(each.row == 'own' for each in recorded)} of them by "
            "a row of their own.",
            f"{named} has adapters for {sum(each.in_lens for each in ran)} of the {len(ran)}, "
            f"{sum(each.in_lens for each in recorded)} of them recorded here; its column says which.",
            "",
            *(f"- **{outcome}**: {meaning}." for outcome, meaning in OUTCOMES.items()),
            "",
            "A row is the family's *own*, kept in `traceformer/models`, or *found* by watching a pass of the model (or",
            "*like* another family's), and proved on the texts at hand. An error is the largest one of all that was",
            "compared, relative to max(1, the largest expected value), rounded up to a power of ten. What checkpoints",
            "of a type set otherwise than its default config is not seen here: `traceformer check MODEL` proves the",
            "same facts on any model.",
            "",
            "## Recorded",
            "",
            f"| family | outcome | row | facts | error | generates | not recorded, and why | {named} |",
            "|---|---|---|--:|--:|---|---|---|",
            *map(_recorded, recorded),
            "",
            "## Not recorded",
            "",
            f"| family | outcome | why | {named} |",
            "|---|---|---|---|",
            *(
                f"| {each.family} | {each.outcome} | {_cell(each.why)} | {'yes' if each.in_lens else ''} |"
                for each in refused
            ),
            "",
            "## Could not be built",
            "",
            "| family | why |",
            "|---|---|",
            *(f"| {each.family} | {_cell(each.why)} |" for each in kept if each.outcome == "CANNOT BUILD"),
            "",
        )
    )


def _recorded(kept: Kept) -> str:
    reasons = [f"{' '.join(f'`{n}`' for n in sites)}: {_shortened(why, 90)}" for why, sites in kept.left_out.items()]
    left_out = "; ".join(_cell(reason) for reason in ([_shortened(kept.why, 160)] if kept.why else []) + reasons)
    cells = (kept.family, kept.outcome, kept.row, kept.facts, kept.error, "yes" if kept.generated else "", left_out)
    return f"| {' | '.join(map(str, cells))} | {'yes' if kept.in_lens else ''} |"


def _cell(text: str) -> str:
    return _shortened(text, 200).replace("|", "\\|").replace("<", "&lt;")


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 4].rstrip()} ..."


@cache
def _lens_families() -> set[str]:
    """The model types that TransformerLens has an adapter for: it knows them by the classes of their models.

    The names in the file are the keys of SUPPORTED_ARCHITECTURES in its wheel's architecture_adapter_factory.py.
    """
    from transformers.models.auto import modeling_auto

    known = set((HERE / f"{LENS}.txt").read_text(encoding="utf-8").split())
    return {family for family, name in _classes(modeling_auto) if name in known}


def _classes(modeling_auto: Any) -> Iterator[tuple[str, str]]:
    """Yields every model type of transformers' automatic classes with each of its classes."""
    for name, mapping in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES"):
            for family, classes in mapping.items():
                for each in (classes,) if isinstance(classes, str) else classes:
                    yield family, each
