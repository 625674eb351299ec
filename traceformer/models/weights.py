"""A model folder's weights as its safetensors files hold them: by name, as float32, when asked for, without torch."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from traceformer.errors import NotFound, Unreadable
from traceformer.models.load import BUILT_IN, built_in_folder
from traceformer.plain_json import parse_json
from traceformer.shapes import Float, Float32, Int32
from traceformer.store.dtypes import decode

__all__ = [
    "ADAPTER_CONFIG",
    "StoredTensor",
    "adapter_digest",
    "check_index",
    "check_layers",
    "digest_of_model",
    "files_digest",
    "find_model_folder",
    "open_file",
    "open_folder",
    "read_config",
    "read_json",
]

ADAPTER_CONFIG = "adapter_config.json"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_BLOCK = 16 << 20
_MANY_LAYERS = 1000
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}
_IDS = "I32"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file: where its bytes lie, and what they are."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def rows(self, first: int, last: int) -> Float32[np.ndarray, "row ..."]:
        """Returns the rows `first` .. `last` - 1 of its first axis; only these are read."""
        if 0 in self.shape:
            return np.empty(self.shape, np.float32)
        stored = np.memmap(self.path, self._numpy_dtype(), mode="r", offset=self.start, shape=self.shape)
        return _as_float32(np.array(stored[first:last]), self.dtype)

    def read(self) -> Float32[np.ndarray, "..."]:
        """Returns all of it."""
        if not self.shape:
            raise Unreadable(f"{self.name} in {self.path} is a single number")
        return self.rows(0, self.shape[0])

    def ids(self) -> Int32[np.ndarray, "..."]:
        """Returns all of a tensor of whole numbers."""
        if self.dtype != _IDS:
            raise Unreadable(f"{self.name} in {self.path} is {self.dtype}", why=f"token ids are {_IDS}")
        return np.fromfile(self.path, np.int32, math.prod(self.shape), offset=self.start).reshape(self.shape)

    def _numpy_dtype(self) -> np.dtype[Any]:
        if self.dtype not in _DTYPES:
            raise Unreadable(
                f"{self.name} in {self.path} is {self.dtype}", why=f"what can be read is {', '.join(_DTYPES)}"
            )
        return _DTYPES[self.dtype]


def _as_float32(stored: np.ndarray[Any, Any], dtype: str) -> Float[np.ndarray, "..."]:
    return (decode(stored, "bfloat16") if dtype == "BF16" else stored).astype(np.float32, copy=False)


def open_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, by name, and its metadata; no numbers are read.

    Raises:
        NotFound: no such file.
        Unreadable: it is no safetensors file, or cut short.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        with safe_open(path, "numpy"):  # checks that every tensor lies inside the file, beside no other
            pass
    except SafetensorError as error:
        raise Unreadable(f"{path} is not a safetensors file, or not all of one", why=str(error)) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = parse_json(file.read(length))
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    tensors = {
        name: StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
    return tensors, metadata


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """Returns all tensors of a model folder, by name, from as many files as there are.

    Raises:
        NotFound: the folder holds no safetensors weights.
        Unreadable: a file is damaged, or lacks a tensor that the index names.
    """
    found: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        found |= open_file(path)[0]
    missing = [name for name in _weight_map(folder) if name not in found]
    if missing:
        raise Unreadable(f"{folder} lacks {missing[0]}", why=f"{_INDEX} names it")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a model folder's config.json.

    Raises:
        NotFound: there is none.
        Unreadable: it is no JSON object.
    """
    if not (folder / _CONFIG).is_file():
        raise NotFound(f"no {_CONFIG} in {folder}")
    return read_json(folder / _CONFIG)


def files_digest(folder: Path) -> str:
    """Returns a 128-bit hash (XXH3) over the config and all weights of a model folder, as its files hold them.

    Raises:
        NotFound: the folder holds no config, or no safetensors weights.
    """
    read_config(folder)
    return _digest_of((folder / _CONFIG, *_weight_files(folder)))


def adapter_digest(folder: Path) -> str:
    """Returns `files_digest`'s hash over the configuration and the weights of an adapter, as its files hold them.

    Raises:
        NotFound: the folder holds no adapter.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise NotFound(f"no adapter in {folder}", why=f"there is no {ADAPTER_CONFIG}")
    return _digest_of((folder / ADAPTER_CONFIG, *sorted(folder.glob("adapter_model.*"))))


def _digest_of(paths: Sequence[Path]) -> str:
    found = [(path, path.stat()) for path in paths]
    return _files_digest(tuple((path.absolute(), stat.st_size, stat.st_mtime_ns) for path, stat in found))


@cache  # one process may record many runs of a model: files that nobody touched are not read again
def _files_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for path, size, _ in files:
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def digest_of_model(source: str, revision: str | None = None) -> str | None:
    """Returns `files_digest` of a model by the name it was loaded under; None where it has no safetensors files."""
    try:
        return files_digest(find_model_folder(source, revision))
    except NotFound:
        return None


def find_model_folder(source: str, revision: str | None = None, *, config: str = _CONFIG) -> Path:
    """Returns where a model of this name lies: a folder itself, a built-in model's, or a Hub model's in the cache.

    It is known by its `config`; an adapter by ADAPTER_CONFIG.

    Raises:
        NotFound: it is none of these.
    """
    if source in BUILT_IN:
        return built_in_folder(source)
    folder = Path(source)
    if (folder / config).is_file():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(source, config, revision=revision)
    except HFValidationError:  # a path, so no name of the Hub
        cached = None
    if not isinstance(cached, str):
        raise NotFound(f"no model at {source}", why="neither a model folder nor a model in the Hub's cache")
    return Path(cached).parent


def _weight_files(folder: Path) -> list[Path]:
    names = set(_weight_map(folder).values()) or {_WEIGHTS}
    paths = [folder / name for name in sorted(names)]
    for path in paths:
        if not os.path.isfile(path):  # false, too, of a name that no file can have
            raise NotFound(f"no {path.name} in {folder}", why="weights are read from safetensors files")
    return paths


def check_index(folder: Path) -> None:
    """Makes sure that the index of a model's weights, if there is one, names files beside itself.

    Raises:
        Unreadable: it is no index, or names files elsewhere.
    """
    _weight_map(folder)


def check_layers(folder: Path, layers: int) -> None:
    """Makes sure that a model folder's weights may be those of so many layers.

    A config that says a wrong number is found out by its weights' names, but only once every layer has been made:
    twenty thousand take more than a minute. Layers may share weights, so a number that a model might have is let pass.

    Raises:
        Unreadable: there are over a thousand layers, and fewer tensors.
    """
    if layers <= _MANY_LAYERS:
        return
    tensors = len(open_folder(folder))
    if layers > tensors:
        raise Unreadable(f"{folder} has {layers} layers by its {_CONFIG}, but only {tensors} tensors")


def _weight_map(folder: Path) -> Mapping[str, str]:
    """The file in which each tensor lies, by the folder's index; empty where there is none."""
    path = folder / _INDEX
    if not path.is_file():
        return {}
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise Unreadable(f"{path} lists no weights", why="it has no weight_map with the file of each tensor")
    for name in listed.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise Unreadable(f"{path} names {name!r}", why="the weights of a model lie in its own folder, as files")
    return listed


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        Unreadable: there is none in it.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON", why=str(error)) from error
    if not isinstance(data, dict):
        raise Unreadable(f"{path} is no JSON object")
    return data
