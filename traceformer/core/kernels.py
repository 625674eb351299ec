"""The library's functions, with numpy's arrays. What they compute, `source/variant.c` says.

Each takes the `Core` that is to do it, and looks at what it is given: the library itself believes everything.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from traceformer.core.library import Core
from traceformer.shapes import Float32, Float64, Int32, Int64, Shaped, UInt8

__all__ = [
    "LOOKS_AHEAD",
    "NO_NUMBER",
    "Gathered",
    "HeadSums",
    "PatternCall",
    "Strided",
    "Strided3",
    "cast_rows",
    "crc32c",
    "fold",
    "head_sums",
    "patterns",
    "patterns_memory",
    "project",
    "same_tokens_beside",
    "unfold",
]

_I64, _I32, _F32, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
_LARGEST_OF_HALF = 0x477FF000  # the bits of the first float32 that is no float16 any more
_LARGEST_OF_BRAIN = 0x7F7F8000  # of the first that is no bfloat16
_INFINITY = 0x7F800000
_PROFILE_ROWS = 32
_LANES = 16


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return _POINTER(array.ctypes.data)


class Strided(NamedTuple):
    """Where (head, row, number of it) lies: its address, and the strides of heads and rows in numbers."""

    address: int
    head: int
    row: int


class Strided3(NamedTuple):
    """Where (.., .., .., number of a row) lies: its address, and three strides in numbers."""

    address: int
    strides: tuple[int, int, int]


class PatternCall(ctypes.Structure):
    """One example of an attention call, as the library takes it: `of` makes it.

    Tensors are float32, their rows in one piece; `allowed` is bytes. Memory must be there as long as this is used.
    """

    _fields_ = (
        *((name, _POINTER) for name in ("query", "key", "allowed", "added")),
        *((f"{name}_{axis}", _I64) for name in ("query", "key", "allowed", "added") for axis in ("head", "row")),
        *((name, _I64) for name in ("queries", "keys", "d", "group", "window")),
        ("scale", _F32),
        ("ahead", _I32),
    )

    @classmethod
    def of(
        cls,
        query: Strided,
        key: Strided,
        *,
        queries: int,
        keys: int,
        d: int,
        scale: float,
        group: int = 1,
        ahead: bool = False,
        window: int | None = None,
        allowed: Strided | None = None,
        added: Strided | None = None,
    ) -> "PatternCall":
        """Returns a call: softmax(query key^T * scale + added), where `allowed`.

        Args:
            query: (head, query, d).
            key: (kv_head, key, d).
            queries: How many there are.
            keys: How many there are.
            d: How wide a row is.
            scale: What products are multiplied by.
            group: How many heads share the keys of one.
            ahead: Whether queries look at later keys.
            window: How many keys, its own included, a query sees; all for None.
            allowed: (head, query, key), bytes.
            added: (head, query, key).
        """
        nowhere = Strided(0, 0, 0)
        parts = (query, key, allowed or nowhere, added or nowhere)
        strides = [stride for part in parts for stride in (part.head, part.row)]
        return cls(*(part.address for part in parts), *strides, queries, keys, d, group, window or 0, scale, ahead)


def patterns_memory(core: Core, call: PatternCall) -> int:
    """Returns how many float32 `patterns` needs beside what it makes."""
    function = core.function("patterns_memory")
    function.restype = _I64
    return function(_I64(call.keys), _I64(call.d))


def patterns(
    core: Core,
    call: PatternCall,
    heads: Int64[np.ndarray, "head"],
    first: int,
    stop: int,
    memory: Float32[np.ndarray, "_"],
    out: Shaped[np.ndarray, "head cell"],
    pitch: int,
) -> bool:
    """Fills `out` with some heads' patterns in float16, queries `first` to before `stop`; whether all are numbers.

    With a `pitch` rows are so many cells long, zeros behind the last key; with 0 they end with the diagonal.
    """
    count = (stop - first) * pitch or (stop * (stop + 1) - first * (first + 1)) // 2
    assert memory.size >= patterns_memory(core, call)
    assert memory.flags.c_contiguous
    assert out.dtype == np.float16
    assert out.shape[0] == len(heads)
    assert out.shape[1] >= count
    assert out.strides[1] == 2 or out.shape[1] <= 1
    assert pitch >= call.keys or not pitch
    assert not (call.ahead and not pitch)
    heads = np.ascontiguousarray(heads, np.int64)
    return bool(
        core.function("patterns")(
            ctypes.byref(call),
            _at(heads),
            _I64(len(heads)),
            _I64(first),
            _I64(stop),
            _at(memory),
            _at(out),
            _I64(out.strides[0] // 2),
            _I64(pitch),
        )
    )


def cast_rows(
    core: Core,
    source: Strided3,
    target: Strided3,
    shape: tuple[int, int, int],
    width: int,
    *,
    brain: bool,
    wide: bool = False,
) -> bool:
    """Writes rows of float32 as float16, as bfloat16 if `brain`, as they are if `wide`.

    Returns whether all of them are finite there.
    """
    function = core.function("cast_rows")
    function.restype = ctypes.c_uint32
    three = _I64 * 3
    largest = function(
        _POINTER(source.address),
        three(*source.strides),
        _POINTER(target.address),
        three(*target.strides),
        three(*shape),
        _I64(width),
        2 if wide else int(brain),
    )
    return largest < (_INFINITY if wide else _LARGEST_OF_BRAIN if brain else _LARGEST_OF_HALF)


def project(
    core: Core, rows: Shaped[np.ndarray, "token d"], units: Float32[np.ndarray, "direction d"]
) -> tuple[Float32[np.ndarray, "token direction"], Float32[np.ndarray, "token"]]:
    """Returns the products of rows of float16 or float32 with directions, and the rows' norms."""
    half = rows.dtype == np.float16
    assert half or rows.dtype == np.float32
    assert rows.strides[1] == rows.itemsize or rows.shape[1] <= 1 or not len(rows)
    units = np.ascontiguousarray(units)
    products, norms = np.empty((len(rows), len(units)), np.float32), np.empty(len(rows), np.float32)
    core.function("project")(
        _at(rows),
        half,
        _I64(len(rows)),
        _I64(rows.strides[0] // rows.itemsize),
        _I64(rows.shape[1]),
        _at(units),
        _I64(len(units)),
        _at(products),
        _at(norms),
    )
    return products, norms


def fold(
    core: Core, block: Shaped[np.ndarray, "head query key"], first: int, cells: Shaped[np.ndarray, "head cell"]
) -> bool:
    """Fills the cells of some rows of squares, query `first` being the first; returns whether that is all they hold.

    Keys of both are in one piece.
    """
    size, (heads, rows, keys) = block.itemsize, block.shape
    assert cells.itemsize == size == block.strides[2] == cells.strides[1]
    assert cells.shape[1] * 2 >= (first + rows) * (first + rows + 1) - first * (first + 1)
    return bool(
        core.function("fold")(
            _at(block),
            *map(_I64, (block.strides[0], block.strides[1], heads, rows, keys, first, size)),
            _at(cells),
            _I64(cells.strides[0]),
        )
    )


def unfold(
    core: Core, cells: Shaped[np.ndarray, "lead cell"], first: int, rows: int, keys: int
) -> Shaped[np.ndarray, "lead query key"]:
    """Returns rows of squares out of their cells, query `first` being the first, with zeros above the diagonal.

    The cells of one square are in one piece.
    """
    size, stop = cells.itemsize, first + rows
    assert cells.strides[1] == size or cells.shape[1] <= 1
    assert cells.shape[1] * 2 >= stop * (stop + 1) - first * (first + 1)
    squares = np.empty((len(cells), rows, keys), cells.dtype)
    core.function("unfold")(
        _at(cells), *map(_I64, (cells.strides[0], len(cells), first, rows, keys, size)), _at(squares)
    )
    return squares


def crc32c(core: Core, data: UInt8[np.ndarray, "_"]) -> int:
    """Returns the crc32c of bytes in one piece."""
    function = core.function("crc32c")
    function.restype = ctypes.c_uint32
    assert data.flags.c_contiguous
    return function(ctypes.c_uint32(0), _at(data), _I64(data.size))


class Gathered:
    """Chunks one behind the other, each with its crc32c, written piece by piece.

    Args:
        core: What does it.
        addresses: Where each chunk lies; its memory must be there until all is written.
        sizes: How many bytes it has.

    Attributes:
        crcs: Those of the chunks that have been written.
    """

    def __init__(self, core: Core, addresses: Shaped[np.ndarray, "chunk"], sizes: Int64[np.ndarray, "chunk"]) -> None:
        self._gather = core.function("gather")
        self._gather.restype = _I64
        self._addresses = np.ascontiguousarray(addresses, np.uint64)
        self._sizes = np.ascontiguousarray(sizes, np.int64)
        self._place = np.zeros(2, np.int64)
        self.crcs: Shaped[np.ndarray, "chunk"] = np.zeros(len(sizes), np.uint32)

    def write(self, room: memoryview) -> int:
        """Fills a piece of memory, as far as there is anything left, and returns how many bytes it took."""
        target = np.frombuffer(room, np.uint8)
        assert target.flags.writeable
        return self._gather(
            _at(self._addresses),
            _at(self._sizes),
            _I64(len(self._sizes)),
            _at(self.crcs),
            _at(self._place),
            _at(target),
            _I64(target.size),
        )


class _Geometry(ctypes.Structure):
    _fields_ = (
        *((name, _I64) for name in ("queries", "keys", "first", "rows", "seen")),
        *((name, _I32) for name in ("causal", "aligned")),
        ("reach", _I64),
        *((name, _F32) for name in ("beside_sum", "in_logarithm", "sparse_weight")),
        ("divides", _I32),
    )


NO_NUMBER, LOOKS_AHEAD = 1, 2


class HeadSums(NamedTuple):
    """What `head_sums` adds up: see `BlockSums` in `analysis/heads.py`.

    `problem` is 0, `NO_NUMBER` for a row of nothing, or NaN, `LOOKS_AHEAD` for a causal query that does.
    """

    direct: Float64[np.ndarray, "head 7"]
    repeating: Int64[np.ndarray, "3"]
    profile: Float64[np.ndarray, "head offset"]
    problem: int


def head_sums(
    core: Core,
    block: Shaped[np.ndarray, "head query key"],
    *,
    queries: int,
    keys: int,
    first: int,
    causal: bool,
    reach: int | None,
    offsets: int,
    places: tuple[Int32[np.ndarray, "position"], Int32[np.ndarray, "position"]] | None,
    rules: Sequence[float],
    divides: bool,
) -> HeadSums:
    """Returns the sums over query rows `first`, `first` + 1, ... of float16 patterns, whose rows are in one piece.

    Args:
        core: What does it.
        block: The patterns; keys behind those of a causal block may be left out.
        queries: Those of the whole example.
        keys: Likewise.
        first: The first row's query.
        causal: Whether no query sees a later key.
        reach: How far a query sees; None for no limit.
        offsets: How many values key - query takes; 0 if query i and key i are not the same token.
        places: For each token where the same one is before it and behind it, -1 for nowhere.
        rules: What is added to a row's sum, to a probability in a logarithm, and below what a cell is sparse.
        divides: Whether rows are divided by their sums.
    """
    heads, rows, seen = block.shape
    assert block.dtype == np.float16
    assert block.strides[2] == 2 or seen <= 1
    assert offsets in (0, queries + keys - 1)
    assert first + rows <= queries
    assert seen <= keys
    assert not causal or not places or seen >= min(keys, first + rows)
    direct, profile, repeating = np.zeros((heads, 7)), np.zeros((heads, offsets)), np.zeros(3, np.int64)
    geometry = _Geometry(
        queries, keys, first, rows, seen, causal, offsets > 0, -1 if reach is None else reach, *rules, divides
    )
    memory = np.empty(2 * seen + _PROFILE_ROWS + 5 * _LANES, np.float32)
    before, after = (None, None) if places is None else map(_at, places)
    problem = core.function("head_sums")(
        _at(block),
        *map(_I64, (heads, block.strides[0] // 2, block.strides[1] // 2)),
        ctypes.byref(geometry),
        before,
        after,
        _at(direct),
        _at(profile) if offsets else None,
        _I64(offsets),
        _at(repeating),
        _at(memory),
    )
    return HeadSums(direct, repeating, profile, problem)


def same_tokens_beside(
    tokens: Shaped[np.ndarray, "position"],
) -> tuple[Int32[np.ndarray, "position"], Int32[np.ndarray, "position"]]:
    """Returns for each token where the same one is next before it and next behind it, -1 for nowhere."""
    order = np.argsort(tokens, kind="stable")
    same = tokens[order[1:]] == tokens[order[:-1]]
    earlier, later = order[:-1][same], order[1:][same]
    before, after = np.full((2, len(tokens)), -1, np.int32)
    before[later], after[earlier] = earlier, later
    return before, after
