"""Stored numbers."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from traceformer.store.dtypes import decode, encode_sqrt8, first_nonfinite

TYPES: dict[Any, Any] = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    cast = numbers.astype(TYPES[dtype])
    return cast.view(np.uint16) if dtype == "bfloat16" else cast


@given(
    bits=npst.arrays(np.uint16, npst.array_shapes(max_dims=3, max_side=9)),
    dtype=st.sampled_from(["float16", "bfloat16"]),
)
def test_first_nonfinite_agrees_with_isfinite_on_all_bit_patterns(bits: np.ndarray, dtype: Any) -> None:
    numbers = bits.view(TYPES[dtype]).astype(np.float32)
    found = first_nonfinite(bits if dtype == "bfloat16" else bits.view(np.float16), dtype)
    wrong = np.argwhere(~np.isfinite(numbers))
    assert (None if found is None else found.at) == (tuple(wrong[0]) if len(wrong) else None)
    if found is not None:
        assert found.kind == ("nan" if np.isnan(numbers[found.at]) else "inf")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [(0, 0, 0), (2, 299, 499), (1, 150, 3)])
def test_first_nonfinite_looks_everywhere_in_a_big_array_and_in_views(
    dtype: Any, value: float, at: tuple[int, ...]
) -> None:
    numbers = np.full((3, 300, 500), -1.5, np.float32)
    assert first_nonfinite(stored(numbers, dtype), dtype) is None
    numbers[at] = value
    for array, where in (
        (stored(numbers, dtype), at),
        (np.pad(stored(numbers, dtype), 1)[1:-1, 1:-1, 1:-1], at),
        (stored(numbers, dtype).transpose(1, 0, 2), (at[1], at[0], at[2])),
    ):
        found = first_nonfinite(array, dtype)
        assert found is not None
        assert found.at == where
        assert found.kind == ("nan" if np.isnan(value) else "inf")


def test_largest_finite_values_are_finite() -> None:
    for dtype, kind in TYPES.items():
        largest = ml_dtypes.finfo(kind).max
        array = stored(np.array([largest, -largest, 0.0, -0.0], np.float32), dtype)
        assert first_nonfinite(array, dtype) is None


def test_sqrt8_is_at_most_0_004_away() -> None:
    p = np.linspace(0, 1, 100_001, dtype=np.float32)
    codes = encode_sqrt8(p)
    back = decode(codes, "sqrt8")
    assert np.abs(back - p).max() <= 0.004
    assert back[0] == 0
    assert back[-1] == 1
    assert np.array_equal(encode_sqrt8(back), codes)


@given(npst.arrays(np.uint16, 50))
def test_bfloat16_bits_are_read_as_the_float32_they_are(bits: np.ndarray) -> None:
    assert np.array_equal(decode(bits, "bfloat16"), bits.view(ml_dtypes.bfloat16).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_plain_floats_are_not_copied(dtype: Any) -> None:
    array = np.ones(3, dtype)
    assert decode(array, dtype) is array
