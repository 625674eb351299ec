"""Which array, and which of its layers, heads or positions a user means."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store import runs
from traceformer.errors import NotRecorded, SelectionError
from traceformer.sites import ArrayKey, parse_indices
from traceformer.store.arrays import find_array, find_numbers, shortened

DECODER, BOTH = runs.plan("dec"), runs.plan("encdec")


@pytest.mark.parametrize(
    ("site", "options", "key"),
    [
        ("resid_mid", {}, "dec.resid_mid"),
        ("attn", {}, "dec.self.attn_pattern"),
        ("dec.self.q", {"shape": "any"}, "dec.self.q"),
        (ArrayKey("dec", None, "embed"), {}, "dec.embed"),
        ("resid_mid", {"shape": "rows"}, "dec.resid_mid"),
        ("attn_scores", {"shape": "matrix"}, "dec.self.attn_scores"),
    ],
)
def test_an_array_is_meant_by_site_group_or_key(site: str, options: dict[str, Any], key: str) -> None:
    assert str(find_array(DECODER, site, **options).key) == key


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"side": "enc"}, "enc.self.q"),
        ({"prefer": "dec"}, "dec.self.q"),
        ({"kind": "cross"}, "dec.cross.q"),
        ({"side": "dec", "kind": "cross"}, "dec.cross.q"),
    ],
)
def test_of_two_stacks_one_is_said_or_preferred(options: dict[str, Any], key: str) -> None:
    assert str(find_array(BOTH, "q", **options).key) == key


@pytest.mark.parametrize(
    ("site", "shape", "error", "said"),
    [
        ("resid_mid", "matrix", SelectionError, "is no .query, key. matrix"),
        ("attn_pattern", "rows", SelectionError, "no single row per token"),
        ("z", "rows", SelectionError, "no single row per token"),
        ("lens_topk", "rows", SelectionError, "is no activation"),
        ("resid_middle", "any", SelectionError, "did you mean 'resid_mid'"),
        ("resid_pre", "any", NotRecorded, "resid_pre was not recorded"),
    ],
)
def test_what_cannot_be_meant_is_refused(site: str, shape: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        find_array(DECODER, site, shape=shape)


def test_two_stacks_with_a_site_name_both_keys() -> None:
    with pytest.raises(SelectionError, match=r"both stacks have q; .* enc\.self\.q or dec\.self\.q"):
        find_array(BOTH, "q")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(None, (1, 4, 5)), ("all", (1, 4, 5)), (4, (4,)), ([5, 1], (5, 1)), ("1,4-5", (1, 4, 5)), (range(4, 6), (4, 5))],
)
def test_numbers_are_all_one_a_list_or_a_text(wanted: Any, found: Sequence[int]) -> None:
    assert find_numbers("layer", wanted, (1, 4, 5), of="dec.resid_mid") == found


@pytest.mark.parametrize(
    ("wanted", "stored", "said"),
    [
        (2, (1, 4, 5), "layer 2 requested; there are layers 1,4-5 of dec.resid_mid"),
        ("0-4", (1, 4, 5), "layer 0, 2, 3 requested"),
        ([], (1, 4, 5), "layer nothing requested"),
        (0, (), "layer 0 requested; there are no layers of dec.resid_mid"),
        ("x", (1,), "cannot read 'x'"),
    ],
)
def test_numbers_that_are_not_stored_are_refused(wanted: Any, stored: Sequence[int], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        find_numbers("layer", wanted, stored, of="dec.resid_mid")


@given(st.sets(st.integers(0, 40), min_size=1).map(sorted))
def test_shortened_numbers_are_read_back(numbers: list[int]) -> None:
    assert parse_indices(shortened(numbers)) == tuple(numbers)
