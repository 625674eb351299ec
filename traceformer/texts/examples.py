"""What every data set becomes: a sequence of examples, each made from its row when it is asked for.

1. A reader (`files`, `hub`) offers one split as `Rows`.
2. A function makes an example of a row: the text, an id, and what the data set adds.
3. `select` walks the rows once, up to the limit: it checks every text and id, skips null and blank texts, and hashes
   what it takes. It keeps 16 bytes per example; texts stay where they are until someone asks for them again.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.cells import (
    KINDS,
    Cell,
    Ids,
    IdsColumn,
    Pair,
    Reading,
    TextColumn,
    TextList,
    Words,
    column_paths,
    read_cell,
    read_ids,
    read_pair,
)
from traceformer.texts.chats import Chat, is_chat
from traceformer.texts.lazily import Lazily

__all__ = [
    "Described",
    "Example",
    "ListRows",
    "MakeExample",
    "Row",
    "Rows",
    "TextSource",
    "canonical",
    "example_maker",
    "make_id",
    "select",
]

Row: TypeAlias = Mapping[str, Any]

# In the order in which they are looked for in a user's data.
_ID_COLUMNS = ("example_id", "id")


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a run.

    `index` is the row number in the split; null and blank texts are left out, so indices may have gaps.
    `extra` is what the data set adds: labels, answerKey, upos, head ... Its keys are the same for all examples of
    a source, with None where a row says nothing. `parts` are what `text` was put together from: a pair, words, token
    ids, or a conversation, whose text is its messages as JSON until a model's chat template makes a text of them.
    """

    example_id: str
    index: int
    text: str
    extra: Mapping[str, Any]
    parts: Pair | Words | Ids | Chat | None = None

    @property
    def reading(self) -> Reading:
        """What a tokenizer is given: of a conversation the text."""
        return self.text if self.parts is None or isinstance(self.parts, Chat) else self.parts

    @property
    def kind(self) -> type[Any]:
        """What it is, one of `KINDS`."""
        return str if self.parts is None else type(self.parts)


@dataclass(frozen=True, slots=True)
class TextSource:
    """The examples that were selected, in the data set's order.

    `name` is short and fit for a file name, `dataset` is what was asked for. `digest` is a SHA-256 over ids, row
    numbers, texts and extras: it differs whenever anything selected differs. `skipped` counts the null and blank texts
    that were passed over. `kind` is what all examples are, one of `KINDS`.
    """

    name: str
    split: str
    examples: Sequence[Example]
    digest: str
    skipped: int = 0
    dataset: str = ""
    kind: type[Any] = str


