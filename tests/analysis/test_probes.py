"""Splits, controls and intervals of probes, each written down in another way."""

import inspect
from typing import Any

import numpy as np
import pytest

from tests.probed import probes_of
from traceformer.analysis.probe_controls import (
    control_labels,
    held_out_texts,
    hits_of_kinds,
    random_rows,
    resampled,
    shuffled,
)
from traceformer.analysis.probes import Probe
from traceformer.errors import SelectionError, UsageError


@pytest.mark.parametrize(("n", "share", "held"), [(2, 0.9, 1), (2, 0.01, 1), (40, 0.25, 10), (7, 0.5, 4), (9, 0.99, 8)])
def test_a_share_of_the_texts_is_held_out(n: int, share: float, held: int) -> None:
    drawn = [held_out_texts(n, share, seed) for seed in range(20)]
    assert {int(own.sum()) for own in drawn} == {held}
    assert np.array_equal(drawn[3], held_out_texts(n, share, 3))
    assert len({own.tobytes() for own in drawn}) > 1
    assert np.logical_or.reduce(drawn).all()


def test_of_each_kind_of_text_a_share_is_held_out() -> None:
    kinds = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 8, 12])).astype(np.int32)
    held = held_out_texts(60, 0.25, 0, kinds)
    assert [int(held[kinds == kind].sum()) for kind in range(3)] == [10, 2, 3]


def test_labels_are_dealt_out_anew_on_each_side_of_the_split() -> None:
    codes, is_held = np.arange(50, dtype=np.int32) % 7, np.arange(50) % 5 == 0
    found = shuffled(codes, is_held, np.random.default_rng(0))
    for side in (is_held, ~is_held):
        assert sorted(found[side]) == sorted(codes[side])
        assert not np.array_equal(found[side], codes[side])


def test_a_control_task_has_one_label_for_each_kind_of_token_and_draws_it_by_the_classes_shares() -> None:
    kinds = np.random.default_rng(0).integers(0, 4000, 30_000).astype(np.int32)
    found = control_labels(kinds, np.array([0.5, 0.3, 0.2]), np.random.default_rng(1))
    by_kind = {kind: set(found[kinds == kind].tolist()) for kind in range(50)}
    assert all(len(own) == 1 for own in by_kind.values())
    first = np.unique(kinds, return_index=True)[1]
    np.testing.assert_allclose(np.bincount(found[first]) / len(first), [0.5, 0.3, 0.2], atol=0.03)


def test_the_most_frequent_class_of_each_kind_of_token_is_counted() -> None:
    random = np.random.default_rng(0)
    kinds, codes = random.integers(0, 12, 400).astype(np.int32), random.integers(0, 3, 400).astype(np.int32)
    is_held = random.random(400) < 0.3
    is_held[kinds == 11] = True  # a kind that is nowhere else
    expected = []
    for kind, code in zip(kinds[is_held], codes[is_held], strict=True):
        seen = codes[~is_held & (kinds == kind)].tolist()
        likeliest = max(range(3), key=seen.count) if seen else 2
        expected.append(likeliest == code)
    assert hits_of_kinds(codes, kinds, is_held, majority=2).tolist() == expected


def test_random_rows_are_signs_and_the_same_again() -> None:
    first, again = (np.concatenate(list(random_rows(5000, 6, 3, "training rows"))) for _ in range(2))
    assert np.array_equal(first, again)
    assert set(np.unique(first)) == {-1.0, 1.0}
    assert np.abs(first.mean(axis=0)).max() < 0.06
    assert not np.array_equal(first, np.concatenate(list(random_rows(5000, 6, 3, "held-out rows"))))


def test_intervals_are_of_texts_and_not_of_rows() -> None:
    random = np.random.default_rng(0)
    totals = np.full(80, 50)
    correct = np.stack([50 * random.integers(0, 2, 80), random.binomial(50, 0.5, 80)])
    drawn = resampled(correct, totals, seed=0)
    assert drawn.shape == (1000, 2)
    spread = drawn.std(axis=0)
    shares = correct / 50
    np.testing.assert_allclose(spread, shares.std(axis=1) / np.sqrt(80), rtol=0.1)  # the error of a mean of 80 texts
    assert spread[0] > 5 * spread[1]
    np.testing.assert_allclose(drawn.mean(axis=0), shares.mean(axis=1), atol=0.01)


def test_a_frame_has_a_row_for_each_layer_and_json_all_but_weights() -> None:
    probes = probes_of(layers=(1, 3))
    frame = probes.to_frame()
    assert frame.layer.tolist() == [1, 3]
    assert frame.accuracy.tolist() == [own.scores.accuracy for own in probes]
    assert {"low", "high", "control", "shuffled", "selectivity", "random_features", "majority", "rows", "texts"} <= {
        *frame.columns
    }
    told = probes.to_json()
    assert told["classes"] == [{"class": "NOUN", "train_rows": 30}, {"class": "VERB", "train_rows": 10}]
    assert [own["layer"] for own in told["probes"]] == [1, 3]
    assert repr(probes) == (
        "Probes('upos', 2 classes, 2 of dec.resid_post; held-out accuracy 0.900 at L3, selectivity 0.300)"
    )
    assert repr(probes_of(layers=(None,))) == (
        "Probes('upos', 2 classes, dec.resid_post; held-out accuracy 0.800, selectivity 0.200)"
    )


def test_a_probe_is_named_by_its_layer_and_head() -> None:
    probes = probes_of(layers=(1, 3), heads=(0, 2))
    assert [own.place for own in probes] == ["L1H0", "L1H2", "L3H0", "L3H2"]
    assert probes.at(3, 2) is probes.probes[3]
    with pytest.raises(SelectionError, match=r"which probe of layer 3\?; there are L3H0, L3H2"):
        probes.at(3)
    with pytest.raises(SelectionError, match=r"which probe of layer 2\?; there are L1H0"):
        probes.at(2)
    assert probes_of(layers=(5,)).at().layer == 5


def test_rows_are_put_into_the_class_of_the_largest_probability() -> None:
    probes = probes_of(layers=(1, 3))
    rows = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    own = probes.at(3)
    z = ((rows - own.mean) / own.scale) @ own.weights[1] + own.bias[1] - own.bias[0]
    np.testing.assert_allclose(probes.probabilities(rows, 3)[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-6)
    assert probes.predict(rows, 3) == ["VERB" if value > 0 else "NOUN" for value in z]
    with pytest.raises(UsageError, match="rows of width 4; the probe was fitted on rows of 3"):
        probes.predict(np.zeros((1, 4), np.float32), 3)
    rows[4, 1] = np.nan
    with pytest.raises(UsageError, match="row 4 holds NaN or inf"):
        probes.predict(rows, 3)


def test_a_list_of_rows_is_taken_and_what_is_none_refused() -> None:
    probe, rows = probes_of(layers=(1, 3)).at(3), np.zeros((2, 3), np.float32)
    unchecked: Any = inspect.unwrap(Probe.probabilities)
    assert np.array_equal(unchecked(probe, rows.tolist()), probe.probabilities(rows))
    for wrong in (rows[0], "rows", None):
        with pytest.raises(UsageError, match="rows of numbers are wanted"):
            unchecked(probe, wrong)
