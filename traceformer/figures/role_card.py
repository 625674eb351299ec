"""The role card as a picture: a line per head, a column per number, and the massive activations of each layer."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from traceformer.analysis.massive import TIMES_MEDIAN
from traceformer.analysis.roles import Roles
from traceformer.errors import check_is
from traceformer.figures.style import SIGNED, category, ink, quiet, styled, titled

__all__ = ["COLUMN_NAMES", "colours_of", "roles_figure"]

COLUMN_NAMES = {
    "previous_token": "previous\ntoken",
    "induction": "induction",
    "duplicate_token": "duplicate\ntoken",
    "first_token": "first token\n(sink)",
    "self": "own\ntoken",
    "retrieval": "retrieval",
    "copying": "copying",
    "ov_rank": "OV\nrank",
    "qk_rank": "QK\nrank",
    "previous_token_weights": "previous\n(weights)",
    "induction_weights": "induction\n(weights)",
    "ablation": "ablation\n(loss)",
}
"""Each column as it stands above a table."""

_SIGNED = ("copying", "induction_weights", "ablation")
_SIZES, _SHARES = "Greys", "Blues"
_LINE, _COLUMN, _ROLE = 0.17, 0.62, 0.95  # inches
_MOST_WRITTEN = 240  # heads with their numbers
_TALLEST = 40.0


def colours_of(column: str, numbers: np.ndarray) -> tuple[Colormap, Normalize]:
    """Returns the colours of a column and what they span: shares from 0 to 1, signed numbers around 0, sizes from 0."""
    largest = float(np.nanmax(np.abs(numbers), initial=0)) or 1.0
    if column in _SIGNED:
        reach = largest if column == "ablation" else 1.0
        return colormaps[SIGNED], Normalize(-1.4 * reach, 1.4 * reach)
    if column.endswith("rank"):
        return colormaps[_SIZES], Normalize(0, 1.6 * largest)
    return colormaps[_SHARES], Normalize(0, 1.2)


@styled
def roles_figure(value: Roles) -> Figure:
    """Returns a line per head: its role, and every number that there is, coloured; beside them the massive activations.

    Beyond 240 heads the numbers are left out. It is a figure by itself: its lines have a height of their own.
    """
    check_is(value, Roles, "what roles gave")
    n_rows, columns = len(value.rows), value.shown
    line = min(_LINE, _TALLEST / n_rows)
    table, height = (len(columns) * _COLUMN + _ROLE, max(n_rows * line, 2.4))
    beside = 2.6 if value.massive is not None else 0.0
    size = (0.9 + table + beside + 0.3, height + 0.95)
    figure = Figure(figsize=size)
    below = 0.15 / size[1]
    axes = figure.add_axes((0.9 / size[0], below, table / size[0], height / size[1]))
    _draw_table(axes, value, columns, written=n_rows <= _MOST_WRITTEN)
    if value.massive is not None:
        left = (0.9 + table + 0.75) / size[0]
        _draw_massive(figure.add_axes((left, 1 - 2.9 / size[1], 1.8 / size[0], 1.9 / size[1])), value)
    about = value.about
    queries = ", ".join(f"{count} queries" for count in about.queries.values())
    figure.suptitle(titled(f"{about.model or about.source}: what each head does  ({queries})"), y=1 - 0.15 / size[1])
    return figure


def _draw_table(axes: Axes, value: Roles, columns: tuple[str, ...], *, written: bool) -> None:
    n_rows = len(value.rows)
    axes.set(xlim=(-_ROLE / _COLUMN, len(columns)), ylim=(n_rows, 0))
    for number, column in enumerate(columns):
        numbers = value.values[column]
        colours, span = colours_of(column, numbers)
        axes.imshow(
            np.ma.masked_invalid(numbers)[:, None],
            cmap=colours,
            norm=span,
            extent=(number, number + 1, n_rows, 0),
            aspect="auto",
            interpolation="nearest",
        )
        for row, each in enumerate(numbers.tolist() if written else []):
            if np.isfinite(each):
                red, green, blue, _ = colours(span(each))
                shade = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
                text = f"{each:.1f}" if column.endswith("rank") else f"{each:.2f}" if abs(each) >= 0.005 else "0"
                axes.text(number + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6, color=shade)
    for row, role in enumerate(value.roles if written else ()):
        axes.text(0.1 - _ROLE / _COLUMN, row + 0.5, role, va="center", fontsize=6.5, color=quiet())
    layers = [row.layer for row in value.rows]
    for row in range(1, n_rows):
        if layers[row] != layers[row - 1]:
            axes.axhline(row, color=ink(), linewidth=0.6)
    every = 1 if written else max(1, n_rows // 80)
    axes.set_yticks(np.arange(0, n_rows, every) + 0.5, value.names[::every], fontsize=6.5)
    names = [COLUMN_NAMES[column] for column in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, fontsize=6.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_massive(axes: Axes, value: Roles) -> None:
    """The share of the stream's entries over each threshold, and the largest of all, layer by layer."""
    massive = value.massive
    assert massive is not None
    axes.plot(massive.layers, massive.largest, color=ink(), marker="o", markersize=3, label="largest entry")
    for times, style in zip(TIMES_MEDIAN, ("--", ":"), strict=True):
        share = massive.over[:, TIMES_MEDIAN.index(times)].sum() / max(int(massive.entries.sum()), 1)
        label = f"{times:,} x the median: {share:.2g} of entries" if share else f"{times:,} x the median: none"
        axes.axhline(times, color=category(5), linestyle=style, linewidth=0.8, label=label)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer", fontsize=7)
    axes.set_title("entries of the residual stream,\nin medians of their size", fontsize=7)
    axes.tick_params(labelsize=6)
    axes.legend(fontsize=5.5, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    axes.spines[["top", "right"]].set_visible(False)
