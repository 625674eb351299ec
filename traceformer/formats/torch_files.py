"""What torch saved, read as numpy arrays; only tensors and plain containers of them, never code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

from traceformer.errors import NotFound, Unreadable

__all__ = ["read_torch_file"]


def read_torch_file(path: Path) -> Any:
    """Returns what a .pt file holds, its tensors as numpy arrays (bfloat16 as float32), its containers as they are.

    Raises:
        NotFound: no such file.
        Unreadable: it is no .pt file, or holds objects that would run code when they are read.
    """
    import torch

    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what matters is what it holds
            return _as_numpy(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise Unreadable(
            f"{path} holds more than tensors",
            why="objects of other classes can run code when they are read, so none of it was read",
            hint="save its tensors as .safetensors",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise Unreadable(f"{path} is no .pt file, or not all of one", why=str(error).partition("\n")[0]) from error


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