@runtime_checkable
class Described(Protocol):
    """What is known of rows before they are read.

    `columns` are those of the first row, `label` names the rows in messages. `has_every_field`: whether objects have
    every field that any of them has, so that a null may stand for one that is not there.
    """

    @property
    def has_every_field(self) -> bool: ...

    @property
    def label(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def where(self, number: int) -> str:
        """Returns where a user finds the row: `texts.jsonl, line 7`."""
        ...


@runtime_checkable
class Rows(Described, Protocol):
    """One split of a data set, row by row. A row can be had by its number once an iteration has passed it."""

    def __iter__(self) -> Iterator[Row]: ...

    def __getitem__(self, number: int) -> Row: ...


class ListRows:
    """A list of texts, of pairs, of conversations, or of lists of words or token ids as rows."""

    label = "the list of texts"
    has_every_field = False

    def __init__(self, texts: TextList) -> None:
        self._texts = tuple(texts)
        self.columns = ("messages" if is_chat(texts[0]) else "text",)

    def __iter__(self) -> Iterator[Row]:
        return ({self.columns[0]: text} for text in self._texts)

    def __getitem__(self, number: int) -> Row:
        return {self.columns[0]: self._texts[number]}

    def where(self, number: int) -> str:
        return f"text {number} of the list"


MakeExample: TypeAlias = Callable[[Row, int], Example]


def make_id(name: str, split: str, index: int, text: str) -> str:
    """Returns the 16 hex digits that name an example without an id of its own, the same in every run."""
    # A lone surrogate cannot be encoded; `select` refuses the text with its place, so it must not fail here.
    return hashlib.sha1(f"{name}::{split}::{index}::{text}".encode(errors="surrogatepass")).hexdigest()[:16]


def example_maker(
    rows: Described, name: str, split: str, *, text_column: TextColumn | None, own_ids: bool
) -> MakeExample:
    """Returns the function that makes examples of rows whose cell is in one column, or that are pairs of two.

    Without `text_column` the cell is in `text`, or in the only column there is, or in `messages`, beside which `tools`
    may tell what can be called. `text_column` may lead into objects: `answer.text`. With `own_ids` a column
    `example_id` or `id` names the examples. All other columns become `extra`, and so do `messages` and columns of which
    only a part is read. Token ids are read of an `IdsColumn` only.

    Raises:
        NotFound: no such column.
        UsageError: several columns, and none is called `text` or `messages`; or more than two are named.
    """
    paths = column_paths(rows.columns, _only_text_column(rows) if text_column is None else text_column)
    names, are_ids = [".".join(path) for path in paths], isinstance(text_column, IdsColumn)
    for path in paths:
        if path[0] not in rows.columns:
            raise NotFound(
                f"{rows.label} has no column {path[0]!r}", hint=f"it has: {', '.join(rows.columns) or 'no columns'}"
            )
    firsts, whole = {path[0] for path in paths}, {path[0] for path in paths if len(path) == 1}
    id_name = next((column for column in _ID_COLUMNS if column in rows.columns and column not in firsts), None)
    if not own_ids:
        id_name = None

    def read(row: Row, index: int) -> Cell:
        where = rows.where(index)
        values = [
            _value_at(row, path, f"the {'token ids' if are_ids else 'text'} {'.'.join(path)!r}", where)
            for path in paths
        ]
        if len(values) > 1:
            return read_pair(values, names, where)
        if are_ids:
            return read_ids(values[0], names[0], where)
        return read_cell(values[0], names[0], where, tools=row.get("tools"), nulls_are_absent=rows.has_every_field)

    def make(row: Row, index: int) -> Example:
        cell = read(row, index)
        text, parts = (cell, None) if isinstance(cell, str) else (cell.text, cell)
        left_out = {id_name} if isinstance(cell, Chat) else {id_name, *whole}
        extra = {column: value for column, value in row.items() if column not in left_out}
        if id_name is None or not text.strip():
            return Example(make_id(name, split, index, text), index, text, extra, parts)
        own_id = row.get(id_name)
        if own_id is None or own_id == "":
            raise Unreadable(f"{rows.where(index)}: no value in the id column {id_name!r}", hint=_NO_IDS_HINT)
        return Example(str(own_id), index, text, extra, parts)

    return make


def _value_at(row: Row, path: Sequence[str], what: str, where: str) -> Any:
    """Returns what a column, or a part of one, holds; None where it is null."""
    value: Any = row
    for depth, name in enumerate(path):
        if value is None and depth:
            return None
        if not isinstance(value, Mapping):
            raise Unreadable(
                f"{where}: nothing where {what} should be",
                why=f"{'.'.join(path[:depth])} is of type {type(value).__name__}, which has no part {name!r}",
            )
        if name not in value:
            raise Unreadable(
                f"{where}: nothing where {what} should be",
                hint=f"{'.'.join(path[:depth])} has: {', '.join(map(str, value))}" if depth else "",
            )
        value = value[name]
    return value


_NO_IDS_HINT = "fill it, or rename the column: ids are made where none are given"


def _only_text_column(rows: Described) -> str:
    if "text" in rows.columns or not rows.columns:
        return "text"
    if len(rows.columns) == 1:
        return rows.columns[0]
    if "messages" in rows.columns:
        return "messages"
    raise UsageError(
        f"which column of {rows.label} holds the text?",
        hint=f"give `text_column`, one of: {', '.join(rows.columns)}",
    )


def select(rows: Rows, make: MakeExample, *, name: str, split: str, limit: int | None) -> TextSource:
    """Returns the first `limit` examples (all, for None) whose text is not blank.

    Raises:
        Unreadable: a row that is no example, an id that occurs twice, examples of several kinds, or no text at all.
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
        if numbers and example.kind is not kind:
            raise Unreadable(
                f"{rows.where(number)}: {KINDS[example.kind]}, where {KINDS[kind]} came before",
                hint="texts, pairs, lists of words and conversations go into runs of their own",
            )
        kind = example.kind
        digest.update(canonical(example, rows))
        id_hashes.append(_hash64(example.example_id))
        numbers.append(number)
        extra_columns.update(dict.fromkeys(example.extra))
        if len(numbers) == limit:
            break
    if not numbers:
        raise Unreadable(f"{rows.label} holds no text", why=f"all {skipped} of its rows are blank" if skipped else "")
    _refuse_duplicate_ids(rows, make, numbers, id_hashes)

    def numbered(number: int) -> Example:
        """The example of a row; all have the same keys in `extra`."""
        example = make(rows[number], number)
        if len(example.extra) == len(extra_columns):
            return example
        return replace(example, extra={column: example.extra.get(column) for column in extra_columns})

    examples = Lazily(numbers, numbered)
    return TextSource(name, split, examples, digest.hexdigest(), skipped, kind=kind)


def canonical(example: Example, rows: Described) -> bytes:
    """Returns the bytes that tell an example from any other.

    Raises:
        Unreadable: its text is no text.
    """
    fields: list[Any] = [example.example_id, example.index, example.text, example.extra]
    if example.parts is not None:
        fields.append([KINDS[example.kind], example.parts])
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
