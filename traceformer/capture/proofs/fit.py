"""A row for a model whose family has none: found or chosen by hand, and proved on the user's own tokens.

1. What is tried: the row of another family where one was chosen by hand; else the row found by watching a pass, and
   every row there is whose modules the model has and that has more places than the best one proved so far.
2. `check_model` proves each on a few of the texts that are to be recorded. A place of which a fact fails, or of which
   none is known but that padding does not change it, is refused by name, and what is left is proved again, until every
   fact holds.
3. The row with the most places is taken. Without a residual stream that holds there is none.
4. The readout of a family that was chosen by hand is taken with its row, if it holds.

The row is a pure function of the model and the texts, so that an interrupted run finds it again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from traceformer.capture.encoding import Encoded
from traceformer.capture.plan import plan_arrays
from traceformer.capture.proofs.check import ALONE, CheckResult, Example, check_model
from traceformer.capture.proofs.edits import DONOR
from traceformer.capture.proofs.find import find_row
from traceformer.capture.proofs.readout import readout_holds
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims
from traceformer.models.families import FAMILIES, own_family, unmet, with_scales
from traceformer.models.family import Architecture, builds
from traceformer.models.loaded import LoadedModel, Proved
from traceformer.models.mechanisms import mechanisms_of
from traceformer.models.part import start_token_of, text_config, text_part
from traceformer.progress import OnProgress, Progress, quiet
from traceformer.sites import SITES, ArrayKey, Selection, Stack

__all__ = ["Fit", "fit", "fitted", "has_modules", "is_strange", "rows_there_are"]

_MOST_TOKENS = 64  # of each text: enough for patterns, and for padding to show
_MOST_TEXTS = 8  # of the first ones, of which three are chosen
_STREAM = ("resid_pre", "resid_post")


@dataclass(frozen=True, slots=True)
class Fit:
    """A row that a model is recorded by, of which every fact holds.

    Attributes:
        families: The families that have it; empty where it was found by watching the model.
        result: What was proved of it.
    """

    architecture: Architecture
    families: str
    result: CheckResult


def fitted(model: LoadedModel, rows: Sequence[Encoded], progress: OnProgress = quiet) -> LoadedModel:
    """Returns the model with a row that was proved on some of these texts; itself where its family has its own.

    Args:
        model: Any model.
        rows: The texts that are to be recorded.
        progress: Told what was found.

    Raises:
        Unsupported: no row holds, not even of the residual stream.
    """
    if not is_strange(model):
        return model
    examples = _chosen(model, rows)
    if not examples:
        raise Unsupported(f"no row for {model.name} can be proved", why="there is no text of at least one token")
    found = fit(model.model, examples, like=model.architecture, name=model.name)
    proofs = found.result.proofs
    how = f"found that of {found.families.partition(', ')[0]}" if found.families else "found one"
    if model.like is not None:
        how = f"took that of {model.like}, as asked"
    proved = Proved(
        how,
        tuple(f"{proof.key} {proof.fact}" for proof in proofs),
        max((proof.error for proof in proofs), default=0.0),
        sum(len(ids) for example in examples for ids in example.values()),
    )
    said = f"no row for {model.name}: {how} and proved {len(proofs)} facts on your texts"
    progress(Progress(0, 0, 0, 0, 0.0, said, is_notice=True))
    model = replace(model, architecture=found.architecture, proved=proved)
    readout = None if model.like is None else FAMILIES[model.like].readout
    if readout is not None:
        with_readout = replace(model, architecture=replace(found.architecture, readout=readout))
        return with_readout if readout_holds(with_readout, examples[-1]) else model
    return model


def is_strange(model: LoadedModel) -> bool:
    """Whether its row has yet to be proved: its family has none that is right for it, or it was chosen by hand."""
    is_own = model.architecture is None and own_family(model.config) is not None
    return not is_own and model.proved is None


def _chosen(model: LoadedModel, rows: Sequence[Encoded]) -> list[Example]:
    """The shortest and the longest of the first texts, and one between them, cut; a decoder repeats what it reads."""
    usable = [row for row in rows if all(row.lengths.values())][:_MOST_TEXTS]
    order = sorted(usable, key=lambda row: sum(row.lengths.values()))
    picked = [order[n] for n in dict.fromkeys((0, len(order) - 1, len(order) // 2)) if n < len(order)] if order else []
    examples: list[Example] = []
    for row in picked:
        ids: dict[Stack, Sequence[int]] = {stack: own[:_MOST_TOKENS] for stack, own in row.ids.items()}
        if model.dims.arch == "encdec" and "dec" not in ids:
            start = start_token_of(model.config)
            ids["dec"] = [*([] if start is None else [start]), *ids["enc"][: _MOST_TOKENS // 2]]
        examples.append(ids)
    halves: dict[Stack, Sequence[int]]
    if len(examples) > 1 and len({len(next(iter(each.values()))) for each in examples}) == 1:
        first = examples[0]  # all are as long: a part of one shows what padding does
        halves = {stack: own[: max(1, len(own) // 2)] for stack, own in first.items()}
        examples = [halves, *examples[1:]]
    if len(examples) == 1:
        examples = [*examples, {stack: own[: max(1, len(own) // 2)] for stack, own in examples[0].items()}]
    return examples


def fit(
    model: PreTrainedModel, examples: Sequence[Example], *, like: Architecture | None = None, name: str = ""
) -> Fit:
    """Returns the row with the most places that all their facts hold of.

    Args:
        model: Any model.
        examples: Token ids, of different lengths.
        like: The row to take, and no other.
        name: What to call the model.

    Raises:
        Unsupported: no row holds, not even of the residual stream.
    """
    name = name or type(model).__name__
    best: Fit | None = None
    reasons: list[Unsupported] = []
    for families, row in _candidates(model, examples, like, reasons):
        if best is not None and _places(row) <= _places(best.architecture):
            continue
        try:
            proved = _pared(model, examples, row, name)
        except Unsupported as error:
            reasons.append(error)
            continue
        if best is None or _places(proved.architecture) > _places(best.architecture):
            best = replace(proved, families=families)
    if best is None:
        first = reasons[0]
        failed = f"{first.message}: {first.why}" if first.why else first.message
        raise Unsupported(
            f"no row for {name} (model type {model.config.model_type!r}), and none that holds",
            why="; ".join((*unmet(model.config), *mechanisms_of(text_config(model.config)), failed)),
            hint="`traceformer check` on the model says what was seen of it; `like=FAMILY` takes a row by hand",
        )
    return best


def rows_there_are() -> Iterator[tuple[str, Architecture]]:
    """Yields every row there is, once, with the families that have it; those chosen by a flag as `family (flag)`."""
    families: dict[str, Architecture] = {}
    for family, row in sorted(FAMILIES.items()):
        for flags, each in builds(row.blocks):
            families[f"{family} ({flags})" if flags else family] = each
    names: dict[int, list[str]] = {}
    for name, row in families.items():
        names.setdefault(id(row), []).append(name)
    for several in sorted(names.values(), key=len, reverse=True):  # of rows that fit alike the commonest is the first
        yield ", ".join(several), families[several[0]]


def _candidates(
    model: PreTrainedModel, examples: Sequence[Example], like: Architecture | None, reasons: list[Unsupported]
) -> Iterator[tuple[str, Architecture]]:
    if like is not None:
        yield "", like
        return
    there = dict(rows_there_are())
    try:
        found = find_row(model, examples)
    except Unsupported as error:
        reasons.append(error)
    except torch.OutOfMemoryError:
        raise
    except _MISFITS as error:
        why = str(error).partition("\n")[0]
        reasons.append(Unsupported(f"{type(model).__name__} does not run on token ids alone", why=why))
    else:
        same = next((families for families, row in there.items() if row == found), "")
        yield same, found
    stacks = list(ModelDims.of(model).stacks)
    for families, named in there.items():
        row = with_scales(named, text_config(model.config))
        if list(row.stacks) == stacks and has_modules(model, row):
            yield families, row


def has_modules(model: PreTrainedModel, row: Architecture) -> bool:
    """Whether every module that a row names is there, in every block; those of attention, in all that have some."""
    there = {path for path, _ in text_part(model).named_modules(remove_duplicate=False)}
    dims = ModelDims.of(model)
    for stack, own in row.stacks.items():
        layers = {path for path in there if path.rpartition(".")[0] == own.blocks and path.rpartition(".")[2].isdigit()}
        if not layers or not {own.token_embed, own.final_norm or own.blocks} <= there:
            return False
        everywhere = {tap.path for site, tap in own.mlp.items() if not SITES[site].of_experts}
        paths, inside = everywhere | {own.post_norm}, set[str | None]()
        for attention in (own.attention, own.cross):
            if attention is not None:
                sites = ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out")
                taps = (attention.tap(site) for site in sites)
                latents = (each for each in (attention.q_latent, attention.kv_latent) if each is not None)
                own_paths = {attention.module, attention.out_proj, attention.post_norm}
                own_paths |= {path for latent in latents for path in latent}
                inside |= {*own_paths, *(tap.path for tap in taps if tap)}
        sizes = dims.stacks[stack]
        attending = {f"{own.blocks}.{layer}" for layer in sizes.attention_layers}
        named = {f"{layer}.{path}" for layer in layers for path in paths if path}
        named |= {f"{layer}.{path}" for layer in layers & attending for path in inside if path}
        if not named <= there or own.attends != bool(sizes.n_heads):
            return False
        in_some = [tap.path for site, tap in own.mlp.items() if SITES[site].is_routing]
        if not all(any(f"{layer}.{path}" in there for layer in layers) for path in in_some):
            return False
    return True


def _keys(row: Architecture) -> set[ArrayKey]:
    return {key for site in Selection(("all",)).sites for key in row.keys(site)}


def _places(row: Architecture) -> int:
    return len(_keys(row))


# A row of another family may name modules that take or give something else.
_MISFITS = (AssertionError, LookupError, AttributeError, TypeError, ValueError, RuntimeError)


_MORE = "it is not all that blocks read: another text's, put there, does not give that text's output"


def _pared(model: PreTrainedModel, examples: Sequence[Example], row: Architecture, name: str) -> Fit:
    """The row without the places that do not hold, and the proofs of all others.

    Raises:
        Unsupported: the residual stream does not hold, or the row names modules that do something else.
    """
    while True:
        try:
            result = check_model(model, examples, architecture=row, name=name, recipes=False)
        except torch.OutOfMemoryError:
            raise
        except _MISFITS as error:
            raise Unsupported(f"the row does not fit {name}", why=str(error).partition("\n")[0]) from error
        refused = dict.fromkeys(_unproved(model, examples, row, result), "no fact about it is known")
        refused |= {proof.key: _why_failed(proof) for proof in result.proofs if not proof.ok and proof.fact != DONOR}
        # What a block reads beside its stream need not keep the stream from being recorded.
        unedited = {proof.key: _MORE for proof in result.proofs if not proof.ok and proof.fact == DONOR}
        if row.own_attention:  # then what scores are made of is only as right as the patterns that follow from them
            scores = {key.replace("attn_pattern", "attn_scores") for key in refused if key.endswith("attn_pattern")}
            refused |= dict.fromkeys(scores, "the patterns that follow from it do not hold")
        lost = [f"{key} {why}" for key, why in refused.items() if key.rpartition(".")[2] in _STREAM]
        if lost:
            raise Unsupported(f"the residual stream of {name} does not hold what its row says", why=lost[0])
        if not refused and not unedited:
            if not any(key.site in (*_STREAM, "attn_pattern") for key in _keys(row)):
                why = "; ".join(dict.fromkeys(row.refused.values()))
                raise Unsupported(f"neither residual stream nor patterns of {name} can be recorded", why=why)
            return Fit(row, "", result)
        row = replace(row, refused={**row.refused, **refused}, unedited={**row.unedited, **unedited})


def _why_failed(proof: Any) -> str:
    return f"it does not hold that it {proof.fact}: off by {proof.error:.0e}"


def _unproved(
    model: PreTrainedModel, examples: Sequence[Example], row: Architecture, result: CheckResult
) -> Iterator[str]:
    """The places that are recorded and of which nothing is known but that padding does not change them."""
    facts = {(proof.key, proof.fact) for proof in result.proofs if proof.fact != ALONE}
    about, sums = {key for key, _ in facts}, {key for key, fact in facts if fact.startswith("equals resid_")}
    for spec in plan_arrays(Selection(("all",)), model, architecture=row, stacks=tuple(examples[0])).arrays:
        key, stack = str(spec.key), spec.key.stack
        if key in about:
            continue
        by = {site: str(spec.key._replace(site=fact)) for site, fact in _VOUCHED.items()}
        vouched = by.get(spec.key.site) in about
        if spec.key.site == "attn_out":
            own = row.stacks[stack]
            vouched = f"{stack}.{'resid_post' if own.parallel or 'resid_mid' not in own.mlp else 'resid_mid'}" in sums
        if spec.key.site == "attn_norm":  # of several streams no site is what is normed
            vouched = str(spec.key._replace(site="q_proj")) in about
        if not vouched:
            yield key


_VOUCHED = {
    **{"resid_post": "resid_pre", "mlp_act": "mlp_mid", "mlp_mid": "mlp_down", "mlp_down": "mlp_out"},
    **{"q": "attn_scores", "k": "attn_scores", "v": "z"},
}
"""Sites about which a fact is one of another site: the stream behind a block is what the next one reads."""
