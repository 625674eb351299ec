"""Squares of one size out of the matrices of all texts: what a model of attention patterns is trained on.

1. Of each text that is long enough the first `size` queries and keys are taken, or as many from a random place on
   (`crop="random"`: another one in each epoch). The first ones of a causal pattern are the pattern of the text's
   beginning, whose rows add up to one; elsewhere, and where a pattern looks both ways, weight on other keys is cut off.
2. Shorter texts are left out, or padded with zeros (`pad`), and the mask says what is theirs.
3. All layers and heads that were asked for are squares of their own. A text's are read together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import SelectionError, check_choice, check_whole
from traceformer.shapes import Bool, Int64, Num
from traceformer.sites import ArraySpec
from traceformer.store.arrays import Numbers, RunArrays, find_numbers
from traceformer.store.dtypes import ON_DISK, ReadDtype, dtype_read
from traceformer.store.names import Stored
from traceformer.store.training_order import Part
from traceformer.store.zarr3 import numbers_of

__all__ = ["Crop", "SquareItems", "SquareShape", "Squares", "square_items"]

Crop: TypeAlias = Literal["first", "random"]
"""Which queries and keys of a longer text a square has."""


class Squares(NamedTuple):
    """Some squares, and where each of them is from.

    Attributes:
        values: The matrices, with zeros where a text is shorter.
        lengths: How many of the queries and keys are a text's: `size`, unless the text is shorter.
        examples: The rows of the texts in `tokens`.
        starts: The token that is a square's first query and key.
        layers: The model's own numbers.
        heads: The model's own numbers.
    """

    values: Num[np.ndarray, "square query key"]
    lengths: Int64[np.ndarray, "square"]
    examples: Int64[np.ndarray, "square"]
    starts: Int64[np.ndarray, "square"]
    layers: Int64[np.ndarray, "square"]
    heads: Int64[np.ndarray, "square"]

    @property
    def mask(self) -> Bool[np.ndarray, "square token"]:
        """Which of the queries, and of the keys, are tokens of the text."""
        return np.arange(self.values.shape[-1]) < self.lengths[:, None]


class SquareShape(NamedTuple):
    """How squares are cut out of matrices; see the top of this file. `seed` is that of random crops."""

    size: int
    crop: Crop
    pad: bool
    seed: int


@dataclass(frozen=True, slots=True)
class SquareItems:
    """The squares of a run as items of a training, a piece being a text; see `Items`.

    `rows` are the texts that are used, `lengths` theirs; `layers` and `heads` are the model's numbers.
    """

    arrays: RunArrays
    spec: ArraySpec
    stored: Stored
    rows: Int64[np.ndarray, "text"]
    lengths: Int64[np.ndarray, "text"]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    shape: SquareShape
    dtype: ReadDtype

    @property
    def counts(self) -> Int64[np.ndarray, "text"]:
        return np.full(len(self.rows), len(self.layers) * len(self.heads), np.int64)

    @property
    def item_bytes(self) -> int:
        return self.shape.size**2 * ON_DISK[self.stored].itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return dtype_read(self.stored, self.dtype)

    def read(self, parts: Sequence[Part], epoch: int) -> Squares:
        """Returns the squares of some texts, one behind the other, as they are stored."""
        found = _empty(sum(part.stop - part.first for part in parts), self.shape.size, ON_DISK[self.stored])
        at, in_layer = 0, len(self.heads)
        for piece, first, stop in parts:
            row, length = int(self.rows[piece]), int(self.lengths[piece])
            start, inside = self._start(row, length, epoch), min(self.shape.size, length)
            for number in range(first // in_layer, -(-stop // in_layer)):
                begin = number * in_layer
                heads = self.heads[max(first - begin, 0) : stop - begin]
                here = slice(at, at + len(heads))
                whole = self.arrays.squares(self.spec, row, self.layers[number], heads, range(start, start + inside))
                found.values[here, :inside, :inside] = whole[..., start : start + inside]
                found.lengths[here], found.examples[here], found.starts[here] = inside, row, start
                found.layers[here], found.heads[here] = self.layers[number], heads
                at = here.stop
        return found

    def _start(self, row: int, length: int, epoch: int) -> int:
        if self.shape.crop == "first" or length <= self.shape.size:
            return 0
        random = np.random.default_rng([self.shape.seed, epoch, 0, 1 + row])
        return int(random.integers(0, length - self.shape.size + 1))

    def batch(self, window: Squares, places: Int64[np.ndarray, "item"]) -> Squares:
        """Returns those of a window's squares, as numbers."""
        values, *others = (each[places] for each in window)
        return Squares(numbers_of(values, self.stored, self.dtype), *others)

    def joined(self, batches: Sequence[Squares]) -> Squares:
        return Squares(*map(np.concatenate, zip(*batches, strict=True)))


def square_items(
    arrays: RunArrays,
    spec: ArraySpec,
    stored: Stored,
    lengths: Int64[np.ndarray, "example"],
    layer: Numbers,
    head: Numbers,
    shape: SquareShape,
    dtype: ReadDtype,
) -> SquareItems:
    """Returns the squares of some layers and heads of all texts, whose lengths are given.

    Raises:
        SelectionError: a layer or head is not stored; no text is as long as a square; or queries and keys are not of
            the same text.
    """
    check_whole("size", shape.size, 1)
    check_whole("seed", shape.seed, 0)
    check_choice("crop", shape.crop, ("first", "random"))
    dtype_read(stored, dtype)
    if not spec.site.is_matrix:
        raise SelectionError(f"squares of {spec.key}", why="it is no (query, key) matrix", hint="attn_pattern is one")
    if spec.key.key_stack != spec.key.stack:
        raise SelectionError(f"squares of {spec.key}", why="its queries and keys are of two texts")
    layers = find_numbers("layer", layer, spec.layers, of=str(spec.key))
    heads = find_numbers("head", head, spec.heads, of=str(spec.key))
    rows = np.flatnonzero(lengths >= (1 if shape.pad else shape.size))
    if not len(rows):
        raise SelectionError(
            f"squares of {shape.size} tokens",
            why=f"the longest of {len(lengths)} texts has {int(lengths.max(initial=0))}",
            hint="a smaller size, or pad=True, which fills shorter texts with zeros",
        )
    return SquareItems(
        arrays,
        spec,
        stored,
        rows,
        lengths[rows],
        tuple(dict.fromkeys(layers)),
        tuple(dict.fromkeys(heads)),
        shape,
        dtype,
    )


def _empty(count: int, size: int, dtype: np.dtype[Any]) -> Squares:
    return Squares(np.zeros((count, size, size), dtype), *(np.zeros(count, np.int64) for _ in range(5)))
