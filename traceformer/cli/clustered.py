"""Heads of one or several tables in clusters, as text."""

from collections.abc import Iterator

from traceformer.analysis.head_clusters import HeadClusters, distribution
from traceformer.cli.terminal import table

__all__ = ["as_text"]

_HEADS_SHOWN = 8  # of a cluster, fewer where their names are long
_LEGEND = (
    "names say on which side of the mean a centroid lies: Focused-Local nearer, with less entropy; Wider-Local nearer, "
    "with more;\nGlobal-Anchor further, with less; Strided further, with more; a number where it is on no side clearly"
)


def as_text(clusters: HeadClusters) -> str:
    """Returns the score of every k, what each cluster is like, and how several tables share them."""
    found, best = clusters.clusterings, clusters.clusterings.best
    scores = [(str(k), f"{each.score:.4f}", "best" if k == found.best_k else "") for k, each in found.by_k.items()]
    parts = [
        f"{len(best.labels)} heads by {', '.join(found.features)}; {clusters.method}",
        table(("k", "silhouette", ""), scores, numeric=(0, 1)),
        table(
            ("cluster", "name", "heads", *found.features, ""),
            list(_cluster_rows(clusters)),
            numeric=(0, *range(2, 3 + len(found.features))),
        ),
    ]
    if {"entropy", "distance"} <= set(found.features):
        parts.append(_LEGEND)
    if len(clusters.tables) > 1:
        shares = zip(clusters.tables, clusters.shares, strict=True)
        rows = [(label, *(f"{share:.1%}" for share in own)) for label, own in shares]
        parts.append(table(("share of heads", *best.names), rows, numeric=range(1, len(best.names) + 1)))
        if clusters.unstated:
            parts.append(f"not every table says its {', '.join(clusters.unstated)}: they may differ in it")
        headers = ("metric", "", "mean", "std", "min", "25 %", "50 %", "75 %", "max")
        parts.append(table(headers, list(_distribution_rows(clusters)), numeric=range(2, len(headers))))
    return "\n\n".join(parts)


def _cluster_rows(clusters: HeadClusters) -> Iterator[tuple[str, ...]]:
    best, most = clusters.clusterings.best, _HEADS_SHOWN // len(clusters.tables)
    for number, (name, size, centroid) in enumerate(zip(best.names, best.sizes, best.centroids, strict=True)):
        own = [head for head, label in zip(clusters.names, best.labels, strict=True) if label == number]
        heads = ", ".join(own[:most]) + (" ..." if size > most else "")
        yield str(number), name, str(size), *(f"{value:.3g}" for value in centroid), heads


def _distribution_rows(clusters: HeadClusters) -> Iterator[tuple[str, ...]]:
    for metric, tables in clusters.by_metric.items():
        for number, (label, own) in enumerate(tables.items()):
            yield "" if number else metric, label, *(f"{value:.3g}" for value in distribution(own).values())
