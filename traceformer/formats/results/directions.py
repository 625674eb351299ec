"""Files of directions: one file is one trait, a vector for one layer or for several.

Written are .safetensors files with a tensor `layer_16` per layer and, as metadata, how they were found. Read are these;
any other .safetensors with one vector, or vectors that are each named after their layer; .npy and .pt with one vector,
or with one per layer, first to last; and .pt with a dict from layers to vectors. A lone vector belongs to the layer
that the file's name ends in, as in the Gemma capture's `probe_layer16.pt`, or to none.
"""

import json
import re
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.analysis.directions import Direction
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.formats.tensor_files import write_tensor_file
from traceformer.formats.whole import appearing_whole
from traceformer.models.weights import open_file
from traceformer.plain_json import parse_json
from traceformer.shapes import Float32, Shaped
from traceformer.store.files import free_space
from traceformer.store.objects.path import disk_path

__all__ = ["read_all_directions", "read_direction", "write_direction", "written_direction"]

_FORMAT = "traceformer directions 1"
_OF_LAYER = re.compile(r"(?:.*[_.-])?(?:layers?|L)[_.-]?(\d{1,6})|(\d{1,6})")
# What numpy raises, one or the other, where a header is damaged, which is a dict as Python writes it.
_DAMAGED = (
    *(ValueError, TypeError, LookupError, OverflowError, EOFError, OSError, SyntaxError, RecursionError, MemoryError),
    tokenize.TokenError,
)


def read_direction(path: Path) -> Direction:
    """Returns the trait's direction in a .safetensors, .npy or .pt file.

    Raises:
        NotFound: no such file.
        Unreadable: it holds no vectors of floating-point numbers, or they are NaN, infinite, zero or of several widths.
    """
    kinds = {".safetensors": _read_safetensors, ".npy": _read_npy, ".pt": _read_pt}
    if path.suffix not in kinds:
        raise Unreadable(f"{path} is no file of directions", why=f"its name ends in none of {', '.join(kinds)}")
    if not path.is_file():
        raise NotFound(f"no file {path}")
    found, about = kinds[path.suffix](path)
    if not found:
        raise Unreadable(f"{path} holds no vectors")
    if set(found) == {None}:
        found = {_layer_of(path.stem): found[None]}
    by_layer = {
        layer: _checked(values, f"{path}, layer {layer}" if layer is not None else str(path))
        for layer, values in found.items()
    }
    widths = sorted({len(values) for values in by_layer.values()})
    if len(widths) > 1:
        raise Unreadable(f"{path} holds vectors of several widths", why=", ".join(map(str, widths)))
    name, quality = about.pop("name", None), about.pop("quality", {})
    return Direction(name if isinstance(name, str) else path.stem, by_layer, about, quality)


def written_direction(path: Path) -> bool:
    """Returns whether a .safetensors file is one that `write_direction` wrote; no numbers are read."""
    try:
        return open_file(path)[1].get("format") == _FORMAT
    except (NotFound, Unreadable):
        return False


def write_direction(direction: Direction, path: str | Path) -> None:
    """Writes a .safetensors file.

    Raises:
        OutOfSpace: the disk is full.
    """
    path = disk_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {layer: "vector" if layer is None else f"layer_{layer}" for layer in direction.by_layer}
    tensors = {names[layer]: np.ascontiguousarray(values) for layer, values in direction.by_layer.items()}
    quality = {str(layer): dict(own) for layer, own in direction.quality.items()}
    told = {**direction.about, "name": direction.name, **({"quality": quality} if quality else {})}
    about = {name: json.dumps(value) for name, value in told.items()}
    with free_space(path.parent), appearing_whole(path) as part:
        write_tensor_file(part, tensors, {"format": _FORMAT, **about})


_Found = tuple[dict[int | None, Shaped[np.ndarray, "..."]], dict[str, Any]]


def _read_safetensors(path: Path) -> _Found:
    tensors, metadata = open_file(path)
    if metadata.get("format") == _FORMAT:
        about = _about(metadata, path)
    else:  # what others call quality is another thing
        about = {name: value for name, value in metadata.items() if name != "quality"}
    values = {name: tensor.read() for name, tensor in tensors.items()}
    return _by_layer(values, path), about


