"""Records of a stream in order, shuffled or not, and the point that it was read to.

1. Records are counted through all parts, from 0; that number is an example's `index`.
2. Shuffled, `buffer` records at a time are a block, and come in the order that the seed and the block's number give
   them: a record never leaves its block, so that the order depends on nothing that was read before. Not shuffled, each
   record is a block.
3. A point is how many records came before, and where the block of the next one begins: the part, and the record of it.
   Whoever reads on from there reads that block anew, and passes over what came.
4. What lies before a point is told by a digest of the names and sizes of the files that were read whole.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from traceformer.errors import ConfigurationChanged, UsageError
from traceformer.texts.examples import Row
from traceformer.texts.streams.parts import Part

__all__ = ["SHUFFLE_BUFFER", "Point", "Reading", "Record", "Shuffle"]

SHUFFLE_BUFFER = 10_000
"""How many records of a stream are held to be put in an order."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How a stream is shuffled: so many records at a time, in an order by the seed."""

    seed: int
    buffer: int = SHUFFLE_BUFFER

    def __post_init__(self) -> None:
        if self.buffer < 2:
            raise UsageError(f"`shuffle_buffer={self.buffer}` shuffles nothing", hint="give 2 or more")

    def order(self, block: int, size: int) -> list[int]:
        """Returns the places of a block's records in the order in which they come: of hashes, so the same for good."""

        def key(place: int) -> bytes:
            return hashlib.blake2b(f"{self.seed} {block} {place}".encode(), digest_size=16).digest()

        return sorted(range(size), key=key)


@dataclass(frozen=True, slots=True)
class Point:
    """How far a stream was read.

    Attributes:
        records: How many came before, those that were passed over included.
        file: The part in which the block of the next one begins; nothing for a stream without files.
        record: The number of its first record there.
        before: A digest of the names and sizes of the files before it.
    """

    records: int
    file: str
    record: int
    before: str

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Returns the point that `to_json` gave.

        Raises:
            KeyError, TypeError: it is none.
        """
        point = cls(data["records"], data["file"], data["record"], data["before"])
        whole = all(type(number) is int and number >= 0 for number in (point.records, point.record))
        if not whole or not all(isinstance(data[name], str) for name in ("file", "before")):
            raise TypeError("a point in a stream")
        return point

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Record(NamedTuple):
    """A record, its number in the stream's own order, the part that it is of, and where it stands in it."""

    row: Row
    number: int
    part: Part
    place: str

    @property
    def where(self) -> str:
        return f"{self.part.label}, {self.place}"


class Reading:
    """Iterates over the records of all parts, one after the other, from a point on.

    Args:
        parts: What the stream is made of, in order.
        shuffle: How they are shuffled, if they are.
        point: Where to begin; the beginning for None.

    Raises:
        ConfigurationChanged: the files before the point are not those that were read, or its own is gone.
    """

    def __init__(self, parts: Sequence[Part], shuffle: Shuffle | None = None, point: Point | None = None) -> None:
        self._parts, self._shuffle = parts, shuffle
        self._size = 1 if shuffle is None else shuffle.buffer
        self._digests: dict[int, str] = {}
        at, record = (0, 0) if point is None else (self._part_of(point), point.record)
        self._records = 0 if point is None else point.records // self._size * self._size
        self._block: deque[Record] = deque()
        self._begins = self._next = (at, record)
        self._source = self._read(at, record, self._records)
        if point is not None:
            self.pass_over(point.records - self._records)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if not self._block:
            self._fill()
        self._records += 1
        return self._block.popleft()

    def pass_over(self, count: int) -> None:
        """Reads on by so many records.

        Raises:
            ConfigurationChanged: there are not so many.
        """
        for _ in range(count):
            if next(self, None) is None:
                raise ConfigurationChanged(
                    "the stream ends before the place where the run stopped",
                    why=f"it has {self._records} records now",
                    hint="give the stream that the run was begun with",
                )

    @property
    def point(self) -> Point:
        """Where the next record is."""
        has_begun = bool(self._block) or self._records % self._size  # the last block may be short
        at, record = self._begins if has_begun else self._next
        return Point(self._records, self._parts[at].name, record, self._before(at))

    def _fill(self) -> None:
        """Reads a block.

        Raises:
            StopIteration: there is none left.
        """
        begins = self._next
        number = self._records // self._size
        block = [next(self._source)]
        self._begins = begins
        while len(block) < self._size and (record := next(self._source, None)) is not None:
            block.append(record)
        places = range(len(block)) if self._shuffle is None else self._shuffle.order(number, len(block))
        self._block.extend(block[place] for place in places)

    def _read(self, at: int, start: int, number: int) -> Iterator[Record]:
        for index in range(at, len(self._parts)):
            part = self._parts[index]
            self._next = (index, start)
            for own, (row, place) in enumerate(part.read(start), start):
                self._next = (index, own + 1)
                yield Record(row, number, part, place)
                number += 1
            start = 0

    def _before(self, at: int) -> str:
        if at not in self._digests:
            files = [f"{part.name} {part.size}" for part in self._parts[:at]]
            self._digests[at] = hashlib.sha256("\n".join(files).encode(errors="surrogatepass")).hexdigest()
        return self._digests[at]

    def _part_of(self, point: Point) -> int:
        named = [index for index, part in enumerate(self._parts) if part.name == point.file]
        if len(named) == 1 and self._before(named[0]) == point.before:
            return named[0]
        why = (
            "the files before it are not those that were read: others, fewer, more, or of other sizes"
            if named
            else f"there is no file {point.file} any more"
        )
        raise ConfigurationChanged(
            f"the stream is not the one that was read to record {point.record} of {point.file or 'it'}",
            why=why,
            hint="bring back the files as they were; files that come behind it by name may be new",
        )
