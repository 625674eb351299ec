"""What a cell of a data set, or an entry of a list, is: a text, a pair of texts, words, token ids or a conversation.

`read_cell` is the one place that says which; `column_paths` says in which columns cells are looked for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from traceformer.errors import Unreadable, UsageError
from traceformer.texts.chats import Chat, Message, is_chat, read_chat

__all__ = [
    "KINDS",
    "Cell",
    "Ids",
    "IdsColumn",
    "Pair",
    "Reading",
    "TextColumn",
    "TextList",
    "Words",
    "column_paths",
    "holds_ids",
    "read_cell",
    "read_ids",
    "read_pair",
]


class IdsColumn(NamedTuple):
    """The column of token ids: lists of whole numbers, or strings of them."""

    name: str


TextColumn: TypeAlias = str | tuple[str, str] | IdsColumn
"""The column of texts, of lists of words or of conversations, `a.b` for a part of one; or the two columns of pairs of
texts, `a,b` for short; or that of token ids."""

TextList: TypeAlias = (
    Sequence[str]
    | Sequence[tuple[str, str]]
    | Sequence[Sequence[str]]
    | Sequence[Sequence[int]]
    | Sequence[Sequence[Message]]
)
"""Texts, pairs of texts (tuples), texts in words (lists), texts in token ids (lists), or conversations (lists)."""


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

Cell: TypeAlias = Reading | Chat
"""What a data set holds for a model to read; a conversation becomes a text in the model's chat template."""

KINDS: Mapping[type, str] = {
    str: "a text",
    Pair: "a pair of texts",
    Words: "a list of words",
    Ids: "token ids",
    Chat: "a conversation",
}
"""What each kind of cell is called."""

_OF_MESSAGES = 'messages are objects with "role" and "content"'


def column_paths(columns: Sequence[str], text_column: TextColumn) -> tuple[tuple[str, ...], ...]:
    """Returns where the cell lies, or both texts of a pair: a column's name, and those of its parts below it.

    A column whose own name has a comma or a dot goes before what these would mean.

    Raises:
        UsageError: more than two columns.
    """
    if isinstance(text_column, IdsColumn):
        names = (text_column.name,)
    elif isinstance(text_column, tuple):
        names = text_column
    else:
        names = (text_column,) if text_column in columns else tuple(name.strip() for name in text_column.split(","))
    if len(names) > 2:
        raise UsageError(f"`text_column` names {len(names)} columns", hint="one, or two for pairs of texts: A,B")
    return tuple((name,) if name in columns else tuple(name.split(".")) for name in names)


def read_cell(value: Any, column: str, where: str, *, tools: object = None, nulls_are_absent: bool = False) -> Cell:
    """Returns what a value is: a text, a pair (a tuple, as only a list in Python has), words or a conversation.

    A null is a text without a character. Token ids are read by `read_ids` alone: numbers could mean much.

    Args:
        value: As the data set has it.
        column: Its name, for messages.
        where: Names the row in messages.
        tools: What stands beside a conversation.
        nulls_are_absent: As of `read_chat`.

    Raises:
        Unreadable: it is none of these.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if is_chat(value):
        return read_chat(value, tools, where, nulls_are_absent=nulls_are_absent)
    if not isinstance(value, tuple | list):
        hint = "`.tolist()` makes lists of it, which are read as token ids" if hasattr(value, "tolist") else ""
        raise Unreadable(f"{where}: {_type_of(value)} where the text {column!r} should be", hint=hint)
    parts: list[Any] = [*value]  # pyright: ignore[reportUnknownArgumentType]
    strays, hint = [part for part in parts if not isinstance(part, str)], ""
    if strays:
        found = f"a list with {_type_of(strays[0])}"
        if isinstance(strays[0], Mapping):
            hint = _OF_MESSAGES
        elif isinstance(value, list) and all(isinstance(part, int) for part in parts):
            hint = f"`ids_column={column}`, if these are token ids"
    elif isinstance(value, tuple):
        if len(parts) == 2:
            return Pair(*parts)
        found = f"a tuple of {len(parts)} texts (a pair has two)"
    elif parts and column == "messages":  # what was said, but not by whom: no words
        found, hint = "a list of strings", _OF_MESSAGES
    else:
        return Words(tuple(parts))
    raise Unreadable(f"{where}: {found} where the text {column!r} should be", hint=hint)


def read_pair(values: Sequence[Any], columns: Sequence[str], where: str) -> Pair | str:
    """Returns the pair of texts that two values are; a text without a character if one of them is null.

    Raises:
        Unreadable: one of them is no text.
    """
    texts: list[str] = []
    for value, column in zip(values, columns, strict=True):
        cell = read_cell(value, column, where)
        if not isinstance(cell, str):
            raise Unreadable(
                f"{where}: {KINDS[type(cell)]} where the text {column!r} of a pair should be",
                hint="pairs are of two texts; one column of words is read word by word",
            )
        texts.append(cell)
    return "" if any(value is None for value in values) else Pair(*texts)


def read_ids(value: Any, column: str, where: str) -> Ids:
    """Returns the token ids that a value is: a list of them, or a string with spaces or commas between; none of a null.

    Raises:
        Unreadable: it is something else.
    """
    if value is None:
        return Ids(())
    if isinstance(value, str) and re.fullmatch(r"\s*\[?[\d\s,]*\]?\s*", value):
        return Ids(tuple(int(number) for number in re.findall(r"\d+", value)))
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers: list[Any] = [*value]  # pyright: ignore[reportUnknownArgumentType]
        strays = [each for each in numbers if not isinstance(each, int) or isinstance(each, bool) or each < 0]
        if not strays:
            return Ids(tuple(numbers))
        found = f"{strays[0]!r}"
    else:
        found = repr(value)[:40] if isinstance(value, str) else _type_of(value)
    raise Unreadable(f"{where}: {found} where the token ids {column!r} should be", why="they are whole numbers from 0")


def holds_ids(texts: Iterable[Any]) -> bool:
    """Returns whether a list is one of texts in token ids: the first entry with anything in it says so."""
    first: Any = next((text for text in texts if isinstance(text, str | list | tuple) and text), "")
    return not isinstance(first, str) and isinstance(first[0], int)


def _type_of(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
