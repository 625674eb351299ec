"""Two runs compared, as one picture: maps of their layers, of their heads, and the divergence of predictions."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure

from traceformer.analysis.comparison import Comparison, HeadDistances, ReadoutDivergence, StreamSimilarity
from traceformer.errors import check_is
from traceformer.figures.metric_scales import short
from traceformer.figures.shown import inline
from traceformer.figures.style import COLOURS, blank, category, sheet, styled, titled, written_on
from traceformer.shapes import Float64

__all__ = ["comparison_figure", "comparison_html"]

_MOST_WRITTEN = 160  # cells
_TICKS = 16


@styled
def comparison_figure(
    value: Comparison, *, title: str | None = None, figure: Figure | SubFigure | None = None
) -> Figure:
    """Returns what was compared, side by side: CKA and Procrustes distance of layers, distances of heads, KL.

    Layers of A are upwards, those of B to the right. Heads are a map of layers and heads, the lighter the further
    apart, or of all pairs heads of A upwards and of B to the right. KL is a curve over positions, both ways. All is
    drawn in `figure` if that is given.
    """
    check_is(value, Comparison, "what compare gave")
    draws: list[Callable[[Axes, Figure | SubFigure], None]] = []
    streams, heads, readouts = value.streams, value.heads, value.readouts
    if streams is not None:
        draws += [lambda axes, place: _cka(axes, place, streams), lambda axes, place: _procrustes(axes, place, streams)]
    if heads is not None:
        draws.append(lambda axes, place: _heads(axes, place, heads))
    if readouts is not None:
        draws.append(lambda axes, place: _divergence(axes, readouts))
    columns = min(len(draws), 2)
    rows = math.ceil(len(draws) / 2)
    whole, place = sheet(figure, 5.0 * columns, 3.7 * rows + 0.7)
    places = place.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes, draw in zip(places, draws, strict=False):
        draw(axes, place)
    for axes in places[len(draws) :]:
        axes.set_axis_off()
    about = value.about
    counts = f"{about.texts} text{'s' * (about.texts != 1)}, {about.tokens:,} tokens"
    named = [run if model is None else f"{run} ({model})" for run, model in zip(about.runs, about.models, strict=True)]
    place.suptitle(titled(title or f"A: {named[0]}   B: {named[1]}\n{counts}"))
    return whole


def comparison_html(value: Comparison) -> str:
    """Returns the same for a notebook."""
    return inline(comparison_figure(value), alternative=repr(value))


def _cka(axes: Axes, place: Figure | SubFigure, value: StreamSimilarity) -> None:
    _layers(axes, place, value, value.cka, (0.0, 1.0))
    axes.set_title(f"linear CKA of {value.key}, 1 is alike")


def _procrustes(axes: Axes, place: Figure | SubFigure, value: StreamSimilarity) -> None:
    _layers(axes, place, value, value.procrustes, (0.0, 2.0))
    axes.set_title(f"Procrustes distance of {value.key}, 0 is alike")


def _layers(
    axes: Axes,
    place: Figure | SubFigure,
    value: StreamSimilarity,
    cells: Float64[np.ndarray, "layer other"],
    reach: tuple[float, float],
) -> None:
    _map(axes, place, cells, reach)
    for axis, layers, of in ((axes.yaxis, value.layers_a, "A"), (axes.xaxis, value.layers_b, "B")):
        _ticks(axis, ["all" if layer is None else f"L{layer}" for layer in layers])
        axis.set_label_text(f"layer of {of}")


def _heads(axes: Axes, place: Figure | SubFigure, value: HeadDistances) -> None:
    if value.all_pairs:
        _map(axes, place, value.total_variation, (0.0, 1.0))
        for axis, heads, of in ((axes.yaxis, value.heads_a, "A"), (axes.xaxis, value.heads_b, "B")):
            starts = [i for i, (layer, _) in enumerate(heads) if not i or heads[i - 1][0] != layer]
            every = math.ceil(len(starts) / _TICKS)
            axis.set_ticks(starts[::every], [f"L{heads[i][0]}H{heads[i][1]}" for i in starts[::every]])
            axis.set_label_text(f"head of {of}")
        axes.set_title("total variation of attention, all pairs")
        return
    layers, heads = (sorted({each[i] for each in value.heads_a}) for i in (0, 1))
    cells = np.full((len(layers), len(heads)), np.nan)
    for (layer, head), distance in zip(value.heads_a, value.total_variation.tolist(), strict=True):
        cells[layers.index(layer), heads.index(head)] = distance
    _map(axes, place, cells, (0.0, max(float(np.nanmax(cells, initial=0)), 1e-9)))
    _ticks(axes.yaxis, [f"L{layer}" for layer in layers])
    _ticks(axes.xaxis, [f"H{head}" for head in heads])
    axes.set_title("total variation of attention, head by head")


def _divergence(axes: Axes, value: ReadoutDivergence) -> None:
    positions = np.flatnonzero(value.of_position["tokens"])
    for number, (name, words) in enumerate((("kl_ab", "KL(A, B)"), ("kl_ba", "KL(B, A)"))):
        mean = getattr(value, name)
        curve = value.of_position[name][positions]
        marker = "o" if len(positions) == 1 else None
        axes.plot(
            positions, curve, color=category(number), linewidth=0.9, marker=marker, label=f"{words}, mean {mean:.3g}"
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position")
    axes.set_ylabel("nats")
    axes.legend()
    axes.set_title(f"divergence of predictions; same likeliest token: {value.same_top:.1%}")
    axes.spines[["top", "right"]].set_visible(False)


def _map(
    axes: Axes, place: Figure | SubFigure, cells: Float64[np.ndarray, "row column"], reach: tuple[float, float]
) -> None:
    low, high = reach
    image = axes.imshow(
        cells, cmap=blank(COLOURS), vmin=low, vmax=high, aspect="auto", origin="lower", interpolation="nearest"
    )
    if cells.size <= _MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(cells):
            if np.isfinite(value):
                colour = written_on(image, float(value))
                axes.text(column, row, short(float(value)), ha="center", va="center", fontsize=6.5, color=colour)
    place.colorbar(image, ax=axes, fraction=0.05, pad=0.02).ax.tick_params(labelsize=6)
    axes.tick_params(length=0)


def _ticks(axis: Axis, names: Sequence[str]) -> None:
    every = math.ceil(len(names) / _TICKS)
    axis.set_ticks(range(0, len(names), every), names[::every])
