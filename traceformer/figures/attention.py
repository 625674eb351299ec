"""Pictures of attention patterns: one head with its tokens, or all heads side by side."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from traceformer.figures.style import COLOURS, titled
from traceformer.shapes import Float
from traceformer.texts.shown import label

__all__ = ["atlas_figure", "head_figure", "tile"]

_MOST_TICKS = 64
_GAP = 0.06  # between the tiles of an atlas, as a share of a tile


def head_figure(
    matrix: Float[np.ndarray, "query key"], query_tokens: Sequence[str], key_tokens: Sequence[str], *, title: str
) -> Figure:
    """Returns one head's matrix with its tokens along both axes; every nth token where there are many."""
    queries, keys = matrix.shape
    inches = [min(max(0.22 * count, 3.0), 14.0) for count in (keys, queries)]
    figure = Figure(figsize=(inches[0] + 2.2, inches[1] + 1.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(matrix.astype(np.float32), cmap=COLOURS, vmin=min(0.0, float(matrix.min())), aspect="equal")
    for axis, tokens in ((axes.xaxis, key_tokens), (axes.yaxis, query_tokens)):
        every = math.ceil(len(tokens) / _MOST_TICKS)
        shown = range(0, len(tokens), every)
        axis.set_ticks(shown, [label(tokens[position]) for position in shown], fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="key", ylabel="query")
    axes.set_title(titled(title), fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def tile(matrix: Float[np.ndarray, "query key"], *, pixels: int) -> Float[np.ndarray, "pixels pixels"]:
    """Returns a matrix as a square of `pixels`, scaled so that its largest value is 1.

    Each pixel shows the largest of the values under it, so that a single strong cell stays visible however
    much the matrix is shrunk.
    """
    image = matrix.astype(np.float32)
    for axis, length in enumerate(image.shape):
        edges = np.linspace(0, length, pixels + 1)
        starts = np.floor(edges[:-1]).astype(int)
        stops = np.maximum(np.ceil(edges[1:]).astype(int), starts + 1)
        if length <= pixels:
            image = image.take(starts, axis=axis)
        else:
            pieces = (image.take(range(start, stop), axis=axis) for start, stop in zip(starts, stops, strict=True))
            image = np.stack([piece.max(axis=axis) for piece in pieces], axis=axis)
    low, high = min(0.0, float(image.min())), float(image.max())
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def atlas_figure(
    tiles: Float[np.ndarray, "layer head pixels pixels"],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str,
) -> Figure:
    """Returns all heads side by side, a row per layer; each head is scaled to its own largest value."""
    n_layers, n_heads, pixels, _ = tiles.shape
    gap = max(1, round(pixels * _GAP))
    pitch = pixels + gap
    sheet = np.full((n_layers * pitch - gap, n_heads * pitch - gap), np.nan, dtype=np.float32)
    for row in range(n_layers):
        for column in range(n_heads):
            sheet[row * pitch :, column * pitch :][:pixels, :pixels] = tiles[row, column]
    inch = min(1.0, 16 / n_heads)
    figure = Figure(figsize=(max(n_heads * inch, 3) + 0.9, n_layers * inch + 0.9), layout="constrained")
    axes = figure.add_subplot()
    # The square root: nearly all of most heads is dark beside their strongest cell.
    axes.imshow(sheet, cmap=COLOURS, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest", aspect="equal")
    axes.set_xticks([column * pitch + pixels / 2 for column in range(n_heads)], [f"H{head}" for head in heads])
    axes.set_yticks([row * pitch + pixels / 2 for row in range(n_layers)], [f"L{layer}" for layer in layers])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    figure.suptitle(titled(title), fontsize=10, wrap=True)
    return figure
