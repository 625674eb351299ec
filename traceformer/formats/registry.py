"""The formats that runs are exported to and imported from, one row each; and the two verbs over them.

A format is a folder of this package in one shape. Its `write.py` has `OPTIONS`, the options of an export that the
format takes, and `write_files`; its `read.py`, where a run can be had back, has `recognises` and `read_files`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from traceformer.errors import NotFound, Unreadable, UsageError, check_is
from traceformer.formats.gemma_pt import read as read_pt
from traceformer.formats.gemma_pt import write as write_pt
from traceformer.formats.nanochat_json import read as read_json
from traceformer.formats.nanochat_json import write as write_json
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.formats.padded_zarr import read as read_padded_zarr
from traceformer.formats.padded_zarr import write as write_padded_zarr
from traceformer.formats.safetensors_runs import read as read_safetensors
from traceformer.formats.safetensors_runs import write as write_safetensors
from traceformer.formats.transformer_lens import write as write_transformer_lens
from traceformer.formats.whole import remove_leftovers
from traceformer.progress import OnStep, steps_watched
from traceformer.store.files import free_space
from traceformer.store.locks import final_folder, refuse_existing
from traceformer.store.objects.path import disk_path
from traceformer.store.replacing import check_place
from traceformer.store.run import Run

__all__ = ["FORMATS", "READABLE", "Format", "Reads", "Writes", "export", "files_of", "import_run", "named"]


class Writes(Protocol):
    """What every format's `write.py` has."""

    OPTIONS: frozenset[str]

    def write_files(self, store: Run, folder: Path, options: ExportOptions) -> Iterator[Path]:
        """Yields each file, or folder, that it makes of a run, once it is written."""
        ...


class Reads(Protocol):
    """What the `read.py` of a format has that a run can be had back from."""

    def recognises(self, path: Path) -> bool:
        """Returns whether a file is of this format."""
        ...

    def read_files(self, files: Sequence[Path], options: ImportOptions) -> Path:
        """Returns the folder of the run that the files make."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One foreign format: its name, what it is in a few words, and its two modules."""

    name: str
    what: str
    write: Writes
    read: Reads | None


_ROWS = (
    Format("pt", "the Gemma capture's files: residual streams, or each layer's internals", write_pt, read_pt),
    Format("safetensors", "every array: a file per example, and a manifest", write_safetensors, read_safetensors),
    Format(
        "transformerlens", "a .pt per example, by the names of TransformerLens's hooks", write_transformer_lens, None
    ),
    Format("padded-zarr", "the padded store: Zarr, padded to the longest", write_padded_zarr, read_padded_zarr),
    Format("json", "nanochat traces: a JSON file per example", write_json, read_json),
)
FORMATS: Mapping[str, Format] = {row.name: row for row in _ROWS}
READABLE: Mapping[str, Reads] = {row.name: row.read for row in _ROWS if row.read is not None}


