"""Effects of edges: senders and receivers as a map, and estimates beside what was measured."""

from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure, SubFigure

from traceformer.analysis.edges import EdgeEffects, Part
from traceformer.analysis.effects import mean_over_pairs
from traceformer.errors import check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import SIGNED, category, faint, sheet, styled, titled

__all__ = ["edges_figure", "edges_html"]

_ABOVE = (0, 7, -7)  # points by which the names of the largest edges stand above theirs, so that near ones are apart


@styled
def edges_figure(value: EdgeEffects, *, title: str | None = None, figure: Figure | SubFigure | None = None) -> Figure:
    """Returns a map of mean estimates, a row per sender and a column per receiver, in the order of a pass.

    Colours are those of square roots, so that small effects are seen beside large ones. Where edges were measured, a
    second panel has a point for each: its estimate, and its measurement above it. All is drawn in `figure` if that is
    given.
    """
    check_is(value, EdgeEffects, "what edges gave")
    measured = value.agreement.measured > 0
    size = (
        4.5 + 0.06 * min(len(value.receivers), 120) + 4 * measured,
        1.6 + 0.09 * min(max(len(value.senders), 30), 60),
    )
    whole, place = sheet(figure, *size)
    places = place.subplots(1, 1 + measured, squeeze=False, width_ratios=[2, 1][: 1 + measured])[0]
    _map(places[0], value, place)
    if measured:
        _beside(places[1], value)
    about = value.about
    pairs = f"{len(value.pairs)} pair{'s' * (len(value.pairs) != 1)}"
    named = f"{about.model}  effects of edges on the {about.metric.replace('_', ' ')}, {pairs}: estimated"
    place.suptitle(titled(named if title is None else title))
    return whole


def edges_html(value: EdgeEffects) -> str:
    """Returns the same for a notebook."""
    return inline(edges_figure(value), alternative=repr(value))


def _map(axes: Axes, value: EdgeEffects, figure: Figure | SubFigure) -> None:
    limit = float(np.nanmax(np.abs(value.values), initial=0)) or 1.0
    norm = FuncNorm((_root, _square), -limit, limit)
    image = axes.imshow(value.values, cmap=SIGNED, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_facecolor(faint())
    for axis, parts in ((axes.xaxis, value.receivers), (axes.yaxis, value.senders)):
        places, names = _blocks(parts)
        axis.set_ticks(places, names, fontsize=6)
    axes.tick_params(length=2)
    axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("receiver")
    axes.set_ylabel("sender")
    ticks = [share * limit for share in (-1, -0.25, -0.05, 0, 0.05, 0.25, 1)]
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=ticks, format="{x:.2g}", label="effect")
    bar.minorticks_off()


def _root(effects: np.ndarray) -> np.ndarray:
    return np.sign(effects) * np.sqrt(np.abs(effects))


def _square(roots: np.ndarray) -> np.ndarray:
    return np.sign(roots) * np.square(roots)


def _blocks(parts: tuple[Part, ...]) -> tuple[list[float], list[str]]:
    """The middle of each layer's parts of a kind, and what they are called: neighbours of one part each together."""
    names = [
        part.kind if part.layer is None else f"L{part.layer} {'heads' if part.kind == 'head' else part.kind}"
        for part in parts
    ]
    places, told, last = list[float](), list[str](), 0
    for name, block in groupby(names):
        count = len(list(block))
        if told and count == last == 1:
            told[-1] += f", {name}"
        else:
            places.append(names.index(name) + (count - 1) / 2)
            told.append(name)
        last = count
    return places, told


def _beside(axes: Axes, value: EdgeEffects) -> None:
    exact = mean_over_pairs(value.exact)
    rows, columns = np.nonzero(np.isfinite(exact))
    estimated, found = value.values[rows, columns], exact[rows, columns]
    axes.scatter(estimated, found, s=14, color=category(0))
    ends = [min(estimated.min(), found.min()), max(estimated.max(), found.max())]
    axes.plot(ends, ends, color=faint(), linewidth=0.8, zorder=0)
    middle = (estimated.min() + estimated.max()) / 2
    for i, above in zip(np.argsort(-np.abs(found)), _ABOVE, strict=False):
        name, is_right = f"{value.senders[rows[i]]} → {value.receivers[columns[i]]}", estimated[i] > middle
        axes.annotate(
            name, (estimated[i], found[i]), (-5 if is_right else 5, above), textcoords="offset points",
            ha="right" if is_right else "left", va="center", fontsize=6,
        )  # fmt: skip
    axes.set_xlabel("estimate")
    axes.set_ylabel("measured")
    axes.margins(x=0.25)
    axes.set_title(str(value.agreement), fontsize=7)
