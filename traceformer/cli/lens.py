"""`traceformer lens`: what a model would say after each of its layers."""

import json as json_text
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.cells import cell_len, set_cell_size

from traceformer.cli.arguments import count, find_example, find_run
from traceformer.cli.progress import steps_shown
from traceformer.cli.terminal import table
from traceformer.errors import ConfigurationChanged, NotFound, NotRecorded, Unsupported
from traceformer.sites import parse_indices
from traceformer.texts.shown import printable

if TYPE_CHECKING:
    from traceformer.analysis.lens import Lens
    from traceformer.models.readout import Readout
    from traceformer.store.run import TraceStore

__all__ = ["lens", "open_readout_of"]

_TOP = 3
_CELLS = 11  # of a token's text in the grid, at most
_Indices = Annotated[str | None, Parameter(metavar="I,J-K")]
# What transformers takes where an older config leaves it out, and an architecture row asks for it.
_LEFT_OUT = {"use_parallel_residual": True, "do_layer_norm_before": True, "is_gated_act": False}


def lens(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    example: str | None = None,
    top_k: Annotated[int | None, Parameter(show_default="3"), count("K")] = None,
    layers: _Indices = None,
    position: _Indices = None,
    model: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    png: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    json: bool = False,
) -> None:
    """What the model would say after each layer (logit lens).

    The model's own final norm, unembedding and softcap, read from its folder, are applied to what every layer left in
    the residual stream. Shown is the likeliest next token at every position and layer; with --position the K likeliest
    of every layer, and the probability and rank of the token that came. The model is not run; its files must be those
    that the run was recorded with. Of a run that holds what was read out while recording (--lens-top-k) and no residual
    stream, that is shown, and no model is needed.

    Example: `traceformer lens latest --example 0`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. It holds resid_post, hidden, or lens_topk.
        example: An example's id, or its row number; the first one by default.
        top_k: How many of the likeliest tokens to list; of a run recorded with --lens-top-k all by default.
        layers: Which layers; all that are stored by default.
        position: Which positions; all by default.
        model: Where the model's folder is now, if it was moved.
        png: Save a picture of all layers and positions, in the format that the ending names.
        json: Print a JSON object.
    """
    import numpy as np

    from traceformer.questions.lens import is_read_out, recorded_lens, run_lens
    from traceformer.questions.vocabulary import token_names, tokens_of
    from traceformer.store.run import TraceStore

    folder = find_run(run)
    store = TraceStore(folder)
    example_id = find_example(example, store.ids)
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    wanted = None if layers is None else parse_indices(layers)
    positions = None if position is None else parse_indices(position)
    if is_read_out(store):
        found = recorded_lens(store, example_id, layers=wanted, positions=positions, top=top_k)
    else:
        readout = open_readout_of(store, model)
        with steps_shown("reading out") as progress:
            found = run_lens(
                store,
                example_id,
                readout,
                layers=wanted,
                positions=positions,
                top=top_k or _TOP,
                progress=progress,
            )
    tokens, name = tokens_of(store, example_id, "dec"), token_names(store, None if model is None else str(model))
    if png is not None:
        from traceformer.figures.lens import lens_figure
        from traceformer.figures.style import save

        save(lens_figure(found, tokens, name, title=f"{folder.name}  example {example_id}"), png)
    if json:
        print(json_text.dumps({"run": str(folder), **_to_json(found, example_id, tokens, name)}, indent=2))
        return
    print(f"{found.key}  example {example_id}: the likeliest next token after each layer", end="\n\n")
    if position is None:
        print(_grid(found, tokens, name))
    else:
        print("\n\n".join(_one_position(found, i, tokens, name) for i in range(len(found.positions))))
    surest = int(np.nanargmax(found.top_probabilities[-1, :, 0]))
    then = f"--png {folder.name}-lens.png" if position is not None else f"--position {found.positions[surest]}"
    made = "" if png is None else f"wrote {png}; "
    print(f"{made}next: traceformer lens {folder} --example {example_id} {then}", file=sys.stderr)


def open_readout_of(store: "TraceStore", moved_to: Path | None = None) -> "Readout":
    """Returns the final norm and unembedding of a run's model, once it is known to be the model of the run.

    Raises:
        NotFound: its folder is not there.
        ConfigurationChanged: it is another model than when the run was recorded; both digests are named.
        Unsupported: its family's readout is not known.
    """
    from traceformer.models.families import architecture_of
    from traceformer.models.readout import open_readout
    from traceformer.models.weights import find_model_folder, read_config

    if store.arch == "enc":
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    source = str(store.meta.get("model"))
    try:
        folder = find_model_folder(str(moved_to or source), None if moved_to else store.meta.get("revision"))
    except NotFound as error:
        hint = "" if moved_to else "--model FOLDER says where it is now"
        raise NotFound(error.message, why=error.why, hint=hint) from error
    _check_unchanged(store, folder)
    config = read_config(folder)
    row = architecture_of(SimpleNamespace(**_LEFT_OUT | config)).stacks["dec"]
    return open_readout(folder, config, final_norm=row.final_norm, token_embed=row.token_embed)


