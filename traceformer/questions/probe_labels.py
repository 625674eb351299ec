"""The labels of a probe: a column of the token table, or what a caller has for each token or text, as numbers.

1. A column has one value a text, or a list. A list with a value for each token is of tokens; one with a value for each
   of the text's words, as CoNLL-U has them, is of words, and a token has the label of the word that it is of.
2. A mapping has texts' ids or numbers for keys, and a label, or a label for each token, for values. An array has a
   label for each text, or for each token of all texts in the order of `activations`. A function is asked of each
   token as it is shown.
3. What is null, NaN or not there has no label, and no row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from traceformer.analysis.probes import Class
from traceformer.errors import NotRecorded, UsageError
from traceformer.questions.vocabulary import shown_tokens
from traceformer.shapes import Int32, Int64
from traceformer.sites import Stack
from traceformer.store.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["HasArray", "Labels", "TokenLabels", "labels_of", "token_kinds"]


class HasArray(Protocol):
    """An array, or what can be made one: a column of `run.tokens`, say."""

    def __array__(self) -> np.ndarray: ...


TokenLabels: TypeAlias = str | Mapping[Any, Any] | Sequence[Any] | HasArray | Callable[[str], Class | None]
"""What labels may be given as."""

MOST_CLASSES = 1000
_NO_LABEL = frozenset(
    (
        *("example_id", "text", "text_pair", "content_hash", "words", "word_offsets"),
        *("offset_mapping", "attention_mask", "dec_offset_mapping", "dec_attention_mask"),
    )
)
"""Columns that every text has another value of, or that have one value."""
_OF_TOKENS = frozenset(("input_ids", "tokens", "word", "sequence_ids", "token_type_ids", "kind"))


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A label as numbers.

    Attributes:
        name: What it is called.
        of: Whether each token has one, or each text.
        classes: What the numbers mean, in rising order.
        codes: Of each token of all texts, or of each text; -1 where there is no label.
    """

    name: str
    of: Literal["token", "text"]
    classes: tuple[Class, ...]
    codes: Int32[np.ndarray, "row"]

    def among(self, texts: range, lengths: Int64[np.ndarray, "text"]) -> "Labels":
        """Returns the labels of some texts alone, with the classes that these have."""
        codes = self.codes.copy()
        last = texts.stop if self.of == "text" else int(lengths[: texts.stop].sum())
        codes[last:] = -1
        present = np.unique(codes[codes >= 0])
        number = np.full(len(self.classes) + 1, -1, np.int32)
        number[present] = np.arange(len(present))
        return replace(self, classes=tuple(self.classes[i] for i in present.tolist()), codes=number[codes])

    def shifted(self, offset: int, lengths: Int64[np.ndarray, "text"]) -> "Labels":
        """Returns for each token the label of that which is `offset` places behind it in its text, if it has one.

        Raises:
            UsageError: they are labels of texts.
        """
        if not offset:
            return self
        if self.of == "text":
            raise UsageError(f"`offset={offset}`", why=f"{self.name} is a label of texts", hint="a label of tokens")
        ends = np.repeat(np.cumsum(lengths), lengths)
        places = np.arange(len(self.codes)) + offset
        inside = (places < ends) & (places >= ends - np.repeat(lengths, lengths))
        codes = np.full_like(self.codes, -1)
        codes[inside] = self.codes[places[inside]]
        return replace(self, codes=codes)

    def check(self) -> None:
        """Makes sure that there is something to learn.

        Raises:
            UsageError: no labels, one class, as many classes as labels, or more classes than a probe has weights for.
        """
        n_rows, n_classes = int((self.codes >= 0).sum()), len(self.classes)
        what = f"{n_rows} {self.of}{'s' * (n_rows != 1)}"
        if not n_rows:
            raise UsageError(f"no {self.of} has a label of {self.name}", hint="labels that are not null")
        if n_classes == 1:
            raise UsageError(
                f"{self.name} has one class",
                why=f"the label of all {what} is {self.classes[0]!r}",
                hint="a label of two classes or more",
            )
        if n_classes == n_rows:
            why = f"{what} have as many classes: there is nothing that two have in common"
            raise UsageError(f"{self.name} tells every {self.of} from every other", why=why, hint="a label of classes")
        if n_classes > MOST_CLASSES:
            why = f"a probe has weights for {MOST_CLASSES} at most"
            raise UsageError(f"{self.name} has {n_classes:,} classes", why=why, hint="a label of fewer classes")


