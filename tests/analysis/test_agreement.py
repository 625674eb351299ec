"""Rank agreement beside scipy's, and which cells are the largest."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from traceformer.analysis.agreement import agreement, largest


def test_rank_agreement_is_spearmans_with_ties() -> None:
    random = np.random.default_rng(0)
    estimate = random.normal(size=(6, 7)).round(1)
    exact = (estimate + random.normal(size=estimate.shape)).round(1)
    exact[2, 3:] = np.nan
    there = np.isfinite(exact)
    found = agreement(estimate, exact)
    assert found.measured == there.sum()
    assert found.spearman == pytest.approx(spearmanr(estimate[there], exact[there]).statistic)
    assert found.worst == np.abs(estimate - exact)[there].max()


def test_agreement_of_nothing_or_of_one_number_has_no_ranks() -> None:
    nothing = agreement(np.ones(3), np.full(3, np.nan))
    assert nothing.measured == 0
    assert np.isnan(nothing.spearman)
    assert np.isnan(nothing.worst)
    one = agreement(np.ones(3), np.array([np.nan, 3, np.nan]))
    assert (one.measured, one.worst) == (1, 2)
    assert np.isnan(one.spearman)
    assert np.isnan(agreement(np.ones(3), np.arange(3.0)).spearman)


def test_the_largest_are_farthest_from_zero_and_there() -> None:
    values = np.array([[0.1, np.nan, -3.0], [2.0, 0.0, 1.0]])
    assert largest(values, 3) == [(0, 2), (1, 0), (1, 2)]
    assert len(largest(values, 100)) == 5
