"""Rows as bytes: a code of 8 bits for each value, a float16 scale for every 32 of them, massive channels exactly.

1. A channel is massive whose largest magnitude in a shard is more than `MASSIVE` times the median of all channels'
   (those left out that are zero throughout), or more than a scale can express. It is taken out of its block, whose
   other values it would round to nothing, and kept in the dtype of the run; of many, the largest `most_massive` are.
2. What is left of a row is cut into blocks of 32 values; the last may be shorter. A block's scale is its largest
   magnitude over 127, rounded up to float16: no code passes 127, and only a block of zeros has the scale 0.
3. A value's code is the nearest whole number of scales. What is read is code * scale, which float32 holds exactly: off
   by half a scale at most, which is 0.4 % of the largest of the 32, and 3e-8, where float16 has few digits.

All of it is elementwise arithmetic of float32 that IEEE 754 defines to the last bit: equal rows give equal bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from traceformer.shapes import Float32, Integer, Num, Shaped
from traceformer.store.system import processors

__all__ = [
    "BLOCK",
    "HALF",
    "LARGEST",
    "Channels",
    "Rounded",
    "Rounding",
    "decode_rows",
    "encode",
    "massive_channels",
    "massive_chunks",
    "most_massive",
    "n_blocks",
]

BLOCK = 32
"""Values that share a scale."""
HALF = 0.50001
"""The part of its scale by which a value may be off: float32 rounds the quotient that is rounded to a code."""
MASSIVE = 8
"""How many times the median of all channels' largest magnitudes that of a massive one is."""
LARGEST = 65504 * 127
"""What a block can hold: the largest scale, 127 times."""

_LARGEST_CODE = 127
_AT_ONCE = 1 << 16  # values, which fit into a core's cache in all forms that they take
_PIECE = 1 << 22  # values that one thread takes at a time
_MOST_CORES = 8

Channels: TypeAlias = tuple[tuple[int, ...], ...]
"""The massive channels of each layer and head of an array, layer after layer: as these lie on disk."""