def named(name: str) -> Format:
    """Returns the format of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}", hint=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


def export(
    run: Run,
    format: str,
    folder: str | Path = "exports",
    *,
    examples: Sequence[int | str] | None = None,
    layout: str | None = None,
    layers: Sequence[int] | None = None,
    steps: bool = False,
    lossless: bool = False,
    overwrite: bool = False,
    progress: OnStep | None = None,
) -> list[Path]:
    """Returns the files that it writes of a run in another format (of `padded-zarr`, the folder).

        export(run, "pt", "files", examples=[0], layout="internals")

    Args:
        run: What to write.
        format: `pt`, `safetensors`, `transformerlens`, `padded-zarr` or `json`: see `FORMATS`.
        folder: Where to; made if it is not there.
        examples: By number or id; all by default.
        layout: pt: `residual`, all layers in one file, which is the default, or `internals`, those of each layer.
        layers: pt: the model's numbers; all that are stored by default.
        steps: json: add what was captured at each step, as a run that was recorded step by step does anyway.
        lossless: json, pt: add what the format has no place for, so that an import gives the run back.
        overwrite: Replace files of the same names.
        progress: Told after every example how many of how many are done; a bar where somebody watches, by default.

    Raises:
        UsageError: no such format, or it has no such option or layout.
        ExampleNotFound, NotRecorded, SelectionError, Unsupported: the run lacks what the format is to hold.
        RunExists: a file is in the way.
        OutOfSpace: the disk is full.
    """
    check_is(run, Run, "what open_run or record gave")
    write = named(format).write
    given = {"layout": layout is not None, "layers": layers is not None, "steps": steps, "lossless": lossless}
    for option in given:
        if given[option] and option not in write.OPTIONS:
            takes = ", ".join(name for name in given if name in write.OPTIONS)
            raise UsageError(f'`format="{format}"` has no `{option}`', why=f"it takes {takes}" if takes else "")
    if not str(folder):
        raise UsageError("the folder to write into has no name", hint="`folder` names it")
    place = disk_path(folder)
    remove_leftovers(place)
    with steps_watched("exporting", progress) as show, free_space(place):
        options = ExportOptions(
            example_ids=None if examples is None else tuple(run.example_id(example) for example in examples),
            steps=steps or None,
            lossless=lossless,
            overwrite=overwrite,
            progress=show,
            layout=layout,
            layers=None if layers is None else tuple(layers),
        )
        return list(write.write_files(run, place, options))


def import_run(
    files: str | Path | Sequence[str | Path],
    format: str | None = None,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: OnStep | None = None,
) -> Run:
    """Returns the run that files of another format make; no code in a file is ever run.

        import_run("files").attn(0, layer=2, head=3)

    Args:
        files: Files of one format, or folders of them.
        format: The format's name; recognised from the files by default.
        out: The run's folder; by default one in ./traces, named after time and model.
        overwrite: Replace a run that is in the way.
        progress: Told after every example how many of how many are done; a bar where somebody watches, by default.

    Raises:
        NotFound: a file is not there, or a folder has none of a known format.
        Unreadable: files are of no known format or of several, or not as the format has them.
        UsageError: no such format, one that gives no run back, or no files.
        RunExists: a run is at the folder asked for.
        OutOfSpace: the disk is full; what was begun is removed.
    """
    if out is not None:
        if not str(out):
            raise UsageError("the run's folder has no name", hint="`out` names it")
        check_place(Path(out))
        refuse_existing(final_folder(Path(out)), overwrite)
    readers = READABLE if format is None else {format: _reader(format)}
    found = files_of(files, readers)
    reader = _recognised(found) if format is None else readers[format]
    with steps_watched("importing", progress) as show:
        options = ImportOptions(None if out is None else Path(out), overwrite, show)
        return Run(reader.read_files(found, options))


def _reader(name: str) -> Reads:
    reader = named(name).read
    if reader is None:
        raise UsageError(f"files of {name} do not make a run", why=f"formats that do: {', '.join(READABLE)}")
    return reader


def files_of(paths: str | Path | Sequence[str | Path], readers: Mapping[str, Reads] = READABLE) -> list[Path]:
    """Returns the files, and of folders those that a format knows: its own, or else those of the folders in it.

    Raises:
        NotFound: a file is not there, or a folder has none of these formats.
        UsageError: no files.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            known = _known(path.iterdir(), readers) or _known(path.rglob("*"), readers)
            if not known:
                raise NotFound(f"nothing to import in {path}", why=f"formats: {', '.join(readers)}")
            found += known
        elif not path.is_file():
            raise NotFound(f"no file {path}")
        else:
            found.append(path)
    if not found:
        raise UsageError("no files to import")
    return found


def _known(paths: Iterable[Path], readers: Mapping[str, Reads]) -> list[Path]:
    """Those that a format knows, 2.pt before 10.pt."""
    known = [path for path in paths if path.is_file() and any(reader.recognises(path) for reader in readers.values())]
    return sorted(known, key=lambda path: [int(part) if part.isdecimal() else part for part in _parts(path)])


def _parts(path: Path) -> list[str]:
    return re.split(r"([0-9]+)", str(path))


def _recognised(files: Sequence[Path]) -> Reads:
    """Returns the one format that all files are of.

    Raises:
        Unreadable: a file is of no known format, or of another than the first.
    """
    known = [next((reader for reader in READABLE.values() if reader.recognises(path)), None) for path in files]
    for path, reader in zip(files, known, strict=True):
        if reader is None:
            raise Unreadable(f"{path} is of no known format", hint=f"formats: {', '.join(READABLE)}")
        if reader is not known[0]:
            raise Unreadable(f"{path} is of another format than {files[0]}", hint="import them apart")
    assert known[0] is not None
    return known[0]
