"""CKA and Procrustes distance, against centred Gram matrices and against the rotation that scipy finds."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from traceformer.analysis.similarity import CrossTally, Similarity, similarity

Rows = np.ndarray


def measured(x: Rows, y: Rows, pieces: int = 1) -> Similarity:
    x, y = (rows - rows.mean(axis=0) for rows in (x, y))
    found = []
    for one, other in ((x, y), (x, x), (y, y)):
        tally = CrossTally(one.shape[1], other.shape[1])
        for part in np.array_split(np.arange(len(x)), pieces):
            tally.add(one[part], other[part])
        found.append(tally.result(nuclear=one is not other))
    return similarity(found[0], found[1], found[2], len(x))


def gram_cka(x: Rows, y: Rows) -> float:
    """Kornblith et al.: HSIC of centred Gram matrices, tr(KHLH), over the root of both with themselves."""
    n = len(x)
    centring = np.eye(n) - np.full((n, n), 1 / n)

    def hsic(k: Rows, l: Rows) -> float:  # noqa: E741
        return float(np.trace(k @ centring @ l @ centring)) / (n - 1) ** 2

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def gram_cka_unbiased(x: Rows, y: Rows) -> float:
    """Song et al.: HSIC_1 of Gram matrices whose diagonals are zero; rows need not be centred."""
    n = len(x)

    def hsic(k: Rows, l: Rows) -> float:  # noqa: E741
        k, l = (each - np.diag(np.diag(each)) for each in (k, l))  # noqa: E741
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return float(np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def rotated_distance(x: Rows, y: Rows) -> float:
    """What is left when X, centred and scaled to length 1, is turned onto Y as well as can be."""
    width = max(x.shape[1], y.shape[1])
    both = []
    for rows in (x, y):
        padded = np.pad(rows - rows.mean(axis=0), ((0, 0), (0, width - rows.shape[1])))
        both.append(padded / np.linalg.norm(padded))
    rotation, _ = orthogonal_procrustes(*both)
    return float(np.square(both[0] @ rotation - both[1]).sum())


@pytest.fixture
def rows() -> Callable[..., Rows]:
    random = np.random.default_rng(0)
    return lambda n=40, d=7, mean=3.0: random.normal(mean, 1, (n, d)) @ random.normal(size=(d, d))


@pytest.mark.parametrize(("n", "d", "e"), [(40, 7, 7), (40, 7, 12), (9, 20, 5), (4, 3, 3), (5, 30, 30)])
def test_both_are_what_their_definitions_say(n: int, d: int, e: int, rows: Callable[..., Rows]) -> None:
    x = rows(n, d)
    y = rows(n, e) + np.pad(x, ((0, 0), (0, max(0, e - d))))[:, :e]
    found = measured(x, y)
    np.testing.assert_allclose(found.cka_biased, gram_cka(x, y), rtol=1e-9)
    # Of four rows the estimate divides differences of large numbers.
    np.testing.assert_allclose(found.cka, gram_cka_unbiased(x, y), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.procrustes, rotated_distance(x, y), rtol=1e-9)


def test_rows_in_pieces_are_as_all_at_once(rows: Callable[..., Rows]) -> None:
    x, y = rows(), rows()
    np.testing.assert_allclose(measured(x, y, pieces=7), measured(x, y), rtol=1e-12)


def test_what_is_moved_rotated_and_scaled_is_the_same(rows: Callable[..., Rows]) -> None:
    x, y = rows(), rows()
    turned = 5 * x @ ortho_group.rvs(7, random_state=1) + 11
    np.testing.assert_allclose(measured(x, turned), (1, 1, 0), atol=1e-12)
    np.testing.assert_allclose(measured(turned, y), measured(x, y), rtol=1e-9)
    np.testing.assert_allclose(measured(x, x), (1, 1, 0), atol=1e-14)
    # Another scale for each direction is a difference.
    stretched = x * np.arange(1, 8)
    assert measured(x, stretched).cka < 0.99


def test_both_ways_are_the_same(rows: Callable[..., Rows]) -> None:
    x, y = rows(), rows(40, 9)
    np.testing.assert_allclose(measured(x, y), measured(y, x), rtol=1e-10)


def test_noise_is_alike_with_bias_only() -> None:
    random = np.random.default_rng(3)
    found = [measured(random.normal(size=(50, 100)), random.normal(size=(50, 100))) for _ in range(20)]
    assert abs(np.mean([each.cka for each in found])) < 0.02
    assert min(each.cka_biased for each in found) > 0.5


def test_rows_that_do_not_differ_have_no_number(rows: Callable[..., Rows]) -> None:
    assert np.isnan(measured(rows(), np.full((40, 3), 0.5))).all()
    few = measured(rows(3), rows(3))
    assert np.isnan(few.cka)
    assert 0 < few.cka_biased <= 1


def test_rows_of_which_one_alone_differs_have_no_cka_without_bias() -> None:
    """Their Gram matrix is zero but for its diagonal, however sums of their numbers are rounded."""
    draw = np.random.default_rng(3)
    for _ in range(50):
        n, d = int(draw.integers(4, 300)), int(draw.integers(1, 12))
        x, y = (np.repeat(draw.standard_normal((1, d)).astype(np.float32).astype(float), n, axis=0) for _ in range(2))
        for rows in (x, y):
            rows[n // 2] += draw.standard_normal(d).astype(np.float32) * 10.0 ** draw.integers(-3, 4)
        found = measured(x, y)
        assert np.isnan(found.cka)
        assert found.cka_biased == pytest.approx(1)
        assert np.isnan(measured(x, draw.standard_normal((n, 5))).cka)


def test_how_small_or_large_rows_are_does_not_matter(rows: Callable[..., Rows]) -> None:
    x, y = rows(40, 5), rows(40, 7)
    expected = measured(x, y)
    for scale in (1e-44, 1e37):  # what float32 ends at
        found = measured(x * scale, y * scale)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
