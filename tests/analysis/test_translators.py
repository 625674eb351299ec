"""Translators as values: what they do to rows, whose rows these may be, and what they say of themselves."""

import inspect
import json
from typing import Any

import numpy as np
import pytest

from traceformer.analysis.translators import HeldOut, Translators
from traceformer.errors import ConfigurationChanged, SelectionError, UsageError

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(2, 3, 3)).astype(np.float32)
BIASES = RANDOM.normal(size=(2, 3)).astype(np.float32)
FIGURES = (np.array([0.5, 0.0]), np.array([0.75, 1.0]), np.array([2.0, 0.0]), np.array([0.5, 1.0]))


def translators(**more: Any) -> Translators:
    held_out = HeldOut(*FIGURES, ("tuned", "identity"), rows=40, examples=3)
    known = {"model": "m", "model_weights": "ab", "d_vocab": 9, "held_out": held_out, **more}
    return Translators("tuned", (1, 4), WEIGHTS, BIASES, **known)


def test_a_row_becomes_w_h_plus_b() -> None:
    row = np.array([1.0, 2.0, -1.0], np.float16)
    expected = [sum(float(WEIGHTS[1, i, j] * row[j]) for j in range(3)) + float(BIASES[1, i]) for i in range(3)]
    found = translators().translated(row[None], 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_other_layers_and_other_rows_are_refused() -> None:
    with pytest.raises(SelectionError, match="no translator for layer 2; there are those of layers 1, 4"):
        translators().translated(np.zeros((1, 3), np.float32), 2)
    with pytest.raises(UsageError, match="rows 5 wide; these translators are for rows 3 wide"):
        translators().translated(np.zeros((1, 5), np.float32), 1)


def test_what_is_no_rows_is_refused() -> None:
    unchecked: Any = inspect.unwrap(Translators.translated)
    for wrong in (np.zeros(3, np.float32), "rows", None):
        with pytest.raises(UsageError, match="rows of numbers are wanted"):
            unchecked(translators(), wrong, 1)


def test_another_model_is_refused_as_far_as_it_is_known() -> None:
    own = translators()
    own.check_model(3, 9, "ab")
    own.check_model(3, 9)
    translators(d_vocab=None, model_weights=None).check_model(3, 7, "cd")
    with pytest.raises(ConfigurationChanged, match="4 wide"):
        own.check_model(4, 9, "ab")
    with pytest.raises(ConfigurationChanged, match="of 8 words"):
        own.check_model(3, 8, "ab")
    with pytest.raises(ConfigurationChanged, match="have digest ab, this one's cd"):
        own.check_model(3, 9, "cd")


def test_its_table_has_a_row_per_layer() -> None:
    table = translators().to_frame()
    assert table[["layer", "kl", "top1", "logit_kl", "logit_top1", "chosen", "rows"]].to_numpy().tolist() == [
        [1, 0.5, 0.75, 2.0, 0.5, "tuned", 40],
        [4, 0.0, 1.0, 0.0, 1.0, "identity", 40],
    ]
    apart = [np.sqrt(np.square(own - np.eye(3)).sum()) for own in WEIGHTS]
    np.testing.assert_allclose(table.from_identity, apart, rtol=1e-5)
    assert [*translators(held_out=None).to_frame()] == ["layer", "from_identity"]


def test_it_says_in_a_line_what_it_is_and_all_of_it_as_json() -> None:
    assert repr(translators()) == (
        "Translators(tuned of m: layers 1-4, 3 wide; held-out KL 0.25 where the logit lens has 1)"
    )
    assert repr(translators(model=None, held_out=None)) == "Translators(tuned: layers 1-4, 3 wide)"
    told = json.loads(json.dumps(translators().to_json(), allow_nan=False))
    assert told["layers"] == [1, 4]
    assert told["held_out"]["logit_kl"] == [2.0, 0.0]
    back = HeldOut.from_json(told["held_out"])
    assert back.chosen == ("tuned", "identity")
    assert back.kl.tolist() == [0.5, 0.0]
    assert "<img" in (translators()._repr_html_() or "")
    assert translators(held_out=None)._repr_html_() is None
