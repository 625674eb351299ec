"""Clusters of heads, against SciPy's linkage and silhouettes by their definition."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist

from traceformer.analysis.clusters import cluster_heads, cluster_shares, principal_map
from traceformer.analysis.methods import ClusterMethod
from traceformer.errors import UsageError

THESIS = Path(__file__).parents[1] / "data" / "thesis_head_metrics.csv"
FEATURES = ("entropy", "sparsity", "distance")
METHODS: tuple[ClusterMethod, ...] = ("ward", "kmeans", "gmm")


def thesis() -> np.ndarray:
    """The table that the byte-transformer thesis publishes: 12 layers of 8 heads."""
    with THESIS.open(newline="") as file:
        return np.array([[float(row[name]) for name in FEATURES] for row in csv.DictReader(file)])


def silhouettes(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(b - a) / max(a, b) of every point: a its mean distance to its own cluster's others, b to the nearest other's."""
    found = np.zeros(len(points))
    distances = cdist(points, points)
    for i, own in enumerate(labels):
        others = labels == own
        others[i] = False
        if others.any():
            a = distances[i, others].mean()
            b = min(distances[i, labels == other].mean() for other in set(labels.tolist()) - {own})
            found[i] = (b - a) / max(a, b)
    return found


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one[:, None] == one, other[:, None] == other)


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Four clouds far apart, and which one each point is of."""
    random = np.random.default_rng(0)
    centres = np.array([[1.0, 0.5, 2.0], [3.0, 0.4, 3.0], [1.2, 0.6, 90.0], [3.3, 0.3, 120.0]])
    of = np.repeat(np.arange(4), 12)
    return centres[of] + random.normal(scale=[0.05, 0.02, 1.0], size=(48, 3)), of


def test_the_thesis_procedure_is_reproduced_on_its_own_table() -> None:
    values = thesis()
    assert values.shape == (96, 3)
    found = cluster_heads(values, FEATURES)
    points = (values - values.mean(axis=0)) / values.std(axis=0)
    tree = linkage(points, "ward")
    assert list(found.by_k) == [2, 3, 4, 5, 6, 7, 8]
    scores: list[float] = []
    for k, own in found.by_k.items():
        labels = fcluster(tree, k, "maxclust")
        expected = silhouettes(points, labels)
        scores.append(expected.mean())
        assert same_partition(own.labels, labels)
        assert own.silhouettes == pytest.approx(expected, abs=1e-12)
        assert own.score == pytest.approx(scores[-1], abs=1e-12)
    assert found.best_k == 2 + int(np.argmax(scores)) == 7  # not 5, as the thesis has it


def test_the_thesis_heads_get_its_four_names_at_k_4() -> None:
    own = cluster_heads(thesis(), FEATURES, ks=(4,)).best
    assert own.names == ("Focused-Local", "Wider-Local", "Global-Anchor", "Strided")
    assert own.sizes == (37, 11, 24, 24)
    # The head number decides in that model: all layers have the same order of patterns.
    heads = [sorted({i % 8 for i in np.flatnonzero(own.labels == cluster)}) for cluster in range(4)]
    assert heads == [[0, 3, 4, 7], [3, 7], [2, 6], [1, 5]]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_clouds_that_are_apart(method: ClusterMethod) -> None:
    values, of = blobs()
    found = cluster_heads(values, FEATURES, method=method, ks=(3, 4, 5))
    assert found.best_k == 4
    assert same_partition(found.best.labels, of)
    assert found.best.names == ("Focused-Local", "Wider-Local", "Global-Anchor", "Strided")
    for cluster, centroid in enumerate(found.best.centroids):
        assert centroid == pytest.approx(values[of == cluster].mean(axis=0))
    assert found.best.standardised == pytest.approx(
        np.stack([((values - values.mean(0)) / values.std(0))[of == cluster].mean(0) for cluster in range(4)])
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_heads_does_not_matter(method: ClusterMethod) -> None:
    values, of = blobs()
    order = np.random.default_rng(1).permutation(len(values))
    found = cluster_heads(values[order], FEATURES, method=method, ks=(4,)).best
    assert np.array_equal(found.labels, of[order])


def test_clusters_are_numbered_by_distance_and_those_named_alike_told_apart() -> None:
    values = thesis()
    own = cluster_heads(values, FEATURES, ks=(7,)).best
    assert np.all(np.diff(own.centroids[:, 2]) > 0)
    kinds = [name.split(" (")[0] for name in own.names]
    assert kinds == ["Focused-Local"] * 2 + ["Wider-Local"] * 2 + ["Global-Anchor"] + ["Strided"] * 2
    assert own.names[4] == "Global-Anchor"
    for one, other in ((0, 1), (2, 3), (5, 6)):
        means = np.stack([values[own.labels == cluster].mean(axis=0) for cluster in (one, other)])
        most = int((np.abs(means[0] - means[1]) / values.std(axis=0)).argmax())
        names = [f"{kinds[one]} ({FEATURES[most]} {mean:.3g})" for mean in means[:, most]]
        assert [own.names[one], own.names[other]] == names


def test_of_several_named_alike_the_metric_tells_that_parts_the_nearest_two() -> None:
    # In distance the first two lie together, in entropy no two do.
    centres = [[0.1, 1.0], [0.4, 1.001], [0.7, 3.0], [9.0, 90.0]]
    values = np.repeat(centres, 4, axis=0) + np.tile([[0, 0], [0.01, 0], [0, 1e-4], [0.01, 1e-4]], (4, 1))
    own = cluster_heads(values, ("entropy", "distance"), ks=(4,)).best
    assert own.names == (*(f"Focused-Local (entropy {entropy})" for entropy in (0.105, 0.405, 0.705)), "Strided")


def test_centroids_that_are_almost_the_same_take_more_digits() -> None:
    centres = [[0.10000, 1.0], [0.10002, 1.0], [9.0, 90.0]]
    values = np.repeat(centres, 3, axis=0) + np.tile([[0, 0], [1e-7, 0], [0, 1e-7]], (3, 1))
    own = cluster_heads(values, ("entropy", "distance"), ks=(3,)).best
    assert set(own.names) == {"Focused-Local (entropy 0.1)", "Focused-Local (entropy 0.10002)", "Strided"}


def test_without_entropy_or_distance_the_metric_furthest_out_names_a_cluster() -> None:
    values = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.9], [0.1, 0.9]])
    own = cluster_heads(values, ("induction", "self"), ks=(3,)).best
    assert own.names[int(own.labels[0])] == "high induction"
    assert own.names[int(own.labels[4])] == "high self"


def test_a_constant_metric_changes_nothing() -> None:
    values, of = blobs()
    found = cluster_heads(np.hstack([values, np.full((48, 1), 7.0)]), (*FEATURES, "self"), ks=(4,))
    assert same_partition(found.best.labels, of)


@pytest.mark.parametrize(
    ("values", "ks", "message"),
    [
        ([[1.0, 2.0]], (2,), "2 clusters of 1 head"),
        ([[1.0, 2.0], [3.0, 4.0]], (2,), "2 clusters of 2 heads"),
        ([[1.0, 2.0]] * 5, (2,), "5 heads, 1 of them different"),
        ([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]], (3,), "k from 2 to 2"),
        ([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]], (1,), "1 clusters"),
        ([[1.0, 2.0], [2.0, float("nan")], [3.0, 3.0]], (2,), "not a number"),
        ([[1.0, 2.0], [2.0, float("inf")], [3.0, 3.0]], (2,), "not a number"),
    ],
)
def test_what_cannot_be_clustered_is_refused(values: list[list[float]], ks: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cluster_heads(np.array(values), ("entropy", "distance"), ks=ks)


def test_shares_are_counted_per_table() -> None:
    labels, tables = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 0])
    assert cluster_shares(labels, tables).tolist() == [[0.5, 0.25, 0.25], [0, 0, 1]]


@pytest.mark.parametrize("features", [1, 2, 5])
def test_the_map_keeps_as_much_variance_as_a_plane_can(features: int) -> None:
    points = np.random.default_rng(0).normal(size=(30, features)) * np.arange(1, features + 1)
    flat, shares = principal_map(points)
    variances = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(points.T))))[::-1]
    expected = np.append(variances, 0)[:2]
    assert flat.var(axis=0, ddof=1) == pytest.approx(expected)
    assert shares == pytest.approx(expected / variances.sum())


# What clusters are called


def test_heads_that_hardly_differ_get_no_names() -> None:
    """Sixteen heads of an untrained model, measured: entropies from 3.36 to 3.38."""
    random = np.random.default_rng(0)
    values = np.stack(
        [random.uniform(3.36, 3.38, 16), random.uniform(0, 1e-3, 16), random.uniform(14.0, 14.4, 16)], axis=1
    )
    for features, own in ((FEATURES, values), (FEATURES[:1], values[:, :1]), (("induction",), values[:, 1:2])):
        for k, found in cluster_heads(own, features).by_k.items():
            assert found.names == tuple(f"cluster {number}" for number in range(k))


@pytest.mark.parametrize(
    ("feature", "mean", "clear"),
    [("entropy", 2.0, 0.1), ("distance", 30.0, 1.5), ("induction", 0.3, 0.05), ("sparsity_0.0001", 0.5, 0.05)],
)
def test_a_side_is_said_from_its_threshold_on(feature: str, mean: float, clear: float) -> None:
    for gap, names in (
        (0.98 * clear, {"cluster 0", "cluster 1"}),
        (1.02 * clear, {f"low {feature}", f"high {feature}"}),
    ):
        values = mean + gap * np.array([[-1.0], [-1.0], [1.0], [1.0]]) + 1e-6 * np.array([[-1.0], [1.0], [-1.0], [1.0]])
        assert set(cluster_heads(values, (feature,), ks=(2,)).best.names) == names


def test_a_name_of_two_sides_needs_both() -> None:
    entropy, distance = np.array([1.0, 1.0, 3.0, 3.0]), np.array([20.0, 20.1, 20.2, 20.3])
    values = np.stack([entropy, distance], axis=1)
    assert cluster_heads(values, ("entropy", "distance"), ks=(2,)).best.names == ("cluster 0", "cluster 1")
    values[:, 1] = [20, 21, 40, 41]
    assert cluster_heads(values, ("entropy", "distance"), ks=(2,)).best.names == ("Focused-Local", "Strided")
