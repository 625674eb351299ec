"""From what a user names, or an iterable, to the stream that is meant: examples as they come."""

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from traceformer.errors import NotFound, TraceformerError, Unreadable, UsageError
from traceformer.filenames import readable_name
from traceformer.texts import files, hub
from traceformer.texts.cells import KINDS, IdsColumn, TextColumn, holds_ids
from traceformer.texts.chats import is_chat
from traceformer.texts.examples import Example, MakeExample, Row, canonical, example_maker
from traceformer.texts.load import choose_or_name_split, choose_split, no_such_data_set
from traceformer.texts.named import DEMO_FILE, NAMED_SETS, make_named
from traceformer.texts.streams.parts import KINDS as STREAMED
from traceformer.texts.streams.parts import DataSet, HubStream, Listed, Part, file_part
from traceformer.texts.streams.reading import Point, Reading, Shuffle

__all__ = ["Came", "ExampleReading", "TextStream", "is_stream", "open_stream"]


def is_stream(texts: object) -> bool:
    """Returns whether texts can only be read as they come: an iterable whose length nobody knows."""
    return isinstance(texts, Iterable) and not hasattr(texts, "__len__")


class Came(NamedTuple):
    """An example as it came: where from, a SHA-256 of it, and the point behind it."""

    example: Example
    where: str
    digest: bytes
    after: Point


@dataclass(frozen=True, slots=True, eq=False)
class TextStream:
    """Texts that are read as they come; `read` begins at the beginning, or at a point.

    Attributes:
        name: Short, and fit for a file name.
        split: Which part of a data set.
        dataset: What was asked for.
        parts: The files, in order.
        shuffle: How it is shuffled, if it is.
        make: Returns the function that makes examples of rows, when the first one came.
        described: The rows, as far as they came.
    """

    name: str
    split: str
    dataset: str
    parts: Sequence[Part]
    shuffle: Shuffle | None
    make: "Callable[[_Described], MakeExample]"
    described: "_Described"

    @property
    def restarts(self) -> bool:
        """Whether it can be read again: an iterator cannot."""
        return all(part.restarts for part in self.parts)

    @property
    def stated(self) -> dict[str, Any]:
        """What must agree for a run to be gone on with, beside the texts themselves."""
        shuffled = None if self.shuffle is None else {"seed": self.shuffle.seed, "buffer": self.shuffle.buffer}
        return {"stream": self.name, "split": self.split, "shuffle": shuffled}

    def read(self, point: Point | None = None) -> "ExampleReading":
        """Returns the examples from a point on.

        Raises:
            ConfigurationChanged: the files before the point are not those that were read.
        """
        return ExampleReading(self, Reading(self.parts, self.shuffle, point))


class ExampleReading:
    """Iterates over the examples of a stream; null and blank texts are passed over, and counted in `skipped`."""

    def __init__(self, stream: TextStream, reading: Reading) -> None:
        self._stream, self._reading = stream, reading
        self._kind: type[Any] | None = None
        self._make: MakeExample | None = None
        self.skipped = 0

    @property
    def point(self) -> Point:
        return self._reading.point

    def __iter__(self) -> Iterator[Came]:
        return self

    def __next__(self) -> Came:
        described = self._stream.described
        for record in self._reading:
            described.at(record.row, record.part, record.where)
            if self._make is None:
                self._make = self._stream.make(described)
            example = self._make(record.row, record.number)
            if not example.text.strip():
                self.skipped += 1
                continue
            self._kind = self._kind or example.kind
            if example.kind is not self._kind:
                raise Unreadable(
                    f"{record.where}: {KINDS[example.kind]}, where {KINDS[self._kind]} came before",
                    hint="texts, pairs, lists of words and conversations go into runs of their own",
                )
            digest = hashlib.sha256(canonical(example, described)).digest()
            return Came(example, record.where, digest, self._reading.point)
        raise StopIteration

    def pass_over(self, records: int) -> None:
        """Reads on to where so many records came, all in all.

        Raises:
            ConfigurationChanged: there are not so many.
        """
        self._reading.pass_over(records - self._reading.point.records)