def _check_unchanged(store: "TraceStore", folder: Path) -> None:
    from traceformer.models.weights import files_digest

    recorded: str | None = store.meta.get("model_files")
    what, now = "files", ""
    if recorded is not None:
        now = files_digest(folder)
    else:  # an older run, which knows the digest of the loaded weights only
        from traceformer.models.load import load_model

        what, recorded = "weights", store.meta["configuration"].get("model weights")
        if recorded is None:
            raise NotRecorded("this run does not say what weights its model had", hint="record it again")
        print("loading the model, to see whether it is the run's", file=sys.stderr)
        now = load_model(str(folder), dtype=store.meta.get("model_dtype")).digest
    if now != recorded:
        raise ConfigurationChanged(
            f"the model in {folder} is not the one that this run was recorded with",
            why=f"its {what} have digest {now}, the run's had {recorded}",
            hint="--model FOLDER, with the model as it was; or record the run again",
        )


def _grid(found: "Lens", tokens: Sequence[str], name: Callable[[int], str]) -> str:
    """A line per position, a column per layer: as many layers, evenly spaced, as fit the terminal."""
    import numpy as np

    width = shutil.get_terminal_size((100, 24)).columns
    fixed = 8 + 2 + _CELLS + 2 + 3 + _CELLS
    room = max(1, (width - fixed) // (_CELLS + 2))
    n_layers = len(found.layers)
    shown = sorted({round(i) for i in np.linspace(n_layers - 1, 0, min(room, n_layers))})
    rows = [
        (
            str(position),
            _fit(tokens[position]),
            *(_fit(name(int(found.top_ids[layer, i, 0]))) for layer in shown),
            _fit(name(int(found.came[i]))) if found.came[i] >= 0 else "",
        )
        for i, position in enumerate(found.positions)
    ]
    headers = ("position", "token", *(f"L{found.layers[layer]}" for layer in shown), "came")
    lines = [table(headers, rows, numeric=(0,))]
    if len(shown) < n_layers:
        lines += ["", f"{len(shown)} of {n_layers} layers fit the width; --layers chooses others, --json has all"]
    return "\n".join(lines)


def _one_position(found: "Lens", i: int, tokens: Sequence[str], name: Callable[[int], str]) -> str:
    import numpy as np

    came, known = int(found.came[i]), not np.isnan(found.entropy[:, i]).all()
    rows = [
        (
            f"L{layer}",
            *((f"{found.entropy[row, i]:.2f}",) if known else ()),
            *_of_came(found, row, i),
            "  ".join(
                f"{printable(name(int(token_id)))} {probability:.3g}"
                for token_id, probability in zip(found.top_ids[row, i], found.top_probabilities[row, i], strict=True)
            ),
        )
        for row, layer in enumerate(found.layers)
    ]
    position = found.positions[i]
    title = f"position {position}, {printable(tokens[position])!r}"
    title += f"; what came next is {printable(name(came))!r}" if came >= 0 else "; nothing came next"
    headers = ("layer", *(("entropy",) if known else ()), "came", "rank", "likeliest")
    return f"{title}\n" + table(headers, rows, numeric=range(1, len(headers) - 1))


def _of_came(found: "Lens", row: int, i: int) -> tuple[str, str]:
    """Probability and rank of the token that came, where these are known."""
    rank = int(found.came_rank[row, i])
    return (f"{found.came_probability[row, i]:.3g}", str(rank)) if rank else ("", "")


def _fit(token: str) -> str:
    text = printable(token)
    return text if cell_len(text) <= _CELLS else set_cell_size(text, _CELLS - 1) + "…"


def _to_json(found: "Lens", example_id: str, tokens: Sequence[str], name: Callable[[int], str]) -> dict[str, Any]:
    """Lists run over layers, and within each over positions."""
    from traceformer.cli.statistics import plain

    return {
        "example_id": example_id,
        "array": str(found.key),
        "layers": list(found.layers),
        "positions": list(found.positions),
        "tokens": [tokens[position] for position in found.positions],
        "came": [{"id": came, "token": name(came)} if came >= 0 else None for came in found.came.tolist()],
        "top_ids": found.top_ids.tolist(),
        "top_tokens": [[[name(each) for each in row] for row in layer] for layer in found.top_ids.tolist()],
        "top_probabilities": plain(found.top_probabilities),
        "entropy": plain(found.entropy),
        "came_probability": plain(found.came_probability),
        "came_rank": [[rank or None for rank in layer] for layer in found.came_rank.tolist()],
    }
