"""A shard's file, byte for byte: chunks in order, each with its checksum, and where they lie at the end."""

import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from traceformer.store import shards
from traceformer.store.durable import WriteGroup
from traceformer.store.shards import CutChunks, write_shard


def crc32c(data: bytes) -> bytes:
    """The checksum bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def plain_file(chunks: Sequence[bytes | None]) -> bytes:
    data, index = b"", b""
    for chunk in chunks:
        index += struct.pack("<QQ", *((2**64 - 1,) * 2 if chunk is None else (len(data), len(chunk) + 4)))
        data += b"" if chunk is None else chunk + crc32c(chunk)
    return data + index + crc32c(index)


@pytest.mark.parametrize(
    ("chunks", "at_once"),
    [([], 9), ([b"abc"], 9), ([b"a" * 40, None, b"b", b"c" * 7, b"d" * 9, None], 9), ([b"xy"] * 20 + [None], 50)],
)
def test_a_shard_is_chunks_checksums_and_index_however_many_are_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: list[bytes | None], at_once: int
) -> None:
    monkeypatch.setattr(shards, "_AT_ONCE", at_once)
    with WriteGroup() as group:
        arrays = (None if chunk is None else np.frombuffer(chunk, np.uint8).copy() for chunk in chunks)
        written = write_shard(group, tmp_path / "c.0", arrays)
    data = plain_file(chunks)
    assert (tmp_path / "c.0").read_bytes() == data
    assert written.bytes == len(data)
    last = next((chunk for chunk in reversed(chunks) if chunk is not None), None)
    assert written.mark == (b"" if last is None else crc32c(last)).hex() + data[-4:].hex()


@pytest.mark.parametrize(
    ("shape", "axis", "chunk", "in_shard"),
    [
        ((2, 3, 8, 5), 2, 4, 16),
        ((8, 5), 0, 4, 8),
        ((3, 1, 6, 7), 2, 1, 9),
        ((6, 2, 3, 5), 0, 2, 8),
        ((4, 2, 5), 0, 1, 4),
    ],
)
def test_chunks_are_parts_of_the_array_in_order(shape: tuple[int, ...], axis: int, chunk: int, in_shard: int) -> None:
    whole = np.random.default_rng(0).integers(0, 1 << 15, (*shape[:axis], 20, *shape[axis + 1 :])).astype(np.uint16)
    array = whole[(slice(None),) * axis + (slice(0, shape[axis]),)]  # the shard's memory goes on behind it
    expected = [
        array[(*lead, slice(start, start + chunk))].tobytes() if start < shape[axis] else None
        for lead in itertools.product(*map(range, shape[:axis]))
        for start in range(0, in_shard, chunk)
    ]
    found = [None if each is None else each.tobytes() for each in CutChunks(array, axis, chunk, in_shard)]
    assert found == expected
    assert array.flags.writeable
    assert all(np.shares_memory(each, whole) for each in CutChunks(array, axis, chunk, in_shard) if each is not None)
