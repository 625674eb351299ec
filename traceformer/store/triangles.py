"""The lower triangle of a square, row after row: all that a causal pattern has.

Cell q(q + 1)/2 + k is query q's weight on key k, so n tokens fill the first n(n + 1)/2 cells, whatever there is
room for. The compiled core copies row after row, both ways.

Without it: into triangles rows are copied one by one, of all heads together (12 heads of 128 tokens take 0.08 ms, of
1024 3 ms): of boolean masks, `take`, and torch's `copy_`, `index_select` and `masked_select` none is faster from there
on. Out of triangles a boolean mask is, since numpy copies stretches of it (one head of 154 tokens takes 0.01 ms, of
1024 0.3).
"""

import numpy as np

from traceformer.core import kernels
from traceformer.core.library import core
from traceformer.shapes import Bool, Shaped

__all__ = ["fold", "n_cells", "unfold"]


def n_cells(tokens: int) -> int:
    """Returns how many cells so many tokens fill."""
    return tokens * (tokens + 1) // 2


def fold(block: Shaped[np.ndarray, "head query key"], first: int, cells: Shaped[np.ndarray, "head cell"]) -> bool:
    """Fills the cells of some rows of squares, query `first` being the first; returns whether that is all they hold.

    If not, a query looks at a later key. Keys behind the last query may be left out.
    """
    there = core()
    if there is not None and block.strides[2] == block.itemsize == cells.strides[1] == cells.itemsize:
        return kernels.fold(there, block, first, cells)
    at = 0
    for row in range(block.shape[1]):
        length = first + row + 1
        cells[:, at : at + length] = block[:, row, :length]
        at += length
    bits = np.dtype(f"u{block.itemsize}")  # of which numpy counts many at a time
    return int(np.count_nonzero(block.view(bits))) == int(np.count_nonzero(cells.view(bits)))


def unfold(
    cells: Shaped[np.ndarray, "*lead cell"], first: int, rows: int, keys: int
) -> Shaped[np.ndarray, "*lead query key"]:
    """Returns rows of squares out of their cells, query `first` being the first, with zeros above the diagonal."""
    there = core()
    if there is not None and cells.size and cells.strides[-1] == cells.itemsize:
        flat = cells.reshape(-1, cells.shape[-1])
        return kernels.unfold(there, flat, first, rows, keys).reshape(*cells.shape[:-1], rows, keys)
    squares = np.zeros((*cells.shape[:-1], rows, keys), cells.dtype)
    seen = _seen(first, rows, keys)
    for lead in np.ndindex(cells.shape[:-1]):
        squares[lead][seen] = cells[lead]
    return squares


def _seen(first: int, rows: int, keys: int) -> Bool[np.ndarray, "query key"]:
    """Returns which keys lie on or before the diagonal: each row is the one before it, moved by one."""
    stop = first + rows
    ramp = np.zeros(stop + keys, np.bool_)
    ramp[:stop] = True
    return np.lib.stride_tricks.as_strided(ramp[stop - 1 - first :], (rows, keys), (-1, 1), writeable=False)
