"""The formats that runs are exported to and imported from, one row each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traceformer.errors import Unreadable, UsageError
from traceformer.formats.json_export import export_json
from traceformer.formats.json_import import import_json, is_json_trace
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.store.reader import TraceStore

__all__ = ["FORMATS", "Format", "format_of", "named"]


@dataclass(frozen=True, slots=True)
class Format:
    """One foreign format.

    Attributes:
        meaning: What it is, in a few words.
        write: Yields each file that it makes of a run in a folder.
        read: Makes a run of files, and returns its folder.
        recognises: Whether a file is of this format.
        options: The export options that it takes, beside which examples.
    """

    meaning: str
    write: Callable[[TraceStore, Path, ExportOptions], Iterator[Path]]
    read: Callable[[Sequence[Path], ImportOptions], Path]
    recognises: Callable[[Path], bool]
    options: frozenset[str] = frozenset()


FORMATS: Mapping[str, Format] = {
    "json": Format(
        "document 2's traces: a JSON file per example",
        write=export_json,
        read=import_json,
        recognises=is_json_trace,
        options=frozenset(("steps", "lossless")),
    ),
}


def named(name: str) -> Format:
    """Returns the format of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}", hint=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(files: Sequence[Path]) -> Format:
    """Returns the one format that all files are of.

    Raises:
        Unreadable: a file is of no known format, or of another than the first.
    """
    found = [next((each for each in FORMATS.values() if each.recognises(path)), None) for path in files]
    for path, own in zip(files, found, strict=True):
        if own is None:
            raise Unreadable(f"{path} is of no known format", hint=f"formats: {', '.join(FORMATS)}")
        if own is not found[0]:
            raise Unreadable(f"{path} is of another format than {files[0]}", hint="import them apart")
    if not found or found[0] is None:
        raise UsageError("no files to import")
    return found[0]
