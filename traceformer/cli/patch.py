"""`traceformer patch`: which places of a model carry what tells two texts apart."""

import shlex
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import Indices, count
from traceformer.cli.choices import PAIRS, SEVERAL, Loading, PairChoice, SweepPlace, sites_in
from traceformer.cli.effects import report
from traceformer.progress import steps_shown

__all__ = ["patch"]

_WHAT = Group.create_ordered("What is patched")
_METRIC = Group.create_ordered("What is looked at")
_ESTIMATE = Group.create_ordered("Estimates in place of measurements")
_HEADS = ("z", ("layer", "head"))


def patch(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    texts: PairChoice = PairChoice(),  # noqa: B008
    align: Annotated[Literal["end"] | None, Parameter(group=PAIRS)] = None,
    site: Annotated[str, Parameter(group=_WHAT)] = "resid_pre",
    over: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="AXIS..."), SEVERAL] = ("layer", "position"),
    how: Annotated[Literal["denoise", "noise"], Parameter(group=_WHAT)] = "denoise",
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    heads: Annotated[Indices, Parameter(group=_WHAT)] = None,
    positions: Annotated[str | None, Parameter(group=_WHAT, allow_leading_hyphen=True, metavar="I,J-K|WORD")] = None,
    metric: Annotated[
        Literal["logit_difference", "log_prob", "probability", "loss", "kl"], Parameter(group=_METRIC)
    ] = "logit_difference",
    estimate: Annotated[bool, Parameter(group=_ESTIMATE)] = False,
    steps: Annotated[int, Parameter(group=_ESTIMATE), count("N")] = 1,
    exact_top: Annotated[int, Parameter(group=_ESTIMATE), count("K", least=0)] = 0,
    where: SweepPlace = SweepPlace(),  # noqa: B008
    batch_size: Annotated[int, count("N")] = 16,
    loading: Loading = Loading(),  # noqa: B008
) -> None:
    """Which places of a model carry what tells two texts apart.

    Activations of the clean text are put into a pass over the corrupt one, one place at a time, and the metric of each
    pass is told as a share: 0 leaves it where the corrupt text has it, 1 has it where the clean one has it.

    Example: `traceformer patch byte --pairs repeats --site z --over layer,head`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        align: Match positions of texts of unequal length from their ends.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v, attn_pattern.
        over: layer, head, position, query, key; what is not said is patched together.
        how: denoise puts the clean text's activations into the corrupt one, noise the other way round.
        layers: Which layers; all by default.
        heads: Which heads; all by default.
        positions: Which positions, by number or as a word of the clean text; all by default.
        metric: What is looked at.
        estimate: Estimate all effects from slopes, in one pass for each pair (attribution patching).
        steps: At how many points of the way to the other text's activations slopes are taken.
        exact_top: How many cells, those of the largest estimates, to measure as well.
        batch_size: Texts that share a pass.
    """
    from traceformer.questions.patch import patch as patched

    where.check()
    loaded = loading.load(model, with_head=True)
    with where.keeping(), steps_shown("patching") as progress:
        found = patched(
            loaded,
            **texts.given(),
            site=site,
            over=sites_in(over),
            metric=metric,
            how=how,
            layers=layers,
            heads=heads,
            positions=positions,
            align=align,
            estimate=estimate,
            steps=steps,
            exact_top=exact_top,
            batch_size=batch_size,
            out=where.out_dir,
            resume=where.resume,
            progress=progress,
        )
    named = f"{shlex.quote(model)} {texts.typed()}"
    matched = "" if align is None else f" --align {align}"
    looked_at = "" if metric == "logit_difference" else f" --metric {metric}"
    if (site, sites_in(over)) != _HEADS:
        then = f"patch {named}{matched}{looked_at} --site z --over layer,head"
    elif loaded.dims.arch == "dec" and not matched:
        then = f"edges {named}{looked_at}"
    else:
        then = f"patch {named}{matched}{looked_at} --site mlp_out"
    report(found, where, then)
