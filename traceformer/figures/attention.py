"""Pictures of attention patterns: one head with its tokens, or all heads side by side."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from traceformer.figures.style import COLOURS, blank, headed, placed, styled, titled
from traceformer.shapes import Float, Float32
from traceformer.texts.shown import label, visible

__all__ = ["atlas_figure", "head_figure", "reduced", "tile"]

_MOST_TICKS = 64
_MOST_CELLS = 1536  # along an axis: more than a picture has pixels
_GAP = 0.06  # between the tiles of an atlas, as a share of a tile


@styled
def head_figure(
    matrix: Float[np.ndarray, "query key"],
    query_tokens: Sequence[str],
    key_tokens: Sequence[str],
    *,
    title: str,
    ax: Axes | None = None,
) -> Figure:
    """Returns one head's matrix with its tokens along both axes; every nth token where there are many.

    Of more than 1536 tokens a pixel shows the largest of the values under it. Where no query sees a later key, those
    are left blank.
    """
    queries, keys = matrix.shape
    inches = [min(max(0.22 * count, 3.0), 14.0) for count in (keys, queries)]
    figure, axes = placed(ax, inches[0] + 2.2, inches[1] + 1.6)
    low = min(0.0, float(matrix.min(initial=0)))
    cells = reduced(matrix, _MOST_CELLS)
    if queries == keys and not _looks_ahead(matrix):
        rows, columns = (np.arange(n) * side // n for n, side in zip(cells.shape, matrix.shape, strict=True))
        cells[rows[:, None] + max(1, queries // cells.shape[0]) <= columns] = np.nan
    extent = (-0.5, keys - 0.5, queries - 0.5, -0.5)
    image = axes.imshow(cells, cmap=blank(COLOURS), vmin=low, aspect="equal", extent=extent)
    for axis, tokens in ((axes.xaxis, key_tokens), (axes.yaxis, query_tokens)):
        every = math.ceil(len(tokens) / _MOST_TICKS)
        shown = range(0, len(tokens), every)
        axis.set_ticks(shown, [label(visible(tokens[position])) for position in shown])
    axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="key", ylabel="query")
    axes.set_title(titled(title))
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _looks_ahead(matrix: Float[np.ndarray, "query key"]) -> bool:
    """Whether a query looks at a later key, read row by row."""
    return any(matrix[query, query + 1 :].any() for query in range(len(matrix)))


def reduced(matrix: Float[np.ndarray, "query key"], most: int) -> Float32[np.ndarray, "row column"]:
    """Returns a matrix in at most `most` rows and columns, each cell the largest of the values under it."""
    image = matrix if matrix.dtype == np.float32 else matrix.astype(np.float32)
    for axis, length in enumerate(matrix.shape):
        if length > most:
            image = np.maximum.reduceat(image, np.arange(most) * length // most, axis=axis)
    return image.copy() if image is matrix else image


def tile(matrix: Float[np.ndarray, "query key"], *, pixels: int) -> Float32[np.ndarray, "pixels pixels"]:
    """Returns a matrix as a square of `pixels`, scaled so that its largest value is 1.

    Each pixel shows the largest of the values under it, so that a single strong cell stays visible however
    much the matrix is shrunk. Where no query sees a later key, pixels of such alone are NaN.
    """
    image = matrix.astype(np.float32)
    edges = [np.linspace(0, length, pixels + 1) for length in image.shape]
    starts = [np.floor(edge[:-1]).astype(int) for edge in edges]
    stops = [np.maximum(np.ceil(edge[1:]).astype(int), start + 1) for edge, start in zip(edges, starts, strict=True)]
    for axis, length in enumerate(matrix.shape):
        if length <= pixels:
            image = image.take(starts[axis], axis=axis)
        else:
            spans = zip(starts[axis], stops[axis], strict=True)
            image = np.stack([image.take(range(*span), axis=axis).max(axis=axis) for span in spans], axis=axis)
    low, high = min(0.0, float(image.min())), float(image.max())
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    if matrix.shape[0] == matrix.shape[1] and not _looks_ahead(matrix):
        scaled[starts[1][None] >= stops[0][:, None]] = np.nan
    return scaled


@styled
def atlas_figure(
    tiles: Float[np.ndarray, "layer head pixels pixels"],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str,
    ax: Axes | None = None,
) -> Figure:
    """Returns all heads side by side, a row per layer, of the squares that `tile` gives."""
    n_layers, n_heads, pixels, _ = tiles.shape
    gap = max(1, round(pixels * _GAP))
    pitch = pixels + gap
    sheet = np.full((n_layers * pitch - gap, n_heads * pitch - gap), np.nan, dtype=np.float32)
    for row in range(n_layers):
        for column in range(n_heads):
            sheet[row * pitch :, column * pitch :][:pixels, :pixels] = tiles[row, column]
    inch = min(1.0, 16 / n_heads)
    figure, axes = placed(ax, max(n_heads * inch, 3) + 0.9, n_layers * inch + 0.9)
    # The square root: nearly all of most heads is dark beside their strongest cell.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    axes.imshow(sheet, cmap=blank(COLOURS), norm=norm, interpolation="nearest", aspect="equal")
    axes.set_xticks([column * pitch + pixels / 2 for column in range(n_heads)], [f"H{head}" for head in heads])
    axes.set_yticks([row * pitch + pixels / 2 for row in range(n_layers)], [f"L{layer}" for layer in layers])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    headed(figure, ax, title)
    return figure