def labels_of(run: Run, labels: TokenLabels, stack: Stack, name: str | None = None) -> Labels:
    """Returns the labels that are meant, as numbers.

    Raises:
        NotRecorded: the token table has no such column; the hint names those that can be labels.
        UsageError: they are no labels of this run's texts or tokens.
        ExampleNotFound: a mapping names a text that the run does not have.
    """
    if isinstance(labels, str):
        return replace(_of_column(run, labels, stack), name=name or labels)
    if callable(labels):
        return _of_function(run, labels, stack, name or getattr(labels, "__name__", "labels"))
    name = name or "labels"
    if isinstance(labels, Mapping):
        return _of_mapping(run, labels, stack, name)
    if isinstance(labels, Sequence) or hasattr(labels, "__array__"):
        return _of_array(run, labels, stack, name)
    hint = "a column's name, a list or an array, a mapping from ids, or a function of a token"
    raise UsageError(f"{type(labels).__name__} is no label", hint=hint)


def token_kinds(run: Run, stack: Stack) -> Int64[np.ndarray, "token"]:
    """Returns the id of each token of all texts."""
    name = "dec_input_ids" if stack == "dec" and run.arch == "encdec" else "input_ids"
    if name not in run.columns:
        raise NotRecorded(f"this run has no {name}", why="a control task has a label for each of them")
    values, counts, _ = _lists(run.columns_of([name]).column(name))
    _check_lengths(counts, run.lengths(stack), name)
    return np.asarray(values.to_numpy(zero_copy_only=False), np.int64)


# A column


def _of_column(run: Run, name: str, stack: Stack) -> Labels:
    from pyarrow import types

    if name not in run.columns:
        could = [column for column in run.columns if column not in _NO_LABEL]
        raise NotRecorded(f"this run has no column {name!r}", hint=f"one of {' '.join(could)}")
    table = run.columns_of([name, "words", "word"])
    column = table.column(name)
    if not (types.is_list(column.type) or types.is_large_list(column.type)):
        return _encoded(column.combine_chunks(), name, "text")
    values, counts, given = _lists(column)
    lengths = run.lengths(stack)
    token_column = name.removeprefix("dec_") in _OF_TOKENS
    if not token_column and {"words", "word"} <= {*table.column_names} and stack == run.layout.stacks[0]:
        words = _counts(table.column("words"))
        if np.array_equal(counts[given], words[given]):
            found = _encoded(values, name, "token")
            return replace(found, codes=_of_words(found.codes, counts, table.column("word"), lengths))
    if not np.array_equal(counts[given], lengths[given]):
        row = int(np.flatnonzero(given & (counts != lengths))[0])
        why = f"example {run.example_id(row)} has {counts[row]} of them, and {lengths[row]} tokens"
        hint = "a column of one value a text, of one a token, or of one a word of texts in words"
        raise UsageError(f"{name} has lists that are neither of tokens nor of words", why=why, hint=hint)
    return _of_lists(_encoded(values, name, "token"), given, lengths)


def _of_lists(found: Labels, given: np.ndarray, lengths: Int64[np.ndarray, "text"]) -> Labels:
    """Labels of the tokens of those texts that have any, among all tokens."""
    codes = np.full(int(lengths.sum()), -1, np.int32)
    codes[np.repeat(given, lengths)] = found.codes
    return replace(found, codes=codes)


