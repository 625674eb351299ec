"""From patterns to what flows: heads combined, tokens left out, rollout, and the largest flow against networkx."""

import networkx as nx
import numpy as np
import pytest

from traceformer.analysis.paths.flow import (
    check_rows,
    combine_heads,
    exclude,
    max_flow,
    moved_norms,
    rollout,
    value_products,
    with_residual,
)
from traceformer.errors import NumericError


def patterns(random: np.random.Generator, heads: int, n: int, *, causal: bool = True) -> np.ndarray:
    weights = random.random((heads, n, n)) ** 2
    weights = np.tril(weights) if causal else weights
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def test_heads_become_their_mean_their_largest_or_one() -> None:
    some = patterns(np.random.default_rng(0), 3, 5)
    assert np.allclose(combine_heads(some, "mean").weights, some.mean(axis=0), atol=1e-7)
    assert np.array_equal(combine_heads(some, 2).weights, some[2])
    largest = combine_heads(some, "max")
    assert np.array_equal(largest.weights, some.max(axis=0))
    assert largest.chosen is not None
    for query, key in np.ndindex(5, 5):
        assert some[largest.chosen[query, key], query, key] == largest.weights[query, key]


def test_what_is_moved_is_the_norm_of_the_sum_over_heads() -> None:
    random = np.random.default_rng(1)
    some, values, w_o = patterns(random, 3, 70), random.normal(size=(3, 70, 4)), random.normal(size=(3, 4, 6))
    values, w_o = values.astype(np.float32), w_o.astype(np.float32)
    moved = np.einsum("hqk,hkd,hdm->hqkm", some.astype(np.float64), values, w_o)
    products = value_products(values, w_o)
    norms = np.linalg.norm(moved.sum(axis=0), axis=-1)
    expected = norms / norms.sum(axis=1, keepdims=True)
    assert np.allclose(moved_norms(some, products, "mean").weights, expected, atol=1e-6)
    assert np.allclose(combine_heads(some, "mean", products).weights, expected, atol=1e-6)
    by_head = np.linalg.norm(moved, axis=-1)
    one = by_head[1] / by_head[1].sum(axis=1, keepdims=True)
    assert np.allclose(moved_norms(some, products, 1).weights, one, atol=1e-6)
    largest = moved_norms(some, products, "max")
    assert np.array_equal(largest.chosen, by_head.argmax(axis=0))
    expected = by_head.max(axis=0) / by_head.max(axis=0).sum(axis=1, keepdims=True)
    assert np.allclose(largest.weights, expected, atol=1e-6)


def test_heads_that_cancel_move_nothing() -> None:
    same = np.tile(patterns(np.random.default_rng(2), 1, 4), (2, 1, 1))
    values, w_o = np.ones((2, 4, 1), np.float32), np.array([[[1.0, 2.0]], [[-1.0, -2.0]]], np.float32)
    assert np.array_equal(moved_norms(same, value_products(values, w_o), "mean").weights, np.zeros((4, 4)))


def test_a_block_of_rows_whose_future_keys_are_left_out_needs_the_first_products_only() -> None:
    random = np.random.default_rng(3)
    some, products = patterns(random, 2, 6), value_products(random.random((2, 6, 3)), random.random((2, 3, 4)))
    whole = combine_heads(some, "mean", products).weights
    assert np.allclose(combine_heads(some[:, :4, :4], "mean", products).weights, whole[:4, :4], atol=1e-7)


def test_what_is_taken_out_is_shared_by_the_rest_of_the_row() -> None:
    some = patterns(np.random.default_rng(4), 1, 5)[0]
    left = exclude(some, itself=True, keys=np.arange(5) == 0)
    assert np.all(np.diag(left) == 0)
    assert np.all(left[:, 0] == 0)
    assert left.sum(axis=1) == pytest.approx([0, 0, 1, 1, 1])
    assert left[4, 1] / left[4, 2] == pytest.approx(some[4, 1] / some[4, 2])
    assert exclude(some, itself=False) is some


def test_rows_are_brought_back_to_their_own_sum_but_to_no_more_than_one() -> None:
    with_sinks = patterns(np.random.default_rng(5), 1, 5)[0] * np.float32(0.6)
    assert exclude(with_sinks, itself=True).sum(axis=1) == pytest.approx([0, 0.6, 0.6, 0.6, 0.6])
    largest = patterns(np.random.default_rng(6), 4, 5).max(axis=0)
    assert largest.sum(axis=1)[-1] > 1
    assert exclude(largest, itself=True).sum(axis=1)[1:] == pytest.approx([1, 1, 1, 1])


def test_rollout_is_a_row_of_the_product_of_all_layers() -> None:
    layers = np.stack([with_residual(each, 0.5) for each in patterns(np.random.default_rng(7), 4, 6)])
    product = np.linalg.multi_dot([each.astype(np.float64) for each in layers[::-1]])
    for target in range(6):
        assert rollout(layers, target) == pytest.approx(product[target], abs=1e-6)
    assert with_residual(layers[0], 0.5).sum(axis=1) == pytest.approx(np.ones(6))
    assert rollout(3 * layers, 5) == pytest.approx(rollout(layers, 5))  # rows are brought to one


@pytest.mark.parametrize("causal", [True, False])
def test_largest_flow_is_that_of_networkx(causal: bool) -> None:
    layers = np.stack([with_residual(each, 0.5) for each in patterns(np.random.default_rng(8), 3, 5, causal=causal)])
    graph = nx.DiGraph()
    for layer, query, key in zip(*np.nonzero(layers), strict=True):
        graph.add_edge((layer + 1, query), (layer, key), capacity=float(layers[layer, query, key]))
    expected = [nx.maximum_flow_value(graph, (3, 4), (0, key)) for key in range(5)]
    assert max_flow(layers, 4) == pytest.approx(expected, abs=1e-7)


def test_the_largest_flow_survives_rows_of_a_maximum_over_heads() -> None:
    layers = np.full((2, 40, 40), 0.9, np.float32)
    assert max_flow(layers, 39)[0] == pytest.approx(36.0, abs=1e-5)


def test_sums_of_rows_are_stated_and_checked() -> None:
    some = patterns(np.random.default_rng(9), 2, 4)
    assert check_rows(some, has_sinks=False) == pytest.approx((1, 1))
    assert check_rows(some * np.float32(0.5), has_sinks=True) == pytest.approx((0.5, 0.5))
    assert check_rows(some[:, :0], has_sinks=False) == (1.0, 1.0)
    assert check_rows(some.astype(np.float16), has_sinks=False) == pytest.approx((1, 1), abs=1e-3)


@pytest.mark.parametrize(
    ("cell", "words"), [(np.nan, "not numbers"), (-0.1, "negative"), (0.9, "row 2"), (0.0, "row 2")]
)
def test_what_is_no_softmax_is_refused(cell: float, words: str) -> None:
    some = np.full((1, 3, 3), 1 / 3, np.float32)
    some[0, 2, 1] = cell
    with pytest.raises(NumericError, match=words):
        check_rows(some, has_sinks=False)


def test_rows_of_more_than_one_are_refused_even_with_sinks() -> None:
    with pytest.raises(NumericError, match=r"sums to 1\.5"):
        check_rows(np.full((1, 3, 3), 0.5, np.float32), has_sinks=True)
