"""The examples of a stream with their tokens, as many as are asked for, and where it stood before them."""

import hashlib
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from traceformer.capture.chats import reading_chats
from traceformer.capture.encoding import Encoded, Encoder, Lengths
from traceformer.capture.tokenizing import Rows, Texts
from traceformer.errors import ConfigurationChanged, Unreadable
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Stack
from traceformer.store.commits import CommitRecord
from traceformer.texts.chats import Chat
from traceformer.texts.examples import Example, TextSource
from traceformer.texts.streams.load import Came, TextStream
from traceformer.texts.streams.reading import Point

__all__ = ["Read", "Source", "Taken"]

_MAX_TARGET_TOKENS = 64  # of which there are none


class Read(NamedTuple):
    """An example as a model reads it, with its tokens."""

    came: Came
    example: Example
    row: Encoded


class Taken(NamedTuple):
    """The examples of a shard, their tokens, and what its record says of where they came from."""

    examples: Sequence[Example]
    rows: Sequence[Encoded]
    source: dict[str, Any]


class Source:
    """The examples of a stream that have tokens, as many as are asked for, and where it stood before them."""

    def __init__(self, model: LoadedModel, stream: TextStream, max_tokens: int | Literal["auto"]) -> None:
        self._stream = stream
        self._max_tokens: int | Literal["auto"] = max_tokens
        self._reading = stream.read()
        self._begins = self._reading.point
        self._waiting: deque[Read] = deque()
        first = next(self._reading, None)
        if first is None:
            skipped = self._reading.skipped
            why = f"all {skipped} of its records are blank" if skipped else ""
            raise Unreadable(f"{stream.described.label} holds no text", why=why)
        is_chat = first.example.kind is Chat
        self._kind = first.example.kind
        self._with_text: Callable[[Example], Example] = reading_chats(model) if is_chat else lambda example: example
        self.encoder = Encoder(model, max_tokens, _MAX_TARGET_TOKENS, add_special=not is_chat)
        self._tokenless = self._truncated = 0
        self._add([first])

    def fill(self, count: int) -> list[Read]:
        """Returns the next examples, which will come once more; at least so many, unless the stream ends before.

        Raises:
            Unreadable: there is none.
        """
        while len(self._waiting) < count:
            came = list(islice(self._reading, count - len(self._waiting)))
            if not came:
                break
            self._add(came)
        return list(self._waiting)

    def take(self, count: int) -> Taken:
        """Returns the next examples, at most so many."""
        taken = self.fill(count)[:count]
        for _ in taken:
            self._waiting.popleft()
        source = {"point": self._begins.to_json(), "digest": _digest(taken)}
        self._begins = taken[-1].came.after if taken else self._begins
        self._truncated += sum(each.row.truncated for each in taken)
        _refuse_twice(taken)
        columns = dict.fromkeys(column for each in taken for column in each.example.extra)
        examples = [
            replace(each.example, extra={column: each.example.extra.get(column) for column in columns})
            for each in taken
        ]
        return Taken(examples, [each.row for each in taken], source)

    def _add(self, came: Sequence[Came]) -> None:
        examples = [self._with_text(each.example) for each in came]
        rows = self.encoder.encode([example.reading for example in examples])
        for each, example, row in zip(came, examples, rows, strict=True):
            if row.length(self.encoder.input_stack):
                self._waiting.append(Read(each, example, row))
            else:
                self._tokenless += 1

    def rows(self, first: Sequence[Read]) -> Rows:
        """Returns examples as a listed data set's are.

        Raises:
            Unreadable: there are none.
        """
        stream = self._stream
        if not first:
            raise Unreadable(f"no text of {stream.described.label} has a token")
        examples = [each.example for each in first]
        listed = TextSource(stream.name, stream.split, examples, "", dataset=stream.dataset, kind=self._kind)
        lengths: dict[Stack, array[int]] = {
            self.encoder.input_stack: array("I", [each.row.length(self.encoder.input_stack) for each in first])
        }
        return Rows(Texts(listed, None, self._max_tokens), self.encoder, Lengths(lengths))

    def go_to(self, point: Point) -> None:
        """Reads on from a point that is not before the first shard's end.

        Raises:
            ConfigurationChanged: there is none in this stream.
        """
        if self._stream.restarts:
            self._waiting.clear()
            self._reading = self._stream.read(point)
        else:
            while self._waiting and self._waiting[0].came.after.records <= point.records:
                self._waiting.popleft()
            if not self._waiting:
                self._reading.pass_over(point.records)
        self._begins = point

    def compare(self, found: Sequence[Read], record: CommitRecord, folder: Path) -> None:
        """Makes sure that a committed shard was made of these examples.

        Raises:
            ConfigurationChanged: it was not.
        """
        stated = dict(record.source or {})
        if _digest(found) == stated.get("digest"):
            return
        point = Point.from_json(stated["point"])
        where = f"from record {point.record} of {point.file} on" if point.file else f"from record {point.record} on"
        raise ConfigurationChanged(
            f"the stream is not the one that {folder} was begun with",
            why=f"shard {record.shard} was made of {len(record.examples)} texts {where}, and these are others now",
            hint="give it as it was; or traceformer finish ends the run with what was committed",
        )

    def forget(self) -> None:
        """Counts what is passed over and cut from here on."""
        self._tokenless = self._truncated = self._reading.skipped = 0

    def warn(self, count: int) -> None:
        """Tells how many of so many texts were cut, and how many others were passed over."""
        if self._truncated:
            how = f"texts are cut to {self.encoder.max_tokens} tokens"
            warnings.warn(f"{how}: {self._truncated} of {count}", stacklevel=4)
        if self._tokenless:
            warnings.warn(f"texts without a token are passed over: {self._tokenless}", stacklevel=4)
        if self._reading.skipped:
            warnings.warn(f"null or blank texts are passed over: {self._reading.skipped}", stacklevel=4)


def _digest(found: Sequence[Read]) -> str:
    return hashlib.sha256(b"".join(each.came.digest for each in found)).hexdigest()


def _refuse_twice(taken: Sequence[Read]) -> None:
    """Refuses an id that two examples of a shard have: those of all shards nobody could remember."""
    seen: dict[str, str] = {}
    for each in taken:
        name = each.example.example_id
        if name in seen:
            raise Unreadable(
                f"the example id {name!r} occurs twice: {seen[name]} and {each.came.where}",
                hint="make the ids unique, or rename the column: ids are made where none are given",
            )
        seen[name] = each.came.where