@dataclass(slots=True)
class _Described:
    """The rows of a stream as far as they came: the first one, whose columns all have, and where the one at hand is."""

    label: str
    classes: Callable[[str], list[str] | None] = lambda column: None
    first: Row = field(default_factory=dict[str, Any])
    has_every_field: bool = False
    _where: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.first)

    def at(self, row: Row, part: Part, where: str) -> None:
        """Takes notice of a row that came."""
        if not self.first:
            self.first, self.has_every_field = row, part.has_every_field
        self._where = where

    def where(self, number: int) -> str:
        return self._where

    def class_names(self, column: str) -> list[str] | None:
        return self.classes(column)


def open_stream(
    dataset: str | Path | Iterable[Any],
    *,
    split: str | None = None,
    text_column: TextColumn | None = None,
    shuffle: Shuffle | None = None,
) -> TextStream:
    """Returns the stream that a user means; its first record is looked at when it is read.

    `open_stream("shards/*.tar")`, `open_stream("hf:allenai/c4:en", split="train")`, `open_stream(texts())`.

    Args:
        dataset: What `load_texts` takes, a pattern of files (`*`, `?`, `[...]`, `**`), or an iterable of texts or rows.
        split: One of the data set's.
        text_column: As of `load_texts`.
        shuffle: How it is shuffled; not at all for None.

    Raises:
        NotFound: no such data set, configuration, split or file.
        Unreadable: it is there, but cannot be streamed.
        UsageError: the arguments contradict each other.
    """
    if not isinstance(dataset, str | Path):
        return _of_iterable(dataset, split, text_column, shuffle)
    dataset = str(dataset)
    try:
        return _opened(dataset, split, text_column, shuffle)
    except TraceformerError:
        raise
    except OSError as error:
        raise Unreadable(f"cannot read {dataset!r}", why=error.strerror or str(error)) from error


def _opened(dataset: str, split: str | None, text_column: TextColumn | None, shuffle: Shuffle | None) -> TextStream:
    if dataset.startswith("hf:"):
        repository, _, config = dataset.removeprefix("hf:").partition(":")
        name = "-".join(part for part in (repository.rpartition("/")[2], config) if part)
        return _of_hub(dataset, repository, config or None, name, split, text_column, shuffle)
    if dataset == "demo" or dataset in NAMED_SETS:
        if text_column is not None:
            raise UsageError(f"`text_column` does not apply: {dataset} has its own text")
        if dataset == "demo":
            _, name = choose_split(split, ["validation"], dataset)
            return _of_files(dataset, "demo", {DEMO_FILE: DEMO_FILE.name}, name, "text", shuffle, own_ids=False)
        named = NAMED_SETS[dataset]
        return _of_hub(dataset, named.repository, named.config, dataset, split, None, shuffle)
    if not dataset:
        raise UsageError("no data set was named")
    path = Path(dataset).expanduser()
    if not path.exists():
        return _of_pattern(dataset, path, split, text_column, shuffle)
    if path.is_dir() and hub.is_saved_dataset(path):
        splits = hub.load_saved(path)
        found, name = choose_or_name_split(split, splits, dataset)
        part = DataSet(hub.DatasetRows(splits[found], f"{dataset}, split {name}"))
        return _of_parts(dataset, path.resolve().name, [part], name, text_column, shuffle, own_ids=True)
    splits = files.folder_splits(path, STREAMED) if path.is_dir() else {"all": [path]}
    found, name = choose_or_name_split(split, splits, dataset)
    base = path if path.is_dir() else path.parent
    named_files = {each: each.relative_to(base).as_posix() for each in splits[found]}
    return _of_files(dataset, files.name_of(path.resolve()), named_files, name, text_column, shuffle, own_ids=True)


