"""What every data set becomes: a sequence of examples, each made from its row when it is asked for.

1. A reader (`files`, `hub`) offers one split as `Rows`.
2. A function makes an example of a row: the text, an id, and what the data set adds.
3. `select` walks the rows once, up to the limit: it checks every text and id, skips blank texts, and hashes
   what it takes. It keeps 16 bytes per example; texts stay where they are until someone asks for them again.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, overload, runtime_checkable

import numpy as np

from traceformer.errors import NotFound, Unreadable, UsageError

__all__ = [
    "Example",
    "Ids",
    "IdsColumn",
    "ListRows",
    "MakeExample",
    "Pair",
    "Reading",
    "Row",
    "Rows",
    "TextColumn",
    "TextList",
    "TextSource",
    "Words",
    "example_maker",
    "make_id",
    "select",
]

Row: TypeAlias = Mapping[str, Any]


class IdsColumn(NamedTuple):
    """The column of token ids: lists of whole numbers, or strings of them."""

    name: str


TextColumn: TypeAlias = str | tuple[str, str] | IdsColumn
"""The column of texts, or of lists of words; or the two columns of pairs of texts, `a,b` for short; or of token ids."""

TextList: TypeAlias = Sequence[str] | Sequence[tuple[str, str]] | Sequence[Sequence[str]] | Sequence[Sequence[int]]
"""Texts, pairs of texts (tuples), texts in words (lists), or texts in token ids (lists)."""

# In the order in which they are looked for in a user's data.
_ID_COLUMNS = ("example_id", "id")


class Pair(NamedTuple):
    """Two texts that a model reads as one input, as its tokenizer puts them together."""

    first: str
    second: str

    @property
    def text(self) -> str:
        """Both, with a line break between them."""
        return "\n".join(self)


class Words(NamedTuple):
    """A text that came in words, each of which becomes tokens by itself."""

    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The words with a space between any two."""
        return " ".join(self.words)


class Ids(NamedTuple):
    """A text that came as token ids, which a model reads as they are, without a tokenizer."""

    ids: tuple[int, ...]

    @property
    def text(self) -> str:
        """The numbers: what they say only a tokenizer knows."""
        return " ".join(map(str, self.ids))


