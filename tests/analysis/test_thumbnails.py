"""Thumbnails of patterns against their definition, cell by cell."""

import numpy as np
import pytest

from tests.analysis.plain_heads import causal, everything, random_patterns
from traceformer.analysis.thumbnails import SIDE, long_thumbnail, part_starts, thumbnail


def plain(pattern: np.ndarray) -> np.ndarray:
    """Returns 255 times the roots of the cells, before they are rounded: token i of n is in part i * 32 // n."""
    queries, keys = pattern.shape
    rows, columns = min(queries, 32), min(keys, 32)
    cells = np.zeros((rows, columns))
    members = np.zeros(rows)
    # Part p begins at p * n // 32: a token is in the last part that begins at or before it.
    row_of = [max(p for p in range(rows) if p * queries // rows <= i) for i in range(queries)]
    column_of = [max(p for p in range(columns) if p * keys // columns <= j) for j in range(keys)]
    for i in range(queries):
        members[row_of[i]] += 1
        for j in range(keys):
            cells[row_of[i], column_of[j]] += float(pattern[i, j])
    return 255 * np.sqrt(cells / members[:, None])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 31), (32, 32), (33, 33), (70, 40), (101, 101)])
def test_a_cell_is_what_its_queries_give_to_its_keys_on_average(queries: int, keys: int, dtype: str) -> None:
    sees = causal if queries == keys else everything
    pattern = random_patterns((queries, keys), sees, seed=queries).astype(dtype)
    expected = plain(pattern)
    found = thumbnail(pattern).astype(np.float64)
    assert found.shape == expected.shape
    # A half is rounded either way: float32 sums differ from those of float64 in their seventh digit.
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_up_to_32_tokens_it_is_the_pattern_itself() -> None:
    pattern = random_patterns((20, 20), causal, seed=1).astype(np.float32)
    assert np.array_equal(thumbnail(pattern), np.rint(255 * np.sqrt(pattern)))


def test_a_diagonal_one_token_wide_is_as_dark_at_any_length() -> None:
    for length in (32, 100, 1000):
        drawn = thumbnail(np.eye(length, dtype=np.float16))
        assert np.array_equal(drawn, 255 * np.eye(SIDE, dtype=np.uint8))


def test_parts_differ_by_one_token_at_most_and_leave_none_out() -> None:
    for length in range(1, 200):
        sizes = np.diff(part_starts(length), append=length)
        assert sizes.sum() == length
        assert sizes.min() >= 1
        assert np.ptp(sizes) <= 1


def test_many_patterns_are_drawn_as_each_of_them() -> None:
    patterns = random_patterns((2, 3, 50, 50), causal, seed=2).astype(np.float16)
    drawn = thumbnail(patterns)
    assert drawn.shape == (2, 3, 32, 32)
    assert np.array_equal(drawn[1, 2], thumbnail(patterns[1, 2]))


def test_a_pattern_without_tokens_has_no_pixels() -> None:
    assert thumbnail(np.zeros((4, 0, 0), np.float32)).shape == (4, 0, 0)


@pytest.mark.parametrize("most", [1, 700, 1 << 20])
def test_a_long_pattern_is_drawn_some_rows_at_a_time(most: int) -> None:
    weights = np.random.default_rng(5).random((150, 90)) ** 8
    pattern = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float16)
    found = long_thumbnail(lambda rows: pattern[rows], 150, 90, most)
    assert np.abs(found - plain(pattern)).max() <= 0.5001
