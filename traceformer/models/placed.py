"""Where a model's weights are: on one device, on several, or in memory or on disk until they are used, by accelerate.

A weight that is kept elsewhere is on no device between passes (`meta`). accelerate's hook of the module, or of one
around it, knows where it is.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from traceformer.errors import Unsupported, UsageError, check_choice
from traceformer.shapes import Shaped

__all__ = ["Weights", "check_map", "devices_of", "elsewhere", "input_device", "onloaded", "refuse_elsewhere"]


_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_map(
    device_map: str | Mapping[str, int | str], device: str | None, adapter: str | Path | None, model: Any
) -> None:
    """Makes sure that a model can be spread over devices in this way.

    Raises:
        UsageError: no such way, a device that is not here, or something that no map can be given with.
    """
    if isinstance(device_map, str):
        check_choice("device_map", device_map, _MAPS)
    elif not device_map:
        raise UsageError("`device_map={}`", why="no module has a place", hint='{"": "cpu"}, or "auto"')
    else:
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        missing = [place for place in device_map.values() if not there.get(str(place).split(":")[0], True)]
        if missing:
            raise UsageError(f"no device {missing[0]!r} here", hint='"cpu", "disk", or `device_map="auto"`')
    if device is not None:
        raise UsageError("`device` and `device_map`", why="a model is on one device, or on those of the map")
    if adapter is not None:
        raise UsageError("`adapter` and `device_map`", why="PEFT would have to place its own layers, too")
    if isinstance(model, str) and model.startswith("nanochat:"):
        raise UsageError("`device_map` of a nanochat checkpoint", why="it is read whole")


def input_device(model: nn.Module) -> torch.device:
    """Returns the device that a model takes its inputs on: where its first weights are used."""
    first = next(model.parameters())
    if not first.is_meta:
        return first.device
    for module in model.modules():
        hook = _hook_of(module)
        if hook is not None and hook.offload and hook.execution_device is not None:
            return _device(hook.execution_device)
    return first.device


def devices_of(model: nn.Module) -> list[torch.device]:
    """Returns the devices that a model's weights are used on, the one that takes its inputs first."""
    found = [input_device(model)]
    for _, tensor in _named(model):
        if not tensor.is_meta and tensor.device not in found:
            found.append(tensor.device)
    return found


def elsewhere(model: nn.Module) -> list[str]:
    """Returns the names of the weights that are in memory or on disk until they are used."""
    return [name for name, tensor in _named(model) if tensor.is_meta and _kept(model, name) is not None]


def refuse_elsewhere(model: nn.Module, what: str) -> None:
    """Makes sure that all weights are on a device.

    Raises:
        Unsupported: some are elsewhere until they are used.
    """
    names = elsewhere(model)
    if names:
        raise Unsupported(
            f"{what} of a model that is partly kept elsewhere, {names[0]} among it",
            why="a weight is on its device only while its own module runs",
            hint="a smaller model, or devices that have room for all of it",
        )


class Weights(Mapping[str, Tensor]):
    """All that a model's `state_dict` names, each read when it is asked for, also of what is kept elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors: Mapping[str, Tensor] = model.state_dict()

    def __getitem__(self, name: str) -> Shaped[Tensor, "..."]:
        tensor = self._tensors[name]
        if not tensor.is_meta:
            return tensor
        kept = _kept(self._model, name)
        if kept is None:
            return tensor
        weights, place = kept
        value = weights[place]
        return value if value.dtype == tensor.dtype or not value.is_floating_point() else value.to(tensor.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@contextmanager
def onloaded(module: nn.Module) -> Generator[None]:
    """Has a module's own weights on its device in the block."""
    hook = _hook_of(module)
    if hook is None or not hook.offload:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _hook_of(module: nn.Module) -> Any:
    """accelerate's hook that moves a module's weights, if it has one; it may be one of several."""
    own = getattr(module, "_hf_hook", None)
    for hook in getattr(own, "hooks", (own,)):
        if hook is not None and hasattr(hook, "weights_map") and hasattr(hook, "offload"):
            return hook
    return None


def _kept(model: nn.Module, name: str) -> tuple[Any, str] | None:
    """What keeps a weight, and its name there; accelerate's keepers list other names than they take."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        hook = _hook_of(model.get_submodule(".".join(parts[:cut])))
        place = ".".join(parts[cut:])
        if hook is not None and hook.offload and hook.weights_map is not None:
            return hook.weights_map, place
    return None


def _device(stated: Any) -> torch.device:
    return torch.device("cuda", stated) if isinstance(stated, int) else torch.device(stated)
