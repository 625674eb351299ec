"""`traceformer ablate`: what a model loses without one of its heads, MLPs or layers."""

import shlex
from functools import partial
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import Indices, count
from traceformer.cli.choices import SEVERAL, EngineChoice, Loading, SweepPlace, sites_in
from traceformer.cli.effects import report
from traceformer.progress import steps_shown

__all__ = ["ablate"]

_WHAT = Group.create_ordered("What is ablated")
_LAYERS = ("attn_out", "mlp_out")


def ablate(
    model: Annotated[str, Parameter(name="MODEL")],
    texts: Annotated[str, Parameter(name="TEXTS")] = "demo",
    /,
    *,
    split: str | None = None,
    limit: Annotated[int | Literal["all"], count("N|all")] = 32,
    site: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="SITE..."), SEVERAL] = ("z",),
    how: Annotated[Literal["zero", "mean", "resample"], Parameter(group=_WHAT)] = "mean",
    together: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="LxHy..."), SEVERAL] = (),
    draws: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 0,
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    heads: Annotated[Indices, Parameter(group=_WHAT)] = None,
    seed: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 0,
    where: SweepPlace = SweepPlace(),  # noqa: B008
    batch_size: Annotated[int, count("N")] = 16,
    loading: Loading = Loading(),  # noqa: B008
    engine: EngineChoice = EngineChoice(),  # noqa: B008
) -> None:
    """What a model loses without one of its heads, MLPs or layers.

    Each is replaced in all positions, by zeros, by its mean over the texts, or by what it is in another text, and the
    loss of next tokens without it, less the loss with it, is its effect.

    Example: `traceformer ablate byte demo --limit 8 --how zero`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        texts: A data set or a file, as in `traceformer extract`.
        split: Which part of the data set.
        limit: The first N texts, or all.
        site: z for heads, attn_out, mlp_out; several are ablated at once: attn_out,mlp_out is a layer.
        how: What takes its place.
        together: Heads that are ablated all at once, in the place of one after the other: L2H3,L3H1.
        draws: Compare with as many other heads, drawn at random N times.
        layers: Which layers; all by default.
        heads: Which heads; all by default.
        seed: Of the texts, or heads, that are drawn.
        batch_size: Texts that share a pass.
    """
    from traceformer.questions.ablate import ablate_on
    from traceformer.questions.ablation import Asked

    where.check()
    workers = engine.chosen()
    asked = Asked(
        texts=texts,
        site=sites_in(site),
        how=how,
        together=sites_in(together),
        draws=draws,
        layers=layers,
        heads=heads,
        seed=seed,
        limit=None if limit == "all" else limit,
        split=split,
        batch_size=batch_size,
        resume=where.resume,
    )
    load = partial(loading.load, model, with_head=True)
    with where.keeping(), steps_shown("ablating") as progress:
        found = ablate_on(workers, load, asked, where.out_dir, progress)
    if sites_in(site) == _LAYERS:
        then = f"heads --model {shlex.quote(model)} --roles"
    else:
        then = f"ablate {shlex.quote(model)} {shlex.quote(texts)} --site attn_out,mlp_out"
    report(found, where, then)