class Rounding(NamedTuple):
    """What a shard's record says of rows that were rounded: the most that one is off, and which channels are not."""

    error: float
    massive: Channels

    def to_json(self) -> dict[str, Any]:
        return {"error": self.error, "massive": [list(channels) for channels in self.massive]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Rounding":
        """Returns what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        massive = tuple(tuple(channels) for channels in data["massive"])
        if not all(type(channel) is int for channels in massive for channel in channels):
            raise TypeError("massive channels are whole numbers")
        return cls(float(data["error"]), massive)

    def fits(self, n_planes: int, width: int) -> bool:
        """Returns whether it can be of so many layers and heads, whose rows are so wide."""
        own = all(
            len(channels) <= most_massive(width)
            and channels == tuple(sorted(set(channels)))
            and all(0 <= channel < width for channel in channels)
            for channels in self.massive
        )
        return own and len(self.massive) == n_planes


class Rounded(NamedTuple):
    """An array's rows of one shard as they are stored.

    Attributes:
        codes: What values are in scales.
        scales: Of each block.
        massive: For each layer and head the values of its massive channels, in the dtype of the run.
        channels: Which these are.
    """

    codes: Integer[np.ndarray, "*lead slot d"]
    scales: Shaped[np.ndarray, "*lead slot block"]
    massive: Sequence[Shaped[np.ndarray, "slot _"]]
    channels: Channels

    @property
    def rounding(self) -> Rounding:
        largest = float(self.scales.max(initial=0))
        return Rounding(largest * HALF, self.channels)


def n_blocks(width: int) -> int:
    """Returns how many scales a row has."""
    return -(-width // BLOCK)


def most_massive(width: int) -> int:
    """Returns how many channels of a row can be kept exactly: one in 64, and at least four."""
    return max(4, width // 64)


def massive_channels(rows: Shaped[np.ndarray, "slot d"]) -> tuple[int, ...]:
    """Returns the massive channels of rows as they are stored (bfloat16 as its bits), in order."""
    largest = _largest_magnitudes(rows)
    there = largest[largest > 0]
    if not len(there):
        return ()
    massive = np.flatnonzero((largest > MASSIVE * np.median(there)) | (largest > LARGEST))
    first = np.argsort(-largest[massive], kind="stable")[: most_massive(len(largest))]
    return tuple(sorted(massive[first].tolist()))


def encode(
    rows: Shaped[np.ndarray, "*lead slot d"],
    codes: Integer[np.ndarray, "*lead slot d"],
    scales: Shaped[np.ndarray, "*lead slot block"],
) -> Rounded:
    """Fills `codes` and `scales` with rows of finite numbers as they would be stored, and returns them as they are now.

    Raises:
        OverflowError: a block holds more than float16 scales can, and its channels are no massive ones.
    """
    width = rows.shape[-1]
    planes = [(rows[at], codes[at], scales[at]) for at in np.ndindex(rows.shape[:-2])]
    with ThreadPoolExecutor(min(processors(), _MOST_CORES), thread_name_prefix="round") as pool:
        channels = tuple(pool.map(massive_channels, (own for own, _, _ in planes)))
        step = max(1, _PIECE // width)
        pieces = [
            (own[start : start + step], *(part[start : start + step] for part in into), list(massive))
            for (own, *into), massive in zip(planes, channels, strict=True)
            for start in range(0, len(own), step)
        ]
        for _ in pool.map(lambda piece: _encode(*piece), pieces):
            pass
    massive = [own[:, list(one)] for (own, _, _), one in zip(planes, channels, strict=True)]
    return Rounded(codes, scales, massive, channels)


def _encode(
    rows: Shaped[np.ndarray, "slot d"],
    codes: Integer[np.ndarray, "slot d"],
    scales: Shaped[np.ndarray, "slot block"],
    massive: list[int],
) -> None:
    width, blocks = rows.shape[-1], scales.shape[-1]
    step = max(1, _AT_ONCE // width)
    memory = np.zeros((min(step, len(rows)), blocks * BLOCK), np.float32)  # zeros behind a last, shorter block
    bits, starts = np.empty(memory.size, np.uint32), np.arange(0, memory.size, BLOCK)
    for part in _parts(len(rows), step):
        wide = memory[: part.stop - part.start]
        _widen(rows[part], wide[:, :width])
        wide[:, massive] = 0
        flat = wide.reshape(-1)
        # Without their sign, the bits of numbers are in the order of their magnitudes, and so are found twice as fast.
        magnitudes = np.bitwise_and(flat.view(np.uint32), np.uint32(0x7FFF_FFFF), out=bits[: flat.size])
        largest = np.maximum.reduceat(magnitudes, starts[: flat.size // BLOCK]).view(np.float32)
        own = _scales(largest)
        scales[part] = own.reshape(-1, blocks)
        steps = own.astype(np.float32)
        steps[steps == 0] = 1
        values = flat.reshape(-1, BLOCK)
        values /= steps[:, None]
        np.rint(flat, out=flat)
        codes[part] = wide[:, :width]


def _scales(largest: Float32[np.ndarray, "block"]) -> Shaped[np.ndarray, "block"]:
    """Returns the smallest float16 of which the largest magnitudes of some blocks are 127 times, or less."""
    if largest.max(initial=0) > LARGEST:
        raise OverflowError(f"a value is beyond {LARGEST}")
    scales = (largest / np.float32(_LARGEST_CODE)).astype(np.float16)
    too_small = scales.astype(np.float32) * np.float32(_LARGEST_CODE) < largest
    scales.view(np.uint16)[too_small] += 1  # the next larger one
    return scales


def massive_chunks(
    massive: Sequence[Shaped[np.ndarray, "slot _"]], n_channels: int, rows: int, n_chunks: int
) -> Iterator[Shaped[np.ndarray, "_"] | None]:
    """Yields the chunks of massive channels, of `rows` slots of one channel each; None for those that there are not.

    Args:
        massive: The values of each layer and head, of whole chunks.
        n_channels: How many channels there is room for.
        rows: How many slots a chunk has.
        n_chunks: How many chunks of slots a shard has.
    """
    for own in massive:
        for start in range(0, n_chunks * rows, rows):
            for channel in range(n_channels):
                is_there = start < own.shape[0] and channel < own.shape[1]
                yield np.ascontiguousarray(own[start : start + rows, channel]).view(np.uint8) if is_there else None


def decode_rows(
    codes: Integer[np.ndarray, "*lead slot d"],
    scales: Shaped[np.ndarray, "*lead slot block"],
    out: Float32[np.ndarray, "*lead slot d"],
) -> None:
    """Fills `out` with what codes stand for, code * scale; massive channels are zeros."""
    width = codes.shape[-1]
    step = max(1, _AT_ONCE // max(1, width))
    for at in np.ndindex(codes.shape[:-2]):
        for part in _parts(codes.shape[-2], step):
            own = out[at][part]
            own[...] = codes[at][part]
            factors = scales[at][part].astype(np.float32)
            if width % BLOCK or not own.flags.c_contiguous:
                own *= np.repeat(factors, BLOCK, axis=-1)[:, :width]
            else:
                blocks = own.reshape(-1, BLOCK)
                blocks *= factors.reshape(-1, 1)


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _largest_magnitudes(rows: Shaped[np.ndarray, "slot d"]) -> Float32[np.ndarray, "d"]:
    """The largest magnitude of each channel: without their sign, the bits of numbers are in the order of these."""
    unsigned = np.uint32 if rows.itemsize == 4 else np.uint16
    magnitude = unsigned((1 << (8 * rows.itemsize - 1)) - 1)
    bits, found = rows.view(unsigned), np.zeros(rows.shape[-1], unsigned)
    for part in _parts(len(bits), max(1, _AT_ONCE // max(1, rows.shape[-1]))):
        np.maximum(found, (bits[part] & magnitude).max(axis=0), out=found)
    largest = np.empty(len(found), np.float32)
    _widen(found.view(rows.dtype), largest)
    return largest


def _widen(rows: Num[np.ndarray, "*axes"], wide: Float32[np.ndarray, "*axes"]) -> None:
    if rows.dtype == np.uint16:  # bfloat16: the first half of a float32
        wide.view(np.uint32)[...] = rows
        wide.view(np.uint32)[...] <<= 16
    else:
        wide[...] = rows
