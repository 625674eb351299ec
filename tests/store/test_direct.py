"""Writing past the page cache."""

import os
from pathlib import Path

import pytest

from traceformer.store.direct import BlockWriter

BLOCK = 4 << 20


@pytest.mark.parametrize(
    "sizes",
    [[], [1], [4096], [BLOCK - 1], [BLOCK], [BLOCK + 1], [3, 2 * BLOCK + 4093, 0, 4], [1000] * 5000],
    ids=lambda sizes: f"{len(sizes)} parts of {sum(sizes)} bytes",
)
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_file_holds_the_parts_in_order_and_nothing_else(tmp_path: Path, place: str, sizes: list[int]) -> None:
    # A file system in memory has no writes past the cache, or only since lately: either way the bytes are the same.
    path = tmp_path / "file" if place == "disk" else Path("/dev/shm") / f"traceformer-{os.getpid()}"
    parts = [os.urandom(size) for size in sizes]
    try:
        with path.open("wb", buffering=0) as file, BlockWriter(file.fileno()) as blocks:
            for part in parts:
                blocks.write(memoryview(part))
        assert path.read_bytes() == b"".join(parts)
    finally:
        path.unlink()


def test_writers_at_the_same_time_do_not_share_a_block(tmp_path: Path) -> None:
    with (
        (tmp_path / "a").open("wb", buffering=0) as a,
        (tmp_path / "b").open("wb", buffering=0) as b,
        BlockWriter(a.fileno()) as first,
        BlockWriter(b.fileno()) as second,
    ):
        for number in range(100):
            first.write(memoryview(bytes([number]) * 3))
            second.write(memoryview(bytes([255 - number]) * 5))
    assert (tmp_path / "a").read_bytes() == b"".join(bytes([n]) * 3 for n in range(100))
    assert (tmp_path / "b").read_bytes() == b"".join(bytes([255 - n]) * 5 for n in range(100))


def test_an_error_of_the_disk_is_raised_and_the_block_is_usable_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with (
        path.open("rb") as file,
        pytest.raises(OSError, match="Bad file descriptor"),
        BlockWriter(file.fileno()) as blocks,
    ):
        blocks.write(memoryview(b"x" * 10))
    with path.open("wb", buffering=0) as file, BlockWriter(file.fileno()) as blocks:
        blocks.write(memoryview(b"y" * 10))
    assert path.read_bytes() == b"y" * 10
