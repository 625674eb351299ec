"""Edges between tokens: which there are, and the strongest of them."""

import numpy as np
import pytest

from tests.analysis.paths.plain_paths import edges_of, random_graph
from traceformer.analysis.paths.graph import Graph, log_weights, top_k
from traceformer.errors import NumericError


@pytest.mark.parametrize("kind", ["causal", "any", "layers"])
@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_strongest_edges_are_those_of_a_sorted_list(kind: str, k: int) -> None:
    random = np.random.default_rng(k)
    for _ in range(20):
        graph = random_graph(random, kind, int(random.integers(1, 30)), 2 if kind == "layers" else 1)
        nodes = random.permutation(graph.n_nodes)[:9]
        found = top_k(graph, nodes, k)
        for row, node in enumerate(nodes.tolist()):
            expected = sorted(edges_of(graph, node), key=lambda edge: (-edge[1], edge[0]))[:k]
            expected += [(-1, 0.0)] * (k - len(expected))
            assert list(zip(found.nodes[row].tolist(), found.weights[row].tolist(), strict=True)) == expected


def test_of_equal_weights_the_earlier_node_comes_first_even_where_they_are_cut() -> None:
    weights = np.array([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1, 0.0]], np.float32)
    graph = Graph(np.tile(weights, (7, 1))[None], "causal", np.zeros(7, bool), np.ones(7, bool))
    assert top_k(graph, np.array([6]), 4).nodes.tolist() == [[1, 3, 0, 2]]


def test_nodes_already_visited_are_passed_over() -> None:
    graph = Graph(np.full((1, 4, 4), 0.25, np.float32), "any", np.zeros(4, bool), np.ones(4, bool))
    visited = np.array([[True, False, True, False]])
    assert top_k(graph, np.array([2]), 3, visited).nodes.tolist() == [[1, 3, -1]]


def test_reading_edges_leaves_the_weights_as_they_are() -> None:
    weights = np.full((2, 3, 3), 1 / 3, np.float32)
    before = weights.copy()
    for kind in ("causal", "any"):
        top_k(Graph(weights[:1], kind, np.zeros(3, bool), np.zeros(3, bool), 0.5), np.array([0, 1, 2]), 2)
    top_k(Graph(weights, "layers", np.zeros(9, bool), np.zeros(3, bool), 0.5), np.array([0, 4, 8]), 2)
    assert np.array_equal(weights, before)


@pytest.mark.parametrize("bad", [np.nan, -1e-3, 1.02])
def test_weights_that_are_none_are_refused_where_they_are_read(bad: float) -> None:
    weights = np.full((1, 3, 3), 1 / 3, np.float32)
    weights[0, 2, 0] = bad
    graph = Graph(weights, "causal", np.zeros(3, bool), np.ones(3, bool))
    graph.rows(np.array([1]))
    with pytest.raises(NumericError, match="between 0 and 1"):
        graph.rows(np.array([2]))


def test_log_weights_are_bounded_from_below_and_know_no_edge() -> None:
    logs = log_weights(np.array([1.0, 0.5, 1e-20, 0.0], np.float32))
    assert logs.tolist() == pytest.approx([0.0, np.log(0.5), np.log(1e-12), -np.inf])
