"""Clusters of heads by their metrics, and how well they are apart.

1. Every metric is standardised: mean 0, standard deviation 1 over the heads.
2. For each k the heads are put into k clusters: by Ward's method, as the byte-transformer thesis does, by k-means, or
   by a mixture of Gaussians.
3. Each head's silhouette (Rousseeuw 1987) says how much nearer it is to its own cluster than to the next, from -1 to
   1; their mean is the score of k, and the k with the highest one is the best.
4. Clusters are numbered by their mean distance and named by their centroids.

The names say no more than on which side of the mean over all heads a cluster's centroid lies:

                      nearer           further
    lower entropy     Focused-Local    Global-Anchor
    higher entropy    Wider-Local      Strided

A side is said where the centroid is clearly on it: a share (0 to 1) by 0.05, entropy, distance and any other metric by
a twentieth of the mean. A cluster that is not clearly on a side of both has no name but its number, `cluster 2`:
standardising makes clusters of any differences, those of an untrained model's heads, too.

A far and focused head looks at a few distant places, a far and broad one at many; whether these are the fixed columns
of the thesis's sparse models, its pattern must show. Clusters on the same side are told apart by the metric in which
they differ most: Strided (sparsity 0.86) and Strided (sparsity 0.92).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from traceformer.analysis.conventions import SPARSITY
from traceformer.analysis.methods import ClusterMethod
from traceformer.errors import UsageError
from traceformer.shapes import Bool, Float64, Int64

__all__ = ["Clustering", "Clusterings", "cluster_heads", "cluster_shares", "principal_map"]

_NAMES: Mapping[tuple[bool, bool], str] = {
    (False, False): "Focused-Local",
    (True, False): "Wider-Local",
    (False, True): "Global-Anchor",
    (True, True): "Strided",
}
"""(entropy above the mean, distance above the mean) -> name."""

_CLEAR_SHARE = 0.05
_CLEAR_PART = 0.05  # of the mean
_SHARES = ("max_weight", "previous_token", "first_token", "self", "duplicate_token", "induction", "local_mass")


@dataclass(frozen=True, slots=True)
class Clustering:
    """The heads in k clusters.

    Attributes:
        labels: The cluster of each head.
        silhouettes: How well each head lies in its cluster.
        centroids: Mean metrics of each cluster, in their own units.
        standardised: The same in standard deviations from the mean over all heads.
        names: What each cluster is called.
    """

    labels: Int64[np.ndarray, "point"]
    silhouettes: Float64[np.ndarray, "point"]
    centroids: Float64[np.ndarray, "cluster feature"]
    standardised: Float64[np.ndarray, "cluster feature"]
    names: tuple[str, ...]

    @property
    def score(self) -> float:
        """The mean silhouette."""
        return float(self.silhouettes.mean())

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(np.bincount(self.labels, minlength=len(self.names)).tolist())


@dataclass(frozen=True, slots=True)
class Clusterings:
    """The heads in each number of clusters that was tried; `points` are their standardised metrics."""

    features: tuple[str, ...]
    points: Float64[np.ndarray, "point feature"]
    by_k: Mapping[int, Clustering]

    @property
    def best_k(self) -> int:
        """The k with the highest score; of equal ones the smallest."""
        return max(self.by_k, key=lambda k: (self.by_k[k].score, -k))

    @property
    def best(self) -> Clustering:
        return self.by_k[self.best_k]


def cluster_heads(
    values: Float64[np.ndarray, "point feature"],
    features: Sequence[str],
    *,
    method: ClusterMethod = "ward",
    ks: Iterable[int] = range(2, 9),
) -> Clusterings:
    """Returns the heads in k clusters for every k of `ks`.

    Raises:
        UsageError: there are too few different heads for some k, or a metric is not finite.
    """
    from sklearn.preprocessing import StandardScaler

    ks = tuple(ks)
    if not np.isfinite(values).all():
        raise UsageError("a metric of some head is not a number", why="distances to it have no meaning")
    distinct = len(np.unique(values, axis=0))
    most = min(len(values) - 1, distinct)
    for k in ks:
        if not 2 <= k <= most:
            heads = f"{len(values)} head{'' if len(values) == 1 else 's'}"
            alike = f", {distinct} of them different" if distinct < len(values) else ""
            hint = f"k from 2 to {most}" if most >= 2 else "a silhouette needs at least 3 heads that are not all alike"
            raise UsageError(f"{k} clusters of {heads}{alike}", hint=hint)
    points = StandardScaler().fit_transform(values)
    return Clusterings(
        tuple(features), points, {k: _clustering(values, points, _labels(points, k, method), features) for k in ks}
    )


def _labels(points: Float64[np.ndarray, "point feature"], k: int, method: ClusterMethod) -> Int64[np.ndarray, "point"]:
    from sklearn.cluster import AgglomerativeClustering, KMeans
    from sklearn.mixture import GaussianMixture

    # Seeded, with several beginnings where the outcome depends on it: the same heads always give the same clusters.
    model: Any
    if method == "ward":
        model = AgglomerativeClustering(k, linkage="ward")
    elif method == "kmeans":
        model = KMeans(k, n_init=10, random_state=0)  # pyright: ignore[reportArgumentType]
    else:
        model = GaussianMixture(k, n_init=5, random_state=0)
    labels = np.asarray(model.fit_predict(points), np.int64)
    if len(np.unique(labels)) < k:
        raise UsageError(f"{method} leaves clusters empty at k = {k}", hint='`method="ward"`, or a smaller k')
    return labels


def _clustering(
    values: Float64[np.ndarray, "point feature"],
    points: Float64[np.ndarray, "point feature"],
    labels: Int64[np.ndarray, "point"],
    features: Sequence[str],
) -> Clustering:
    from sklearn.metrics import silhouette_samples

    k = int(labels.max()) + 1
    order_by = features.index("distance") if "distance" in features else 0
    centroids = np.stack([values[labels == cluster].mean(axis=0) for cluster in range(k)])
    order = np.argsort(centroids[:, order_by], kind="stable")
    labels = np.argsort(order)[labels]
    standardised = np.stack([points[labels == cluster].mean(axis=0) for cluster in range(k)])
    silhouettes = np.asarray(silhouette_samples(points, labels), np.float64)
    return Clustering(
        labels,
        silhouettes,
        centroids[order],
        standardised,
        _names(centroids[order], standardised, _is_clear(centroids[order], values.mean(axis=0), features), features),
    )


def _is_clear(
    centroids: Float64[np.ndarray, "cluster feature"], means: Float64[np.ndarray, "feature"], features: Sequence[str]
) -> Bool[np.ndarray, "cluster feature"]:
    """Returns where a centroid is clearly on one side of the mean over all heads."""
    least = [
        _CLEAR_SHARE if feature in _SHARES or feature.split("_")[0] == SPARSITY else _CLEAR_PART * abs(mean)
        for feature, mean in zip(features, means, strict=True)
    ]
    return np.abs(centroids - means) >= np.maximum(least, np.finfo(np.float64).tiny)


def _names(
    centroids: Float64[np.ndarray, "cluster feature"],
    standardised: Float64[np.ndarray, "cluster feature"],
    clear: Bool[np.ndarray, "cluster feature"],
    features: Sequence[str],
) -> tuple[str, ...]:
    """Names by entropy and distance, or by the clear metric furthest from the mean; each of them once."""
    if "entropy" in features and "distance" in features:
        both = [features.index("entropy"), features.index("distance")]
        is_named = np.all(clear[:, both], axis=1)
        names = [_NAMES[bool(entropy), bool(distance)] for entropy, distance in standardised[:, both] > 0]
    else:
        is_named = np.any(clear, axis=1)
        furthest = np.where(clear, np.abs(standardised), -1).argmax(axis=1)
        names = [
            f"{'high' if centroid[feature] > 0 else 'low'} {features[feature]}"
            for centroid, feature in zip(standardised, furthest, strict=True)
        ]
    names = [name if is_named[cluster] else f"cluster {cluster}" for cluster, name in enumerate(names)]
    for name in dict.fromkeys(names):
        alike = [cluster for cluster, own in enumerate(names) if own == name]
        if len(alike) > 1:
            # The nearest two are furthest apart in it.
            gaps = np.diff(np.sort(standardised[alike], axis=0), axis=0).min(axis=0)
            feature = int(gaps.argmax())
            for cluster, value in zip(alike, _told_apart(centroids[alike, feature]), strict=True):
                names[cluster] = f"{name} ({features[feature]} {value})"
    return tuple(names)


def _told_apart(values: Float64[np.ndarray, "cluster"]) -> list[str]:
    """Returns the numbers in as few digits as tell them apart, three at least."""
    digits = 3
    while len({f"{value:.{digits}g}" for value in values}) < len(values) and digits < 17:
        digits += 1
    return [f"{value:.{digits}g}" for value in values]


def cluster_shares(
    labels: Int64[np.ndarray, "point"], tables: Int64[np.ndarray, "point"]
) -> Float64[np.ndarray, "table cluster"]:
    """Returns what share of each table's heads is in each cluster; `tables` says which table a head is of."""
    counts = np.zeros((int(tables.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (tables, labels), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def principal_map(
    points: Float64[np.ndarray, "point feature"],
) -> tuple[Float64[np.ndarray, "point 2"], Float64[np.ndarray, "2"]]:
    """Returns the points in the plane in which they vary most, and which share of their variance each axis has.

    Of one feature only, the second axis is 0. An axis points to where its largest loading is positive.
    """
    centred = points - points.mean(axis=0)
    _, spread, axes = np.linalg.svd(np.pad(centred, ((0, 0), (0, max(0, 2 - centred.shape[1])))), full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    flat = centred @ axes[:, : centred.shape[1]].T
    return flat, (spread**2 / (spread**2).sum())[:2]
