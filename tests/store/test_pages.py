"""Memory that is used again: what is kept in it is what was given, until it is cleared."""

import numpy as np

from traceformer.store import pages
from traceformer.store.pages import Kept, zeros


def random_chunks(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, int(size), np.uint8) for size in random.integers(0, 200_000, 80)]


def test_what_is_kept_is_a_copy_and_the_same_memory_serves_again() -> None:
    kept = Kept()
    places: list[set[int]] = []
    for seed in range(2):
        chunks = random_chunks(seed)
        copies = [kept.keep(chunk.copy()) for chunk in chunks]
        assert all(np.array_equal(copy, chunk) for copy, chunk in zip(copies, chunks, strict=True))
        places.append({copy.ctypes.data >> 22 for copy in copies})
        kept.clear()
    assert len(places[0] & places[1]) > 1


def test_a_chunk_larger_than_a_block_has_one_of_its_own() -> None:
    kept = Kept()
    sizes = (5, pages._BLOCK_BYTES + 3, 7, pages._BLOCK_BYTES)  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        chunks = [np.full(size, number, np.uint8) for number, size in enumerate(sizes)]
        copies = [kept.keep(chunk) for chunk in chunks]
        assert all(np.array_equal(copy, chunk) for copy, chunk in zip(copies, chunks, strict=True))
        kept.clear()


def test_zeros_are_zeros_however_many() -> None:
    for shape in ((3, 5), (1 << 20, 3)):
        array = zeros(shape, np.dtype(np.uint16))
        assert array.shape == shape
        assert not array.any()
        array[...] = 1
