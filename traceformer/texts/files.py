"""Texts in a user's own files: .txt, .jsonl, .csv, .parquet, .conllu, one or a folder of them.

Text files are walked once, remembering where each row ends; a row is read again from the file when its text is
needed, so millions of rows need no memory. A file that changes in between is refused, never read wrongly.
"""

import csv
import io
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from traceformer.errors import NotFound, Unreadable
from traceformer.plain_json import parse_json
from traceformer.texts import conllu
from traceformer.texts.examples import Row, Rows
from traceformer.texts.lines import Lines

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["KINDS", "VALIDATION_NAMES", "folder_splits", "open_files"]

ReadRows: TypeAlias = Callable[[Lines], Iterator[Row]]

VALIDATION_NAMES = ("validation", "valid", "val", "dev")

_SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.])(train|test|{'|'.join(VALIDATION_NAMES)})(?=[-_.]|$)", re.IGNORECASE)
# What lies beside the data in most downloaded folders.
_NOT_DATA = re.compile(r"readme|licen[sc]e|\..*", re.IGNORECASE)


def folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Returns the data files of a folder by split: `train.jsonl`, `en_ewt-ud-dev.conllu`, `test/a.txt` name theirs.

    Where no file names a split, all files are one, called `all`. Looked at are the folder itself and folders in
    it that are named `data` or like a split; README, LICENSE and hidden files are passed over.

    Raises:
        NotFound: no data files.
        Unreadable: files of several kinds, or some with and some without a split's name.
    """
    inner = [path for path in folder.iterdir() if path.is_dir() and _names_split_or_data(path.name)]
    files = sorted(
        path
        for place in (folder, *inner)
        for path in place.iterdir()
        if path.is_file() and path.suffix.lower() in KINDS and not _NOT_DATA.fullmatch(path.stem)
    )
    kinds = sorted({path.suffix.lower() for path in files})
    if not kinds:
        raise NotFound(f"no texts in the folder {folder}", hint=f"it should hold {_KNOWN}")
    if len(kinds) > 1:
        raise Unreadable(f"the folder {folder} mixes {' and '.join(kinds)} files", hint="name one file, or sort them")
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_named_by(path.relative_to(folder)), []).append(path)
    if len(splits) > 1 and "all" in splits:
        raise Unreadable(
            f"in the folder {folder} some files name a split and others do not, such as {splits['all'][0].name}",
            hint="name them all like train.txt, or none of them",
        )
    return splits


def _names_split_or_data(name: str) -> bool:
    return name.lower() in ("data", "train", "test", *VALIDATION_NAMES)


def _split_named_by(path: Path) -> str:
    for part in (path.stem, *path.parts[:-1]):
        if match := _SPLIT_IN_NAME.search(part):
            return match[1].lower()
    return "all"


def open_files(paths: Sequence[Path], label: str) -> Rows:
    """Returns the rows of the files, one after the other.

    Raises:
        Unreadable: a file of an unknown kind, or an empty one.
    """
    parts = [_open_file(path) for path in paths]
    return parts[0] if len(parts) == 1 else _Concatenated(parts, label)


def _open_file(path: Path) -> Rows:
    open_kind = KINDS.get(path.suffix.lower())
    if open_kind is None:
        raise Unreadable(f"{path} is of no kind that can be read", hint=f"give {_KNOWN}, or a folder of them")
    if path.stat().st_size == 0:
        raise Unreadable(f"{path} is empty")
    return open_kind(path)


def _open_txt(path: Path) -> Rows:
    return _TextRows(path, ("text",), _read_txt)


def _open_conllu(path: Path) -> Rows:
    return _TextRows(path, conllu.COLUMNS, conllu.read_sentences)


def _open_jsonl(path: Path) -> Rows:
    with path.open("rb") as stream:
        first = next(_read_jsonl(Lines(stream, path)), {})
    return _TextRows(path, tuple(first), _read_jsonl)


def _open_csv(path: Path) -> Rows:
    with path.open("rb") as stream:
        lines = Lines(stream, path)
        header = next(_read_records(lines), [])
        repeated = {column for column in header if header.count(column) > 1}
        if repeated:
            raise Unreadable(f"{path}: the header names {' and '.join(sorted(repeated))} more than once")
        body, line = lines.position, lines.number
    return _TextRows(path, tuple(header), partial(_read_csv, header), body, line)


def _read_txt(lines: Lines) -> Iterator[Row]:
    for line in lines:
        yield {"text": line.removesuffix("\n").removesuffix("\r")}


def _read_jsonl(lines: Lines) -> Iterator[Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise Unreadable(f"{lines.path}, line {lines.number}: not JSON", why=str(error)) from None
        if not isinstance(row, dict):
            found = type(row).__name__
            raise Unreadable(f"{lines.path}, line {lines.number}: a JSON {found}, not an object with named values")
        yield row


def _read_records(lines: Lines) -> Iterator[list[str]]:
    # A text longer than the module's default of 128 KiB is no mistake.
    csv.field_size_limit(2**31 - 1)
    try:
        yield from filter(None, csv.reader(lines, strict=True))
    except csv.Error as error:
        raise Unreadable(f"{lines.path}, line {lines.number}: not CSV", why=str(error)) from None


def _read_csv(header: Sequence[str], lines: Lines) -> Iterator[Row]:
    for record in _read_records(lines):
        if len(record) != len(header):
            raise Unreadable(
                f"{lines.path}, line {lines.number}: not CSV",
                why=f"the header has {len(header)} columns, this row has {len(record)}",
                hint="put quotes around texts that contain commas",
            )
        yield dict(zip(header, record, strict=True))


class _TextRows:
    """The rows of a text file, whose first row begins at byte `start`, after `first_line` lines."""

    def __init__(
        self, path: Path, columns: tuple[str, ...], read: ReadRows, start: int = 0, first_line: int = 0
    ) -> None:
        self.label = str(path)
        self.columns = columns
        self._path = path
        self._read = read
        self._first_line = first_line
        self._bounds = array("Q", [start])  # row i lies in [bounds[i], bounds[i + 1])
        self._line_numbers = array("Q")
        self._version = _version(path)

    def __iter__(self) -> Iterator[Row]:
        del self._bounds[1:], self._line_numbers[:]
        with self._path.open("rb") as stream:
            stream.seek(self._bounds[0])
            lines = Lines(stream, self._path, self._bounds[0], self._first_line)
            for row in self._read(lines):
                self._bounds.append(lines.position)
                self._line_numbers.append(lines.number)
                yield row

    def __getitem__(self, number: int) -> Row:
        start, end = self._bounds[number], self._bounds[number + 1]
        _refuse_changed(self._path, self._version)
        with self._path.open("rb") as stream:
            stream.seek(start)
            return next(self._read(Lines(io.BytesIO(stream.read(end - start)), self._path, start)))

    def where(self, number: int) -> str:
        return f"{self._path}, line {self._line_numbers[number]}"


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _refuse_changed(path: Path, version: tuple[int, int]) -> None:
    if _version(path) != version:
        raise Unreadable(f"{path} changed while it was being read", hint="start again")


class _ParquetRows:
    """The rows of a Parquet file, held one row group at a time."""

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._path = path
        self._version = _version(path)
        with _parquet(path) as file:
            self.columns = tuple(file.schema_arrow.names)
            sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            self._starts = [0, *accumulate(sizes)]

    def __iter__(self) -> Iterator[Row]:
        with _parquet(self._path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()

    def __getitem__(self, number: int) -> Row:
        _refuse_changed(self._path, self._version)
        group = bisect_right(self._starts, number) - 1
        return _row_group(self._path, self._version, group).slice(number - self._starts[group], 1).to_pylist()[0]

    def where(self, number: int) -> str:
        return f"{self._path}, row {number}"


@contextmanager
def _parquet(path: Path) -> "Generator[pq.ParquetFile]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    # UnicodeDecodeError: a column of strings that are not UTF-8.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path} is not a readable Parquet file", why=str(error)) from error


@lru_cache(maxsize=2)
def _row_group(path: Path, version: tuple[int, int], group: int) -> "pa.Table":
    """Returns a row group; `version` keeps an older file of the same name apart."""
    with _parquet(path) as file:
        return file.read_row_group(group)


class _Concatenated:
    """The rows of several files, numbered through."""

    def __init__(self, parts: Sequence[Rows], label: str) -> None:
        self.label = label
        self.columns = parts[0].columns
        self._parts = parts
        self._starts: list[int] = []

    def __iter__(self) -> Iterator[Row]:
        self._starts.clear()
        count = 0
        for part in self._parts:
            self._starts.append(count)
            for row in part:
                count += 1
                yield row

    def __getitem__(self, number: int) -> Row:
        part, inside = self._place(number)
        return part[inside]

    def where(self, number: int) -> str:
        part, inside = self._place(number)
        return part.where(inside)

    def _place(self, number: int) -> tuple[Rows, Any]:
        index = bisect_right(self._starts, number) - 1
        return self._parts[index], number - self._starts[index]


KINDS: Mapping[str, Callable[[Path], Rows]] = {
    ".txt": _open_txt,
    ".jsonl": _open_jsonl,
    ".csv": _open_csv,
    ".parquet": _ParquetRows,
    ".conllu": _open_conllu,
}
_KNOWN = ", ".join(KINDS)