Reading: TypeAlias = str | Pair | Words | Ids
"""What a tokenizer is given, or what it would have made."""


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a run.

    `index` is the row number in the split; blank texts are left out, so indices may have gaps.
    `extra` is what the data set adds: labels, answerKey, upos, head ... Its keys are the same for all examples of
    a source, with None where a row says nothing. `parts` are what `text` was put together from: a pair, words, or
    token ids.
    """

    example_id: str
    index: int
    text: str
    extra: Mapping[str, Any]
    parts: Pair | Words | Ids | None = None

    @property
    def reading(self) -> Reading:
        return self.text if self.parts is None else self.parts


@dataclass(frozen=True, slots=True)
class TextSource:
    """The examples that were selected, in the data set's order.

    `name` is short and fit for a file name, `dataset` is what was asked for. `digest` is a SHA-256 over ids, row
    numbers, texts and extras: it differs whenever anything selected differs. `skipped` counts the blank texts that were
    passed over.
    """

    name: str
    split: str
    examples: Sequence[Example]
    digest: str
    skipped: int = 0
    dataset: str = ""


@runtime_checkable
class Rows(Protocol):
    """One split of a data set, row by row.

    `columns` are those of the first row, `label` names the split in messages. A row can be had by its number
    once an iteration has passed it.
    """

    @property
    def label(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __iter__(self) -> Iterator[Row]: ...

    def __getitem__(self, number: int) -> Row: ...

    def where(self, number: int) -> str:
        """Returns where a user finds the row: `texts.jsonl, line 7`."""
        ...


class ListRows:
    """A list of texts, of pairs or of lists of words or token ids as rows."""

    label = "the list of texts"
    columns = ("text",)

    def __init__(self, texts: TextList) -> None:
        self._texts = tuple(texts)

    def __iter__(self) -> Iterator[Row]:
        return ({"text": text} for text in self._texts)

    def __getitem__(self, number: int) -> Row:
        return {"text": self._texts[number]}

    def where(self, number: int) -> str:
        return f"text {number} of the list"


MakeExample: TypeAlias = Callable[[Row, int], Example]


class _LazyExamples(Sequence[Example]):
    """The examples of some rows, made anew each time they are asked for; all have the same keys in `extra`."""

    __slots__ = ("_extra_columns", "_make", "_numbers", "_rows")

    def __init__(self, rows: Rows, numbers: "array[int]", make: MakeExample, extra_columns: Collection[str]) -> None:
        self._rows = rows
        self._numbers = numbers
        self._make = make
        self._extra_columns = extra_columns

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return _LazyExamples(self._rows, self._numbers[index], self._make, self._extra_columns)
        number = self._numbers[index]
        example = self._make(self._rows[number], number)
        if len(example.extra) == len(self._extra_columns):
            return example
        return replace(example, extra={column: example.extra.get(column) for column in self._extra_columns})


def make_id(name: str, split: str, index: int, text: str) -> str:
    """Returns the 16 hex digits that name an example without an id of its own, the same in every run."""
    # A lone surrogate cannot be encoded; `select` refuses the text with its place, so it must not fail here.
    return hashlib.sha1(f"{name}::{split}::{index}::{text}".encode(errors="surrogatepass")).hexdigest()[:16]


def example_maker(rows: Rows, name: str, split: str, *, text_column: TextColumn | None, own_ids: bool) -> MakeExample:
    """Returns the function that makes examples of rows whose text is in one column, or that are pairs of two.

    Without `text_column` the text is in `text`, or in the only column there is; it may be a list of words. With
    `own_ids` a column `example_id` or `id` names the examples. All other columns become `extra`. Token ids are read
    of an `IdsColumn` only.

    Raises:
        NotFound: no such column.
        UsageError: several columns, and none is called `text`; or more than two are named.
    """
    text_names = _text_columns(rows, text_column)
    read = _ids if isinstance(text_column, IdsColumn) else _reading
    for text_name in text_names:
        if text_name not in rows.columns:
            raise NotFound(
                f"{rows.label} has no column {text_name!r}", hint=f"it has: {', '.join(rows.columns) or 'no columns'}"
            )
    id_name = next((column for column in _ID_COLUMNS if column in rows.columns and column not in text_names), None)
    if not own_ids:
        id_name = None

    def make(row: Row, index: int) -> Example:
        readings = [read(row.get(text_name), text_name, rows, index) for text_name in text_names]
        reading = readings[0] if len(readings) == 1 else _paired(readings, text_names, rows, index)
        text, parts = (reading, None) if isinstance(reading, str) else (reading.text, reading)
        extra = {column: value for column, value in row.items() if column not in (*text_names, id_name)}
        if id_name is None:
            return Example(make_id(name, split, index, text), index, text, extra, parts)
        own_id = row.get(id_name)
        if own_id is None or own_id == "":
            raise Unreadable(f"{rows.where(index)}: no value in the id column {id_name!r}", hint=_NO_IDS_HINT)
        return Example(str(own_id), index, text, extra, parts)

    return make


def _text_columns(rows: Rows, text_column: TextColumn | None) -> tuple[str, ...]:
    if text_column is None:
        return (_only_text_column(rows),)
    if isinstance(text_column, IdsColumn):
        return (text_column.name,)
    if isinstance(text_column, tuple):
        return text_column
    names = tuple(name.strip() for name in text_column.split(","))
    if len(names) == 1 or text_column in rows.columns:
        return (text_column,)
    if len(names) > 2:
        raise UsageError(f"`text_column` names {len(names)} columns", hint="one, or two for pairs of texts: A,B")
    return names


def _reading(value: Any, column: str, rows: Rows, index: int) -> Reading:
    """Returns what a cell says: a text, a pair (a tuple, as only a list in Python has) or words."""
    if isinstance(value, str):
        return value
    if not isinstance(value, tuple | list):
        found = _kind(value)
    else:
        parts: list[Any] = [*value]  # pyright: ignore[reportUnknownArgumentType]
        strays = [part for part in parts if not isinstance(part, str)]
        if not strays and isinstance(value, list):
            return Words(tuple(parts))
        if not strays and len(parts) == 2:
            return Pair(*parts)
        found = f"a list with {_kind(strays[0])}" if strays else f"a tuple of {len(parts)} texts (a pair has two)"
    numbers = isinstance(value, list) and all(isinstance(part, int) for part in value)
    hint = f"`ids_column={column}`, if these are token ids" if numbers else ""
    raise Unreadable(f"{rows.where(index)}: {found} where the text {column!r} should be", hint=hint)


def _ids(value: Any, column: str, rows: Rows, index: int) -> Ids:
    """Returns the token ids in a cell: a list of them, or a string with spaces or commas between them."""
    if isinstance(value, str) and re.fullmatch(r"\s*\[?[\d\s,]*\]?\s*", value):
        return Ids(tuple(int(number) for number in re.findall(r"\d+", value)))
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers: list[Any] = [*value]  # pyright: ignore[reportUnknownArgumentType]
        strays = [each for each in numbers if not isinstance(each, int) or isinstance(each, bool) or each < 0]
        if not strays:
            return Ids(tuple(numbers))
        found = f"{strays[0]!r}"
    else:
        found = repr(value)[:40] if isinstance(value, str) else _kind(value)
    raise Unreadable(
        f"{rows.where(index)}: {found} where the token ids {column!r} should be", why="they are whole numbers from 0"
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _paired(readings: Sequence[Reading], columns: Sequence[str], rows: Rows, index: int) -> Pair:
    for reading, column in zip(readings, columns, strict=True):
        if not isinstance(reading, str):
            raise Unreadable(
                f"{rows.where(index)}: a list of words where the text {column!r} of a pair should be",
                hint="pairs are of two texts; one column of words is read word by word",
            )
    return Pair(*map(str, readings))


_NO_IDS_HINT = "fill it, or rename the column: ids are made where none are given"


def _only_text_column(rows: Rows) -> str:
    if "text" in rows.columns or not rows.columns:
        return "text"
    if len(rows.columns) == 1:
        return rows.columns[0]
    raise UsageError(
        f"which column of {rows.label} holds the text?",
        hint=f"give `text_column`, one of: {', '.join(rows.columns)}",
    )


_KINDS: Mapping[type, str] = {str: "a text", Pair: "a pair of texts", Words: "a list of words", Ids: "token ids"}


def select(rows: Rows, make: MakeExample, *, name: str, split: str, limit: int | None) -> TextSource:
    """Returns the first `limit` examples (all, for None) whose text is not blank.

    Raises:
        Unreadable: a row that is no example, an id that occurs twice, or no text at all.
    """
    numbers = array("Q")
    id_hashes = array("Q")
    digest = hashlib.sha256()
    extra_columns: dict[str, None] = {}  # a set that keeps the order
    skipped, kind = 0, str
    for number, row in enumerate(rows):
        example = make(row, number)
        if not example.text.strip():
            skipped += 1
            continue
        if numbers and type(example.reading) is not kind:
            raise Unreadable(
                f"{rows.where(number)}: {_KINDS[type(example.reading)]}, where {_KINDS[kind]} came before",
                hint="texts, pairs and lists of words go into runs of their own",
            )
        kind = type(example.reading)
        digest.update(_canonical(example, rows))
        id_hashes.append(_hash64(example.example_id))
        numbers.append(number)
        extra_columns.update(dict.fromkeys(example.extra))
        if len(numbers) == limit:
            break
    if not numbers:
        raise Unreadable(f"{rows.label} holds no text", why=f"all {skipped} of its rows are blank" if skipped else "")
    _refuse_duplicate_ids(rows, make, numbers, id_hashes)
    return TextSource(name, split, _LazyExamples(rows, numbers, make, extra_columns), digest.hexdigest(), skipped)


def _canonical(example: Example, rows: Rows) -> bytes:
    fields: list[Any] = [example.example_id, example.index, example.text, example.extra]
    if example.parts is not None:
        fields.append([_KINDS[type(example.parts)], example.parts])
    try:
        return json.dumps(fields, ensure_ascii=False, sort_keys=True, default=repr).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise Unreadable(
            f"{rows.where(example.index)}: half a surrogate pair, which is no character", why=str(error)
        ) from None


def _hash64(text: str) -> int:
    encoded = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def _refuse_duplicate_ids(rows: Rows, make: MakeExample, numbers: "array[int]", id_hashes: "array[int]") -> None:
    """Compares 8-byte hashes, since ids of millions of rows would fill the memory; then the few suspects."""
    hashes = np.frombuffer(id_hashes, dtype=np.uint64)
    ordered = np.sort(hashes)
    for repeated in np.unique(ordered[1:][ordered[1:] == ordered[:-1]]):
        first_rows: dict[str, int] = {}
        for position in np.flatnonzero(hashes == repeated):
            number = numbers[int(position)]
            example_id = make(rows[number], number).example_id
            first = first_rows.setdefault(example_id, number)
            if first != number:
                raise Unreadable(
                    f"the example id {example_id!r} occurs twice: {rows.where(first)} and {rows.where(number)}",
                    hint="make the ids unique, or rename the column: ids are made where none are given",
                )
