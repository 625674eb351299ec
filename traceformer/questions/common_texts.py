"""The texts that two runs have in common, and which tokens of theirs stand for each other."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from traceformer.analysis.alignment import Pieces, pieces_by_characters, pieces_from_start
from traceformer.analysis.comparison import Align
from traceformer.errors import NotRecorded, SelectionError, Unsupported, UsageError
from traceformer.shapes import Int64
from traceformer.sites import Stack
from traceformer.store.run import Run

__all__ = ["CommonText", "CommonTexts", "called", "common_texts"]

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class CommonText:
    """A text of both runs: its id, its row in each, and the pieces of it that tokens of both end."""

    example_id: str
    rows: tuple[int, int]
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.pieces.first)

    def ends(self, side: int) -> Int64[np.ndarray, "piece"]:
        """Returns the token that ends each piece: of the first run for 0, of the second for 1."""
        return self.pieces.first if side == 0 else self.pieces.second


@dataclass(frozen=True, slots=True)
class CommonTexts:
    """The texts of both runs.

    Attributes:
        names: What the runs are called.
        stack: Whose tokens they are.
        each: The texts, in the order of the first run.
        align: How tokens were matched.
        same_tokens: Whether what is matched are the same tokens.
    """

    names: tuple[str, str]
    stack: Stack
    each: tuple[CommonText, ...]
    align: Align | None
    same_tokens: bool

    @property
    def tokens(self) -> int:
        return sum(map(len, self.each))


def called(first: Run, second: Run) -> tuple[str, str]:
    """Returns what to call two runs: their names, or A and B where these are the same."""
    return ("A", "B") if first.name == second.name else (first.name, second.name)


def common_texts(
    first: Run, second: Run, stack: Stack, *, align: Align | None = None, limit: int | None = None
) -> CommonTexts:
    """Returns the texts of both runs, found by their ids, with their tokens matched.

    Raises:
        UsageError: there are none, or their tokens are not the same and nothing says how they are matched.
        SelectionError: several texts of a run have the same id.
        NotRecorded: a run does not hold what matches tokens.
        Unsupported: texts of several parts, of which characters are counted one by one.
    """
    names = called(first, second)
    tables = _Tokens(first, names[0], stack), _Tokens(second, names[1], stack)
    rows = _rows(first, second, names)[:limit]
    texts: list[CommonText] = []
    all_same = True
    for pair in rows:
        example_id = first.example_id(pair[0])
        ids = [table.ids(row) for table, row in zip(tables, pair, strict=True)]
        same = np.array_equal(ids[0], ids[1])
        if same:
            _check_names(example_id, tables, pair)
        if align == "characters" and not same:
            all_same = False
            pieces = pieces_by_characters(*_offsets(example_id, tables, pair))
        elif align == "start":
            _check_names(example_id, tables, pair, most=len(pieces_from_start(*ids).first))
            pieces = pieces_from_start(*ids)
        elif same:
            pieces = pieces_from_start(*ids)
        else:
            raise _other_tokens(example_id, tables, pair)
        texts.append(CommonText(example_id, pair, pieces))
    found = CommonTexts(names, stack, tuple(texts), align, all_same)
    if not found.tokens:
        raise UsageError(f"{names[0]} and {names[1]} have no token in common", why=f"of {len(texts)} texts")
    return found


def _rows(first: Run, second: Run, called: tuple[str, str]) -> list[tuple[int, int]]:
    """The rows of each text that both have."""
    if first.ids == second.ids:
        return [(row, row) for row in range(first.n)]
    for run, own in zip((first, second), called, strict=True):
        twice = next((name for name, count in Counter(run.ids).items() if count > 1), None)
        if twice is not None:
            raise SelectionError(f"several texts of {own} have the id {twice!r}", why="texts are matched by it")
    places = {name: row for row, name in enumerate(second.ids)}
    found = [(row, places[name]) for row, name in enumerate(first.ids) if name in places]
    if not found:
        raise UsageError(
            f"{called[0]} and {called[1]} have no text in common",
            why=f"texts are matched by their ids: {_some(first.ids)}, and {_some(second.ids)}",
            hint="record both models over the same texts",
        )
    return found


def _some(names: Iterable[str]) -> str:
    listed = [*names]
    return ", ".join(listed[:_MOST_NAMED]) + " ..." * (len(listed) > _MOST_NAMED) if listed else "none"


class _Tokens:
    """The token table of a run, as far as tokens are matched by it."""

    def __init__(self, run: Run, called: str, stack: Stack) -> None:
        prefix = "dec_" if stack == "dec" and run.arch == "encdec" else ""
        named = {name: f"{prefix}{name}" for name in ("input_ids", "tokens")} | {"text": "text"}
        if not prefix:  # a target is no part of the text in which places are counted
            named["offset_mapping"] = "offset_mapping"
        table = run.columns_of([*named.values(), "sequence_ids"])
        self.called = called
        self.of_parts = "sequence_ids" in table.column_names
        self._columns = {name: table.column(own) for name, own in named.items() if own in table.column_names}
        if "input_ids" not in self._columns:
            raise NotRecorded(f"{called} does not say which tokens it read", why=f"it holds no {named['input_ids']}")

    def ids(self, row: int) -> Int64[np.ndarray, "token"]:
        return np.asarray(self._columns["input_ids"][row].as_py(), np.int64)

    def get(self, name: str, row: int) -> Any:
        """What the table has of a row; None where it has no such column."""
        return self._columns[name][row].as_py() if name in self._columns else None


def _check_names(
    example_id: str, tables: tuple[_Tokens, _Tokens], rows: tuple[int, int], most: int | None = None
) -> None:
    """Makes sure that what has the same ids are the same tokens."""
    names = [table.get("tokens", row) for table, row in zip(tables, rows, strict=True)]
    if None in names or names[0][:most] == names[1][:most]:
        return
    one, other = next(pair for pair in zip(*names, strict=False) if pair[0] != pair[1])
    raise UsageError(
        f"{tables[0].called} and {tables[1].called} have other vocabularies",
        why=f"a token of example {example_id!r} is {one!r} in the one and {other!r} in the other, under one id",
    )


def _offsets(
    example_id: str, tables: tuple[_Tokens, _Tokens], rows: tuple[int, int]
) -> tuple[Int64[np.ndarray, "token 2"], Int64[np.ndarray, "other 2"]]:
    """Where the tokens of a text begin and end, in both runs."""
    texts = [table.get("text", row) for table, row in zip(tables, rows, strict=True)]
    if texts[0] != texts[1]:
        raise _other_text(example_id, tables)
    found: list[Int64[np.ndarray, "token 2"]] = []
    for table, row in zip(tables, rows, strict=True):
        offsets = table.get("offset_mapping", row)
        if offsets is None:
            why = "its tokenizer, or the files it was imported from, do not say"
            raise NotRecorded(f"{table.called} does not say where in the text its tokens are", why=why)
        if table.of_parts:
            why = "characters are counted in each part by itself"
            raise Unsupported(f"texts of several parts, as in {table.called}, by `align='characters'`", why=why)
        found.append(np.asarray(offsets, np.int64).reshape(-1, 2))
    return found[0], found[1]


def _other_tokens(example_id: str, tables: tuple[_Tokens, _Tokens], rows: tuple[int, int]) -> UsageError:
    texts = [table.get("text", row) for table, row in zip(tables, rows, strict=True)]
    if texts[0] != texts[1]:
        return _other_text(example_id, tables)
    ids = [table.ids(row) for table, row in zip(tables, rows, strict=True)]
    counts, shorter = " and ".join(str(len(own)) for own in ids), min(map(len, ids))
    if np.array_equal(ids[0][:shorter], ids[1][:shorter]):
        why, hint = "that of one was cut", "`align='start'` compares what both begin with"
    else:
        why, hint = "another tokenizer", "`align='characters'` matches tokens that end at the same character"
    return UsageError(
        f"the tokens of example {example_id!r} are not the same in {tables[0].called} and {tables[1].called}",
        why=f"they are {counts}: {why}",
        hint=hint,
    )


def _other_text(example_id: str, tables: tuple[_Tokens, _Tokens]) -> UsageError:
    return UsageError(
        f"example {example_id!r} is another text in {tables[0].called} than in {tables[1].called}",
        hint="record both models over the same texts; `align='start'` compares what both texts begin with",
    )
