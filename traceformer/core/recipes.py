"""Patterns made anew of queries and keys, head by head: `source/rebuilt.h` with numpy's arrays."""

import ctypes
from typing import NamedTuple

import numpy as np

from traceformer.core.library import Core
from traceformer.shapes import Bool, Float32, Shaped

__all__ = ["Head", "rebuilt"]

_STORED = ("float32", "float16", "bfloat16")


class Head(NamedTuple):
    """How one head's patterns follow from its queries and keys.

    Attributes:
        first: The first query's place.
        before: How many keys before its own place a query sees.
        behind: How many behind it.
        scale: What products are multiplied by.
        softcap: What scores are capped to; 0 for no cap.
        sink: The score of a key that has no weight; None where there is none.
        bias: What is added to scores, in one row.
        bias_at: Where in it the first query's bias of key 0 stands.
        bias_step: How much further the next query's stands.
        allowed: Where queries may look, beside that; None for everywhere.
    """

    first: int
    before: int
    behind: int
    scale: float
    softcap: float = 0.0
    sink: float | None = None
    bias: Float32[np.ndarray, "place"] | None = None
    bias_at: int = 0
    bias_step: int = 0
    allowed: Bool[np.ndarray, "query key"] | None = None


class _Rebuilt(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "allowed", "bias")),
        *((name, ctypes.c_int64) for name in ("query_row", "key_row", "bias_row")),
        *((name, ctypes.c_int64) for name in ("first", "rows", "keys", "d", "before", "behind")),
        *((name, ctypes.c_double) for name in ("scale", "softcap", "sink")),
        *((name, ctypes.c_int32) for name in ("sinks", "stored")),
    )


def rebuilt(
    core: Core,
    head: Head,
    query: Float32[np.ndarray, "query d"],
    key: Float32[np.ndarray, "key d"],
    out: Shaped[np.ndarray, "query key"],
    stored: str,
) -> bool:
    """Fills `out` with a head's patterns as they are stored; returns whether this machine can do that.

    Rows of queries and of keys are in one piece; so is `out`.
    """
    (rows, d), keys = query.shape, len(key)
    assert query.dtype == key.dtype == np.float32
    assert query.strides[1] == key.strides[1] == 4 or d <= 1
    assert out.flags.c_contiguous
    assert out.shape == (rows, keys)
    assert out.itemsize == (4 if stored == "float32" else 2)
    allowed = None if head.allowed is None else np.ascontiguousarray(head.allowed, np.bool_)
    assert allowed is None or allowed.shape == out.shape
    bias = None if head.bias is None else np.ascontiguousarray(head.bias, np.float32)
    if bias is not None:
        ends = (head.bias_at, head.bias_at + head.bias_step * (rows - 1))
        assert min(ends) >= 0
        assert max(ends) + keys <= len(bias)
    memory_of = core.function("rebuilt_memory")
    memory_of.restype = ctypes.c_int64
    memory = np.empty(memory_of(ctypes.c_int64(keys), ctypes.c_int64(d)))
    asked = _Rebuilt(
        query.ctypes.data,
        key.ctypes.data,
        None if allowed is None else allowed.ctypes.data,
        None if bias is None else bias.ctypes.data + 4 * head.bias_at,
        *(query.strides[0] // 4, key.strides[0] // 4, head.bias_step),
        *(head.first, rows, keys, d, head.before, head.behind),
        *(head.scale, head.softcap, 0.0 if head.sink is None else head.sink),
        head.sink is not None,
        _STORED.index(stored),
    )
    function = core.function("rebuilt")
    return bool(function(ctypes.byref(asked), ctypes.c_void_p(memory.ctypes.data), ctypes.c_void_p(out.ctypes.data)))
