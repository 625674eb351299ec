"""`traceformer lens`: what a model would say after each of its layers."""

import json as json_text
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter
from rich.cells import cell_len, set_cell_size

from traceformer.cli.arguments import FILE_ON_DISK, Indices, count, open_example
from traceformer.cli.terminal import table
from traceformer.errors import UsageError
from traceformer.progress import steps_shown
from traceformer.sites import parse_indices
from traceformer.texts.shown import printable, visible

if TYPE_CHECKING:
    from traceformer.analysis.lens import Lens, Translated

__all__ = ["lens"]

_WHICH = Group.create_ordered("What is read out")
_THROUGH = Group.create_ordered("Through what")
_SHOWN = Group.create_ordered("How it is shown")
_CELLS = 11  # of a token's text in the grid, at most


def lens(
    run: Annotated[str, Parameter(name="RUN", group=_WHICH)],
    /,
    *,
    example: Annotated[str | None, Parameter(group=_WHICH)] = None,
    layers: Annotated[Indices, Parameter(group=_WHICH)] = None,
    position: Annotated[Indices, Parameter(group=_WHICH)] = None,
    top_k: Annotated[int | None, Parameter(show_default="3", group=_WHICH), count("K")] = None,
    translators: Annotated[Path | None, Parameter(name="--with", metavar="FILE", group=_THROUGH)] = None,
    model: Annotated[Path | None, Parameter(metavar="FOLDER", group=_THROUGH)] = None,
    adapter: Annotated[str | None, Parameter(metavar="FOLDER|NAME", group=_THROUGH)] = None,
    allow_pickle: Annotated[bool, Parameter(group=_THROUGH)] = False,
    png: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_SHOWN)] = None,
    mark: Annotated[Literal["probability", "rank", "kl", "entropy"] | None, Parameter(group=_SHOWN)] = None,
    json: Annotated[bool, Parameter(group=_SHOWN)] = False,
) -> None:
    """What the model would say after each layer (logit lens).

    The model's own final norm, unembedding and softcap, read from its folder, are applied to what every layer left in
    the residual stream; --with FILE translates that before (tuned lens, Jacobian lens). Shown is the likeliest next
    token at every position and layer; with --position the K likeliest of every layer, and the probability and rank of
    the token that came. The model is not run; its files must be those that the run was recorded with. Of a run that
    holds what was read out while recording (--lens-top-k) and no residual stream, that is shown, and no model is
    needed.

    Example: `traceformer lens latest --example 0`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. It holds resid_post, hidden, or lens_topk.
        example: An example's id, or its row number; the first one by default.
        top_k: How many of the likeliest tokens to list; of a run recorded with --lens-top-k all by default.
        layers: Which layers; all that are stored by default.
        position: Which positions; all by default.
        translators: A lens of this model: a file of `traceformer fit-lens`, a published Jacobian lens (.pt), or the
            folder that the package tuned-lens saved one in.
        model: Where the model's folder is now, if it was moved.
        adapter: Where the folder of its adapter is now, likewise.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        png: Save a picture of all layers and positions, in the format that the ending names.
        mark: What the picture's colour says: the probability of the likeliest token (by default), the rank of the token
            that came, the divergence of what the last layer says, or the entropy.
        json: Print a JSON object.
    """
    import numpy as np

    from traceformer.questions.lens import lens as read_lens

    if mark is not None and png is None:
        raise UsageError("--mark without a picture", why="it says what the picture's colours are", hint="--png FILE")
    store, example_id = open_example(run, example)
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    at_hand = None
    if adapter is not None or allow_pickle:
        from traceformer.questions.model_of_run import load_model_of

        at_hand = load_model_of(store, model=model, adapter=adapter, allow_pickle=allow_pickle)
    with steps_shown("reading out") as progress:
        found = read_lens(
            store,
            example_id,
            layers=None if layers is None else parse_indices(layers),
            positions=None if position is None else parse_indices(position),
            top_k=top_k,
            translators=translators,
            model=at_hand or model,
            progress=progress,
        )
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.lens(found, mark=mark or "probability", title=f"{store.name}  example {found.example_id}"), png)
    if json:
        print(json_text.dumps({"run": str(store.folder), **found.to_json()}, indent=2))
        return
    print(f"{found.key}  example {printable(found.example_id)}: the likeliest next token after each layer")
    print("" if found.translated is None else f"{_through(found.translated)}\n")
    if position is None:
        print(_grid(found))
    else:
        print("\n\n".join(_one_position(found, i) for i in range(len(found.positions))))
    surest = int(np.nanargmax(found.top_probabilities[-1, :, 0]))
    through = "" if translators is None else f"--with {shlex.quote(printable(str(translators)))} "
    then = f"--png {store.name}-lens.png" if position is not None else f"--position {found.positions[surest]}"
    made = "" if png is None else f"wrote {png}; "
    named = shlex.quote(printable(found.example_id))
    again = f"lens {store.folder} --example {named} {through}{then}"
    if position is not None and png is not None:
        again = f"inspect {store.folder} --example {named}"
    print(f"{made}next: traceformer {again}", file=sys.stderr)


