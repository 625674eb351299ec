"""Pictures of heads in clusters: scores, silhouettes, a map of all heads, and how metrics are distributed."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from traceformer.analysis.clusters import principal_map
from traceformer.analysis.head_clusters import HeadClusters
from traceformer.errors import check_choice, check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import category, charts, headed, ink, quiet, styled, titled
from traceformer.shapes import Float

__all__ = ["ClusterChart", "clusters_figure", "clusters_html"]

ClusterChart: TypeAlias = Literal["scores", "silhouettes", "map", "distributions"]

_MARKERS = "o^sDvP*X"
_COLUMNS = 4
_LINE = 84  # characters of a title
_NAME = (0.1, 0.03)  # room of a name, as a share of the map
_NAMED = 24  # heads on a map that carry their name: those that are far out


@styled
def clusters_figure(clusters: HeadClusters, chart: ClusterChart = "map", *, ax: Axes | None = None) -> Figure:
    """Returns a picture of clusters.

    Args:
        clusters: Heads in clusters.
        chart: `map`, all heads in the plane in which they vary most; `scores`, the silhouette of every k;
            `silhouettes`, that of every head; `distributions`, those of every metric over the heads of each table.
        ax: Where to draw it; `distributions` are a grid, for which one has no room.

    Raises:
        UsageError: distributions of several metrics, for one `ax`.
    """
    check_is(clusters, HeadClusters, "what cluster gave")
    check_choice("chart", chart, _CHARTS)
    return _CHARTS[chart](clusters, ax)


def clusters_html(clusters: HeadClusters) -> str:
    """Returns the map as a piece of HTML."""
    return inline(clusters_figure(clusters), alternative=repr(clusters))


def scores_figure(clusters: HeadClusters, ax: Axes | None) -> Figure:
    """Returns the silhouette score of every k, the best one circled, as the thesis has it."""
    found = clusters.clusterings
    figure, (axes,) = charts(ax, 1, 1, 7, 4.5)
    ks = list(found.by_k)
    scores = [found.by_k[k].score for k in ks]
    axes.plot(ks, scores, marker="o", color=category(0))
    best = found.best_k, found.best.score
    axes.plot(*best, marker="o", markersize=16, fillstyle="none", markeredgewidth=1.5, color=ink())
    axes.annotate(f"{best[1]:.3f}", best, (0, 14), textcoords="offset points", ha="center", fontweight="bold")
    sizes = _in_lines(f"{size} {name}" for name, size in zip(found.best.names, found.best.sizes, strict=True))
    heads = f"{_of(clusters)}: heads {_by(clusters)}"
    axes.set_title(titled(f"k = {best[0]}\n{sizes}" if ax is None else f"{heads}\nk = {best[0]}\n{sizes}"), fontsize=8)
    axes.margins(y=0.25)
    axes.set_xticks(ks)
    axes.grid()
    axes.set(xlabel="number of clusters k", ylabel="mean silhouette")
    if ax is None:
        figure.suptitle(titled(heads), wrap=True)
    return figure


def silhouettes_figure(clusters: HeadClusters, ax: Axes | None) -> Figure:
    """Returns the silhouette of every head, longest first within its cluster, and their mean."""
    clustering = clusters.clusterings.best
    figure, (axes,) = charts(ax, 1, 1, 7, 4.5)
    start, middles = 0, list[float]()
    for cluster, size in enumerate(clustering.sizes):
        own = np.sort(clustering.silhouettes[clustering.labels == cluster])[::-1]
        axes.barh(np.arange(start, start + size), own, height=1.0, color=category(cluster))
        middles.append(start + (size - 1) / 2)
        start += size + 2
    axes.axvline(clustering.score, color=ink(), linestyle="--", linewidth=1)
    axes.set_xlim(min(0.0, float(clustering.silhouettes.min())) - 0.05, 1)
    axes.invert_yaxis()
    sizes = zip(clustering.names, clustering.sizes, strict=True)
    axes.set_yticks(middles, [f"{name}: {size}" for name, size in sizes])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"silhouette; their mean is {clustering.score:.3f}")
    headed(figure, ax, _title(clusters))
    return figure


def map_figure(clusters: HeadClusters, ax: Axes | None) -> Figure:
    """Returns all heads in the plane in which they vary most, coloured by cluster, a marker per table."""
    found, names, tables, of = clusters.clusterings, clusters.names, clusters.table_of, tuple(clusters.tables)
    flat, shares = principal_map(found.points)
    best = found.best
    figure, (axes,) = charts(ax, 1, 1, 7, 5.5)
    for cluster, name in enumerate(best.names):
        for number, marker in zip(range(len(of)), _MARKERS * len(of), strict=False):
            own = (best.labels == cluster) & (tables == number)
            label = name if len(of) == 1 else f"{name}, {titled(of[number])}"
            if own.any():
                axes.scatter(*flat[own].T, color=category(cluster), marker=marker, s=26, alpha=0.8, label=label)
    axes.margins(0.08)
    low, high = float(flat[:, 0].min()), float(flat[:, 0].max())
    axes.set_xlim(right=high + 0.15 * (high - low or 1))  # room for the names of those far out
    for head in _far_out(flat):
        axes.annotate(names[head], flat[head], (4, 3), textcoords="offset points", fontsize=6, color=quiet())
    axes.set(
        xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
        ylabel=f"second principal component ({shares[1]:.0%})",
    )
    if ax is None:
        figure.legend(loc="outside lower center", ncols=3)
    else:
        ax.legend()
    axes.set_title(titled(_title(clusters)), wrap=True)
    return figure


def _far_out(flat: Float[np.ndarray, "head 2"]) -> list[int]:
    """The heads furthest from the middle that can carry a name which meets no other head's, and no other head."""
    spread = np.ptp(flat, axis=0)
    places = (flat - flat.mean(axis=0)) / np.where(spread == 0, 1, spread)
    named: list[int] = []
    for head in np.argsort(-np.linalg.norm(places, axis=1), kind="stable").tolist():
        right, up = (places - places[head]).T
        there = (right > 0) & (right < _NAME[0]) & (np.abs(up) < _NAME[1])
        near = [other for other in named if abs(right[other]) < _NAME[0] and abs(up[other]) < 2 * _NAME[1]]
        if not there.any() and not near:
            named.append(head)
        if len(named) == _NAMED:
            break
    return named


