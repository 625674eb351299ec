"""Regressions of streamed rows against scikit-learn's, which has all rows at once."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from traceformer.analysis import logistic
from traceformer.analysis.logistic import Blocks, correct_by_text, fit_all, scaling_of

N, WIDTH = 600, 12


def rows_and_labels(n_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows as a residual stream has them: columns that move together, one far from zero, one constant."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((N, WIDTH)) @ (random.standard_normal((WIDTH, WIDTH)) * np.geomspace(1, 30, WIDTH))
    rows[:, 3] = 7.7
    rows[:, 5] += 3000
    rows = rows.astype(np.float32)
    scores = StandardScaler().fit_transform(rows.astype(float)) @ random.standard_normal((WIDTH, n_classes))
    labels = (scores + random.gumbel(size=scores.shape)).argmax(axis=1).astype(np.int32)
    return rows, labels


def in_blocks(rows: np.ndarray, size: int = 97) -> Blocks:
    return lambda: (rows[first : first + size] for first in range(0, len(rows), size))


def peers(rows: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns scikit-learn's coefficients, intercepts and probabilities."""
    standardised = StandardScaler().fit_transform(rows.astype(np.float64))
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=100_000).fit(standardised, labels)
    return model.coef_, model.intercept_, model.predict_proba(standardised)


@pytest.mark.parametrize("penalty", [1.0, 0.01, 30.0])
@pytest.mark.parametrize("n_classes", [2, 3, 9])
def test_weights_and_probabilities_are_scikit_learns(n_classes: int, penalty: float) -> None:
    rows, labels = rows_and_labels(n_classes)
    scaling = scaling_of(in_blocks(rows))
    [found] = fit_all(in_blocks(rows), [labels], scaling, penalty=penalty)
    coefficients, intercepts, probabilities = peers(rows, labels, penalty)
    assert found.converged
    own = found.weights[1:] if n_classes == 2 else found.weights
    np.testing.assert_allclose(own, coefficients, rtol=0, atol=1e-4)
    bias = found.bias[1:] if n_classes == 2 else found.bias - found.bias.mean()
    np.testing.assert_allclose(bias, intercepts - (0 if n_classes == 2 else intercepts.mean()), rtol=0, atol=1e-4)
    logits = found.logits(scaling.standardised(rows))
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(shares, probabilities, rtol=0, atol=1e-5)


def test_the_scaling_is_standard_scalers_and_products_are_those_of_the_columns() -> None:
    rows, _ = rows_and_labels(2)
    scaling, peer = scaling_of(in_blocks(rows)), StandardScaler().fit(rows.astype(np.float64))
    np.testing.assert_allclose(scaling.mean, peer.mean_, rtol=1e-12)
    np.testing.assert_allclose(scaling.scale, peer.scale_, rtol=1e-9)
    assert scaling.scale[3] == 1
    standardised = peer.transform(rows.astype(np.float64))
    assert scaling.axes is not None
    products = scaling.axes * scaling.products @ scaling.axes.T
    np.testing.assert_allclose(products, standardised.T @ standardised, atol=1e-6 * N)


def test_the_way_back_is_the_same_without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = rows_and_labels(3)
    [found] = fit_all(in_blocks(rows), [labels], scaling_of(in_blocks(rows)), penalty=1.0)
    monkeypatch.setattr(logistic, "_WIDEST", 4)
    scaling = scaling_of(in_blocks(rows))
    assert scaling.axes is None
    [other] = fit_all(in_blocks(rows), [labels], scaling, penalty=1.0)
    np.testing.assert_allclose(other.weights, found.weights, atol=1e-4)
    assert other.passes > found.passes


def test_regressions_that_share_passes_are_as_those_alone() -> None:
    rows, labels = rows_and_labels(4)
    others = [labels, (labels > 1).astype(np.int32), np.full(N, 2, np.int32), np.where(labels == 1, 0, labels)]
    scaling = scaling_of(in_blocks(rows))
    together = fit_all(in_blocks(rows), others, scaling, penalty=1.0)
    for own, codes in zip(together, others, strict=True):
        [alone] = fit_all(in_blocks(rows, 600), [codes], scaling, penalty=1.0)
        assert own.classes.tolist() == alone.classes.tolist() == np.unique(codes).tolist()
        np.testing.assert_allclose(own.weights, alone.weights, atol=1e-4)
    assert not together[2].weights.any()


def test_classes_that_a_plane_tells_apart_have_the_weights_that_the_penalty_leaves() -> None:
    rows, _ = rows_and_labels(2)
    labels = (rows[:, 0] > rows[:, 0].mean()).astype(np.int32)
    scaling = scaling_of(in_blocks(rows))
    [found] = fit_all(in_blocks(rows), [labels], scaling, penalty=1e-3)
    coefficients, _, probabilities = peers(rows, labels, 1e-3)
    assert found.converged
    logits = found.logits(scaling.standardised(rows))[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probabilities[:, 1], atol=1e-4)
    np.testing.assert_allclose(found.weights[1:], coefficients, rtol=1e-3, atol=1e-3)


def test_rows_are_counted_by_text() -> None:
    rows, labels = rows_and_labels(3)
    scaling = scaling_of(in_blocks(rows))
    found = fit_all(in_blocks(rows), [labels, labels[::-1].copy()], scaling, penalty=1.0)
    texts = np.repeat(np.arange(6), 100).astype(np.int32)
    correct = correct_by_text(in_blocks(rows), found, [labels, labels[::-1].copy()], scaling, texts, 6)
    for own, codes, counts in zip(found, (labels, labels[::-1]), correct, strict=True):
        right = own.logits(scaling.standardised(rows)).argmax(axis=1) == codes
        assert counts.tolist() == [int(right[texts == text].sum()) for text in range(6)]


def test_it_is_given_up_after_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = rows_and_labels(3)
    monkeypatch.setattr(logistic, "_MOST_PASSES", 2)
    with warnings.catch_warnings():
        [found] = fit_all(in_blocks(rows), [labels], scaling_of(in_blocks(rows)), penalty=1.0)
    assert (found.converged, found.passes) == (False, 2)
