"""`traceformer compare`: how two runs over the same texts differ."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import FILE_ON_DISK, Indices, count
from traceformer.cli.choices import SEVERAL
from traceformer.progress import steps_shown

if TYPE_CHECKING:
    from traceformer.analysis.comparison import Comparison

__all__ = ["compare"]

_WHAT = Group.create_ordered("What is compared")
_MODELS = Group.create_ordered("Models, where logits are not stored")


def compare(
    run_a: Annotated[str, Parameter(name="RUN_A")],
    run_b: Annotated[str, Parameter(name="RUN_B")],
    /,
    *,
    parts: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="PART...", show_default=False), SEVERAL] = (),
    site: Annotated[str | None, Parameter(group=_WHAT, metavar="SITE")] = None,
    side: Annotated[Literal["enc", "dec"] | None, Parameter(group=_WHAT)] = None,
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    heads: Annotated[Indices, Parameter(group=_WHAT)] = None,
    all_pairs: Annotated[bool, Parameter(group=_WHAT)] = False,
    align: Annotated[Literal["characters", "start"] | None, Parameter(group=_WHAT)] = None,
    limit: Annotated[int | None, Parameter(group=_WHAT), count("N")] = None,
    model_a: Annotated[Path | None, Parameter(group=_MODELS, metavar="FOLDER")] = None,
    model_b: Annotated[Path | None, Parameter(group=_MODELS, metavar="FOLDER")] = None,
    png: Annotated[Path | None, FILE_ON_DISK] = None,
    json: bool = False,
) -> None:
    """How two runs over the same texts differ: what they predict, their layers, and their heads.

    Of the next token's prediction, the Kullback-Leibler divergence both ways, in nats; of each pair of layers, linear
    CKA without bias (1 is alike) and the orthogonal Procrustes distance (0 is alike, 2 the furthest); of each head,
    the total variation of its attention (0 is alike, 1 looks elsewhere altogether). What the runs do not both hold is
    left out, and said.

    Example: `traceformer compare dense sparse --png dense-sparse.png`

    Args:
        run_a: A folder, the name of a run in ./traces, or `latest`: A.
        run_b: Another: B.
        parts: readouts streams heads; all that both runs hold by default.
        site: The activations that are compared as streams; resid_post by default, or what there is.
        side: Which stack of two encoder-decoders.
        layers: Which layers of both runs; all that are stored by default.
        heads: Which heads of both runs; all that are stored by default.
        all_pairs: Compare each head with every one of the other run.
        align: Match other tokens where both end at the same character, or as far as both texts begin with the same.
        limit: The first N texts that both have.
        model_a: Where the folder of A's model is now, if it was moved.
        model_b: Where the folder of B's model is now, if it was moved.
        png: Save a picture of all of it, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.questions.compare import compare as compared
    from traceformer.store.folders import open_run

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    named = [name for several in parts for name in several.split(",") if name]
    with steps_shown("comparing") as progress:
        found = compared(
            open_run(run_a),
            open_run(run_b),
            parts=named or None,
            site=site,
            side=side,
            layers=layers,
            heads=heads,
            all_pairs=all_pairs,
            align=align,
            limit=limit,
            model_a=model_a,
            model_b=model_b,
            progress=progress,
        )
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.comparison(found), png)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
    else:
        from traceformer.cli.compared import as_text

        print(as_text(found))
    made = "" if png is None else f"wrote {png}; "
    print(f"{made}next: traceformer {_next(found, run_a, run_b, png)}", file=sys.stderr)


def _next(found: "Comparison", run_a: str, run_b: str, png: Path | None) -> str:
    both = f"{shlex.quote(run_a)} {shlex.quote(run_b)}"
    if png is None:
        return f"compare {both} --png compared.png"
    if found.heads is not None and not found.heads.all_pairs:
        return f"compare {both} --parts heads --all-pairs"
    return f"inspect {shlex.quote(run_a)}"
