"""Small pictures of attention patterns, which lose no line however thin it is.

1. Queries and keys are cut into at most 32 parts each, as equal as whole numbers allow.
2. A cell is what the queries of one part give to the keys of another together, on average over these queries. So a row
   of cells adds up to what a row of the pattern does, which is 1, and up to 32 tokens the cells are the pattern itself.
   A diagonal one token wide stays 1 at any length, where the mean over an area would be 1/128 of it at 4,096 tokens.
3. A pixel is 255 times the square root of its cell, rounded: weights of a few per cent can be seen.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from traceformer.shapes import Float, Int64, UInt8

__all__ = ["SIDE", "long_thumbnail", "part_starts", "thumbnail"]

SIDE = 32
"""Cells of a side, at most."""

# numpy converts float16 one number at a time, and numbers below 6e-5, of which patterns are full, ten times slower.
_OF_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def part_starts(length: int, side: int = SIDE) -> Int64[np.ndarray, "part"]:
    """Returns where each of at most `side` parts of so many tokens begins."""
    parts = min(length, side)
    return np.arange(parts) * length // max(1, parts)


def thumbnail(pattern: Float[np.ndarray, "*lead query key"], side: int = SIDE) -> UInt8[np.ndarray, "*lead row column"]:
    """Returns patterns in at most `side` x `side` pixels each.

    thumbnail(run.attn(0, layer=2, head=3))
    """
    *lead, queries, keys = pattern.shape
    rows, columns = part_starts(queries, side), part_starts(keys, side)
    if queries == 0 or keys == 0:
        return np.zeros((*lead, len(rows), len(columns)), np.uint8)
    given = np.add.reduceat(np.add.reduceat(_widened(pattern), rows, axis=-2), columns, axis=-1)
    return _pixels(given, rows, queries)


def long_thumbnail(
    read: Callable[[slice], Float[np.ndarray, "_ key"]], queries: int, keys: int, most: int, side: int = SIDE
) -> UInt8[np.ndarray, "row column"]:
    """Returns a pattern in at most `side` x `side` pixels, of which some rows are read at a time: `most` cells."""
    rows, columns = part_starts(queries, side), part_starts(keys, side)
    given, step = np.zeros((len(rows), len(columns))), max(1, most // max(1, keys))
    for part, (start, stop) in enumerate(pairwise([*rows.tolist(), queries])):
        for first in range(start, stop, step):
            block = _widened(read(slice(first, min(first + step, stop))))
            given[part] += np.add.reduceat(block.sum(axis=0, dtype=np.float64), columns)
    return _pixels(given, rows, queries)


def _widened(pattern: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    return np.take(_OF_HALF, pattern.view(np.uint16), mode="wrap") if pattern.dtype == np.float16 else pattern


def _pixels(
    given: Float[np.ndarray, "*lead row column"], rows: Int64[np.ndarray, "row"], queries: int
) -> UInt8[np.ndarray, "*lead row column"]:
    """Bytes for what the queries of each part give together."""
    means = given / np.diff(rows, append=queries).astype(np.float32)[:, None]
    return np.rint(255 * np.sqrt(means.clip(0, 1))).astype(np.uint8)
