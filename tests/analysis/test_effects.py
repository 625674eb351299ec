"""Effects as numbers and as a value, against numpy's own means and by hand."""

import json

import numpy as np
import pytest

from traceformer.analysis.effects import Axis, Effects, Swept, normalised, token_labels
from traceformer.errors import SelectionError

ABOUT = Swept(verb="patch", model="m", digest="d", sites=("dec.resid_pre",), metric="log_prob", how="denoise")
AXES = (Axis("layer", (0, 5), ("L0", "L5")), Axis("position", (0, 1, 2), ("a", " b", "")))
EACH = np.random.default_rng(0).normal(size=(3, 2, 3))
EACH[1, :, 2] = np.nan  # a shorter text
EACH[2, 0, 2] = EACH[0, 0, 2] = np.nan


def effects(**arrays: np.ndarray) -> Effects:
    return Effects(AXES, arrays or {"effect": EACH}, np.arange(3.0), np.ones(3), ("one", "two", "three"), ABOUT)


def test_an_effect_is_the_share_of_the_difference_between_both_texts() -> None:
    metric = np.array([[-1.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
    shares = normalised(metric, np.array([3.0, 2.0]), np.array([-1.0, 2.0]))
    assert shares[0].tolist() == [0, 1, 0.5]
    assert np.isnan(shares[1]).all()


def test_mean_and_spread_are_over_the_pairs_that_have_the_cell() -> None:
    value = effects()
    np.testing.assert_allclose(value.values[:, :2], EACH[:, :, :2].mean(0))
    np.testing.assert_allclose(value.spread[:, :2], EACH[:, :, :2].std(0, ddof=1))
    assert value.values[1, 2] == pytest.approx((EACH[0, 1, 2] + EACH[2, 1, 2]) / 2)
    assert value.n_pairs.tolist() == [[3, 3, 0], [3, 3, 2]]
    assert np.isnan(value.values[0, 2])
    assert np.isnan(value.spread[0, 2])
    assert np.isnan(value.pair(0).spread).all()


def test_its_table_has_a_row_per_cell_with_its_token() -> None:
    table = effects().to_frame()
    assert list(table) == ["layer", "position", "token", "effect", "spread", "pairs"]
    assert table.layer.tolist() == [0, 0, 0, 5, 5, 5]
    assert table.token.tolist() == ["a", " b", ""] * 2
    assert list(effects(estimate=EACH, exact=EACH).to_frame())[3:5] == ["estimate", "exact"]


def test_one_pair_is_an_effect_of_its_own() -> None:
    one = effects().pair(-1)
    assert one.pairs == ("three",)
    np.testing.assert_array_equal(one.values, EACH[2])
    assert one.clean.tolist() == [2]
    with pytest.raises(SelectionError, match="pairs 0-2"):
        effects().pair(3)
    with pytest.raises(SelectionError, match="layer, position"):
        one.axis("head")


def test_it_says_in_a_line_what_it_is_and_has_no_nan_in_json() -> None:
    assert repr(effects()) == "Effects(m: denoise resid_pre, log_prob; 2 layers x 3 positions, 3 pairs)"
    told = json.loads(json.dumps(effects().to_json(), allow_nan=False))
    assert told["effect"][0][2] is None
    assert told["pairs"][1] == {"id": "two", "clean": 1, "corrupt": 1}


def test_a_position_is_called_by_the_token_that_all_texts_have_there() -> None:
    texts = [["a", "b", "c"], ["a", "x", "c", "d"]]
    assert token_labels(texts, 4) == ("a", "", "c", "d")
    assert token_labels(texts, 4, from_end=True) == ("a", "", "", "")
