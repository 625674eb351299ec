"""Apple's GPU played by the processor: numbers are those of the processor, and what lies where is as it would be there.

    with FakeMps():
        model.to("mps")

Tensors that are made on the device, or of such, are marked. What Apple's GPU would refuse is refused:

1. Numbers of float64 on the device.
2. Computing with tensors of both places at once, but for single numbers and indices.
3. Giving numpy what lies on the device.

It is no GPU: kernels that torch lacks there, and how they round, are not known from it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

_PROCESSOR, _GPU = torch.device("cpu"), torch.device("mps:0")
_MARK = "_on_fake_mps"
# What may be given tensors of both places, or moves them.
_ACROSS = {
    "_has_compatible_shallow_copy_type",
    "copy_",
    "__getitem__",
    "__setitem__",
    "index_put_",
    "index_put",
    "to",
    "type_as",
    "set_data",
    "_set_data",
}
_TO_NUMPY = {"numpy", "__array__"}


def is_on_gpu(value: object) -> bool:
    return isinstance(value, Tensor) and _MARK in value.__dict__


class FakeMps(TorchFunctionMode):
    """A `with` block in which `mps` is a device."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "_parse_to":  # what `Module.to` was told
            return func(*args, **kwargs)
        if name == "__get__":
            return _property(owner, func, args)
        if name == "__set__":
            func(*args)
            if owner is torch._C.TensorBase.__dict__.get("data") and is_on_gpu(args[1]):
                _mark(args[0])
            return None
        tensors = list(_tensors((*args, *kwargs.values())))
        of_gpu = [tensor for tensor in tensors if is_on_gpu(tensor)]
        if name in _TO_NUMPY and of_gpu:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
        asked = [value for value in (*args, *kwargs.values()) if _device(value) is not None]
        if name in ("cpu", "to") and args and isinstance(args[0], Tensor):
            return _moved(name, func, args, kwargs, asked)
        if of_gpu and name not in _ACROSS and len(of_gpu) < len(tensors):
            others = [tensor for tensor in tensors if not is_on_gpu(tensor) and Tensor.dim.__get__(tensor)()]
            if others:
                raise RuntimeError(f"Expected all tensors to be on the same device, in {resolve_name(func) or name}")
        goes_there = bool(of_gpu) or any(_device(value) == "mps" for value in asked)
        if any(_device(value) == "cpu" for value in asked) or name in ("tolist", "item"):
            goes_there = False
        in_place = name.endswith("_") and not name.endswith("__")
        result = func(*_on_processor(args), **dict(zip(kwargs, _on_processor(kwargs.values()), strict=True)))
        if goes_there and not in_place:
            for tensor in _tensors((result,)):
                _mark(tensor)
        return result


def _property(owner: Any, func: Any, args: Sequence[Any]) -> Any:
    own = args[0] if args else None
    if is_on_gpu(own):
        if owner is Tensor.__dict__.get("device") or owner is torch._C.TensorBase.__dict__.get("device"):
            return _GPU
        if owner is torch._C.TensorBase.__dict__.get("is_mps"):
            return True
        if owner is torch._C.TensorBase.__dict__.get("is_cpu"):
            return False
    found = func(*args)
    if is_on_gpu(own) and isinstance(found, Tensor):
        _mark(found)
    return found


def _moved(name: str, func: Any, args: Sequence[Any], kwargs: Any, asked: Sequence[Any]) -> Tensor:
    source = args[0]
    like = next((value for value in args[1:] if isinstance(value, Tensor)), None)
    if name == "cpu":
        there = False
    elif asked:
        there = _device(asked[0]) == "mps"
    else:
        there = is_on_gpu(source if like is None else like)
    moved = func(*_on_processor(args), **dict(zip(kwargs, _on_processor(kwargs.values()), strict=True)))
    if moved is source and there != is_on_gpu(source):
        moved = source.detach().clone()
        moved.__dict__.pop(_MARK, None)
    if there:
        _mark(moved)
    else:
        moved.__dict__.pop(_MARK, None)
    return moved


def _mark(tensor: Tensor) -> None:
    if tensor.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    setattr(tensor, _MARK, True)


def _device(value: object) -> str | None:
    if isinstance(value, torch.device):
        return value.type
    return value.partition(":")[0] if isinstance(value, str) and value.partition(":")[0] in ("mps", "cpu") else None


def _on_processor(values: Iterable[Any]) -> list[Any]:
    return [_PROCESSOR if _device(value) == "mps" else value for value in values]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
