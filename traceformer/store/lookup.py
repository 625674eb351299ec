"""`examples.index`: where the example of an id is, and how long all of them are, without reading a record of a shard.

A finished run of more than `FEW_SHARDS` shards has one; of fewer, all records are read when it is opened. What it
says of an id is held against the shard's record, and a run that has none, of an earlier version, is read without it.

1. The file is pages of 4096 bytes: 4080 of content, the page's number, and the xxh3_64 of both. Each page that is read
   is checked.
2. Page 0 is JSON: the run's configuration, its number of examples, and of each section its first page and its bytes.
3. `ids` are pairs (xxh3_64 of the id, row), sorted. An id is found by halving pages: 12 of them in a million examples.
4. `lengths.dec` are the tokens of each row; `schema` is that of the token table, as Arrow serialises it.
"""

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.errors import CorruptRun
from traceformer.shapes import Int64
from traceformer.sites import Stack
from traceformer.store.commits import CommitRecord, RunHead, configuration_digest
from traceformer.store.layout import EXAMPLES
from traceformer.store.system import open_to_read, read_at

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FEW_SHARDS", "Lookup", "lookup_bytes", "open_lookup"]

FEW_SHARDS = 64

_FORMAT = "traceformer examples 1"
_PAGE, _CONTENT = 4096, 4080
_PAIR = np.dtype([("hash", "<u8"), ("row", "<u8")])
_PAIRS = _CONTENT // _PAIR.itemsize
_LENGTH = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class Lookup:
    """An `examples.index`, opened; `sections` are their first pages and sizes in bytes."""

    path: Path
    sections: Mapping[str, tuple[int, int]]

    def rows(self, example_id: str) -> list[int]:
        """Returns the rows whose ids may be this one: each is to be held against the record of its shard.

        Raises:
            CorruptRun: the file is not as it was written; so do the other methods.
        """
        first, size = self.sections["ids"]
        wanted, count = np.uint64(_hash(example_id)), size // _PAIR.itemsize
        with _pages(self.path) as page:

            def pairs(number: int) -> np.ndarray:
                inside = min(_PAIRS, count - number * _PAIRS)
                return np.frombuffer(page(first + number), _PAIR, inside)

            low, high = 0, -(-count // _PAIRS)
            last = high
            while low < high:
                middle = (low + high) // 2
                if pairs(middle)["hash"][-1] < wanted:
                    low = middle + 1
                else:
                    high = middle
            found: list[int] = []
            for number in range(low, last):
                here = pairs(number)
                found += here["row"][here["hash"] == wanted].tolist()
                if here["hash"][-1] > wanted:
                    break
        return found

    def lengths(self, stack: Stack) -> Int64[np.ndarray, "row"]:
        """Returns the tokens of each row."""
        return np.frombuffer(self._section(f"lengths.{stack}"), _LENGTH).astype(np.int64)

    def schema(self) -> "pa.Schema":
        """Returns the schema of the token table."""
        import pyarrow as pa

        return pa.ipc.read_schema(pa.py_buffer(self._section("schema")))

    def _section(self, name: str) -> bytes:
        first, size = self.sections[name]
        with _pages(self.path) as page:
            return b"".join(page(first + number) for number in range(-(-size // _CONTENT)))[:size]


def open_lookup(folder: Path, head: RunHead) -> Lookup | None:
    """Returns the `examples.index` of a finished run; None if it has none.

    Raises:
        CorruptRun: it is not as it was written, or another run's.
    """
    path = folder / EXAMPLES
    if not path.exists():
        return None
    with _pages(path) as page:
        stated: dict[str, Any] = json.loads(page(0))
    if stated.get("of") != _of(head) or stated.get("format") != _FORMAT:
        raise CorruptRun(f"{path} is another run's", hint="without that file the run is read more slowly")
    return Lookup(path, {name: (first, size) for name, (first, size) in stated["sections"].items()})


def lookup_bytes(head: RunHead, records: Sequence[CommitRecord], schema: "pa.Schema") -> bytes:
    """Returns the `examples.index` of a run with these records, which are those of all its shards, in order."""
    ids = [name for record in records for name in record.examples]
    pairs = np.empty(len(ids), _PAIR)
    pairs["hash"], pairs["row"] = [_hash(name) for name in ids], np.arange(len(ids))
    contents: dict[str, bytes] = {"ids": np.sort(pairs, order=("hash", "row")).tobytes()}
    for stack in head.layout.stacks:
        lengths = [length for record in records for length in record.lengths[stack]]
        contents[f"lengths.{stack}"] = np.asarray(lengths, _LENGTH).tobytes()
    contents["schema"] = schema.serialize().to_pybytes()
    sections: dict[str, tuple[int, int]] = {}
    pages = 1
    for name, content in contents.items():
        sections[name] = (pages, len(content))
        pages += -(-len(content) // _CONTENT)
    first = json.dumps({"format": _FORMAT, "of": _of(head), "sections": sections}).encode()
    blocks = (part for content in (first, *contents.values()) for part in _parts(content))
    return b"".join(_sealed(number, block) for number, block in enumerate(blocks))


def _of(head: RunHead) -> dict[str, Any]:
    return {"configuration": configuration_digest(head.configuration), "n_examples": head.layout.n_examples}


def _parts(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), _CONTENT):
        yield content[start : start + _CONTENT]


def _sealed(number: int, content: bytes) -> bytes:
    body = content.ljust(_CONTENT) + number.to_bytes(8, "little")
    return body + _xxh3(body).to_bytes(8, "little")


@contextmanager
def _pages(path: Path) -> Generator[Callable[[int], bytes]]:
    """Gives what returns the content of a page, once it is checked."""
    try:
        file = open_to_read(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptRun(f"{path} is missing, or no file", hint="traceformer verify lists the damage") from error

    def page(number: int) -> bytes:
        data = read_at(file, _PAGE, number * _PAGE)
        body, seal = data[:-8], data[-8:]
        if len(data) < _PAGE or body[_CONTENT:] + seal != number.to_bytes(8, "little") + _xxh3(body).to_bytes(
            8, "little"
        ):
            raise CorruptRun(
                f"{path} was changed after it was written",
                why=f"page {number} is not what was written there",
                hint="traceformer verify lists the damage; without that file the run is read more slowly",
            )
        return body[:_CONTENT]

    try:
        yield page
    finally:
        os.close(file)


def _hash(example_id: str) -> int:
    return _xxh3(example_id.encode("utf-8", "surrogatepass"))


def _xxh3(data: bytes) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(data)
