"""What only a pass tells of a model: whether its tokens look at later ones, and where its tables of positions begin.

1. A pass of a few tokens shows which embeddings are looked up with consecutive numbers: those of positions. Some
   families leave out the first rows of such a table, up to the padding id; what they begin with is seen.
2. A second pass, with another token in the middle, shows which other tokens that one changes: later ones in any case,
   and earlier ones only in a model that looks ahead.
"""

import inspect
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from traceformer.models.loaded import n_embeddings_of
from traceformer.models.part import text_config
from traceformer.sites import Stack

__all__ = ["Behaviour", "behaviour_of", "evaluating"]

_TOKENS: Mapping[Stack, int] = {"enc": 8, "dec": 6}  # unequal, so that it is plain which stack a table serves
_MIDDLE = 4
_LOOKS_AHEAD = 0.05  # of what a token changes behind it: far above rounding, far below what attention does

# What a class raises that does not run on token ids alone.
_MISFITS = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


class Behaviour(NamedTuple):
    """What a tiny pass showed.

    `looks_ahead` is None where a model does not run on token ids alone, or has an encoder and a decoder; `positions`
    are how many a stack has a table for, of stacks that have one.
    """

    looks_ahead: bool | None
    positions: Mapping[Stack, int]


_seen: "weakref.WeakKeyDictionary[nn.Module, Behaviour]" = weakref.WeakKeyDictionary()


def behaviour_of(model: PreTrainedModel) -> Behaviour:
    """Returns what a tiny pass of a model shows, made once: weights that change do not change it."""
    base = model.base_model
    if base not in _seen:
        _seen[base] = _observe(base)
    return _seen[base]


def _observe(base: Any) -> Behaviour:
    from traceformer.models.load import quiet

    is_encdec = bool(getattr(base.config, "is_encoder_decoder", False))
    ids = _tokens(base)
    tables = _Tables()
    with torch.no_grad(), evaluating(base), quiet(transformers):
        try:
            with tables:
                first = _last_hidden_state(base, ids, is_encdec)
            changed = ids.clone()
            changed[_MIDDLE] = ids[-1]
            second = None if is_encdec else _last_hidden_state(base, changed, is_encdec)
        except torch.OutOfMemoryError:
            raise
        except _MISFITS:
            return Behaviour(None, {})
    found: dict[Stack, int] = {}
    for length, positions in tables.found:
        stacks: list[Stack] = (
            [stack for stack, own in _TOKENS.items() if length == own] if is_encdec else ["enc", "dec"]
        )
        for stack in stacks:
            found[stack] = min(positions, found.get(stack, positions))
    if second is None:
        return Behaviour(None, found)
    effect = (second.cpu().double() - first.cpu().double()).abs().amax(dim=(0, 2))
    before, behind = effect[:_MIDDLE].max(), effect[_MIDDLE + 1 :].max()
    return Behaviour(bool(before > _LOOKS_AHEAD * behind), found)


def _tokens(base: Any) -> Tensor:
    """Tokens from the middle of the vocabulary, none of which means something to the model, in falling order."""
    size = n_embeddings_of(base)
    stated = {
        value
        for config in (base.config, text_config(base.config))
        for name, value in config.to_dict().items()
        if name.endswith("token_id")  # pyright: ignore
        and isinstance(value, int)
    }
    plain = [token for token in range(size // 2 + _TOKENS["enc"], -1, -1) if token not in stated]
    return torch.tensor(plain[: _TOKENS["enc"]], device=base.device)


def _last_hidden_state(base: Any, ids: Tensor, is_encdec: bool) -> Tensor:
    taken = inspect.signature(base.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids[None]}
    if is_encdec:
        inputs["decoder_input_ids"] = ids[None, : _TOKENS["dec"]]
    if "attention_mask" in taken:
        inputs["attention_mask"] = torch.ones_like(ids)[None]
    if "use_cache" in taken:
        inputs["use_cache"] = False
    output = base(**inputs)
    several = output if isinstance(output, tuple) else (output,) if isinstance(output, Tensor) else [*output.values()]
    hidden: Tensor = several[0]  # a class of the user's own may have another name for it
    if hidden.dim() != 3:
        raise ValueError("no (batch, position, width)")
    return hidden


class _Tables(TorchDispatchMode):
    """Notes embeddings that are looked up with consecutive numbers: how many, and the rows from the first one on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            self._note(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, weight: Tensor, rows: Tensor) -> None:
        if rows.numel() != rows.shape[-1]:
            return
        numbers: list[int] = rows.flatten().tolist()
        length = next((n for n in range(1, len(numbers)) if numbers[n] != numbers[n - 1] + 1), len(numbers))
        if length in _TOKENS.values():  # padding may follow
            self.found.append((length, weight.shape[0] - numbers[0]))


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Has a model in eval mode in the block, each of its modules in what it was behind it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