def distributions_figure(clusters: HeadClusters, ax: Axes | None) -> Figure:
    """Returns each metric's distribution over the heads of every table."""
    values = clusters.by_metric
    rows = math.ceil(len(values) / _COLUMNS)
    columns = min(len(values), _COLUMNS)
    figure, places = charts(ax, rows, columns, max(2.4 * columns, 5), 2.8 * rows + 0.5)
    random = np.random.default_rng(0)
    for axes, (metric, tables) in zip(places, values.items(), strict=False):
        axes.boxplot(
            list(tables.values()), tick_labels=[titled(table) for table in tables], showfliers=False, widths=0.6
        )
        for number, own in enumerate(tables.values()):
            across = number + 1 + random.uniform(-0.18, 0.18, len(own))
            axes.scatter(across, own, s=8, alpha=0.5, color=category(number))
        axes.set_title(metric.replace("_", " "))
    for axes in places[len(values) :]:
        axes.set_axis_off()
    headed(figure, ax, f"{_of(clusters)}: the metrics of every head")
    return figure


_CHARTS: Mapping[ClusterChart, Callable[[HeadClusters, Axes | None], Figure]] = {
    "scores": scores_figure,
    "silhouettes": silhouettes_figure,
    "map": map_figure,
    "distributions": distributions_figure,
}


def _in_lines(names: Iterable[str]) -> str:
    """Names with commas between them, in lines that are as wide as a chart."""
    lines = [""]
    for name in names:
        together = f"{lines[-1]}, {name}" if lines[-1] else name
        lines = [*lines[:-1], together] if len(together) <= _LINE else [*lines, name]
    return ",\n".join(lines)


def _of(clusters: HeadClusters) -> str:
    return " and ".join(clusters.tables)


def _by(clusters: HeadClusters) -> str:
    return f"by {', '.join(clusters.features)} ({clusters.method})"


def _title(clusters: HeadClusters) -> str:
    return f"{_of(clusters)}: heads in {clusters.clusterings.best_k} clusters {_by(clusters)}"
