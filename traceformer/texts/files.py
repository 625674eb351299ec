"""Texts in a user's own files: .txt, .jsonl, .json, .csv, .tsv, .parquet, .conllu, one or a folder of them.

Text files are walked once, remembering where each row ends; a row is read again from the file when its text is
needed, so millions of rows need no memory. A file that changes in between is refused, never read wrongly.
"""

import codecs
import io
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from traceformer.errors import NotFound, Unreadable
from traceformer.plain_json import parse_json
from traceformer.texts import conllu
from traceformer.texts.delimited import find_table, read_rows
from traceformer.texts.examples import Row, Rows
from traceformer.texts.lines import Lines, read_jsonl, read_txt
from traceformer.texts.packed import PACKED, OpenBytes, is_packed, opener, unpacked_name

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "KINDS",
    "VALIDATION_NAMES",
    "folder_splits",
    "kind_of",
    "name_of",
    "open_files",
    "open_parquet",
    "rows_of",
]

ReadRows: TypeAlias = Callable[[Lines], Iterator[Row]]

VALIDATION_NAMES = ("validation", "valid", "val", "dev")

_SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.])(train|test|{'|'.join(VALIDATION_NAMES)})(?=[-_.]|$)", re.IGNORECASE)
# What lies beside the data in most downloaded folders.
_NOT_DATA = re.compile(r"readme|licen[sc]e|\..*", re.IGNORECASE)
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
_LOOKED_AT = 4096  # bytes, for the first character of a .json file


def folder_splits(folder: Path, readable: Collection[str] = ()) -> dict[str, list[Path]]:
    """Returns the data files of a folder by split: `train.jsonl`, `en_ewt-ud-dev.conllu`, `test/a.txt` name theirs.

    Where no file names a split, all files are one, called `all`. Looked at are the folder itself and folders in
    it that are named `data` or like a split; README, LICENSE and hidden files are passed over. `readable` are the kinds
    of files that are looked for, those of `KINDS` for none.

    Raises:
        NotFound: no data files.
        Unreadable: files of several kinds, or some with and some without a split's name.
    """
    inner = [path for path in folder.iterdir() if path.is_dir() and _names_split_or_data(path.name)]
    files = sorted(
        path
        for place in (folder, *inner)
        for path in place.iterdir()
        if path.is_file() and kind_of(path) in (readable or KINDS) and not _is_beside_data(path)
    )
    kinds = sorted({kind_of(path) for path in files})
    if not kinds:
        should = f"{', '.join(readable)}, packed or not" if readable else _KNOWN
        raise NotFound(f"no texts in the folder {folder}", hint=f"it should hold {should}")
    if len(kinds) > 1:
        raise Unreadable(f"the folder {folder} mixes {' and '.join(kinds)} files", hint="name one file, or sort them")
    twice = [path for path in files if is_packed(path) and unpacked_name(path) in files]
    if twice:
        raise Unreadable(
            f"the folder {folder} has {unpacked_name(twice[0]).name} and {twice[0].name}", hint="leave one of them"
        )
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_named_by(path.relative_to(folder)), []).append(path)
    if len(splits) > 1 and "all" in splits:
        raise Unreadable(
            f"in the folder {folder} some files name a split and others do not, such as {splits['all'][0].name}",
            hint="name them all like train.txt, or none of them",
        )
    return splits


def _is_beside_data(path: Path) -> bool:
    return path.name.lower() in _DESCRIPTIONS or bool(_NOT_DATA.fullmatch(path.stem))


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


def kind_of(path: Path) -> str:
    """Returns the end of a file's name that tells its kind: `.jsonl` of `a.JSONL` and `a.jsonl.gz`."""
    return unpacked_name(path).suffix.lower()


def name_of(path: Path) -> str:
    """Returns a file's name without what tells its kind and compression, or a folder's name."""
    return path.name if path.is_dir() else unpacked_name(path).stem


def _open_file(path: Path) -> Rows:
    open_kind = KINDS.get(kind_of(path))
    if open_kind is None:
        raise Unreadable(f"{path} is of no kind that can be read", hint=f"give {_KNOWN}, or a folder of them")
    if path.stat().st_size == 0:
        raise Unreadable(f"{path} is empty")
    return open_kind(path, opener(path))


def _open_txt(path: Path, open_bytes: OpenBytes) -> Rows:
    return _TextRows(path, open_bytes, ("text",), read_txt)


def _open_conllu(path: Path, open_bytes: OpenBytes) -> Rows:
    return _TextRows(path, open_bytes, conllu.COLUMNS, conllu.read_sentences)


def _open_jsonl(path: Path, open_bytes: OpenBytes) -> Rows:
    with open_bytes() as stream:
        first = next(read_jsonl(Lines(stream, path)), {})
    return _TextRows(path, open_bytes, tuple(first), read_jsonl)


def _open_json(path: Path, open_bytes: OpenBytes) -> Rows:
    """A list of records or of strings, which is held in memory; or, as many are called so, JSON lines."""
    with open_bytes() as stream:
        if stream.read(_LOOKED_AT).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return _ListedRows(path, _listed(path, open_bytes))
    try:
        return _open_jsonl(path, open_bytes)
    except Unreadable as error:
        what = "neither a list of records or strings, nor JSON lines"
        raise Unreadable(f"{path} is {what}", why=f"{error.message}: {error.why}", hint=_JSON_HINT) from error


def _open_table(path: Path, open_bytes: OpenBytes) -> Rows:
    table = find_table(open_bytes, path)
    return _TextRows(path, open_bytes, table.header, partial(read_rows, table), table.start, table.line)


def _open_parquet(path: Path, open_bytes: OpenBytes) -> Rows:
    if is_packed(path):
        raise Unreadable(f"{path} is compressed", why="Parquet files are, inside", hint="unpack it")
    return _ParquetRows(path)


def _listed(path: Path, open_bytes: OpenBytes) -> list[Row]:
    with open_bytes() as stream:
        content = stream.read()
    try:
        items = parse_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is not UTF-8", why=str(error)) from None
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON", why=str(error)) from None
    kind, called = (dict, "object") if items and isinstance(items[0], dict) else (str, "string")
    for number, item in enumerate(items):
        if not isinstance(item, kind) and not (kind is str and item is None):
            found = type(item).__name__
            raise Unreadable(f"{path}, entry {number}: a JSON {found}, not the {called} it should be", hint=_JSON_HINT)
    return items if kind is dict else [{"text": item} for item in items]


_JSON_HINT = 'a list of strings, a list of objects such as {"text": "..."}, or one such object on each line'


class _ListedRows:
    """The rows of a list in a file, all of them in memory."""

    has_every_field = False

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self.label = str(path)
        self.columns = tuple(rows[0]) if rows else ()
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __getitem__(self, number: int) -> Row:
        return self._rows[number]

    def where(self, number: int) -> str:
        return f"{self.label}, entry {number}"


class _TextRows:
    """The rows of a text file, whose first row begins at byte `start`, after `first_line` lines."""

    has_every_field = False

    def __init__(
        self,
        path: Path,
        open_bytes: OpenBytes,
        columns: tuple[str, ...],
        read: ReadRows,
        start: int = 0,
        first_line: int = 0,
    ) -> None:
        self.label = str(path)
        self.columns = columns
        self._path = path
        self._open = open_bytes
        self._read = read
        self._first_line = first_line
        self._bounds = array("Q", [start])  # row i lies in [bounds[i], bounds[i + 1])
        self._line_numbers = array("Q")
        self._version = _version(path)

    def __iter__(self) -> Iterator[Row]:
        del self._bounds[1:], self._line_numbers[:]
        with self._open() as stream:
            stream.seek(self._bounds[0])
            lines = Lines(stream, self._path, self._bounds[0], self._first_line)
            for row in self._read(lines):
                self._bounds.append(lines.position)
                self._line_numbers.append(lines.number)
                yield row

    def __getitem__(self, number: int) -> Row:
        start, end = self._bounds[number], self._bounds[number + 1]
        _refuse_changed(self._path, self._version)
        with self._open() as stream:
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

    has_every_field = True

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._path = path
        self._version = _version(path)
        with open_parquet(path) as file:
            self.columns = tuple(file.schema_arrow.names)
            repeated = {column for column in self.columns if self.columns.count(column) > 1}
            if repeated:
                raise Unreadable(f"{path} has several columns called {' and '.join(sorted(repeated))}")
            sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            self._starts = [0, *accumulate(sizes)]

    def __iter__(self) -> Iterator[Row]:
        with open_parquet(self._path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from rows_of(batch)

    def __getitem__(self, number: int) -> Row:
        _refuse_changed(self._path, self._version)
        group = bisect_right(self._starts, number) - 1
        return rows_of(_row_group(self._path, self._version, group).slice(number - self._starts[group], 1))[0]

    def where(self, number: int) -> str:
        return f"{self._path}, row {number}"


def rows_of(part: "pa.RecordBatch | pa.Table") -> list[Row]:
    """The rows as Python has them; a time of day in nanoseconds, which Python has not, is text."""
    import pyarrow as pa

    for number, column in enumerate(part.schema):
        if column.type == pa.time64("ns"):
            part = part.set_column(number, column.name, part.column(number).cast(pa.string()))
    return part.to_pylist()


@contextmanager
def open_parquet(path: Path) -> "Generator[pq.ParquetFile]":
    """Opens a Parquet file, and tells what is wrong with it inside the block.

    Raises:
        Unreadable: it cannot be read.
    """
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
    with open_parquet(path) as file:
        return file.read_row_group(group)


class _Concatenated:
    """The rows of several files, numbered through."""

    def __init__(self, parts: Sequence[Rows], label: str) -> None:
        self.label = label
        self.columns = parts[0].columns
        self.has_every_field = parts[0].has_every_field
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


KINDS: Mapping[str, Callable[[Path, OpenBytes], Rows]] = {
    ".txt": _open_txt,
    ".jsonl": _open_jsonl,
    ".json": _open_json,
    ".csv": _open_table,
    ".tsv": _open_table,
    ".parquet": _open_parquet,
    ".conllu": _open_conllu,
}
_KNOWN = f"{', '.join(KINDS)}, as they are or as {', '.join(PACKED)}"
