"""The exact search finds the best of all paths, counted one by one."""

from itertools import product

import numpy as np
import pytest

from tests.analysis.paths.plain_paths import every_path, random_graph
from traceformer.analysis.paths.beam import LengthNorm, beam_search
from traceformer.analysis.paths.exact import best_paths
from traceformer.analysis.paths.graph import Graph
from traceformer.errors import Unsupported, UsageError

POWERS = (0.0, 1.0, 0.5, 0.7, 1.5, 2.0, -0.5)


def assert_best(graph: Graph, target: int, k: int, power: float) -> None:
    """Fails unless the k best paths are among all there are, and none is better."""
    norm = LengthNorm(power)
    [own] = best_paths(graph, [target], k=k, norm=norm)
    every = every_path(graph, target, power)
    scores = {tuple(path): score for score, path in every}
    found = [norm.score(path.log_score, path.num_edges) for path in own]
    assert len({tuple(path.positions) for path in own}) == len(own) == min(k, len(every))
    assert found == pytest.approx([scores[tuple(path.positions)] for path in own], abs=1e-12)
    assert found == pytest.approx([score for score, _ in every[:k]], abs=1e-12)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("n", range(1, 9))
def test_finds_the_best_of_all_paths_up_to_eight_tokens(n: int, power: float) -> None:
    random = np.random.default_rng(n)
    for seed in range(6):
        graph = random_graph(random, "causal", n, sharp=1 + 2 * (seed % 3))
        for target in range(n):
            assert_best(graph, target, int(random.integers(1, 8)), power)


@pytest.mark.parametrize("power", [0.0, 1.0, 0.5])
def test_finds_the_best_in_every_graph_that_four_tokens_can_have(power: float) -> None:
    random = np.random.default_rng(0)
    weights = np.tril(random.random((4, 4))).astype(np.float32) / 4
    below = np.tril_indices(4, -1)
    for present in product((0, 1), repeat=6):
        one = np.zeros((4, 4), np.float32)
        one[below] = weights[below] * present
        terminal = np.array([True, *(random.random(3) < 0.3)])
        assert_best(Graph(one[None], "causal", terminal, np.ones(4, bool)), 3, 3, power)


@pytest.mark.parametrize("power", POWERS)
def test_finds_the_best_of_all_paths_across_layers(power: float) -> None:
    random = np.random.default_rng(1)
    for _ in range(12):
        graph = random_graph(random, "layers", int(random.integers(1, 5)), int(random.integers(1, 4)))
        assert_best(graph, int(random.integers(graph.n_nodes)), int(random.integers(1, 8)), power)


def test_equal_weights_and_equal_paths_are_listed_once_each() -> None:
    attn = np.tril(np.full((7, 7), 1 / 7, np.float32))
    graph = Graph(attn[None], "causal", np.arange(7) == 0, np.ones(7, bool))
    for power in POWERS:
        [paths] = best_paths(graph, [6], k=100, norm=LengthNorm(power))
        assert sorted(tuple(path.positions) for path in paths) == sorted(
            tuple(p) for _, p in every_path(graph, 6, power)
        )


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_is_never_worse_than_any_beam(seed: int) -> None:
    """On a thousand graphs when slow."""
    random = np.random.default_rng(seed)
    for _ in range(250):
        n = int(random.integers(2, 16))
        graph = random_graph(random, "causal", n, sharp=float(random.choice([1, 4, 12])))
        target, k, norm = n - 1, int(random.integers(1, 6)), LengthNorm(float(random.choice(POWERS)))
        [own] = best_paths(graph, [target], k=k, norm=norm)
        [beam] = beam_search(graph, [target], top_beam=k, top_k=int(random.integers(1, 6)), norm=norm)
        scores = [[norm.score(path.log_score, path.num_edges) for path in paths] for paths in (own, beam)]
        assert len(own) >= len(beam)
        assert all(best >= found - 1e-12 for best, found in zip(*scores, strict=False))


def test_a_beam_that_keeps_everything_finds_the_best() -> None:
    random = np.random.default_rng(5)
    for power in POWERS:
        graph = random_graph(random, "causal", 9)
        [own] = best_paths(graph, [8], k=5, norm=LengthNorm(power))
        [beam] = beam_search(graph, [8], top_beam=500, top_k=9, norm=LengthNorm(power))
        assert own == beam[:5]


@pytest.mark.parametrize("power", [0.0, 1.0, 0.5])
def test_many_targets_give_what_each_gives_alone(power: float) -> None:
    graph = random_graph(np.random.default_rng(6), "causal", 15)
    together = best_paths(graph, range(15), k=3, norm=LengthNorm(power))
    assert together == [best_paths(graph, [target], k=3, norm=LengthNorm(power))[0] for target in range(15)]


def test_refuses_a_layer_that_looks_ahead_and_no_path() -> None:
    graph = random_graph(np.random.default_rng(7), "any", 4)
    with pytest.raises(Unsupported, match="looks ahead"):
        best_paths(graph, [3], k=1, norm=LengthNorm(0.0))
    with pytest.raises(UsageError, match="at least 1"):
        best_paths(graph, [3], k=0, norm=LengthNorm(0.0))
    assert best_paths(random_graph(np.random.default_rng(7), "causal", 4), [], k=1, norm=LengthNorm(0.0)) == []