def _of_pattern(
    dataset: str, path: Path, split: str | None, text_column: TextColumn | None, shuffle: Shuffle | None
) -> TextStream:
    found = [Path(each) for each in sorted(glob.glob(str(path), recursive=True)) if Path(each).is_file()]
    if not glob.has_magic(dataset):
        raise no_such_data_set(dataset)
    if not found:
        raise NotFound(f"no file is meant by {dataset!r}")
    kinds = sorted({files.kind_of(each) for each in found})
    if len(kinds) > 1:
        raise Unreadable(f"{dataset} means {' and '.join(kinds)} files", hint="files of one kind are one stream")
    _, name = choose_or_name_split(split, ["all"], dataset)
    fixed = next(at for at, part in enumerate(path.parts) if glob.has_magic(part))
    base = Path(*path.parts[:fixed])
    named_files = {each: each.relative_to(base).as_posix() for each in found}
    return _of_files(dataset, base.resolve().name or "texts", named_files, name, text_column, shuffle, own_ids=True)


def _of_files(
    dataset: str,
    name: str,
    found: Mapping[Path, str],
    split: str,
    text_column: TextColumn | None,
    shuffle: Shuffle | None,
    *,
    own_ids: bool,
) -> TextStream:
    parts: list[Part] = []
    for path, called in found.items():
        kind = files.kind_of(path)
        if kind not in STREAMED:
            known = ", ".join(STREAMED)
            raise Unreadable(f"{path} is of no kind that can be streamed", hint=f"give {known}, packed or not")
        parts.append(file_part(path, kind))
        parts[-1].name = called
    return _of_parts(dataset, name, parts, split, text_column, shuffle, own_ids=own_ids)


def _of_parts(
    dataset: str,
    name: str,
    parts: Sequence[Part],
    split: str,
    text_column: TextColumn | None,
    shuffle: Shuffle | None,
    *,
    own_ids: bool,
) -> TextStream:
    name = readable_name(name, otherwise="texts")

    def make(rows: _Described) -> MakeExample:
        return example_maker(rows, name, split, text_column=text_column, own_ids=own_ids)

    label = parts[0].label if len(parts) == 1 else f"{dataset}, split {split}"
    return TextStream(name, split, dataset, parts, shuffle, make, _Described(label))


def _of_hub(
    dataset: str,
    repository: str,
    config: str | None,
    name: str,
    wanted: str | None,
    text_column: TextColumn | None,
    shuffle: Shuffle | None,
) -> TextStream:
    splits = hub.stream_hub(repository, config)
    found, split = choose_split(wanted, splits, dataset)
    part = HubStream(splits[found], f"{dataset}, split {split}")
    named, name = NAMED_SETS.get(dataset), readable_name(name, otherwise="texts")

    def make(rows: _Described) -> MakeExample:
        if named is not None:
            return make_named(named, rows, split)
        # A column `id` on the Hub promises nothing; those of go_emotions repeat.
        return example_maker(rows, name, split, text_column=text_column, own_ids=False)

    described = _Described(part.label, classes=part.class_names)
    return TextStream(name, split, dataset, [part], shuffle, make, described)


def _of_iterable(
    texts: Iterable[Any], split: str | None, text_column: TextColumn | None, shuffle: Shuffle | None
) -> TextStream:
    if split is not None:
        raise UsageError("`split` does not apply to an iterable of texts")

    def make(rows: _Described) -> MakeExample:
        of_ids = text_column is None and rows.columns == ("text",) and holds_ids([rows.first["text"]])
        column = IdsColumn("text") if of_ids else text_column
        return example_maker(rows, "texts", "all", text_column=column, own_ids=False)

    part = Listed(texts, lambda text: "messages" if is_chat(text) else "text")
    return TextStream("texts", "all", "a stream of texts", [part], shuffle, make, _Described(part.label))
