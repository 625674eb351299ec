"""From what a user names, or writes down as a list, to the examples that are meant."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from traceformer.errors import NotFound, TraceformerError, Unreadable, UsageError
from traceformer.filenames import readable_name
from traceformer.texts import files, hub
from traceformer.texts.cells import IdsColumn, TextColumn, TextList, holds_ids
from traceformer.texts.examples import ListRows, Rows, TextSource, example_maker, select
from traceformer.texts.lines import Lines
from traceformer.texts.named import DEMO_FILE, NAMED_SETS, NamedSet, make_named

__all__ = [
    "DEFAULT_SPLIT",
    "Texts",
    "choose_or_name_split",
    "choose_split",
    "load_targets",
    "load_texts",
    "no_such_data_set",
]

DEFAULT_SPLIT = "validation"

_NAMES = ("demo", *NAMED_SETS)
_WHAT_TO_GIVE = f"give {', '.join(_NAMES)}, hf:NAME[:CONFIG], a file or a folder; in Python, a text goes into a list"


Texts: TypeAlias = str | Path | TextList
"""The name of a data set, a file or folder, or a list of texts, of pairs, of lists of words or token ids, or of
conversations."""


def load_texts(
    dataset: Texts,
    *,
    split: str | None = None,
    limit: int | None = None,
    text_column: TextColumn | None = None,
) -> TextSource:
    """Returns the examples that a user means.

    `load_texts("ud_ewt", split="test", limit=32)`, `load_texts("hf:fancyzhx/ag_news")`, `load_texts("my/texts.jsonl")`,
    `load_texts(["One text.", "Another."])`, `load_texts([("A pair's first", "and second")])`,
    `load_texts([["A", "text", "in", "words"]])`.

    Args:
        dataset: `demo`, a named set, `hf:NAME[:CONFIG]`, a file, or a folder of files or of `save_to_disk`; or the
            texts themselves: strings, pairs of strings as tuples, lists of words or of token ids, or conversations,
            which are lists of messages: `{"role": "user", "content": "Hi"}`.
        split: one of the data set's; without it, `validation`, or the only split there is. A file, or a folder whose
            files name no splits, takes any name here, and is `all` without one.
        limit: how many examples, from the beginning; null and blank texts do not count.
        text_column: the column that holds the text, lists of words, or messages, `answer.text` for a part of one; two
            of them (`"a,b"`, `("a", "b")`) for pairs of texts; or that of token ids. Not for data sets that build their
            text.

    Raises:
        NotFound: no such data set, configuration, split or column.
        Unreadable: it is there, but it does not hold texts, or an id occurs twice.
        UsageError: the arguments contradict each other.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"`limit={limit}` selects nothing", hint="give 1 or more")
    if not isinstance(dataset, str | Path):
        return _load_list(dataset, split, limit, text_column)
    dataset = str(dataset)
    try:
        return replace(_load(dataset, split, limit, text_column), dataset=dataset)
    except TraceformerError:  # NotFound is an OSError too
        raise
    except OSError as error:
        raise Unreadable(f"cannot read {dataset!r}", why=error.strerror or str(error)) from error


def _load(dataset: str, split: str | None, limit: int | None, text_column: TextColumn | None) -> TextSource:
    if dataset.startswith("hf:"):
        return _load_hub(dataset, split, limit, text_column)
    if dataset in _NAMES:
        if text_column is not None:
            raise UsageError(f"`text_column` does not apply: {dataset} has its own text")
        return _load_demo(split, limit) if dataset == "demo" else _load_named(dataset, split, limit)
    if not dataset:
        raise UsageError("no data set was named", hint=_WHAT_TO_GIVE)
    path = Path(dataset).expanduser()
    if not path.exists():
        raise no_such_data_set(dataset)
    if path.is_dir() and hub.is_saved_dataset(path):
        return _load_saved(path, split, limit, text_column)
    return _load_files(path, split, limit, text_column)


def load_targets(targets: str | Path | Sequence[str], n: int) -> list[str]:
    """Returns the targets of the rows 0 .. n-1: those of a list, or the lines of a file; blank ones count, too.

    Raises:
        NotFound: no such file.
        Unreadable: fewer than `n`, or not UTF-8.
    """
    if not isinstance(targets, str | Path):
        if len(targets) < n:
            raise Unreadable(f"{len(targets)} targets, but {n} texts need one each")
        return list(targets[:n])
    path = Path(targets).expanduser()
    if not path.is_file():
        raise NotFound(f"no targets file {path}")
    try:
        with path.open("rb") as stream:
            lines = [
                line.removesuffix("\n").removesuffix("\r")
                for line, _ in zip(Lines(stream, path), range(n), strict=False)
            ]
    except OSError as error:
        raise Unreadable(f"cannot read {path}", why=error.strerror or str(error)) from error
    if len(lines) < n:
        raise Unreadable(
            f"the targets file {path} has {len(lines)} lines, but {n} rows need one each",
            hint=f"add the {n - len(lines)} missing lines, or give `limit={len(lines)}`" if lines else "",
        )
    return lines


