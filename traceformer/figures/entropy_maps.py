"""Pictures of statistics: how far each head spreads its attention."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from traceformer.analysis.run_statistics import RunStatistics
from traceformer.errors import NotRecorded, check_is
from traceformer.figures.style import COLOURS, charts, headed, styled, written_on

__all__ = ["entropy_figure"]

_MOST_WRITTEN = 400  # cells of a map that carry their number


@styled
def entropy_figure(statistics: RunStatistics, *, ax: Axes | None = None) -> Figure:
    """Returns the mean entropy of where each head looks as a coloured map, one for each array of patterns.

    Raises:
        NotRecorded: there are no patterns.
        UsageError: there are several arrays of them, for one `ax`.
    """
    check_is(statistics, RunStatistics, "what statistics gave")
    maps = [(str(each.key), each.layers, each.heads, each.entropy) for each in statistics.attention]
    if not maps:
        raise NotRecorded(f"{statistics.source} has no attention patterns", hint='record it with `capture="attn"`')
    width = sum(max(0.5 * len(heads), 2.5) + 0.8 for _, _, heads, _ in maps)
    height = max(max(0.4 * len(layers), 1.8) for _, layers, _, _ in maps)
    figure, places = charts(ax, 1, len(maps), width + 0.8, height + 1.2)
    for axes, (name, layers, heads, numbers) in zip(places, maps, strict=True):
        image = axes.imshow(numbers, cmap=COLOURS, vmin=min(0.0, float(np.nanmin(numbers))), aspect="auto")
        axes.set_xticks(range(len(heads)), [f"H{head}" for head in heads])
        axes.set_yticks(range(len(layers)), [f"L{layer}" for layer in layers])
        axes.set_title(name)
        if len(layers) * len(heads) <= _MOST_WRITTEN:
            for (row, column), value in np.ndenumerate(numbers):
                colour = written_on(image, float(value))
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8)
    headed(figure, ax, f"{statistics.source}: mean entropy of where each head looks, in nats")
    return figure
