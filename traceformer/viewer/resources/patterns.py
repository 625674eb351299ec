"""The pattern of one head, as a picture and as numbers.

1. The stored matrix is read whole, and kept: a row, a column and a picture of it come out of it.
2. A long text's picture is of bytes: 255 times the square root of each weight's share of the largest. First comes a
   small one, in which a byte stands for a block of cells, the largest of them.
3. Numbers are float32, which holds what is stored exactly.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from traceformer.errors import Unsupported
from traceformer.shapes import Float, Int64, Num, Shaped, UInt8
from traceformer.sites import ArraySpec
from traceformer.store.arrays import find_numbers
from traceformer.store.run import Run
from traceformer.viewer.arrays import example_asked, pattern_asked
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query
from traceformer.viewer.resources.alignment import alignment_of

__all__ = ["difference", "matrix", "row"]

_EXACT_CELLS = 512 * 512  # up to which a picture is of the numbers themselves
_SMALL_SIDE = 512
_DIFFERENCE_SIDE = 1024
_STRIP = 1 << 20  # cells that are worked on at once
_MOST_CELLS = 16_384 * 16_384


class _Head(NamedTuple):
    """One head's pattern of one example."""

    run: Run
    spec: ArraySpec
    example: int
    layer: int
    head: int

    @classmethod
    def asked(cls, library: Library, query: Query, of: str = "") -> "_Head":
        """Returns what `run`, `ex`, `attn`, `layer` and `head` mean, or the same fields with `of` behind, if given."""
        named = {name: query.values.get(f"{name}{of}", query.values.get(name, "")) for name in ("run", "ex", "attn")}
        run, example = example_asked(library, Query(named))
        spec = pattern_asked(run, Query(named))
        layer, head = (query.number(name + of if name + of in query.values else name) for name in ("layer", "head"))
        find_numbers("layer", layer, spec.layers, of=f"{spec.key}")
        find_numbers("head", head, spec.heads, of=f"{spec.key}")
        return cls(run, spec, example, layer, head)

    def stored(self, library: Library) -> Float[np.ndarray, "query key"]:
        """Returns its matrix in the stored precision.

        Raises:
            Unsupported: it is larger than what a viewer keeps.
        """
        queries, keys = (
            self.run.length(self.example, stack) for stack in (self.spec.key.stack, self.spec.key.key_stack)
        )
        if queries * keys > _MOST_CELLS:
            raise Unsupported(
                f"a picture of {queries} x {keys} cells",
                why=f"the viewer keeps patterns whole, and shows those of up to {math.isqrt(_MOST_CELLS)} tokens",
                hint="run.attn(example, layer, head, queries=slice(0, 1000)) reads some rows",
            )
        read = partial(self.run.get, self.example, self.spec.key, self.layer, self.head, dtype="stored")
        return library.once(("pattern", *self), read)

    def picture(self, library: Library, block: int) -> "_Picture":
        return library.once(("picture", *self, block), lambda: _picture_of(self.stored(library), block))


class _Picture(NamedTuple):
    """A pattern, or the largest of each of its blocks, in bytes: 255 times the root of a share of the largest one."""

    pixels: UInt8[np.ndarray, "row column"]
    largest: float


def matrix(library: Library, query: Query) -> Packet:
    """Returns a head's pattern: its `values`, or `pixels` if the text is long or `form` is `small` or `pixels`."""
    form = query.choice("form", ("whole", "small", "pixels"), "whole")
    head = _Head.asked(library, query)
    stored = head.stored(library)
    about = {
        "queries": stored.shape[0],
        "keys": stored.shape[1],
        "block": 1,
        "stored": head.run.layout.stored(head.spec),
    }
    if stored.size <= _EXACT_CELLS and form != "pixels":
        largest = float(stored.max()) if stored.size else 0.0
        return Packet({"values": stored.astype(np.float32)}, {**about, "largest": largest})
    block = math.ceil(max(stored.shape) / _SMALL_SIDE) if form == "small" else 1
    picture = head.picture(library, block)
    return Packet({"pixels": picture.pixels}, {**about, "block": block, "largest": picture.largest})


def row(library: Library, query: Query) -> Packet:
    """Returns what the query `q` gives to each key, `row`, and what the key `k` gets from each query, `column`."""
    head = _Head.asked(library, query)
    stored = head.stored(library)
    found: dict[str, Float[np.ndarray, "position"]] = {}
    for name, field, axis in (("row", "q", 0), ("column", "k", 1)):
        if field in query.values:
            position = query.number(field)
            find_numbers("position", position, range(stored.shape[axis]), of="the queries" if axis == 0 else "the keys")
            found[name] = stored.take(position, axis).astype(np.float32)
    return Packet(found, {"queries": stored.shape[0], "keys": stored.shape[1]})


