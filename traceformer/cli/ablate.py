"""`traceformer ablate`: what a model loses without one of its heads, MLPs or layers."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import NAMED_FOLDER, Indices, count
from traceformer.cli.choices import SEVERAL, Loading, sites_in
from traceformer.cli.effects import save_figure, shown_effects, told_of
from traceformer.progress import steps_shown

__all__ = ["ablate"]

_WHAT = Group.create_ordered("What is ablated")
_WHERE = Group.create_ordered("Where it goes")


def ablate(
    model: Annotated[str, Parameter(name="MODEL")],
    texts: Annotated[str, Parameter(name="TEXTS")] = "demo",
    /,
    *,
    split: str | None = None,
    limit: Annotated[int, count("N")] = 32,
    site: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="SITE..."), SEVERAL] = ("z",),
    how: Annotated[Literal["zero", "mean", "resample"], Parameter(group=_WHAT)] = "mean",
    together: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="LxHy..."), SEVERAL] = (),
    draws: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 0,
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    heads: Annotated[Indices, Parameter(group=_WHAT)] = None,
    seed: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 0,
    out_dir: Annotated[Path | None, Parameter(group=_WHERE), NAMED_FOLDER] = None,
    resume: Annotated[bool, Parameter(group=_WHERE)] = False,
    png: Annotated[Path | None, Parameter(group=_WHERE, metavar="FILE")] = None,
    json: Annotated[bool, Parameter(group=_WHERE)] = False,
    batch_size: Annotated[int, count("N")] = 16,
    loading: Loading | None = None,
) -> None:
    """What a model loses without one of its heads, MLPs or layers.

    Each is replaced in all positions, by zeros, by its mean over the texts, or by what it is in another text, and the
    loss of next tokens without it, less the loss with it, is its effect.

    Example: `traceformer ablate byte demo --limit 8 --how zero`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        texts: A data set or a file, as in `traceformer extract`.
        split: Which part of the data set.
        limit: The first N texts.
        site: z for heads, attn_out, mlp_out; several are ablated at once: attn_out,mlp_out is a layer.
        how: What takes its place.
        together: Heads that are ablated all at once, in the place of one after the other: L2H3,L3H1.
        draws: Compare with as many other heads, drawn at random N times.
        layers: Which layers; all by default.
        heads: Which heads; all by default.
        seed: Of the texts, or heads, that are drawn.
        out_dir: A folder to write effects to, text by text.
        resume: Go on with an interrupted sweep of the same settings there.
        png: Save a map, in the format that the ending names.
        json: Print a JSON object.
        batch_size: Texts that share a pass.
    """
    from traceformer.questions.ablate import ablate as ablated

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    loaded = (loading or Loading()).load(model, with_head=True)
    with steps_shown("ablating") as progress:
        found = ablated(
            loaded,
            texts,
            site=sites_in(site),
            how=how,
            together=sites_in(together),
            draws=draws,
            layers=layers,
            heads=heads,
            seed=seed,
            limit=limit,
            split=split,
            batch_size=batch_size,
            out=out_dir,
            resume=resume,
            progress=progress,
        )
    made = save_figure(found, png)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
        return
    print(told_of(found), shown_effects(found), sep="\n\n")
    named = f"{shlex.quote(model)} {shlex.quote(texts)}"
    print(f"{made}next: traceformer ablate {named} --site attn_out,mlp_out", file=sys.stderr)