def choose_split(wanted: str | None, available: Collection[str], what: str) -> tuple[str, str]:
    """Returns the split that is meant, and what to call it.

    `validation`, `valid`, `val` and `dev` stand for each other where there is only one of them; it is always called
    `validation`, so that ids do not depend on a publisher's habit.
    """
    name = wanted or DEFAULT_SPLIT
    validation = [same for same in available if same in files.VALIDATION_NAMES]
    if len(validation) == 1 and name in files.VALIDATION_NAMES:
        return validation[0], DEFAULT_SPLIT
    if name in available:
        return name, name
    if wanted is None and len(available) == 1:
        (only,) = available
        return only, only
    raise NotFound(f"{what} has no split {name!r}", hint=f"it has: {', '.join(available)}")


def choose_or_name_split(wanted: str | None, available: Collection[str], what: str) -> tuple[str, str]:
    """Returns the split that is meant, and what to call it: data without splits go by the name the user gives."""
    if set(available) != {"all"}:
        return choose_split(wanted, available, what)
    if wanted is not None and not re.fullmatch(r"\w[\w.-]*", wanted, re.ASCII):
        raise UsageError(f"{wanted!r} cannot name a split", hint="use letters, digits, dots and dashes")
    return "all", wanted or "all"


def _load_list(texts: TextList, wanted: str | None, limit: int | None, text_column: TextColumn | None) -> TextSource:
    for name, given in (("split", wanted), ("text_column", text_column)):
        if given is not None:
            raise UsageError(f"`{name}` does not apply to a list of texts")
    if not hasattr(texts, "__len__"):
        raise UsageError(f"`texts`: {type(texts).__name__}", hint="a list of texts, or the name of a data set")
    if len(texts) == 0:
        raise UsageError("no text to read", why="the list is empty")
    rows = ListRows(texts)
    make = example_maker(
        rows, "texts", "all", text_column=IdsColumn("text") if holds_ids(texts) else None, own_ids=False
    )
    return replace(select(rows, make, name="texts", split="all", limit=limit), dataset="a list of texts")


def _load_demo(wanted: str | None, limit: int | None) -> TextSource:
    _, split = choose_split(wanted, [DEFAULT_SPLIT], "demo")
    rows = files.open_files([DEMO_FILE], "demo")
    make = example_maker(rows, "demo", split, text_column="text", own_ids=False)
    return select(rows, make, name="demo", split=split, limit=limit)


def _load_named(name: str, wanted: str | None, limit: int | None) -> TextSource:
    named: NamedSet = NAMED_SETS[name]
    splits = hub.load_hub(named.repository, named.config)
    found, split = choose_split(wanted, splits, name)
    rows = hub.DatasetRows(splits[found], f"{name}, split {split}")
    missing = [column for column in named.columns if column not in rows.columns]
    if missing:
        raise Unreadable(
            f"{named.repository} is not laid out as expected: no column {', '.join(missing)}",
            why=f"it has: {', '.join(rows.columns)}",
        )
    return select(rows, make_named(named, rows, split), name=name, split=split, limit=limit)


def _load_hub(dataset: str, wanted: str | None, limit: int | None, text_column: TextColumn | None) -> TextSource:
    repository, _, config = dataset.removeprefix("hf:").partition(":")
    splits = hub.load_hub(repository, config or None)
    found, split = choose_split(wanted, splits, dataset)
    rows = hub.DatasetRows(splits[found], f"{dataset}, split {split}")
    name = readable_name("-".join(part for part in (repository.rpartition("/")[2], config) if part), otherwise="texts")
    # A column `id` on the Hub promises nothing; those of go_emotions repeat.
    make = example_maker(rows, name, split, text_column=text_column, own_ids=False)
    return select(rows, make, name=name, split=split, limit=limit)


def _load_saved(folder: Path, wanted: str | None, limit: int | None, text_column: TextColumn | None) -> TextSource:
    splits = hub.load_saved(folder)
    found, split = choose_or_name_split(wanted, splits, str(folder))
    rows = hub.DatasetRows(splits[found], f"{folder}, split {split}")
    return _select_own(rows, folder.resolve().name, split, limit, text_column)


def _load_files(path: Path, wanted: str | None, limit: int | None, text_column: TextColumn | None) -> TextSource:
    splits = files.folder_splits(path) if path.is_dir() else {"all": [path]}
    found, split = choose_or_name_split(wanted, splits, str(path))
    rows = files.open_files(splits[found], f"{path}, split {split}")
    return _select_own(rows, files.name_of(path.resolve()), split, limit, text_column)


def _select_own(rows: Rows, name: str, split: str, limit: int | None, text_column: TextColumn | None) -> TextSource:
    name = readable_name(name, otherwise="texts")
    make = example_maker(rows, name, split, text_column=text_column, own_ids=True)
    return select(rows, make, name=name, split=split, limit=limit)


def no_such_data_set(dataset: str) -> NotFound:
    path = Path(dataset)
    beside = [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(dataset, [*_NAMES, *beside], n=3)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif re.fullmatch(r"[\w-]+/[\w.-]+", dataset) and files.kind_of(path) not in files.KINDS:
        hint = f"if it is on the Hub, write hf:{dataset}"
    else:
        hint = _WHAT_TO_GIVE
    return NotFound(f"no data set, file or folder {dataset!r}", hint=hint)
