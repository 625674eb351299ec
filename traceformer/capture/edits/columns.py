"""Where the columns of a pass stand in their texts, seen from what the model is given.

1. A pass that adds to no cache begins new texts. Its mask says which columns are padding; the others count from 0.
2. A pass beside a cache goes on where the one before it ended. What the first one read is then a prompt, and what comes
   after it a response.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from traceformer.errors import Unsupported
from traceformer.sites import Stack

__all__ = ["Columns", "Texts"]

_CACHES = ("past_key_values", "cache_params", "cache")


@dataclass(slots=True)
class Texts:
    """The texts of one stack's passes.

    Attributes:
        now: For each column of the pass at hand its position in its text, -1 for padding: (batch, column).
        so_far: Likewise for all columns since the texts began.
        lengths: The tokens of each text in its first pass.
        ids: The token ids of the first pass, if it was given ids.
        grows: Whether passes may follow.
    """

    now: Tensor
    so_far: Tensor
    lengths: Sequence[int]
    ids: Tensor | None
    grows: bool

    def columns_of(self, n_columns: int, *, of_keys: bool) -> Tensor:
        """The positions of a tensor's columns: of the pass's own, or of the keys that a cache of this width holds."""
        if not of_keys or n_columns == self.now.shape[1]:
            return self.now if n_columns == self.now.shape[1] else self.now[:, -n_columns:]
        seen = self.so_far.shape[1]
        if n_columns <= seen:  # a window keeps the last ones
            return self.so_far[:, seen - n_columns :]
        return nn.functional.pad(self.so_far, (0, n_columns - seen), value=-1)  # a static cache is padded


@dataclass(slots=True)
class Columns:
    """Context manager: while it lasts, `texts` says where the columns of each stack's latest pass stand."""

    model: Any
    stacks: Sequence[Stack]
    texts: dict[Stack, Texts] = field(default_factory=dict[Stack, Texts])
    _undo: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        both = len(self.stacks) > 1
        for module in {self.model, self.model.base_model}:  # some heads call the decoder of their base model only
            self._watch(module, self.stacks[-1], "decoder_" if both else "")
        if both:
            self._watch(self.model.get_encoder(), "enc", "")
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self.texts.clear()

    def _watch(self, module: nn.Module, stack: Stack, prefix: str) -> None:
        signature = inspect.signature(module.forward)

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = signature.bind_partial(*args, **kwargs).arguments
            for each in signature.parameters.values():
                if each.kind is inspect.Parameter.VAR_KEYWORD:
                    given = {**given, **given.get(each.name, {})}
            self._read(stack, given, prefix)

        self._undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)

    def _read(self, stack: Stack, given: Mapping[str, Any], prefix: str) -> None:
        ids, embeds = (given.get(f"{prefix}{name}") for name in ("input_ids", "inputs_embeds"))
        shown = ids if ids is not None else embeds
        if shown is None:
            self.texts.pop(stack, None)
            return
        batch, n_columns = shown.shape[:2]
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        seen = 0 if cache is None or stack == "enc" else int(cache.get_seq_length())
        mask = given.get(f"{prefix}attention_mask")
        before = self.texts.get(stack)
        if seen and (before is None or before.so_far.shape[0] != batch or before.so_far.shape[1] < seen):
            raise Unsupported(
                "a cache that was filled outside of the edit",
                why="where its tokens stand is not known",
                hint="run the text from its beginning inside the `with` block",
            )
        real = _real(mask, batch, n_columns, seen)
        if seen:
            assert before is not None
            earlier = before.so_far[:, :seen]
            counts = (earlier >= 0).sum(1, keepdim=True)
            now = torch.where(real, counts + real.cumsum(1) - 1, -1)
            self.texts[stack] = Texts(now, torch.cat([earlier, now], 1), before.lengths, before.ids, True)
            return
        now = torch.where(real, real.cumsum(1) - 1, -1)
        read = None if ids is None else ids.detach().cpu()
        self.texts[stack] = Texts(now, now, real.sum(1).tolist(), read, cache is not None)


def _real(mask: Any, batch: int, n_columns: int, seen: int) -> Tensor:
    """Which columns of a pass are no padding: (batch, column)."""
    if mask is None:
        return torch.ones(batch, n_columns, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise Unsupported(
            "an attention mask that is not (batch, position)",
            why="where texts begin and end is read from it",
            hint="give the tokenizer's own attention_mask",
        )
    own = mask[:, -n_columns:] if mask.shape[1] == n_columns else mask[:, seen : seen + n_columns]
    return own.detach().cpu().bool()