def difference(library: Library, query: Query) -> Packet:
    """Returns one pattern less another on the tokens that both texts have: `values`, NaN where one has no counterpart.

    The other is `run2`, `ex2`, `layer2`, `head2`; what is not given is as of the first. Rows and columns are those of
    the first. Of long texts a value stands for a block of cells, the one that is farthest from zero.

    Raises:
        Unsupported: no token of the one text is in the other.
    """
    first, second = _Head.asked(library, query), _Head.asked(library, query, of="2")
    ours, theirs = first.stored(library), second.stored(library)
    key = first.spec.key
    queries, keys = (
        alignment_of(library, (first.run, first.example), (second.run, second.example), stack).positions
        for stack in (key.stack, key.key_stack)
    )
    if not len(queries[0]) or not len(keys[0]):
        raise Unsupported(
            "A − B cannot be shown", why="the two texts have no token in common", hint="A and B beside each other"
        )
    block = math.ceil(max(ours.shape) / _DIFFERENCE_SIDE)
    values = _less(ours, theirs, queries, keys, block)
    about = {
        "queries": ours.shape[0],
        "keys": ours.shape[1],
        "aligned_queries": len(queries[0]),
        "aligned_keys": len(keys[0]),
        "block": block,
        "largest": float(np.nanmax(np.abs(values))),
    }
    return Packet({"values": values}, about)


Pairs = tuple[Int64[np.ndarray, "pair"], Int64[np.ndarray, "pair"]]


def _less(
    ours: Float[np.ndarray, "query key"],
    theirs: Float[np.ndarray, "other_query other_key"],
    queries: Pairs,
    keys: Pairs,
    block: int,
) -> Float[np.ndarray, "row column"]:
    """Returns the difference on pairs of positions, of each block the number that is farthest from zero."""
    values = np.empty([math.ceil(size / block) for size in ours.shape], np.float32)
    step = block * max(1, _STRIP // (block * ours.shape[1]))
    for start in range(0, len(ours), step):
        rows = slice(*np.searchsorted(queries[0], (start, start + step)))
        strip = np.zeros((min(step, len(ours) - start), ours.shape[1]), np.float32)
        less = ours[_cells(queries[0][rows], keys[0])].astype(np.float32) - theirs[_cells(queries[1][rows], keys[1])]
        strip[_cells(queries[0][rows] - start, keys[0])] = less
        values[start // block : (start + step) // block] = _farthest(strip, block)
    for axis, (size, pairs) in enumerate(zip(values.shape, (queries[0], keys[0]), strict=True)):
        values[(slice(None),) * axis + (~np.isin(range(size), pairs // block),)] = np.nan
    return values


def _cells(rows: Int64[np.ndarray, "row"], columns: Int64[np.ndarray, "column"]) -> tuple[Any, ...]:
    """Returns the index of some rows and columns: as slices where none is left out, which is quicker."""
    gaps = [len(own) == 0 or own[-1] - own[0] >= len(own) for own in (rows, columns)]
    if all(gaps):
        return np.ix_(rows, columns)
    one, other = (own if gap else slice(own[0], own[-1] + 1) for own, gap in zip((rows, columns), gaps, strict=True))
    return one, other


def _picture_of(stored: Float[np.ndarray, "query key"], block: int) -> _Picture:
    """Of blocks come bytes last: there are fewer of them, and a small picture of a long text is there 30 ms sooner."""
    if stored.dtype == np.float16:
        halves = _halves(stored)
        largest = float(halves.max().view(np.float16))
        return _Picture(_pixels_of_halves(_largest(halves, block).view(np.float16), largest), largest)
    largest = float(stored.max())
    return _Picture(_pixels(_largest(stored, block), largest), largest)


def _pixels_of_halves(stored: Float[np.ndarray, "query key"], largest: float) -> UInt8[np.ndarray, "query key"]:
    """Returns the bytes of float16 by looking each of its 65,536 bit patterns up: ten times as fast as roots."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16)  # from zero to infinity
    table = np.zeros(1 << 16, np.uint8)
    table[: len(halves) - 1] = _pixels(halves[None, :-1], largest)[0]
    return table[_halves(stored)]


def _halves(stored: Float[np.ndarray, "query key"]) -> Shaped[np.ndarray, "query key"]:
    """Returns the bits of float16 that is not negative, which are in the order of the numbers."""
    return stored.view(np.uint16)


def _pixels(weights: Float[np.ndarray, "query key"], largest: float) -> UInt8[np.ndarray, "query key"]:
    pixels = np.empty(weights.shape, np.uint8)
    for strip in _strips(*weights.shape):
        share = weights[strip].astype(np.float32) / (largest or 1)
        pixels[strip] = np.rint(255 * np.sqrt(share.clip(0, 1)))
    return pixels


def _largest(cells: Num[np.ndarray, "query key"], block: int) -> Num[np.ndarray, "row column"]:
    """Returns the largest of each block; those at the ends may be smaller. There is a zero in any, or all are above."""
    if block == 1:
        return cells
    rows, columns = (math.ceil(size / block) for size in cells.shape)
    if cells.shape != (rows * block, columns * block):
        whole = np.zeros((rows * block, columns * block), cells.dtype)
        whole[: cells.shape[0], : cells.shape[1]] = cells
        cells = whole
    return cells.reshape(rows, block, -1).max(1).reshape(rows, columns, block).max(2)


def _farthest(values: Float[np.ndarray, "query key"], block: int) -> Float[np.ndarray, "row column"]:
    """Returns the number of each block that is farthest from zero."""
    if block == 1:
        return values
    top, bottom = _largest(values, block), -_largest(-values, block)
    return np.where(-bottom > top, bottom, top)


def _strips(rows: int, columns: int) -> list[slice]:
    step = max(1, _STRIP // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]
