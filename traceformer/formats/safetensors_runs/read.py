"""A manifest and its safetensors as a run, as they are exported here.

Every file is the one whose SHA-256 the manifest lists, and lies beside it; the run comes back bit for bit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from traceformer.errors import NotFound, Unreadable
from traceformer.formats.incoming import UNKNOWN, common_dtype, put, write_run
from traceformer.formats.options import ImportOptions
from traceformer.formats.rows import TokenRow, check_plain, read_types
from traceformer.formats.safetensors_runs.write import MANIFEST, SAFETENSORS_FORMAT
from traceformer.models.weights import StoredTensor, open_file
from traceformer.plain_json import parse_json
from traceformer.sites import ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.files import checksum
from traceformer.store.names import Arch, Dtype

__all__ = ["read_files", "recognises"]

_NAMES: Mapping[str, Dtype] = {"F16": "float16", "F32": "float32", "BF16": "bfloat16"}


def recognises(path: Path) -> bool:
    """Returns whether a file is such a manifest, or one of the files beside it."""
    if path.suffix == ".safetensors":
        path = path.with_name(MANIFEST)
    if path.name != MANIFEST or not path.is_file():
        return False
    try:
        data = parse_json(path.read_bytes())
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("format") == SAFETENSORS_FORMAT


class _Listed(NamedTuple):
    """An example of a manifest: its file, and what is said of it."""

    path: Path
    sha256: str
    lengths: Mapping[Stack, int]
    row: Mapping[str, Any]


class _Manifest(NamedTuple):
    arch: Arch
    arrays: tuple[ArraySpec, ...]
    run: Mapping[str, Any]
    types: pa.Schema | None
    examples: tuple[_Listed, ...]


def read_files(files: Sequence[Path], options: ImportOptions) -> Path:
    """Returns the folder of the run that the files make: all of a manifest's, or those of them that are given.

    Raises:
        NotFound, Unreadable: a file is missing, is not the one that the manifest lists, or lies outside its folder.
        RunExists: a run is at the folder asked for.
    """
    folders = {path.parent for path in files}
    if len(folders) > 1:
        raise Unreadable("the files are of several manifests", hint="import them apart")
    [folder] = folders
    manifest = _read_manifest(folder / MANIFEST)
    given = {path.name for path in files if path.suffix == ".safetensors"}
    examples = [each for each in manifest.examples if not given or each.path.name in given]
    unlisted = given - {each.path.name for each in examples}
    if unlisted or not examples:
        raise Unreadable(f"{folder / MANIFEST} lists no {min(unlisted, default='examples')}")
    dtypes: set[str] = set()
    for each in examples:
        if not each.path.is_file():
            raise NotFound(f"no file {each.path}", why=f"{folder / MANIFEST} lists it")
        if checksum(each.path, "sha256").digest != each.sha256:
            raise Unreadable(f"{each.path} is not the file that its manifest lists", why="its SHA-256 is another")
        tensors, _ = open_file(each.path)
        kept = [_tensor(tensors, spec, each.path).dtype for spec in manifest.arrays if not spec.site.holds_ids]
        dtypes |= {_NAMES.get(dtype, dtype) for dtype in kept}

    def fill(buffer: ShardBuffer, slot: int, index: int) -> TokenRow:
        example = examples[index]
        tensors, _ = open_file(example.path)
        for spec in manifest.arrays:
            tensor = _tensor(tensors, spec, example.path)
            values = tensor.ids() if spec.site.holds_ids else tensor.read()
            put(buffer, slot, spec, values, str(example.path), partial=UNKNOWN in manifest.run)
        return TokenRow(example.row, manifest.types)

    stacks: list[Stack] = [*examples[0].lengths]
    if any(set(each.lengths) != set(stacks) for each in examples):
        raise Unreadable(f"{folder / MANIFEST} lists examples of other stacks than the first's")
    return write_run(
        [each.path for each in examples],
        options,
        fill,
        source="safetensors",
        arch=manifest.arch,
        arrays=manifest.arrays,
        lengths={stack: [each.lengths[stack] for each in examples] for stack in stacks},
        dtype=common_dtype(dtypes),
        stated=manifest.run,
        partial=UNKNOWN in manifest.run,
    )


def _tensor(tensors: Mapping[str, StoredTensor], spec: ArraySpec, path: Path) -> StoredTensor:
    if str(spec.key) not in tensors:
        raise Unreadable(f"{path} holds no {spec.key}", why="its manifest lists it")
    return tensors[str(spec.key)]


def _read_manifest(path: Path) -> _Manifest:
    try:
        data = parse_json(path.read_bytes())
        check_plain(data, str(path))
        arrays = tuple(ArraySpec.from_json(spec) for spec in data["arrays"])
        listed = tuple(
            _Listed(_inside(path, each["file"]), each["sha256"], _lengths(each["lengths"]), dict(each["row"]))
            for each in data["examples"]
        )
        arch = data["arch"]
        if arch not in ("enc", "dec", "encdec"):
            raise ValueError(f"arch {arch!r}")
        types = read_types(data["types"], str(path)) if "types" in data else None
        return _Manifest(arch, arrays, dict(data["run"]), types, listed)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path} is not a manifest that an export writes", why=str(error)) from error


def _lengths(data: Mapping[str, Any]) -> dict[Stack, int]:
    stacks: tuple[Stack, ...] = ("enc", "dec")
    return {stack: int(data[stack]) for stack in stacks if stack in data}


def _inside(manifest: Path, name: Any) -> Path:
    """The file of a manifest's entry, which lies beside it.

    Raises:
        Unreadable: its name leads elsewhere.
    """
    if not isinstance(name, str) or PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name:
        raise Unreadable(f"{manifest} lists the file {name!r}", why="its files lie beside it, and nowhere else")
    return manifest.with_name(name)
