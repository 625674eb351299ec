"""One part of a stream, mostly a file: its records from any number on, each with where it stands.

A file is read forward and once, with nothing kept but the record at hand; Parquet by row groups. What makes its rows of
a file's lines is `files`' own, so that a text is the same whether its file is streamed or not.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from traceformer.errors import Unreadable
from traceformer.texts import conllu
from traceformer.texts.delimited import find_table, read_rows
from traceformer.texts.examples import Row
from traceformer.texts.files import open_parquet, rows_of
from traceformer.texts.hub import DatasetRows, without_media
from traceformer.texts.lines import Lines, read_jsonl, read_txt
from traceformer.texts.streams.forward import damage, forward

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = [
    "KINDS",
    "DataSet",
    "Found",
    "HubStream",
    "LinesFile",
    "Listed",
    "ParquetFile",
    "Part",
    "cannot_be_read",
    "file_part",
]

_ROWS = 1024
_LOOKED_AT = 4096  # bytes, for the first character of a .json file


class Found(NamedTuple):
    """A record, and where it stands in its part: `line 7`."""

    row: Row
    place: str


@runtime_checkable
class Part(Protocol):
    """A file of a stream, or all of what is none.

    Attributes:
        name: What the file is called, and nothing for what is none.
        label: What messages call it.
        size: Bytes of the file; None for what is none.
        has_every_field: As of `Rows`.
        restarts: Whether it can be read again.
    """

    name: str

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def has_every_field(self) -> bool: ...

    @property
    def restarts(self) -> bool: ...

    def read(self, start: int) -> Iterator[Found]:
        """Yields the records from number `start` on.

        Raises:
            Unreadable: it is damaged; says where.
        """
        ...


def cannot_be_read(where: str, error: BaseException, what: str = "the rest") -> Unreadable:
    """Returns the error for a file that is damaged behind a place in it."""
    return Unreadable(
        f"{where}: {what} cannot be read", why=str(error) or type(error).__name__, hint="the file is damaged there"
    )


class LinesFile:
    """A file of lines, packed or not."""

    has_every_field = False
    restarts = True

    def __init__(self, path: Path, kind: str) -> None:
        self.name, self.label, self.size = path.name, str(path), path.stat().st_size
        self._path, self._kind = path, kind

    def read(self, start: int) -> Iterator[Found]:
        lines = None
        try:
            with forward(self._path) as stream:
                lines, rows, skipped = self._begin(stream, start)
                for row in islice(rows, start - skipped, None):
                    yield Found(row, f"line {lines.number}")
        except damage() as error:
            if lines is None and isinstance(error, FileNotFoundError | PermissionError):
                raise
            if lines is None or lines.number == 0:
                raise cannot_be_read(str(self._path), error, "it") from error
            raise cannot_be_read(f"{self._path}, after line {lines.number}", error) from error

    def _begin(self, stream: Any, start: int) -> tuple[Lines, Iterator[Row], int]:
        """Returns the lines, the rows that come of them, and how many records have been passed over already."""
        if self._kind in (".csv", ".tsv"):
            table = find_table(lambda: forward(self._path), self._path)
            stream.seek(table.start)
            lines = Lines(stream, self._path, table.start, table.line)
            return lines, read_rows(table, lines), 0
        lines = Lines(stream, self._path)
        if self._kind == ".conllu":
            return lines, conllu.read_sentences(lines), 0
        is_text = self._kind == ".txt"
        passed = 0
        while passed < start and (line := next(lines, None)) is not None:  # a record is a line: none has to be parsed
            passed += is_text or bool(line.strip())
        return lines, (read_txt if is_text else read_jsonl)(lines), passed


class ParquetFile:
    """A Parquet file, one row group at a time; those before the first record are not read."""

    has_every_field = True
    restarts = True

    def __init__(self, path: Path) -> None:
        self.name, self.label, self.size = path.name, str(path), path.stat().st_size
        self._path = path

    def read(self, start: int) -> Iterator[Found]:
        number = 0
        try:
            with open_parquet(self._path) as file:
                for group in range(file.num_row_groups):
                    if number + file.metadata.row_group(group).num_rows <= start:
                        number += file.metadata.row_group(group).num_rows
                        continue
                    for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group]):
                        skipped = min(max(0, start - number), batch.num_rows)
                        number += skipped
                        for row in rows_of(batch.slice(skipped)):
                            number += 1
                            yield Found(row, f"row {number - 1}")
        except Unreadable as error:
            raise Unreadable(f"{self._path}, from row {number} on: it cannot be read", why=error.why) from error


class DataSet:
    """A data set that `save_to_disk` wrote: memory-mapped, so that any record is at hand."""

    name = ""
    size = None
    has_every_field = True
    restarts = True

    def __init__(self, rows: DatasetRows) -> None:
        self.label = rows.label
        self._rows = rows

    def read(self, start: int) -> Iterator[Found]:
        for number, row in enumerate(self._rows.rows_from(start), start):
            yield Found(row, f"row {number}")


class HubStream:
    """A data set that the `datasets` library streams. Its records are counted here: it is never asked where it is."""

    name = ""
    size = None
    has_every_field = True
    restarts = True

    def __init__(self, dataset: "IterableDataset", label: str) -> None:
        self.label = label
        self._dataset = without_media(dataset)

    def class_names(self, column: str) -> list[str] | None:
        """Returns the names behind a column of class numbers, or of lists of them; None if it holds none."""
        feature: Any = (self._dataset.features or {}).get(column)
        return getattr(getattr(feature, "feature", feature), "names", None)

    def read(self, start: int) -> Iterator[Found]:
        from datasets.exceptions import DatasetsError

        number = start
        try:
            for row in islice(self._dataset, start, None):
                yield Found(row, f"row {number}")
                number += 1
        except (*damage(), ValueError, RuntimeError, DatasetsError) as error:
            if isinstance(error, Unreadable):
                raise
            raise cannot_be_read(f"{self.label}, from row {number} on", error) from error


class Listed:
    """What an iterable in Python gives: texts as a list of them may hold, or rows by column."""

    name = ""
    label = "the stream of texts"
    size = None

    def __init__(self, texts: Iterable[Any], column: Callable[[Any], str]) -> None:
        self._column = column
        self._texts = texts
        self.restarts = iter(texts) is not texts
        self.has_every_field = False
        self._rest: Iterator[Any] | None = None if self.restarts else iter(texts)

    def read(self, start: int) -> Iterator[Found]:
        texts = self._texts if self._rest is None else self._rest
        for number, text in enumerate(islice(texts, start, None) if start else texts, start):
            row = text if isinstance(text, Mapping) else {self._column(text): text}
            yield Found(row, f"text {number}")


def file_part(path: Path, kind: str) -> Part:
    """Returns the part that a file of a kind is.

    Raises:
        Unreadable: it is empty, or of a kind that cannot be streamed.
    """
    if path.stat().st_size == 0:
        raise Unreadable(f"{path} is empty")
    return KINDS[kind](path)


def _no_list(path: Path) -> Part:
    """A `.json` that holds JSON lines; one that holds a list would have to be in memory."""
    with forward(path) as stream:
        begins = stream.read(_LOOKED_AT).removeprefix(codecs.BOM_UTF8).lstrip()
    if begins.startswith(b"["):
        raise Unreadable(
            f"{path} is a list, which is held in memory", hint="one object on each line, `.jsonl`, can be streamed"
        )
    return LinesFile(path, ".jsonl")


def _tar(path: Path) -> Part:
    from traceformer.texts.streams.tars import TarFile

    return TarFile(path)


KINDS: Mapping[str, Callable[[Path], Part]] = {
    **{kind: partial(LinesFile, kind=kind) for kind in (".txt", ".jsonl", ".csv", ".tsv", ".conllu")},
    ".json": _no_list,
    ".parquet": ParquetFile,
    ".tar": _tar,
    ".tgz": _tar,
}
