"""Circuits from weights as one picture: what each head copies, and the strongest compositions between heads."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from traceformer.analysis.circuits import COMPOSITIONS, Circuits
from traceformer.errors import check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import SIGNED, category, faint, quiet, sheet, styled, titled, written_on

__all__ = ["circuits_figure", "circuits_html"]

_OF_KIND = {"Q": category(1), "K": category(0), "V": category(2)}
_MOST_WRITTEN = 200  # heads that carry their number
_EDGES = 24


@styled
def circuits_figure(value: Circuits, *, top: int = _EDGES, figure: Figure | SubFigure | None = None) -> Figure:
    """Returns the copying score of each head, and the `top` strongest compositions as lines from head to head.

    Layers are upwards in both, heads to the right; a line's width is its score. These are two charts side by side, in
    `figure` if that is given.
    """
    check_is(value, Circuits, "what circuits gave")
    n_layers, n_heads = value.shape
    width, height = (min(max(0.45 * size + 1, 3.2), 7.0) for size in (n_heads, n_layers))
    whole, place = sheet(figure, 2 * width + 1.6, height + 1.2)
    left, right = place.subplots(1, 2)
    copying = value.values["copying"]
    image = left.imshow(copying, cmap=SIGNED, vmin=-1, vmax=1, origin="lower", aspect="auto")
    if copying.size <= _MOST_WRITTEN:
        for (layer, head), score in np.ndenumerate(copying):
            if not np.isfinite(score):
                continue
            colour = written_on(image, float(score))
            left.text(head, layer, f"{score:.2f}", ha="center", va="center", fontsize=6, color=colour)
    for layer in np.flatnonzero(np.isnan(copying).all(axis=1)):
        left.text((n_heads - 1) / 2, layer, "no attention", ha="center", va="center", fontsize=6)
    place.colorbar(image, ax=left, shrink=0.8).ax.tick_params(labelsize=6)
    left.set_title("copying: eigenvalues of W_E OV W_U,\ntheir sum over that of their sizes")
    _draw_edges(right, value, top)
    for axes in (left, right):
        for axis, letter, size in ((axes.xaxis, "H", n_heads), (axes.yaxis, "L", n_layers)):
            every = math.ceil(size / 16)
            axis.set_ticks(range(0, size, every), [f"{letter}{number}" for number in range(0, size, every)])
        axes.tick_params(length=0)
        beside = 0.5 if axes is left else 0.6
        axes.set(xlim=(-beside, n_heads - 1 + beside), ylim=(-beside, n_layers - 1 + beside))
    place.suptitle(titled(f"{value.model}: circuits from weights"))
    return whole


def _draw_edges(axes: Axes, value: Circuits, top: int) -> None:
    """The strongest compositions, the strongest of all on top."""
    edges = value.strongest(top)
    layer, head = np.nonzero(np.isfinite(value.values["copying"]))
    axes.scatter(head, layer, s=14, color=faint(), zorder=1)
    strongest = edges[0].score if edges else 1.0
    for edge in reversed(edges):
        share = (edge.score / strongest) ** 4
        heads, layers = (edge.from_head, edge.to_head), (edge.from_layer, edge.to_layer)
        axes.plot(heads, layers, color=_OF_KIND[edge.kind], linewidth=0.5 + 2.5 * share, alpha=0.35 + 0.6 * share)
        axes.scatter(heads, layers, s=22, color=quiet(), zorder=3)
    lines = [Line2D([], [], color=_OF_KIND[kind], linewidth=2, label=f"{kind} composition") for kind in COMPOSITIONS]
    axes.legend(
        handles=lines,
        fontsize=6,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.06),
        ncols=3,
    )
    axes.set_title(f"the {len(edges)} strongest compositions,\nup to {strongest:.2f}")
    axes.spines[:].set_visible(False)


def circuits_html(value: Circuits) -> str:
    """Returns the same for a notebook."""
    return inline(circuits_figure(value), alternative=repr(value))