def _of_words(
    codes: Int32[np.ndarray, "word"],
    counts: Int64[np.ndarray, "text"],
    word: "pa.ChunkedArray",
    lengths: Int64[np.ndarray, "text"],
) -> Int32[np.ndarray, "token"]:
    """Returns for each token the code of the word that it is of."""
    numbers, _, given = _lists(word)
    found = np.full(int(lengths.sum()), -1, np.int32)
    own = np.repeat(given & (counts > 0), lengths)
    first = np.repeat(np.cumsum(counts) - counts, lengths)[own]
    places = np.asarray(numbers.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    places = places[np.repeat(counts[given] > 0, lengths[given])]
    found[own] = np.where(places >= 0, codes[np.where(places >= 0, first + places, 0)], -1)
    return found


def _lists(column: "pa.ChunkedArray") -> "tuple[pa.Array, Int64[np.ndarray, 'text'], np.ndarray]":
    """Returns the values of all lists one behind the other, how many each has, and which lists there are."""
    lists: Any = column.combine_chunks()
    return lists.flatten(), _counts(column), ~np.asarray(column.is_null().to_numpy(), bool)


def _counts(column: "pa.ChunkedArray") -> Int64[np.ndarray, "text"]:
    lists: Any = column.combine_chunks()
    return np.asarray(lists.value_lengths().fill_null(0).to_numpy(), np.int64)


# What a caller has


def _of_function(run: Run, label: Callable[[str], Class | None], stack: Stack, name: str) -> Labels:
    known: dict[str, Class | None] = {}
    values: list[Class | None] = []
    for row in range(run.n):
        for piece in shown_tokens(run, row, stack):
            if piece.text not in known:
                known[piece.text] = label(piece.text)
            values.append(known[piece.text])
    return _encoded(_array(values, name), name, "token")


def _of_mapping(run: Run, labels: Mapping[Any, Any], stack: Stack, name: str) -> Labels:
    rows = {run.row(key): value for key, value in labels.items()}
    if len(rows) < len(labels):
        raise UsageError("a text has labels twice", why="once by its number, and once by its id")
    listed = [_is_list(value) for value in rows.values()]
    if any(listed) and not all(listed):
        raise UsageError(f"some values of {name} are lists, others are not", hint="one label a text, or one a token")
    if not any(listed):
        return _encoded(_array([rows.get(row) for row in range(run.n)], name), name, "text")
    return _of_token_lists(run, [rows.get(row) for row in range(run.n)], stack, name)


def _of_token_lists(run: Run, lists: Sequence[Any], stack: Stack, name: str) -> Labels:
    lengths = run.lengths(stack)
    given = np.array([own is not None for own in lists], bool)
    for row, own in enumerate(lists):
        if own is not None and len(own) != lengths[row]:
            what = f"{len(own)} labels for example {run.example_id(row)}"
            raise UsageError(what, why=f"it has {lengths[row]} tokens", hint="one for each token")
    values = [value for own in lists if own is not None for value in (own.tolist() if hasattr(own, "tolist") else own)]
    return _of_lists(_encoded(_array(values, name), name, "token"), given, lengths)


def _of_array(run: Run, labels: Any, stack: Stack, name: str) -> Labels:
    values = labels if isinstance(labels, Sequence) else np.asarray(labels)
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise UsageError(f"labels of shape {values.shape}", hint="an axis of texts, or of all tokens")
    n_tokens = int(run.lengths(stack).sum())
    if len(values) == run.n and any(map(_is_list, values)):
        return _of_token_lists(run, list(values), stack, name)
    if len(values) not in (n_tokens, run.n):
        why = f"the run has {run.n:,} texts and {n_tokens:,} tokens"
        raise UsageError(f"{len(values):,} labels", why=why, hint="one for each of either")
    return _encoded(_array(values, name), name, "text" if len(values) == run.n != n_tokens else "token")


def _is_list(value: Any) -> bool:
    return (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )


def _array(values: Any, name: str) -> "pa.Array":
    import pyarrow as pa

    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        why = "they are of several types, or of one that is no label"
        raise UsageError(f"{name} are no labels", why=why, hint="all numbers, all words, or all booleans") from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _encoded(values: "pa.Array", name: str, of: Literal["token", "text"]) -> Labels:
    """Numbers values by their rank.

    Raises:
        UsageError: they are no classes.
    """
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_null(values.type):
        return Labels(name, of, (), np.full(len(values), -1, np.int32))
    if types.is_floating(values.type):
        values = _whole(values, name)
    kind = values.type
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        why = f"its values are of type {kind}"
        raise UsageError(f"{name} is no label", why=why, hint="a column of words, whole numbers or booleans")
    encoded = values.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=found.__getitem__)
    rank = np.empty(len(found) + 1, np.int32)
    rank[order], rank[-1] = np.arange(len(found)), -1
    codes = np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int64)
    return Labels(name, of, tuple(found[i] for i in order), rank[codes])


def _whole(values: "pa.Array", name: str) -> "pa.Array":
    """Whole numbers that were floats beside missing ones.

    Raises:
        UsageError: some are no whole numbers.
    """
    import pyarrow as pa

    numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    missing = np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        whole = np.where(missing, 0.0, numbers)
        are_whole = bool((np.abs(whole) < 2**53).all() and (np.floor(whole) == whole).all())
    if not are_whole:
        why = "it has numbers that are no whole numbers"
        raise UsageError(f"{name} is a quantity, and no class", why=why, hint="bins of it, as words or whole numbers")
    return pa.array(whole.astype(np.int64), mask=missing)


def _check_lengths(counts: Int64[np.ndarray, "text"], lengths: Int64[np.ndarray, "text"], name: str) -> None:
    if not np.array_equal(counts, lengths):
        raise NotRecorded(f"{name} of this run are not of its tokens")
