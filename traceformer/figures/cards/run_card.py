"""A run at a glance: its model and texts, its arrays, and how every head of one example looks in small."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from traceformer.analysis.thumbnails import SIDE, part_starts, thumbnail
from traceformer.figures.cards.look import card, picture, said, spread, table
from traceformer.shapes import Float, Int64, UInt8
from traceformer.sites import ArraySpec, Stack
from traceformer.store.dtypes import ON_DISK
from traceformer.store.run import Run
from traceformer.units import amount_of_bytes

__all__ = ["run_card"]

_PIXELS = 60_000  # of all thumbnails together, four bits each
_CELLS = 32 << 20  # of patterns that are read for them
_TINT = 17  # of 255: the faintest colour of a picture that is not clear
_GAP = 2  # pixels between thumbnails
_WIDE = 56  # pixels of the screen that a thumbnail is to take, about
_WIDEST = 820  # pixels of the screen that all heads of a layer may take
_MOST_ARRAYS = 40
_STYLE = """\
.tf-card.tf-card .atlas :is(td,th){padding:0;text-align:center;vertical-align:middle;font-size:10px}
.tf-card.tf-card .atlas tbody th{padding-right:6px;text-align:right}
.tf-card.tf-card .atlas thead th{border:0}
"""


def run_card(run: Run) -> str:
    """Returns the card of a run."""
    folder = run.folder
    state = "in memory" if folder is None else "on disk" if isinstance(folder, Path) else "in a bucket"
    unfinished = "" if run.finished else ", unfinished: what is committed so far"
    return card(
        f"<p><b>{said(run.name)}</b> <span class=quiet>a run {state}{unfinished}</span></p>",
        "".join(f"<p>{line}</p>" for line in _facts(run)),
        _arrays(run),
        *_atlases(run),
        "<p class=quiet>In full: <code>run.show(0)</code>, or <code>traceformer view</code> on the command line.</p>",
        style=_STYLE,
    )


def _facts(run: Run) -> Iterator[str]:
    """Yields what was run on what, a line each."""
    about = run.about
    sizes = (_sizes(run, stack) for stack in run.layout.stacks)
    yield "; ".join(filter(None, (f"model <b>{said(about.model_and_adapter or 'unknown')}</b>", *sizes)))
    texts = " ".join(said(name) for name in (about.dataset, about.split) if name and name != "all")
    tokens = (f"{int(run.lengths(stack).sum()):,} {_of(run, stack)}tokens" for stack in run.layout.stacks)
    what = "response" if about.kind == "generation" else "example"
    counted = f"{run.n:,} {what}{'' if run.n == 1 else 's'}"
    yield ", ".join((f"{texts}: {counted}" if texts else counted, *tokens))
    if about.edits:
        names = ", ".join(f"{said(edit.get('kind'))} {said(edit.get('site'))}" for edit in about.edits[:6])
        yield f"<b>edited</b> while it ran: {names}{', …' if len(about.edits) > 6 else ''}"


def _sizes(run: Run, stack: Stack) -> str:
    dims = run.about.dims_of(stack)
    named = ((dims.n_layers, "layers"), (dims.n_heads, "heads"))
    counts = [f"{size} {name}" for size, name in named if size]
    width = [f"d_model {dims.d_model}"] if dims.d_model else []
    return _of(run, stack) + ", ".join([*counts, *width]) if counts or width else ""


def _of(run: Run, stack: Stack) -> str:
    """Which stack, where there are two."""
    return f"{'encoder' if stack == 'enc' else 'decoder'} " if run.arch == "encdec" else ""


def _arrays(run: Run) -> str:
    specs = run.layout.arrays
    sizes = [_values(run, spec) * ON_DISK[run.layout.held(spec)].itemsize for spec in specs]
    rows = [
        (said(spec.key), said(_dims(spec)), amount_of_bytes(size))
        for spec, size in zip(specs[:_MOST_ARRAYS], sizes, strict=False)
    ]
    several = f"{len(specs)} array{'s' * (len(specs) != 1)}"
    more = f", of which the first {_MOST_ARRAYS} are named here" if len(specs) > _MOST_ARRAYS else ""
    told = f"{several}{more}: {amount_of_bytes(sum(sizes))} of numbers ({said(run.dtype)}), before they are compressed"
    return table(("array", "of one example", "in all"), rows, numeric=(2,)) + f"<p class=quiet>{told}</p>"


def _dims(spec: ArraySpec) -> str:
    """`layer 4, head 8, query, key`: what has no number is as long as the example."""
    sizes = {"layer": len(spec.layers), "hidden_layer": len(spec.layers)}
    sizes |= dict.fromkeys(("head", "kv_head"), len(spec.heads))
    ragged = ("position", "query", "key")
    return ", ".join(axis if axis in ragged else f"{axis} {sizes.get(axis, spec.width)}" for axis in spec.site.axes)


def _values(run: Run, spec: ArraySpec) -> int:
    """How many numbers there are of all examples."""
    each = max(len(spec.layers), 1) * max(len(spec.heads), 1)
    if spec.site.is_matrix:
        queries, keys = (run.lengths(stack) for stack in (spec.key.stack, spec.key.key_stack))
        return each * int(queries @ keys)
    rows = run.n if spec.site.is_per_example else int(run.lengths(spec.key.token_stack).sum())
    return each * spec.width * rows


def _atlases(run: Run) -> Iterator[str]:
    """Yields thumbnails of the patterns of one example, for each attention that is recorded."""
    specs = [spec for spec in run.layout.arrays if spec.key.site == "attn_pattern"]
    if not specs:
        if run.n:
            yield "<p class=quiet>No attention patterns are recorded.</p>"
        return
    row = _small_enough(run, specs)
    if row is None:
        why = "No example has tokens." if not run.n or not _cells(run, specs).any() else "Patterns are too large here."
        yield f"<p class=quiet>{why}</p>"
        return
    for spec in specs:
        cells = int(run.length(row, spec.key.stack)) * int(run.length(row, spec.key.key_stack))
        if cells:
            yield _atlas(run, row, spec, _CELLS // len(specs) // cells, _PIXELS // len(specs))


def _cells(run: Run, specs: Sequence[ArraySpec]) -> Int64[np.ndarray, "example"]:
    """The cells of one pattern of every attention, summed, example by example."""
    return sum((run.lengths(spec.key.stack) * run.lengths(spec.key.key_stack) for spec in specs), np.zeros(run.n, int))


def _small_enough(run: Run, specs: Sequence[ArraySpec]) -> int | None:
    """The first example of whose every attention at least one pattern may be read."""
    cells = _cells(run, specs)
    fitting = np.flatnonzero((cells > 0) & (cells <= _CELLS // len(specs)))
    return int(fitting[0]) if len(fitting) else None


def _atlas(run: Run, row: int, spec: ArraySpec, most_read: int, pixels: int) -> str:
    lengths = [run.length(row, stack) for stack in (spec.key.stack, spec.key.key_stack)]
    count = len(spec.layers) * len(spec.heads)
    side = next((side for side in (SIDE, SIDE // 2) if count * _area(lengths, side) <= pixels), SIDE // 2)
    layers, heads = _shown(spec, min(most_read, pixels // _area(lengths, side)))
    tiles = [[_tile(run.get(row, spec.key, layer, head, dtype="stored"), side) for head in heads] for layer in layers]
    sheet = _sheet(tiles)
    rows, columns = tiles[0][0].shape
    zoom = max(1, min(round(_WIDE / max(columns, rows)), _WIDEST // sheet.shape[1]))
    wide, high = (zoom * (size + _GAP) for size in (columns, rows))
    image = picture(sheet, zoom=zoom, alternative=f"{spec.key}: attention of {len(layers)} layers x {len(heads)} heads")
    head = "".join(f'<th style="width:{wide}px;min-width:{wide}px">H{head}' for head in heads)
    first = f"<td colspan={len(heads)} rowspan={len(layers)}>{image}"
    body = "".join(
        f'<tr style="height:{high}px"><th>L{layer}{first if number == 0 else ""}</tr>'
        for number, layer in enumerate(layers)
    )
    size = f"{lengths[0]} x {lengths[1]}" if spec.key.attention == "cross" else f"{lengths[0]}"
    told = f"where each head looks in example {said(run.example_id(row))}, {size} tokens: queries down, keys across"
    if len(layers) * len(heads) < count:
        told += f"; shown are {len(layers)} of {len(spec.layers)} layers, {len(heads)} of {len(spec.heads)} heads"
    return (
        f"<p>{said(spec.key)} <span class=quiet>{told}</span></p>"
        f"<table class=atlas><thead><tr><th>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _area(lengths: Sequence[int], side: int) -> int:
    rows, columns = (len(part_starts(length, side)) + _GAP for length in lengths)
    return rows * columns


def _shown(spec: ArraySpec, most: int) -> tuple[list[int], list[int]]:
    """The layers and heads that there is room for: as many as fit of the larger number go first."""
    n_layers, n_heads = len(spec.layers), len(spec.heads)
    while n_layers * n_heads > max(most, 1):
        n_layers, n_heads = (n_layers - 1, n_heads) if n_layers >= n_heads else (n_layers, n_heads - 1)
    layers, heads = spread(len(spec.layers), n_layers), spread(len(spec.heads), n_heads)
    return [spec.layers[number] for number in layers], [spec.heads[number] for number in heads]


def _tile(pattern: Float[np.ndarray, "query key"], side: int) -> UInt8[np.ndarray, "row column"]:
    """A thumbnail from the faintest colour on, so that one sees where it ends; clear where a number is not known."""
    unknown = np.isnan(pattern)
    if not unknown.any():
        return _tinted(thumbnail(pattern, side))
    known = _tinted(thumbnail(np.where(unknown, np.zeros_like(pattern), pattern), side))
    return np.where(thumbnail(unknown.astype(np.float32), side) > 0, np.uint8(0), known)


def _tinted(pixels: UInt8[np.ndarray, "row column"]) -> UInt8[np.ndarray, "row column"]:
    return (_TINT + pixels.astype(np.uint16) * (255 - _TINT) // 255).astype(np.uint8)


def _sheet(tiles: Sequence[Sequence[UInt8[np.ndarray, "row column"]]]) -> UInt8[np.ndarray, "down across"]:
    """All thumbnails on one sheet."""
    rows, columns = tiles[0][0].shape
    sheet = np.zeros((len(tiles) * (rows + _GAP), len(tiles[0]) * (columns + _GAP)), np.uint8)
    for down, line in enumerate(tiles):
        for across, tile in enumerate(line):
            sheet[down * (rows + _GAP) :, across * (columns + _GAP) :][:rows, :columns] = tile
    return sheet
