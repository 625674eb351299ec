"""A trait on the text itself: each token on the colour of its projection."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from traceformer.analysis.projection import Projections
from traceformer.figures.style import SIGNED, charts, headed, ink, quiet
from traceformer.texts.shown import label, visible

__all__ = ["text_figure"]

_IN_A_ROW = 96  # characters
_CHARACTER, _ROW = 0.082, 0.24  # inches
_MOST_ROWS = 60


def text_figure(value: Projections, title: str, ax: Axes | None) -> Figure:
    """Returns the tokens of the first example once per direction, of its first layer, red above the threshold.

    Without a known threshold, red is above zero. A line is where the response begins. Of a text beyond 60 rows the
    first 60 are drawn, and the title says so.

    Raises:
        UsageError: there are several directions, for one `ax`.
    """
    own = value.examples[0]
    [layer, *_] = own.by_layer
    rows = _rows([visible(token) for token in own.tokens])
    drawn = rows[:_MOST_ROWS]
    cut = f", its first {sum(map(len, drawn))} of {len(own.tokens)} tokens" if len(drawn) < len(rows) else ""
    panel = _ROW * len(drawn) + 0.5
    size = _IN_A_ROW * _CHARACTER + 1.6, panel * len(own.names) + 0.5
    figure, places = charts(ax, len(own.names), 1, *size)
    for i, axes in enumerate(places):
        numbers, middle = own.by_layer[layer].values[:, i], value.threshold(i, layer)
        centre = middle or 0.0
        reach = float(np.abs(numbers - centre).max(initial=0)) or 1.0
        norm = Normalize(centre - reach, centre + reach)
        for line, row in enumerate(drawn):
            for position, start, text in row:
                colour = colormaps[SIGNED](norm(float(numbers[position])))
                axes.add_patch(Rectangle((start, line), len(text), 0.86, facecolor=colour, linewidth=0))
                dark = abs(numbers[position] - centre) > 0.6 * reach
                shade = "white" if dark else "black"
                place = start + len(text) / 2, line + 0.43
                look = dict[str, Any](ha="center", va="center", family="monospace", fontsize=7.5, color=shade)
                axes.text(*place, label(text), **look)
                if position == own.n_prompt:
                    axes.plot([start, start], [line - 0.05, line + 0.91], color=ink(), linewidth=1.4)
        axes.set(xlim=(0, _IN_A_ROW), ylim=(len(drawn), -0.1))
        axes.set_axis_off()
        told = f", red above the threshold {middle:.2f}" if middle is not None else ""
        axes.set_title(label(own.names[i]) + told, loc="left", color=quiet())
        figure.colorbar(ScalarMappable(norm, SIGNED), ax=axes, label="projection", fraction=0.03, aspect=12)
    headed(figure, ax, title + cut)
    return figure


def _rows(tokens: list[str]) -> list[list[tuple[int, int, str]]]:
    """Each row's tokens: their positions, where they begin, and what is written of them."""
    rows: list[list[tuple[int, int, str]]] = [[]]
    start = 0
    for position, token in enumerate(tokens):
        text = token if len(token) <= _IN_A_ROW else f"{token[: _IN_A_ROW - 1]}…"
        if start + len(text) > _IN_A_ROW:
            rows.append([])
            start = 0
        rows[-1].append((position, start, text))
        start += len(text)
    return rows
