"""What the arguments --example, --head and numbers may be."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, Token

from traceformer.errors import SelectionError, UsageError

if TYPE_CHECKING:
    from traceformer.store.run import Run

__all__ = [
    "FILE_ON_DISK",
    "FOLDER_ON_DISK",
    "NAMED_FOLDER",
    "Indices",
    "count",
    "find_example",
    "open_example",
    "parse_head",
]


# A leading hyphen is let through, so that `--layers -1` is told its valid range like any other number.
Indices = Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="I,J-K")]
"""Layers, heads or positions, as `sites.parse_indices` reads them."""


def _folder(_: object, tokens: Sequence[Token]) -> Path:
    # Of a name that is empty, as an unset variable of a shell is, a path would make the working folder.
    if not tokens[0].value:
        raise ValueError("it takes the name of a folder, and this is empty")
    if ":/" in tokens[0].value:
        from traceformer.store.objects.path import as_path

        try:
            as_path(tokens[0].value)  # refuses what is no place: a path would make a folder `s3:` of `s3://`
        except UsageError as error:
            raise ValueError(str(error)) from error  # of another error only its message would be told
    return Path(tokens[0].value)


def _folder_on_disk(_: object, tokens: Sequence[Token]) -> Path:
    folder = _folder(_, tokens)
    _refuse_bucket(tokens[0].value, "folder")
    return folder


def _file_on_disk(_: object, tokens: Sequence[Token]) -> Path:
    if not tokens[0].value:
        raise ValueError("it takes the name of a file, and this is empty")
    _refuse_bucket(tokens[0].value, "file")
    return Path(tokens[0].value)


def _refuse_bucket(value: str, what: str) -> None:
    if ":/" in value:
        from traceformer.store.objects.path import is_bucket

        if is_bucket(value):
            raise ValueError(f"it takes a {what} on disk, and this is a place in a bucket")


NAMED_FOLDER = Parameter(metavar="DIR", converter=_folder, n_tokens=1)
"""A folder to write into; `.` is meant by who writes it, and an empty name is not."""

FOLDER_ON_DISK = Parameter(metavar="DIR", converter=_folder_on_disk, n_tokens=1)
"""The same, of what is written to a disk alone."""

FILE_ON_DISK = Parameter(metavar="FILE", converter=_file_on_disk, n_tokens=1)
"""A file to write: no place in a bucket, of which a path would make a folder `s3:`."""


def count(metavar: str, *, least: int = 1) -> Parameter:
    """Returns a parameter of whole numbers from `least`, or of the word that its metavar names: `N|auto`."""
    # cyclopts itself would round 1.5 without a word.
    word = metavar.partition("|")[2]

    def converter(_: object, tokens: Sequence[Token]) -> int | str:
        text = tokens[0].value
        if word and text == word:
            return text
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"it takes a whole number from {least}" + (f", or {word}" if word else ""))
        return int(text)

    return Parameter(metavar=metavar, show_choices=False, converter=converter, n_tokens=1)


def find_example(run: "Run", name: str | None) -> str:
    """Returns the id of the example that `--example` names by id or by number, the first one for None.

    Raises:
        ExampleNotFound: neither an id nor a number of this run's.
    """
    return run.example_id(0 if name is None else name)


def open_example(name: str, example: str | None) -> "tuple[Run, str]":
    """Returns a run and the id of one of its examples; in a folder of runs the one that holds the example of that id.

    Raises:
        NotFound: there is no such run.
        ExampleNotFound: neither an id nor a number of the run's.
        UsageError: several runs, and not one of them alone holds such an id.
    """
    from traceformer.store.folders import find_runs
    from traceformer.store.run import Run

    folders = find_runs(name)
    if len(folders) == 1:
        run = Run(folders[0])
        return run, find_example(run, example)
    holding = [run for run in map(Run, folders) if example is not None and run.is_id(example)]
    if example is None or len(holding) != 1:
        why = "" if example is None else f"{len(holding) or 'none'} of them hold an example {example!r}"
        raise UsageError(f"{name} holds {len(folders)} runs", why=why, hint=f"one of them, such as {folders[0]}")
    return holding[0], example


def parse_head(layer: int | None, head: str | None) -> tuple[int | None, int | None]:
    """Returns layer and head numbers from `--layer 5 --head 3`, `--head L5H3`, or parts of them.

    Raises:
        SelectionError: `head` is neither a number nor such as L5H3, or the layer is given twice and differs.
    """
    if head is None:
        return layer, None
    match = re.fullmatch(r"(?:(?:[Ll](\d+))?[Hh])?(\d+)", head)
    if not match:
        raise SelectionError(f"cannot read the head {head!r}", hint="--head L5H3, or --layer 5 --head 3")
    if match[1] is None:
        return layer, int(match[2])
    if layer not in (None, int(match[1])):
        raise SelectionError(f"--layer {layer} and --head {head} name different layers", hint=f"--head {head} alone")
    return int(match[1]), int(match[2])
