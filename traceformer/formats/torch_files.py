"""What torch saved, as numpy arrays, and arrays as torch saves them: plain containers of tensors, never code."""

import pickle
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traceformer.errors import NotFound, Unreadable
from traceformer.formats.whole import appearing_whole
from traceformer.shapes import Float

__all__ = ["Part", "more_than_tensors", "read_torch_file", "write_torch_file"]

# What torch raises, one or the other, where bytes of a file are missing or changed.
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    struct.error,
)


class Part(NamedTuple):
    """A part of an array, `array[at]`; a file holds the numbers of an array once, however many parts it has."""

    array: Float[np.ndarray, "..."]
    at: tuple[slice | None, ...] = ()


def write_torch_file(path: Path, value: Any, dtype: str) -> None:
    """Writes containers of numbers, texts and `Part`s, these as tensors of a dtype; the file appears whole or not.

    Parts of one array become views of one tensor, and `torch.load` gives them back as such. The same value is the same
    bytes each time.
    """
    import torch

    tensors: dict[int, torch.Tensor] = {}

    def as_torch(value: Any) -> Any:
        if isinstance(value, Part):
            if id(value.array) not in tensors:
                whole = torch.from_numpy(np.require(value.array, requirements=["C", "W"]))
                tensors[id(value.array)] = whole.to(getattr(torch, dtype))
            return tensors[id(value.array)][value.at]
        if isinstance(value, dict):
            return {name: as_torch(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [as_torch(each) for each in value]
        return value

    # Given a path, torch writes its stem into the archive, and while a file is written its name is a passing one.
    with appearing_whole(path) as part, part.open("wb") as file:
        torch.save(as_torch(value), file)


def read_torch_file(path: Path) -> Any:
    """Returns what a .pt file holds, its tensors as numpy arrays (bfloat16 as float32), its containers as they are.

    Raises:
        NotFound: no such file.
        Unreadable: it is no .pt file, or holds objects that would run code when they are read, or
            tensors that are no plain arrays of numbers.
    """
    import torch

    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what matters is what it holds
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise more_than_tensors(path) from error
    except _DAMAGED as error:
        why = "" if isinstance(error, LookupError) else str(error).partition("\n")[0]
        raise Unreadable(f"{path} is no .pt file, or not all of one", why=why) from error
    try:
        return _as_numpy(found)
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without numbers, or of 8 bits
        raise Unreadable(
            f"{path} holds a tensor that is no plain array",
            why=str(error).partition("\n")[0],
            hint="save it as float32",
        ) from error


def more_than_tensors(path: Path, why: str = "") -> Unreadable:
    """Returns what is raised where a .pt file asks for objects of other classes; `why` says which."""
    code = "objects of other classes can run code when they are read, so none of it was read"
    return Unreadable(
        f"{path} holds more than tensors",
        why=f"{why}; {code}" if why else code,
        hint="save its tensors as .safetensors",
    )


def _as_numpy(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(value, dict):
        return {name: _as_numpy(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_numpy(each) for each in value]
    return value
