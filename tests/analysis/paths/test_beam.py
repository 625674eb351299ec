"""Beams along the strongest edges are those of the package that has them, and of a search without arrays."""

from typing import Any

import numpy as np
import pytest
import torch
from reverse_attention.beam import beam_search_backward as foreign_search
from reverse_attention.utils import normalize_score

from tests.analysis.paths.plain_paths import plain_beam, random_graph
from traceformer.analysis.paths.beam import LengthNorm, beam_search, beam_search_backward
from traceformer.analysis.paths.graph import Graph
from traceformer.errors import NumericError, UsageError

NORMS = ("none", "avg_logprob", "sqrt", "pow:0.7", "pow:1.5")


def causal(random: np.random.Generator, n: int, sharp: float = 1.0) -> np.ndarray:
    """A random causal pattern whose rows sum to one; no two of its weights are equal."""
    weights = np.tril(random.random((n, n)) ** sharp)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def random_case(random: np.random.Generator) -> tuple[np.ndarray, int, dict[str, Any]]:
    n = int(random.integers(1, 48))
    mask = None if random.random() < 0.5 else (random.random(n) < 0.8).astype(np.int64)
    options = {
        "top_beam": int(random.integers(1, 10)),
        "top_k": int(random.integers(1, 10)),
        "min_attn": float(random.choice([0, 0.01, 0.05, 0.2])),
        "length_norm": str(random.choice(NORMS)),
        "stop_at_bos": bool(random.integers(2)),
        "bos_positions": random.choice(n, size=min(n, 2), replace=False).tolist(),
        "attention_mask": mask,
    }
    return causal(random, n, float(random.choice([1, 3, 10]))), int(random.integers(n)), options


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_reverse_attention_package_on_random_cases(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(100):
        attn, target, options = random_case(random)
        mask = options["attention_mask"]
        foreign = foreign_search(
            torch.from_numpy(attn),
            target,
            **{**options, "attention_mask": None if mask is None else torch.from_numpy(mask)},
        )
        own = beam_search_backward(attn, target, **options)
        assert [path.positions for path in own] == [path.positions for path in foreign]
        assert [path.edge_attns for path in own] == [path.edge_attns for path in foreign]
        # The logarithms of numpy and of the C library differ in the last bit.
        assert [path.log_score for path in own] == pytest.approx([path.log_score for path in foreign], abs=1e-12)
        assert all(path.is_terminal and path.num_edges == len(path.edge_attns) for path in own)
        assert [path.current_pos for path in own] == [path.current_pos for path in foreign]


@pytest.mark.parametrize("kind", ["causal", "any", "layers"])
def test_agrees_with_a_search_without_arrays_on_every_kind_of_graph(kind: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        graph = random_graph(
            random, kind, int(random.integers(1, 9)), int(random.integers(1, 4)) if kind == "layers" else 1
        )
        target = int(random.integers(graph.n_nodes))
        top_beam, top_k, power = (
            int(random.integers(1, 6)),
            int(random.integers(1, 6)),
            float(random.choice([0, 0.5, 1])),
        )
        own = beam_search(graph, [target], top_beam=top_beam, top_k=top_k, norm=LengthNorm(power))[0]
        plain = plain_beam(graph, target, top_beam, top_k, power)
        assert [path.positions for path in own] == [path for _, path in plain]
        scores = [LengthNorm(power).score(path.log_score, path.num_edges) for path in own]
        assert scores == pytest.approx([score for score, _ in plain], abs=1e-12)


@pytest.mark.parametrize("kind", ["causal", "any", "layers"])
def test_many_targets_give_what_each_gives_alone(kind: str) -> None:
    graph = random_graph(np.random.default_rng(2), kind, 12, 3 if kind == "layers" else 1)
    targets = [*range(graph.n_nodes), 5, 5]
    together = beam_search(graph, targets, top_beam=4, top_k=3, norm=LengthNorm(1.0))
    alone = [beam_search(graph, [target], top_beam=4, top_k=3, norm=LengthNorm(1.0))[0] for target in targets]
    assert together == alone


def test_searching_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(np.random.default_rng(3), "causal", 40)
    whole = beam_search(graph, range(40), top_beam=4, top_k=3, norm=LengthNorm(0.5))
    monkeypatch.setattr("traceformer.analysis.paths.beam._SLOTS_AT_ONCE", 50)
    monkeypatch.setattr("traceformer.analysis.paths.beam._FILL_CELLS", 100)
    assert beam_search(graph, range(40), top_beam=4, top_k=3, norm=LengthNorm(0.5)) == whole


def test_of_equal_weights_the_earlier_position_comes_first() -> None:
    attn = np.tril(np.ones((6, 6), np.float32))
    attn /= attn.sum(axis=1, keepdims=True)
    paths = beam_search_backward(attn, 5, top_beam=3, top_k=3, length_norm="none", bos_positions=[0, 1, 2])
    assert [path.positions for path in paths] == [[5, 0], [5, 1], [5, 2]]


@pytest.mark.parametrize("n", [8, 200])
def test_equal_weights_give_the_same_paths_whatever_is_beside_them(n: int) -> None:
    attn = np.tril(np.full((n, n), 1 / n, np.float32))
    graph = Graph(attn[None], "causal", np.arange(n) == 0, np.ones(n, bool))
    found = beam_search(graph, range(n), top_beam=5, top_k=4, norm=LengthNorm(1.0))
    again = beam_search(graph, [n - 1], top_beam=5, top_k=4, norm=LengthNorm(1.0))
    assert found[-1] == again[0]
    assert found[-1][0].positions == [n - 1, 0]  # fewer edges first
    assert found[-1][1].positions == [n - 1, 1, 0]  # then the earlier position


def test_a_target_at_the_beginning_is_a_path_of_no_edge() -> None:
    [path] = beam_search_backward(np.ones((3, 3), np.float32) / 3, 0)
    assert (path.positions, path.edge_attns, path.log_score, path.num_edges) == ([0], [], 0.0, 0)


def test_a_target_whose_edges_are_all_weak_is_a_path_of_no_edge() -> None:
    [path] = beam_search_backward(np.full((3, 3), 0.1, np.float32), 2, min_attn=0.2)
    assert path.positions == [2]


def test_paths_end_at_bos_only_if_told_to() -> None:
    attn = causal(np.random.default_rng(4), 6)
    ended = beam_search_backward(attn, 5, top_beam=50, bos_positions=[2])
    assert {path.current_pos for path in ended} == {0, 2}
    passed = beam_search_backward(attn, 5, top_beam=50, bos_positions=[2], stop_at_bos=False)
    assert {path.current_pos for path in passed} == {0}


def test_takes_tensors_of_every_dtype_and_negative_targets() -> None:
    attn = torch.from_numpy(causal(np.random.default_rng(5), 9))
    expected = beam_search_backward(attn.bfloat16().float(), 8)
    assert beam_search_backward(attn.bfloat16(), -1, attention_mask=torch.ones(1, 9)) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_pos": 4}, "positions 0-3"),
        ({"target_pos": -5}, "positions 0-3"),
        ({"top_beam": 0}, "top_beam"),
        ({"top_k": 0}, "top_k"),
        ({"length_norm": "square"}, "avg_logprob"),
        ({"length_norm": "pow:"}, "pow:0.7"),
        ({"length_norm": "pow:nan"}, "pow:0.7"),
        ({"attn": np.ones((3, 4), np.float32)}, "square"),
        ({"attn": np.ones((2, 3, 3), np.float32)}, "square"),
        ({"attention_mask": [1, 1, 1]}, "mask of 3 for 4"),
    ],
)
def test_refuses_arguments_that_make_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        beam_search_backward(**{"attn": np.full((4, 4), 0.25, np.float32), "target_pos": 3, **change})


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5, np.inf])
def test_refuses_weights_that_are_none(bad: float) -> None:
    attn = np.full((4, 4), 0.25, np.float32)
    attn[2, 1] = bad
    with pytest.raises(NumericError, match="between 0 and 1"):
        beam_search_backward(attn, 3)


@pytest.mark.parametrize("text", NORMS)
def test_length_norms_are_those_of_the_package(text: str) -> None:
    for n_edges in (0, 1, 2, 17):
        assert LengthNorm.parse(text).score(-3.25, n_edges) == normalize_score(-3.25, n_edges, text)
