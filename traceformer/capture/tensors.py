"""The tensors of a module's call: what it is called on, what it makes, and which part of them a tap names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from traceformer.models.dims import StackDims
from traceformer.models.family import Tap
from traceformer.sites import SITES

__all__ = ["first_input", "first_output", "own_output", "part_of", "routing_in"]


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the tensor that a module is called on: its first argument, whatever it is called."""
    given = (*args, *([kwargs["hidden_states"]] if "hidden_states" in kwargs else ()), *kwargs.values())
    return next((each for each in given if isinstance(each, Tensor)), None)


def first_output(output: Any) -> Tensor | None:
    """Returns the tensor that a module makes, the first of several."""
    several = output if isinstance(output, tuple) else output.values() if isinstance(output, Mapping) else (output,)
    return next((each for each in several if isinstance(each, Tensor)), None)


def routing_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Returns to which experts tokens go, and what outputs are multiplied by: (token, rank) twice, the heaviest first.

    Experts are given tokens, the numbers of the experts of each, and as many weights. None where a module is not.
    """
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    numbers = [each for each in given if each.dim() == 2 and each.dtype in (torch.int32, torch.int64)]
    weights = [each for each in given if numbers and each.shape == numbers[0].shape and each.is_floating_point()]
    if len(numbers) != 1 or len(weights) != 1:
        return None
    heaviest, order = weights[0].sort(dim=1, descending=True, stable=True)
    return numbers[0].gather(1, order), heaviest


def own_output(output: Any) -> Tensor | None:
    """Returns a model's own output: (batch, position, word), (batch, label) or (batch, position, label).

    Where an answer starts and where it ends are two labels of a token. None without a head.
    """
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output if isinstance(output, Tensor) else getattr(output, "logits", None)


def part_of(rows: Tensor, tap: Tap, dims: StackDims) -> Tensor:
    """Returns the part of a tensor that a tap names; one of a fused per-head projection comes split by head."""
    if tap.part in ("whole", "expert ids", "expert weights"):
        return rows
    if tap.part in ("first half", "second half") and tap.fused == "per_head":
        return rows.unflatten(-1, (dims.n_heads, -1)).chunk(2, dim=-1)[tap.part == "second half"].transpose(1, 2)
    if tap.part in ("first half", "second half"):
        return rows.chunk(2, dim=-1)[tap.part == "second half"]
    if tap.part in ("heads' first half", "heads' second half"):
        return rows.unflatten(-1, (dims.n_heads, 2, -1)).select(-2, int(tap.part == "heads' second half")).flatten(-2)
    if tap.fused == "per_head":
        group = dims.n_heads // dims.n_kv_heads
        first, last = {"q": (0, group), "k": (group, group + 1), "v": (group + 1, group + 2)}[tap.part]
        grouped = rows.unflatten(-1, (dims.n_kv_heads, group + 2, -1))
        return grouped[..., first:last, :].flatten(-3, -2).transpose(1, 2)
    sizes = [dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head, dims.n_kv_heads * dims.width_of(SITES["v"])]
    return rows.split(sizes, dim=-1)["qkv".index(tap.part)]
