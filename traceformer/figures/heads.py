"""Pictures of head metrics and of clusters of heads, as matplotlib figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from traceformer.analysis.clusters import Clustering, HeadClusters, principal_map
from traceformer.analysis.head_tally import HeadMetrics

__all__ = ["distributions_figure", "map_figure", "metric_maps", "score_figure", "silhouettes_figure"]

_COLOURS = "magma"
_CLUSTERS = colormaps["tab10"]
_MARKERS = "o^sDvP*X"
_COLUMNS = 4
_MOST_NAMED = 150  # heads on a map that carry their name


def metric_maps(found: HeadMetrics, *, title: str) -> Figure:
    """Returns a map of layers and heads for every metric that has a meaning here."""
    shown = {name: values for name, values in found.values.items() if not np.isnan(values).all()}
    rows = math.ceil(len(shown) / _COLUMNS)
    width, height = (min(max(0.22 * len(own), 1.8), 5.0) for own in (found.heads, found.layers))
    size = (_COLUMNS * (width + 0.9), rows * (height + 0.6) + 0.5)
    figure = Figure(figsize=size)
    # Placed by hand: matplotlib's own layout of so many axes takes seconds.
    places = figure.subplots(rows, _COLUMNS, squeeze=False).ravel().tolist()
    figure.subplots_adjust(
        left=0.4 / size[0],
        right=1 - 0.35 / size[0],
        bottom=0.3 / size[1],
        top=1 - 0.6 / size[1],
        wspace=0.45 / width,
        hspace=0.5 / height,
    )
    for axes, (name, values) in zip(places, shown.items(), strict=False):
        image = axes.imshow(values, cmap=_COLOURS, aspect="auto", interpolation="nearest", vmin=0)
        axes.set_title(name.replace("_", " "), fontsize=9, pad=4)
        for axis, letter, numbers in ((axes.xaxis, "H", found.heads), (axes.yaxis, "L", found.layers)):
            every = math.ceil(len(numbers) / 12)
            axis.set_ticks(range(0, len(numbers), every), [f"{letter}{n}" for n in numbers[::every]], fontsize=6)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03).ax.tick_params(labelsize=6)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10, y=1 - 0.15 / size[1])
    return figure


def score_figure(found: HeadClusters, *, title: str) -> Figure:
    """Returns the silhouette score of every k, the best one circled; the byte-transformer thesis's figure."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ks = list(found.by_k)
    scores = [found.by_k[k].score for k in ks]
    axes.plot(ks, scores, marker="o", color=_CLUSTERS(0))
    best = found.best_k, found.best.score
    axes.plot(*best, marker="o", markersize=16, fillstyle="none", markeredgewidth=2, color="red")
    box = {"boxstyle": "round", "facecolor": "khaki", "edgecolor": "0.6"}
    axes.annotate(f"{best[1]:.3f}", best, (0, 14), textcoords="offset points", ha="center", fontsize=9, bbox=box)
    handles = [
        Patch(color=_CLUSTERS(number % 10), label=f"{name}: {size}")
        for number, (name, size) in enumerate(zip(found.best.names, found.best.sizes, strict=True))
    ]
    figure.legend(handles=handles, title=f"k = {best[0]}", loc="outside right center", fontsize=8)
    axes.margins(y=0.25)
    axes.set_xticks(ks)
    axes.grid(alpha=0.3)
    axes.set(xlabel="number of clusters k", ylabel="mean silhouette")
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def silhouettes_figure(clustering: Clustering, *, title: str) -> Figure:
    """Returns the silhouette of every head, longest first within its cluster, and their mean."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    start, middles = 0, list[float]()
    for cluster, size in enumerate(clustering.sizes):
        own = np.sort(clustering.silhouettes[clustering.labels == cluster])[::-1]
        axes.barh(np.arange(start, start + size), own, height=1.0, color=_CLUSTERS(cluster % 10))
        middles.append(start + (size - 1) / 2)
        start += size + 2
    axes.axvline(clustering.score, color="red", linestyle="--", linewidth=1)
    axes.set_xlim(min(0.0, float(clustering.silhouettes.min())) - 0.05, 1)
    axes.invert_yaxis()
    sizes = zip(clustering.names, clustering.sizes, strict=True)
    axes.set_yticks(middles, [f"{name}: {size}" for name, size in sizes], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"silhouette; their mean is {clustering.score:.3f}")
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def map_figure(
    found: HeadClusters, names: Sequence[str], tables: Int64[np.ndarray, "point"], of: Sequence[str], *, title: str
) -> Figure:
    """Returns all heads in the plane in which they vary most, coloured by cluster, a marker per table."""
    flat, shares = principal_map(found.points)
    best = found.best
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for cluster, name in enumerate(best.names):
        for number, marker in zip(range(len(of)), _MARKERS * len(of), strict=False):
            own = (best.labels == cluster) & (tables == number)
            label = name if len(of) == 1 else f"{name}, {of[number]}"
            if own.any():
                axes.scatter(*flat[own].T, color=_CLUSTERS(cluster % 10), marker=marker, s=26, alpha=0.8, label=label)
    if len(names) <= _MOST_NAMED:
        for name, place in zip(names, flat, strict=True):
            axes.annotate(name, place, (3, 3), textcoords="offset points", fontsize=5, color="0.3")
    axes.set(
        xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
        ylabel=f"second principal component ({shares[1]:.0%})",
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    axes.set_title(title, fontsize=10, wrap=True)
    return figure


def distributions_figure(values: Mapping[str, Mapping[str, Float64[np.ndarray, "head"]]], *, title: str) -> Figure:
    """Returns each metric's distribution over the heads of every table: metric -> table -> values."""
    rows = math.ceil(len(values) / _COLUMNS)
    columns = min(len(values), _COLUMNS)
    figure = Figure(figsize=(max(2.4 * columns, 5), 2.8 * rows + 0.5), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    random = np.random.default_rng(0)
    for axes, (metric, tables) in zip(places, values.items(), strict=False):
        axes.boxplot(list(tables.values()), tick_labels=list(tables), showfliers=False, widths=0.6)
        for number, own in enumerate(tables.values()):
            across = number + 1 + random.uniform(-0.18, 0.18, len(own))
            axes.scatter(across, own, s=8, alpha=0.5, color=_CLUSTERS(number % 10))
        axes.set_title(metric.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in places[len(values) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure
