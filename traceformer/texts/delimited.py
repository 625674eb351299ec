"""Tables as text, `.csv` and `.tsv`: what separates their columns, and their records.

1. A first line `sep=;`, as spreadsheets write it, says it.
2. Else it is the one of `, tab ; | ^ ~` and two control characters that the header has outside of quotes. A header
   without any is the name of the only column.
3. Of several it is the tab in a `.tsv`, or else the one that gives the first records as many columns as the header;
   where that is not one alone, the file is refused, since any choice could make other texts of it.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from traceformer.errors import Unreadable
from traceformer.texts.lines import Lines
from traceformer.texts.packed import OpenBytes, unpacked_name

__all__ = ["Table", "find_table", "read_rows"]

_DELIMITERS = {
    ",": "commas",
    "\t": "tabs",
    ";": "semicolons",
    "|": "vertical bars",
    "^": "circumflexes",
    "~": "tildes",
    "\x01": "control characters (1)",
    "\x1f": "control characters (31)",
}
_STATED = re.compile(r'"?sep=(.)"?\s*')
_LOOKED_AT = 100  # records


class Table(NamedTuple):
    """What separates a table's columns, their names, and where its first record begins: a byte, after so many lines.

    `is_quoted`: whether the header begins with a quote, so that quotes are certain to be CSV's own.
    """

    delimiter: str
    header: tuple[str, ...]
    start: int
    line: int
    is_quoted: bool


def find_table(open_bytes: OpenBytes, path: Path) -> Table:
    """Returns how a table is to be read.

    Raises:
        Unreadable: several characters could separate its columns, or the name of a column occurs twice.
    """
    with open_bytes() as stream:
        stated = _STATED.fullmatch(next(Lines(stream, path), ""))
    if stated:
        table = _table(open_bytes, path, stated[1], skip=1)
    else:
        found = {mark: table for mark in _DELIMITERS if (table := _table_if_any(open_bytes, path, mark))}
        table = _chosen(open_bytes, path, found) if found else _table(open_bytes, path, ",")
    repeated = {column for column in table.header if table.header.count(column) > 1}
    if repeated:
        raise Unreadable(f"{path}: the header names {' and '.join(sorted(repeated))} more than once")
    return table


def _table(open_bytes: OpenBytes, path: Path, mark: str, skip: int = 0) -> Table:
    with open_bytes() as stream:
        lines = Lines(stream, path)
        for _ in range(skip):
            next(lines)
        read: list[str] = []
        header = next(_records(_kept(lines, read), mark, lines), [])
        return Table(mark, tuple(header), lines.position, lines.number, "".join(read).startswith('"'))


def _table_if_any(open_bytes: OpenBytes, path: Path, mark: str) -> Table | None:
    try:
        table = _table(open_bytes, path, mark)
    except Unreadable:  # quotes that make no sense if this separates
        return None
    return table if len(table.header) > 1 else None


def _chosen(open_bytes: OpenBytes, path: Path, found: Mapping[str, Table]) -> Table:
    if "\t" in found and unpacked_name(path).suffix.lower() == ".tsv":
        return found["\t"]
    fits = list(found.values()) if len(found) == 1 else [t for t in found.values() if _fits(open_bytes, path, t)]
    if len(fits) == 1:
        return fits[0]
    raise Unreadable(
        f"{path}: do {' or '.join(_DELIMITERS[mark] for mark in found)} separate its columns?",
        why="the header has them all" + (", and so have the rows" if fits else ", and the rows have neither as often"),
        hint="put quotes around the names that contain them, or write a line such as sep=; on top",
    )


def _fits(open_bytes: OpenBytes, path: Path, table: Table) -> bool:
    with open_bytes() as stream:
        stream.seek(table.start)
        lines = Lines(stream, path, table.start, table.line)
        records = _records(lines, table.delimiter, lines)
        try:
            return all(len(record) == len(table.header) for record in islice(records, _LOOKED_AT))
        except Unreadable:
            return False


def read_rows(table: Table, lines: Lines) -> Iterator[dict[str, str]]:
    """Yields the rows that follow; values stay text.

    Raises:
        Unreadable: a row that is no record of the table; names the line.
    """
    read: list[str] = []
    for record in _records(_kept(lines, read), table.delimiter, lines):
        if table.delimiter == "\t" and len(read) > 1 and len(table.header) > 1 and not table.is_quoted:
            _refuse_swallowed(read, table.header, lines)
        read.clear()
        if len(record) != len(table.header):
            separators = _DELIMITERS.get(table.delimiter, repr(table.delimiter))
            raise Unreadable(
                f"{lines.path}, line {lines.number}: not CSV",
                why=f"the header has {len(table.header)} columns, this row has {len(record)}",
                hint=f"put quotes around texts that contain {separators}",
            )
        yield dict(zip(table.header, record, strict=True))


def _records(source: Iterator[str], mark: str, lines: Lines) -> Iterator[list[str]]:
    """Yields the records in a source of lines, without empty ones; `lines` says where it is."""
    # A text longer than the module's default of 128 KiB is no mistake.
    csv.field_size_limit(2**31 - 1)
    try:
        yield from filter(None, csv.reader(source, delimiter=mark, strict=True))
    except csv.Error as error:
        raise Unreadable(f"{lines.path}, line {lines.number}: not CSV", why=str(error)) from None


def _kept(lines: Lines, read: list[str]) -> Iterator[str]:
    for line in lines:
        read.append(line)
        yield line


def _refuse_swallowed(read: Sequence[str], header: Sequence[str], lines: Lines) -> None:
    """Refuses a quote that spans several lines each of which is a whole row: many tables with tabs know no quotes."""
    if all(line.count("\t") == len(header) - 1 for line in read):
        first = lines.number - len(read) + 1
        raise Unreadable(
            f"{lines.path}, lines {first} to {lines.number}: one text in quotes, or several rows?",
            why=f"a quote opens in the first and closes in the last, and each has {len(header)} columns by itself",
            hint="if quotes are CSV's own here, put them around the header's names, too; else double them, in quotes",
        )
