"""The formats that runs are exported to and imported from, one row each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traceformer.errors import Unreadable, UsageError
from traceformer.formats.json_export import export_json
from traceformer.formats.json_import import import_json, is_json_trace
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.formats.padded_zarr import export_padded_zarr, is_padded_zarr
from traceformer.formats.padded_zarr_import import import_padded_zarr
from traceformer.formats.pt_export import export_pt
from traceformer.formats.pt_import import import_pt, is_pt
from traceformer.formats.safetensors_runs import export_safetensors, import_safetensors, is_safetensors_run
from traceformer.formats.transformer_lens import export_transformer_lens
from traceformer.store.run import TraceStore

__all__ = ["FORMATS", "READABLE", "Format", "format_of", "named", "read_run"]


@dataclass(frozen=True, slots=True)
class Format:
    """One foreign format.

    Attributes:
        meaning: What it is, in a few words.
        write: Yields each file that it makes of a run in a folder.
        read: Makes a run of files, and returns its folder; None where a run cannot be had back.
        recognises: Whether a file is of this format.
        options: The export options that it takes, beside which examples.
    """

    meaning: str
    write: Callable[[TraceStore, Path, ExportOptions], Iterator[Path]]
    read: Callable[[Sequence[Path], ImportOptions], Path] | None = None
    recognises: Callable[[Path], bool] = lambda _: False
    options: frozenset[str] = frozenset()


FORMATS: Mapping[str, Format] = {
    "pt": Format(
        "the Gemma capture's files: the residual streams of all layers, or the internals of each",
        write=export_pt,
        read=import_pt,
        recognises=is_pt,
        options=frozenset(("layout", "layers", "lossless")),
    ),
    "safetensors": Format(
        "every array of a run: a file per example, and a manifest",
        write=export_safetensors,
        read=import_safetensors,
        recognises=is_safetensors_run,
    ),
    "transformerlens": Format(
        "what TransformerLens caches: a .pt file per example, by the names of its hooks",
        write=export_transformer_lens,
    ),
    "padded-zarr": Format(
        "the padded store: Zarr arrays in which every example is padded to the longest",
        write=export_padded_zarr,
        read=import_padded_zarr,
        recognises=is_padded_zarr,
    ),
    "json": Format(
        "nanochat traces: a JSON file per example",
        write=export_json,
        read=import_json,
        recognises=is_json_trace,
        options=frozenset(("steps", "lossless")),
    ),
}
READABLE: Mapping[str, Format] = {name: each for name, each in FORMATS.items() if each.read is not None}


def named(name: str) -> Format:
    """Returns the format of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}", hint=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


def read_run(files: Sequence[Path], options: ImportOptions) -> Path:
    """Returns the folder of the run that the files make.

    Raises:
        Unreadable: they are of no known format, or of several; or as the format's own import raises.
    """
    read = format_of(files).read
    assert read is not None
    return read(files, options)


def format_of(files: Sequence[Path]) -> Format:
    """Returns the one format that all files are of.

    Raises:
        Unreadable: a file is of no known format, or of another than the first.
    """
    found = [next((each for each in READABLE.values() if each.recognises(path)), None) for path in files]
    for path, own in zip(files, found, strict=True):
        if own is None:
            raise Unreadable(f"{path} is of no known format", hint=f"formats: {', '.join(READABLE)}")
        if own is not found[0]:
            raise Unreadable(f"{path} is of another format than {files[0]}", hint="import them apart")
    if not found or found[0] is None:
        raise UsageError("no files to import")
    return found[0]
