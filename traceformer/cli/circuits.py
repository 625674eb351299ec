"""`traceformer circuits`: what the weights of a model say of its heads."""

import json as json_text
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import FILE_ON_DISK, count
from traceformer.cli.terminal import table
from traceformer.progress import steps_shown

if TYPE_CHECKING:
    from traceformer.analysis.circuits import Circuits

__all__ = ["circuits"]


def circuits(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    top: Annotated[int, count("N")] = 8,
    figure: Annotated[Path | None, FILE_ON_DISK] = None,
    json: bool = False,
) -> None:
    """What the weights alone say of each attention head, and which heads feed which.

    Nothing is run: the weights are read from safetensors, with the norm before each projection folded in. Of each head:
    its copying score (the eigenvalues of what it makes of a token's own logit), the effective ranks of what it moves
    and of what it looks for, and, where positions were learned, how well they alone find the token before. Of each pair
    of heads: Q, K and V composition, how much of what the earlier one writes the later one reads.

    Example: `traceformer circuits byte --figure circuits.png`

    Args:
        model: A Hugging Face model name that is in its cache, a folder with safetensors, or a built-in model.
        top: How many heads and edges to list.
        figure: Save a picture: copying scores, and the strongest compositions, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.questions.circuits import circuits as read_circuits

    if figure is not None:
        from traceformer.figures.style import check_format

        check_format(figure)
    with steps_shown("reading weights") as progress:
        found = read_circuits(model, progress=progress)
    if figure is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.circuits(found), figure)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
        return
    n_layers, n_heads = found.shape
    print(f"{found.model}: {n_layers} layers of {n_heads} heads, from weights", end="\n\n")
    print(table(("highest", *("",) * min(top, n_layers * n_heads)), list(_highest(found, top))), end="\n\n")
    rows = [(edge.kind, *edge.names, f"{edge.score:.3f}") for edge in found.strongest(top)]
    print(table(("composition", "of", "with", "score"), rows, numeric=(3,)))
    for column, why in found.notes.items():
        print(f"{column}: {why}", file=sys.stderr)
    made = "" if figure is None else f"wrote {figure}; "
    print(f"{made}next: traceformer heads --model {shlex.quote(model)} --roles", file=sys.stderr)


def _highest(found: "Circuits", top: int) -> Iterator[tuple[str, ...]]:
    """A line per number, with the heads that have most of it."""
    import numpy as np

    n_heads = found.shape[1]
    for name, values in found.values.items():
        if np.isnan(values).all():
            continue
        order = np.argsort(-np.nan_to_num(values, nan=-np.inf).reshape(-1), kind="stable")[:top].tolist()
        yield name, *(f"L{n // n_heads}H{n % n_heads} {values.flat[n]:.2f}" for n in order)