def _about(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What a file of ours says."""
    try:
        about = {name: parse_json(value) for name, value in metadata.items() if name != "format"}
    except ValueError as error:
        raise Unreadable(f"{path}: its metadata is not what `vectors fit` writes", why=str(error)) from error
    quality = about.get("quality", {})
    if not isinstance(quality, dict) or not all(isinstance(own, dict) for own in quality.values()):
        raise Unreadable(f"{path}: its quality is no dict of each layer's")
    # JSON has no numbers for keys.
    return {**about, "quality": {int(name) if name.isdecimal() else None: own for name, own in quality.items()}}


def _read_npy(path: Path) -> _Found:
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # np.load would open an archive of that name, too
            warnings.simplefilter("ignore", UserWarning)  # that a header looks like Python 2's
            values = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise Unreadable(f"{path} is no .npy file of numbers", why=str(error).partition("\n")[0]) from error
    return _rows(values), {}


def _read_pt(path: Path) -> _Found:
    from traceformer.formats.torch_files import read_torch_file

    values = read_torch_file(path)
    if isinstance(values, dict):
        return _by_layer(values, path), {}
    if not isinstance(values, np.ndarray):
        raise Unreadable(
            f"{path} holds {type(values).__name__}", why="a vector, or a dict from layers to vectors, is read"
        )
    return _rows(values), {}


def _rows(values: Shaped[np.ndarray, "..."]) -> dict[int | None, Shaped[np.ndarray, "..."]]:
    if values.ndim == 2 and len(values) > 1:
        return dict(enumerate(values))
    return {None: values.reshape(-1) if values.ndim == 2 else values}


def _by_layer(values: Mapping[Any, Any], path: Path) -> dict[int | None, Shaped[np.ndarray, "..."]]:
    """Vectors by the number in their names; one alone may be called anything."""
    if len(values) == 1:
        [(name, value)] = values.items()
        return {_layer_of(name): np.asarray(value)}
    found: dict[int | None, Shaped[np.ndarray, "..."]] = {}
    for name, value in values.items():
        layer = _layer_of(name)
        if layer is None or layer in found:
            raise Unreadable(
                f"{path}: which layer is {str(name)!r} for?",
                why="vectors are named after their layers: layer_16, L16, 16",
            )
        found[layer] = np.asarray(value)
    return found


def _layer_of(name: str | int) -> int | None:
    """The layer in `16`, `layer_16`, `probe_layer16` or `kindness.L16`."""
    named = _OF_LAYER.fullmatch(str(name))
    return int(named[1] or named[2]) if named else None


def _checked(values: Shaped[np.ndarray, "..."], where: str) -> Float32[np.ndarray, "d"]:
    if not np.issubdtype(values.dtype, np.floating):
        raise Unreadable(f"{where}: {values.dtype} where a vector of floating-point numbers should be")
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim != 1 or not values.size:
        raise Unreadable(f"{where}: shape {values.shape} where a vector should be")
    if not np.isfinite(values).all():
        raise Unreadable(f"{where}: the vector holds NaN or inf")
    if not values.any():
        raise Unreadable(f"{where}: the vector is all zeros")
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise Unreadable(f"{where}: the vector holds numbers beyond float32")
    return narrow


def read_all_directions(given: Sequence[Direction | str | Path]) -> dict[str, Direction]:
    """Returns directions, or those in files, by their names; where two have the same, their paths tell them apart.

    Raises:
        NotFound, Unreadable: as `read_direction` raises them.
        UsageError: one is given twice.
    """
    asked: Sequence[Any] = given
    for own in asked:
        if not isinstance(own, Direction | str | PathLike):
            raise UsageError(f"{type(own).__name__} is no direction", hint="what fit_direction gave, or its file")
    read = [own if isinstance(own, Direction) else read_direction(Path(own)) for own in given]
    names = [own.name for own in read]
    named: dict[str, Direction] = {}
    for source, own in zip(given, read, strict=True):
        name = own.name if names.count(own.name) == 1 or isinstance(source, Direction) else str(source)
        if name in named:
            raise UsageError(f"the direction {name} is given twice", hint="give each a name of its own")
        named[name] = own
    return named
