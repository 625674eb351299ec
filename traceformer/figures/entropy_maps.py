"""Pictures of statistics: how far each head spreads its attention."""

import numpy as np
from matplotlib.figure import Figure

from traceformer.analysis.run_statistics import RunStatistics
from traceformer.errors import check_is
from traceformer.figures.style import COLOURS, styled, titled, written_on

__all__ = ["entropy_figure"]

_MOST_WRITTEN = 400  # cells of a map that carry their number


@styled
def entropy_figure(statistics: RunStatistics) -> Figure:
    """Returns the mean entropy of where each head looks as a coloured map, one for each array of patterns."""
    check_is(statistics, RunStatistics, "what statistics gave")
    maps = [(str(each.key), each.layers, each.heads, each.entropy) for each in statistics.attention]
    width = sum(max(0.5 * len(heads), 2.5) + 0.8 for _, _, heads, _ in maps)
    height = max(max(0.4 * len(layers), 1.8) for _, layers, _, _ in maps)
    figure = Figure(figsize=(width + 0.8, height + 1.2), layout="constrained")
    for axes, (name, layers, heads, numbers) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        image = axes.imshow(numbers, cmap=COLOURS, vmin=min(0.0, float(np.nanmin(numbers))), aspect="auto")
        axes.set_xticks(range(len(heads)), [f"H{head}" for head in heads])
        axes.set_yticks(range(len(layers)), [f"L{layer}" for layer in layers])
        axes.set_title(name)
        if len(layers) * len(heads) <= _MOST_WRITTEN:
            for (row, column), value in np.ndenumerate(numbers):
                colour = written_on(image, float(value))
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8)
    heading = titled(f"{statistics.source}: mean entropy of where each head looks, in nats")
    figure.suptitle(heading, wrap=True)
    return figure
