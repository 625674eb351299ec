"""Ridge regression from moments against scikit-learn and numpy, which see all rows at once."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from traceformer.analysis.ridge import PENALTIES, Moments, Spectrum, chosen_ridge, error
from traceformer.errors import UsageError

D = 6


def rows_and_targets(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows about a mean that is not zero, of unlike deviations, and noisy images of them."""
    random, map_ = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(D, D))
    rows = random.normal(size=(n, D)) * [9, 3, 1, 1, 0.1, 0.01] + [5, 0, -2, 0, 0, 1]
    targets = rows + rows @ map_.T * 0.3 + random.normal(size=(n, D)) + 2
    return rows.astype(np.float32), targets.astype(np.float32)


def moments_of(rows: np.ndarray, targets: np.ndarray, blocks: int = 3) -> Moments:
    moments = Moments(D)
    for rows_of_block, targets_of_block in zip(
        np.array_split(rows, blocks), np.array_split(targets, blocks), strict=True
    ):
        moments.add(rows_of_block, targets_of_block)
    return moments


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
def test_it_is_scikit_learns_of_what_is_missing_to_the_target(penalty: float) -> None:
    rows, targets = rows_and_targets(0)
    map_ = Spectrum.of(moments_of(rows, targets)).ridge(penalty)
    theirs = Ridge(alpha=penalty, solver="cholesky").fit(rows.astype(float), targets.astype(float) - rows)
    np.testing.assert_allclose(map_.matrix, theirs.coef_ + np.eye(D), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(map_.vector, theirs.intercept_, rtol=1e-6, atol=1e-7)


def test_without_a_penalty_it_is_numpys_least_squares() -> None:
    rows, targets = rows_and_targets(1)
    map_ = Spectrum.of(moments_of(rows, targets)).ridge(0.0)
    with_one = np.concatenate([rows, np.ones((len(rows), 1))], axis=1).astype(float)
    theirs = np.linalg.lstsq(with_one, targets.astype(float), rcond=None)[0]
    np.testing.assert_allclose(map_.matrix, theirs[:D].T, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(map_.vector, theirs[D], rtol=1e-6, atol=1e-5)


def test_a_large_penalty_leaves_rows_as_they_are_but_for_the_mean() -> None:
    rows, targets = rows_and_targets(2)
    map_ = Spectrum.of(moments_of(rows, targets)).ridge(1e15)
    np.testing.assert_allclose(map_.matrix, np.eye(D), atol=1e-9)
    np.testing.assert_allclose(map_.vector, (targets - rows).astype(float).mean(axis=0), rtol=1e-6)


def test_the_penalty_is_the_one_that_does_best_on_the_other_rows() -> None:
    rows, targets = rows_and_targets(3, n=9)
    others, aims = rows_and_targets(4, n=30)
    found, penalty, spectrum = chosen_ridge(moments_of(rows, targets), moments_of(others, aims))
    errors = []
    for each in PENALTIES:
        own = Ridge(alpha=each * spectrum.scale, solver="cholesky").fit(
            rows.astype(float), targets - rows.astype(float)
        )
        errors.append(np.square(own.predict(others) + others - aims).sum(axis=1).mean())
    assert penalty == PENALTIES[int(np.argmin(errors))]
    assert error(found, moments_of(others, aims)) == pytest.approx(min(errors), rel=1e-5)


def test_blocks_do_not_matter() -> None:
    rows, targets = rows_and_targets(5)
    one, many = (Spectrum.of(moments_of(rows, targets, n)).ridge(1.0) for n in (1, 20))
    np.testing.assert_allclose(one.matrix, many.matrix, rtol=1e-9)


def test_rows_that_say_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no rows"):
        Spectrum.of(Moments(D))
    same = np.ones((4, D), np.float32)
    with pytest.raises(UsageError, match="the same"):
        Spectrum.of(moments_of(same, same, 1))


def test_rows_far_from_zero_that_are_all_the_same_are_refused() -> None:
    same = np.full((12345, D), 0.3, np.float32)
    with pytest.raises(UsageError, match="the same"):
        Spectrum.of(moments_of(same, same, 7))


def test_there_is_nothing_to_choose_by_without_other_rows() -> None:
    with pytest.raises(UsageError, match="no rows"):
        chosen_ridge(moments_of(*rows_and_targets(0)), Moments(D))
