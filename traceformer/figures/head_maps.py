"""Pictures of head metrics: a map of layers and heads for every metric."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.errors import SelectionError, check_is
from traceformer.figures.metric_scales import in_words, short, tops
from traceformer.figures.style import COLOURS, blank, sheet, styled, titled, written_on
from traceformer.shapes import Float64

__all__ = ["heads_figure"]

_COLUMNS = 4
_MOST_WRITTEN = 160  # heads


@styled
def heads_figure(
    metrics: HeadMetrics, attention: str | None = None, *, figure: Figure | SubFigure | None = None
) -> Figure:
    """Returns a map of layers and heads for every metric that has a meaning, of one attention, the only one by default.

    Maps of one unit share their colours: shares reach from 0 to 1, distances in tokens to the largest of all. Numbers
    are written where there are few heads. A layer of the model that has no attention is an empty row that says so. The
    maps are a grid, drawn in `figure` if that is given.

    Raises:
        NotFound, SelectionError: there is no such attention, or there are several.
    """
    check_is(metrics, HeadMetrics, "what heads gave")
    if attention is None and len(metrics.attentions) > 1:
        raise SelectionError("which attention?", hint=" or ".join(metrics.attentions))
    found = metrics if attention is None else metrics.part(attention)
    layers = _with_gaps(found)
    grids = {name: _spread(found.grid(name), found.layers, layers) for name in found.values}
    shown = {name: grid for name, grid in grids.items() if not np.isnan(grid).all()}
    reach = tops(shown)
    rows = math.ceil(len(shown) / _COLUMNS)
    width, height = (min(max(0.26 * len(own), 1.8), 5.0) for own in (found.heads, layers))
    size = (_COLUMNS * (width + 0.9), rows * (height + 0.6) + 0.5)
    # Placed by hand: matplotlib's own layout of so many axes takes seconds.
    whole, place = sheet(Figure(figsize=size) if figure is None else figure, *size)
    grid = {
        **{"left": 0.4 / size[0], "right": 1 - 0.35 / size[0], "bottom": 0.3 / size[1], "top": 1 - 0.6 / size[1]},
        **{"wspace": 0.45 / width, "hspace": 0.5 / height},
    }
    places = place.subplots(rows, _COLUMNS, squeeze=False, gridspec_kw=grid).ravel().tolist()
    for axes, (name, values) in zip(places, shown.items(), strict=False):
        colours, norm = blank(COLOURS), Normalize(0, reach[name])
        image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        axes.set_title(in_words(name), pad=4)
        if values.size <= _MOST_WRITTEN:
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = written_on(image, float(value))
                    axes.text(column, row, short(value), ha="center", va="center", fontsize=5.5, color=colour)
        for row, layer in enumerate(layers):
            if layer not in found.layers:
                axes.text((len(found.heads) - 1) / 2, row, "no attention", ha="center", va="center", fontsize=5.5)
        for axis, letter, numbers in ((axes.xaxis, "H", found.heads), (axes.yaxis, "L", layers)):
            every = math.ceil(len(numbers) / 12)
            axis.set_ticks(range(0, len(numbers), every), [f"{letter}{n}" for n in numbers[::every]], fontsize=6)
        axes.tick_params(length=0)
        place.colorbar(image, ax=axes, fraction=0.06, pad=0.03).ax.tick_params(labelsize=6)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    place.suptitle(titled(_title(found)), y=1 - 0.15 / size[1])
    return whole


def _with_gaps(metrics: HeadMetrics) -> tuple[int, ...]:
    """The layers of a map: those of the heads, and of those without attention all between the first and the last."""
    gaps = metrics.about.without.get(metrics.attentions[0], ()) if metrics.rows else ()
    return tuple(sorted({*metrics.layers, *gaps}))


def _spread(
    grid: Float64[np.ndarray, "row head"], rows: Sequence[int], layers: Sequence[int]
) -> Float64[np.ndarray, "layer head"]:
    """A grid with a row of NaN for each layer that is not among its rows."""
    spread = np.full((len(layers), grid.shape[1]), np.nan)
    spread[[layers.index(layer) for layer in rows]] = grid
    return spread


def _title(metrics: HeadMetrics) -> str:
    about, (attention,) = metrics.about, metrics.attentions
    queries = f"{about.queries[attention]} queries" if attention in about.queries else ""
    convention = f"{about.convention} convention" if about.convention else ""
    return f"{about.model or about.source}  {', '.join(filter(None, (attention, queries, convention)))}"
