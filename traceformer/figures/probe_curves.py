"""What probes reach: curves over layers beside those of their controls, or maps of layers and heads."""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from traceformer.analysis.probes import Probe, Probes
from traceformer.errors import check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import COLOURS, SIGNED, blank, category, faint, quiet, sheet, styled, titled, written_on

__all__ = ["probes_figure", "probes_html"]

_MOST_WRITTEN = 160  # heads


@styled
def probes_figure(value: Probes, *, title: str | None = None, figure: Figure | SubFigure | None = None) -> Figure:
    """Returns two charts: held-out accuracy by layer, with its interval, controls and baselines; and selectivity.

    Of heads these are two maps. They are drawn in `figure` if that is given.
    """
    check_is(value, Probes, "what fit_probe gave")
    heads = len(value.heads) > 1
    size = (min(3.0 + 0.5 * len(value.heads), 12.0), min(2.0 + 0.26 * len(value.layers), 8.0)) if heads else (9.4, 3.8)
    whole, place = sheet(figure, *size)
    left, right = place.subplots(1, 2, width_ratios=(1, 1) if heads else (1.35, 1))
    if heads:
        _map(place, left, value, "held-out accuracy", lambda probe: probe.scores.accuracy)
        _map(place, right, value, "selectivity", lambda probe: probe.scores.selectivity)
    else:
        _accuracies(left, value)
        _selectivities(right, value)
        place.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, handlelength=2.4)
    place.suptitle(titled(_title(value) if title is None else title))
    return whole


def probes_html(value: Probes) -> str:
    """Returns the same for a notebook."""
    return inline(probes_figure(value), alternative=repr(value))


def _title(value: Probes) -> str:
    about = value.about
    rows = f"{about.rows:,} rows of {about.texts:,} texts" if about.of == "token" else f"{about.texts:,} texts"
    label = f"{about.named}, {len(value.classes)} classes of {about.of}s"
    return f"{about.model or about.run}  {label}, at {about.site}\nheld out: {rows}"


def _accuracies(axes: Axes, value: Probes) -> None:
    about, layers = value.about, _layers(value)
    scores = [probe.scores for probe in value]
    axes.fill_between(
        layers, [s.low for s in scores], [s.high for s in scores], color=category(0), alpha=0.25, linewidth=0
    )
    axes.plot(layers, [s.accuracy for s in scores], color=category(0), marker="o", markersize=4, label="probe")
    if scores[0].control is not None:
        control = [math.nan if s.control is None else s.control for s in scores]
        axes.plot(layers, control, color=category(5), marker="s", markersize=3.5, label="control task")
    axes.plot(
        layers, [s.shuffled for s in scores], color=category(2), marker="^", markersize=3.5, label="shuffled labels"
    )
    lines = [("random rows", about.random, ":"), ("most frequent class", about.majority, "--")]
    if about.by_token is not None:
        lines.append(("most frequent class of its token", about.by_token, "-."))
    for name, height, style in lines:
        axes.axhline(height, color=quiet(), linestyle=style, linewidth=0.9, zorder=0, label=name)
    axes.set(ylim=(0, 1.03), title="held-out accuracy")
    _over_layers(axes, value)


def _selectivities(axes: Axes, value: Probes) -> None:
    layers, scores = _layers(value), [probe.scores for probe in value]
    low, high = [s.selectivity_low for s in scores], [s.selectivity_high for s in scores]
    axes.fill_between(layers, low, high, color=category(0), alpha=0.25, linewidth=0)
    axes.plot(layers, [s.selectivity for s in scores], color=category(0), marker="o", markersize=4)
    axes.axhline(0, color=faint(), zorder=0)
    against = "the control task's" if scores[0].control is not None else "that of shuffled labels"
    axes.set(title=f"selectivity: accuracy less {against}")
    _over_layers(axes, value)


def _layers(value: Probes) -> list[int]:
    return [0 if probe.layer is None else probe.layer for probe in value]


def _over_layers(axes: Axes, value: Probes) -> None:
    if value.layers == (None,):
        axes.set_xticks([0], [value.about.site])
        return
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _map(place: Figure | SubFigure, axes: Axes, value: Probes, name: str, number: Callable[[Probe], float]) -> None:
    """A cell for each layer and head; selectivity has the colours of numbers on either side of zero."""
    grid = np.full((len(value.layers), len(value.heads)), np.nan)
    for probe in value:
        grid[value.layers.index(probe.layer), value.heads.index(probe.head)] = number(probe)
    reach = float(np.nanmax(np.abs(grid))) or 1.0
    signed = name == "selectivity"
    norm = Normalize(-reach if signed else 0, reach if signed else 1)
    image = axes.imshow(grid, cmap=blank(SIGNED if signed else COLOURS), norm=norm, aspect="auto")
    axes.set_title(name)
    if grid.size <= _MOST_WRITTEN:
        for (row, column), own in np.ndenumerate(grid):
            colour = written_on(image, float(own))
            axes.text(column, row, f"{own:.2f}", ha="center", va="center", fontsize=5.5, color=colour)
    for axis, letter, numbers in ((axes.xaxis, "H", value.heads), (axes.yaxis, "L", value.layers)):
        every = math.ceil(len(numbers) / 12)
        axis.set_ticks(range(0, len(numbers), every), [f"{letter}{n}" for n in numbers[::every]])
    axes.tick_params(length=0)
    place.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
