"""A (query, key) matrix drawn in characters; the same when piped into a file as on a screen."""

import math
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size

from traceformer.shapes import Float
from traceformer.texts.shown import visible

__all__ = ["SHADES", "draw_matrix"]

SHADES = " ░▒▓█"
_TOKEN_CELLS = 14  # of a token's text, at most
_STRONGEST = " → {token} {value:.2f}"


def draw_matrix(
    matrix: Float[np.ndarray, "query key"], query_tokens: Sequence[str], key_tokens: Sequence[str], *, width: int
) -> str:
    """Returns a (query, key) matrix drawn in at most `width` columns of characters.

    One line per query: its position and token, one cell per key, and the key it looks at most. Shades halve from
    one to the next, downwards from the largest value; the last line says where they begin. A matrix with negative
    values (scores) is shaded in equal steps from its smallest to its largest value instead. A matrix too wide
    is drawn in square blocks, each as dark as its largest value, and a line says so. Rows of NaN, which an imported
    run has where its file held nothing, stay blank.
    """
    queries, keys = matrix.shape
    unknown = np.all(np.isnan(matrix), axis=1)
    matrix = np.where(unknown[:, None], matrix[~unknown].min(initial=0), matrix)
    labels = _labels(query_tokens)
    strongest = matrix.argmax(axis=1)
    names = [_fit(key_tokens[key]) for key in range(keys)]
    left = cell_len(labels[0]) + 2
    right = max(map(cell_len, names)) + cell_len(_STRONGEST.format(token="", value=0))
    room = max(width - left - right, 8)
    block = math.ceil(keys / room)
    cell = 2 if block == 1 and 2 * keys <= room else 1
    blocks = _block_maxima(matrix, block)
    levels = _levels(matrix)
    shaded = np.searchsorted(levels, blocks, side="right")

    lines = [" " * left + _ruler(blocks.shape[1], cell, block)]
    for row, start in enumerate(range(0, queries, block)):
        query = start + int(matrix[start : start + block].max(axis=1).argmax())
        key = int(strongest[query])
        cells = "".join(SHADES[level] * cell for level in shaded[row])
        found = "" if unknown[query] else _STRONGEST.format(token=names[key], value=matrix[query, key])
        lines.append(f"{labels[start]}  {cells}{found}")
    legend = "   ".join(f"{SHADES[i + 1]} ≥ {level:.2g}" for i, level in reversed(list(enumerate(levels))))
    lines += ["", " " * left + legend]
    if block > 1:
        lines.append(f"{' ' * left}each cell is the largest of {block} x {block} values: {keys} keys are too wide")
    return "\n".join(line.rstrip() for line in lines)


def _labels(tokens: Sequence[str]) -> list[str]:
    texts = [_fit(token) for token in tokens]
    width = max(map(cell_len, texts))
    digits = len(str(len(tokens) - 1))
    return [f"{position:>{digits}} {set_cell_size(text, width)}" for position, text in enumerate(texts)]


def _fit(token: str) -> str:
    text = visible(token)
    return text if cell_len(text) <= _TOKEN_CELLS else set_cell_size(text, _TOKEN_CELLS - 1) + "…"


def _block_maxima(matrix: Float[np.ndarray, "query key"], block: int) -> Float[np.ndarray, "rows columns"]:
    for axis, length in enumerate(matrix.shape):
        matrix = np.maximum.reduceat(matrix, range(0, length, block), axis=axis)
    return matrix


def _levels(matrix: Float[np.ndarray, "query key"]) -> list[float]:
    """Returns where the shades after the first begin, ascending."""
    low, high = float(matrix.min()), float(matrix.max())
    steps = len(SHADES) - 1
    if low >= 0:
        high = high or 1.0  # a matrix of zeros is blank
        return [high / 2**step for step in range(steps, 0, -1)]
    return [low + (high - low) * step / (steps + 1) for step in range(1, steps + 1)]


def _ruler(columns: int, cell: int, block: int) -> str:
    every = 10 // cell
    return "".join(f"{column * block:<{every * cell}}" for column in range(0, columns, every))[: columns * cell + 3]
