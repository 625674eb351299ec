"""Sentences in CoNLL-U, and the text that their words stand for.

Text is rebuilt as https://universaldependencies.org/format.html defines it:

1. Surface tokens in order: a multiword token (`1-2 don't`) stands for its words (`1 do`, `2 n't`); empty nodes
   (`1.1`) are not on the surface.
2. One space after each surface token, unless its own MISC says `SpaceAfter=No`; none at the end. What MISC says
   of words inside a multiword token does not count.

Not read with the `conllu` package: it splits columns at double spaces, drops values that begin with `=`, takes
lines that lack columns, and reports no line numbers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from traceformer.errors import Unreadable
from traceformer.texts.lines import Lines

__all__ = ["COLUMNS", "Span", "has_space_after", "read_sentences", "rebuild_text", "sentence_row"]

COLUMNS = ("text", "sent_id", "words", "word_offsets", "lemmas", "upos", "xpos", "feats", "head", "deprel")

_ID = re.compile(r"([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?|\d+\.[1-9]\d*", re.ASCII)
_HEAD = re.compile(r"\d{1,9}", re.ASCII)


class Span(NamedTuple):
    """A multiword token: the number of its last word, its form, and whether a space follows it."""

    last: int
    form: str
    space_after: bool


def has_space_after(misc: str | None) -> bool:
    """Returns whether a token with this MISC column is followed by a space."""
    return "SpaceAfter=No" not in (misc or "").split("|")


def rebuild_text(
    words: Sequence[str], spaces: Sequence[bool], spans: Mapping[int, Span]
) -> tuple[str, list[list[int]]]:
    """Returns the sentence's text, and per word the [start, end) of its characters in it.

    `spans` maps the number (from 1) of a multiword token's first word to the token. Its words get their own part
    of it where they add up to it (do + n't), else the whole of it (French `du` = de + le).
    """
    text = ""
    offsets: list[list[int]] = []
    number = 1
    while number <= len(words):
        span = spans.get(number) or Span(number, words[number - 1], spaces[number - 1])
        inside = words[number - 1 : span.last]
        start = len(text)
        text += span.form
        if "".join(inside) == span.form:
            for word in inside:
                offsets.append([start, start + len(word)])
                start += len(word)
        else:
            offsets.extend([start, len(text)] for _ in inside)
        text += " " if span.space_after and span.last < len(words) else ""
        number = span.last + 1
    return text, offsets


def sentence_row(
    words: Sequence[str],
    spaces: Sequence[bool],
    spans: Mapping[int, Span],
    *,
    sent_id: str | None,
    annotations: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """Returns a sentence as a row: its rebuilt text, its words and where they are, and its annotations."""
    text, offsets = rebuild_text(words, spaces, spans)
    return {"text": text, "sent_id": sent_id, "words": list(words), "word_offsets": offsets} | {
        column: list(values) for column, values in annotations.items()
    }


def read_sentences(lines: Lines) -> Iterator[dict[str, Any]]:
    """Yields one row per sentence, with the columns `COLUMNS`; `xpos` and `feats` are None where unspecified.

    Raises:
        Unreadable: not CoNLL-U; names the line.
    """
    sentence = _Sentence(lines)
    for line in lines:
        line = line.rstrip("\r\n")
        if line.startswith("#"):
            sentence.comment(line)
        elif line.strip():
            sentence.token(line.split("\t"))
        elif sentence.words:
            yield sentence.row()
            sentence = _Sentence(lines)
    if sentence.words:
        yield sentence.row()


class _Sentence:
    """A sentence while its lines are read."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._sent_id: str | None = None
        self._spaces: list[bool] = []
        self._spans: dict[int, Span] = {}
        self._heads: list[int | None] = []
        self._annotations: dict[str, list[Any]] = {"lemmas": [], "upos": [], "xpos": [], "feats": [], "deprel": []}
        self.words: list[str] = []

    def comment(self, line: str) -> None:
        key, _, value = line[1:].partition("=")
        if key.strip() == "sent_id":
            self._sent_id = value.strip()

    def token(self, columns: list[str]) -> None:
        if len(columns) != 10:
            raise self._refused(f"a token has 10 columns with tabs between them, here are {len(columns)}")
        number, form, lemma, upos, xpos, feats, head, deprel, _, misc = columns
        match = _ID.fullmatch(number)
        if not match:
            raise self._refused(f"{number!r} is no token number")
        if match[1] is None:
            return
        first, last = int(match[1]), int(match[2] or match[1])
        if first != len(self.words) + 1 or last < first:
            raise self._refused(f"token {number} follows token {len(self.words)}")
        if match[2]:
            if any(first <= span.last for span in self._spans.values()):
                raise self._refused(f"the multiword token {number} overlaps another")
            self._spans[first] = Span(last, form, has_space_after(misc))
            return
        self.words.append(form)
        self._spaces.append(has_space_after(misc))
        self._heads.append(self._head(head))
        annotated = (lemma, upos, _specified(xpos), _specified(feats), deprel)
        for values, value in zip(self._annotations.values(), annotated, strict=True):
            values.append(value)

    def row(self) -> dict[str, Any]:
        for first, span in self._spans.items():
            if span.last > len(self.words):
                raise self._refused(f"the multiword token {first}-{span.last} goes beyond the sentence's end")
        for head in self._heads:
            if head is not None and head > len(self.words):
                raise self._refused(f"the head {head} lies beyond the sentence's {len(self.words)} words")
        annotations = self._annotations | {"head": self._heads}
        row = sentence_row(self.words, self._spaces, self._spans, sent_id=self._sent_id, annotations=annotations)
        return {column: row[column] for column in COLUMNS}

    def _head(self, text: str) -> int | None:
        if text == "_":
            return None
        if not _HEAD.fullmatch(text):
            raise self._refused(f"the head {text!r} is no number")
        return int(text)

    def _refused(self, why: str) -> Unreadable:
        return Unreadable(f"{self._lines.path}, line {self._lines.number}: not CoNLL-U", why=why)


def _specified(value: str) -> str | None:
    return None if value == "_" else value
