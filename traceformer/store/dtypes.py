"""How numbers are stored: bfloat16 as its bits, patterns optionally as rounded square roots, never an inf.

Whoever reads gets float32, which holds float16 and bfloat16 exactly: sums in float16 end at 65504 and have three
digits. bfloat16 lies on disk as uint16, since zarr-python cannot open bfloat16. `sqrt8` keeps round(255 sqrt(p)) in a
byte, at most 0.004 away from p; `q8` keeps rows in bytes beside scales, and views of them give numbers. Who asks for
numbers as they are stored gets float16 of float16; of the others float32, since numpy has no type for them. Token ids
are int32 in any run.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import SelectionError
from traceformer.shapes import Float, Num, Shaped, UInt8, UInt16
from traceformer.store.names import Stored

__all__ = [
    "SQRT8_ERROR",
    "NonFinite",
    "ReadDtype",
    "decode",
    "dtype_read",
    "encode_sqrt8",
    "first_nonfinite",
    "nan_of",
]

ReadDtype: TypeAlias = Literal["float32", "stored"]
"""What numbers are read as: float32, or as they are stored."""

ON_DISK: Mapping[Stored, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "sqrt8": np.dtype(np.uint8),
    "q8": np.dtype(np.int8),
    "int32": np.dtype(np.int32),
}

# The bit pattern of +inf per dtype: as a signed integer, every finite value lies below it, inf and NaN do not.
_INFINITY: Mapping[Stored, tuple[Any, Any, int]] = {
    "float16": (np.uint16, np.int16, 0x7C00),
    "bfloat16": (np.uint16, np.int16, 0x7F80),
    "float32": (np.uint32, np.int32, 0x7F80_0000),
}
_BLOCK = 1 << 17  # bytes: small enough that the second look at a block finds it in the cache
SQRT8_ERROR = 0.004
"""The most that a pattern read from `sqrt8` is off."""
_SQUARES = ((np.arange(256, dtype=np.float64) / 255) ** 2).astype(np.float32)


def nan_of(stored: Stored) -> float | int:
    """Returns what is stored for a number that is not known: NaN, 0 where the dtype has none."""
    return {"bfloat16": 0x7FC0, "sqrt8": 0, "q8": 0, "int32": 0}.get(stored, np.nan)


class NonFinite(NamedTuple):
    """Where an array first holds a value that is no number."""

    at: tuple[int, ...]
    kind: Literal["inf", "nan"]


def dtype_read(stored: Stored, dtype: ReadDtype) -> np.dtype[Any]:
    """Returns the type that stored values are read as.

    Raises:
        SelectionError: `dtype` is neither `float32` nor `stored`.
    """
    if dtype not in ("float32", "stored"):
        raise SelectionError(f"no dtype {dtype!r}", hint="float32, or stored: float16 where the run is float16")
    as_stored = stored == "int32" or (stored == "float16" and dtype == "stored")
    return ON_DISK[stored] if as_stored else np.dtype(np.float32)


def first_nonfinite(array: Shaped[np.ndarray, "..."], stored: Stored) -> NonFinite | None:
    """Returns the index of the first inf or NaN in `array`, or None: integer comparisons, no temporaries.

    `array` is as stored (bfloat16: its bits in uint16); `sqrt8` and `int32` cannot hold such values. Views are
    looked at row by row, so give the part that is filled.
    """
    if stored not in _INFINITY or not array.size:
        return None
    unsigned, signed, infinity = _INFINITY[stored]
    bits = array.view(unsigned)
    if bits.flags.c_contiguous:
        flat = bits.reshape(-1)
        step = _BLOCK // bits.itemsize
        for start in range(0, flat.size, step):
            found = _first_in_block(flat[start : start + step], signed, infinity)
            if found is not None:
                position = np.unravel_index(start + found[0][0], array.shape)
                return NonFinite(tuple(map(int, position)), found[1])
        return None
    rows = max(1, _BLOCK // max(1, bits[0].nbytes))
    for start in range(0, len(bits), rows):
        if bits.ndim > 1 and bits[0].nbytes > _BLOCK:
            found = first_nonfinite(array[start], stored)
            index = (start, *found.at) if found else ()
        else:
            found = _first_in_block(bits[start : start + rows], signed, infinity)
            index = (start + found.at[0], *found.at[1:]) if found else ()
        if found:
            return NonFinite(index, found.kind)
    return None


def _first_in_block(bits: Shaped[np.ndarray, "..."], signed: Any, infinity: int) -> NonFinite | None:
    sign = 1 << (8 * bits.itemsize - 1)
    if bits.view(signed).max() < infinity and bits.max() < (sign | infinity):
        return None
    magnitude = bits & (sign - 1)
    index = tuple(int(i[0]) for i in np.nonzero(magnitude >= infinity))
    return NonFinite(index, "inf" if magnitude[index] == infinity else "nan")


def encode_sqrt8(pattern: Float[np.ndarray, "*axes"]) -> UInt8[np.ndarray, "*axes"]:
    """Returns round(255 sqrt(p)) for probabilities p in 0 .. 1."""
    return np.rint(np.sqrt(pattern.astype(np.float32)) * 255).astype(np.uint8)


def decode(array: Shaped[np.ndarray, "*axes"], stored: Stored) -> Num[np.ndarray, "*axes"]:
    """Returns the numbers that stored values stand for: float32 for bfloat16 and sqrt8, else the array itself."""
    if stored == "bfloat16":
        return _widen(array)
    if stored == "sqrt8":
        return _SQUARES[array]
    return array


def _widen(bits: UInt16[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