def _through(translated: "Translated") -> str:
    """Which translators the rows went through, and whether they are known to be this model's."""
    layers = ", ".join(f"L{layer}" for layer in translated.layers)
    known = {
        "digest": "fitted to these weights",
        "name": "of a model of this name; the file does not say of which weights",
        "width": "as wide as this model; the file does not say that they are its own",
    }
    return printable(f"{translated}, {known[translated.known_by]}: {layers} translated")


def _grid(found: "Lens") -> str:
    """A line per position, a column per layer: as many layers, evenly spaced, as fit the terminal."""
    import numpy as np

    width = shutil.get_terminal_size((100, 24)).columns
    fixed = 8 + 2 + _CELLS + 2 + 3 + _CELLS
    room = max(1, (width - fixed) // (_CELLS + 2))
    n_layers = len(found.layers)
    shown = sorted({round(i) for i in np.linspace(n_layers - 1, 0, min(room, n_layers))})
    targets = found.target_tokens
    rows = [
        (
            str(position),
            _fit(found.tokens[i]),
            *(_fit(found.names[int(found.top_ids[layer, i, 0])]) for layer in shown),
            "" if (target := targets[i]) is None else _fit(target),
        )
        for i, position in enumerate(found.positions)
    ]
    headers = ("position", "token", *(f"L{found.layers[layer]}" for layer in shown), "came")
    lines = [table(headers, rows, numeric=(0,))]
    if len(shown) < n_layers:
        lines += ["", f"{len(shown)} of {n_layers} layers fit the width; --layers chooses others, --json has all"]
    return "\n".join(lines)


def _one_position(found: "Lens", i: int) -> str:
    import numpy as np

    target, known = found.target_tokens[i], not np.isnan(found.entropy[:, i]).all()
    has_kl = not np.isnan(found.kl[:, i]).all()
    rows = [
        (
            f"L{layer}",
            *((f"{found.entropy[row, i]:.2f}",) if known else ()),
            *((f"{found.kl[row, i]:.3g}",) if has_kl else ()),
            *_of_target(found, row, i),
            "  ".join(
                f"{visible(found.names[int(token_id)])} {probability:.3g}"
                for token_id, probability in zip(found.top_ids[row, i], found.top_probabilities[row, i], strict=True)
            ),
        )
        for row, layer in enumerate(found.layers)
    ]
    title = f"position {found.positions[i]}, {visible(found.tokens[i])}"
    title += "; nothing came next" if target is None else f"; what came next is {visible(target)}"
    headers = ("layer", *(("entropy",) if known else ()), *(("KL",) if has_kl else ()), "came", "rank", "likeliest")
    return f"{title}\n" + table(headers, rows, numeric=range(1, len(headers) - 1))


def _of_target(found: "Lens", row: int, i: int) -> tuple[str, str]:
    """Probability and rank of the token that came next, where these are known."""
    rank = int(found.target_rank[row, i])
    return (f"{found.target_probability[row, i]:.3g}", str(rank)) if rank else ("", "")


def _fit(token: str) -> str:
    text = visible(token)
    return text if cell_len(text) <= _CELLS else set_cell_size(text, _CELLS - 1) + "…"
