"""Which blocks take what the block before them made, bit for bit: watched in passes that are made anyway.

    with HandedOn(model) as handed_on:
        prove_first(model, plan, rows, tokens)
    handed_on.aliases(plan.arrays)

What a block made is kept as a copy until the next one is called, so that a change in place is seen, too.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from traceformer.capture.spots import aliases_of
from traceformer.capture.tensors import first_input, first_output
from traceformer.models.held import underneath
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import text_part
from traceformer.sites import ArraySpec, Stack
from traceformer.store.aliases import Rows

__all__ = ["HandedOn"]


class HandedOn:
    """Watches a model's blocks as long as the `with` block lasts.

    Attributes:
        seen: For each block that was called but the first, whether it was always given what the one before it made.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.seen: dict[tuple[Stack, int], bool] = {}
        self._model = model
        self._made: dict[tuple[Stack, int], Tensor] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        base: Any = text_part(underneath(self._model.model))
        with ExitStack() as undo:
            for stack, row in self._model.built.stacks.items():
                blocks: Sequence[nn.Module] = list(base.get_submodule(row.blocks))
                for layer, block in enumerate(blocks):
                    undo.callback(block.register_forward_pre_hook(self._taker(stack, layer), with_kwargs=True).remove)
                    undo.callback(block.register_forward_hook(self._maker(stack, layer)).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self._made.clear()

    def aliases(self, arrays: Sequence[ArraySpec]) -> dict[Rows, Rows]:
        """Returns which layers of the arrays are another one's, by their places and by what was seen."""
        depths: dict[Stack, int] = {stack: dims.n_layers for stack, dims in self._model.dims.stacks.items()}
        handed_on = [block for block, always in self.seen.items() if always]
        return aliases_of(arrays, self._model.built, depths, handed_on)

    def forget(self) -> None:
        """Takes back what was seen: what follows is not alike."""
        self.seen.clear()

    def _maker(self, stack: Stack, layer: int) -> Callable[..., None]:
        def made(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = first_output(output)
            if tensor is not None:
                self._made[stack, layer] = tensor.detach().clone()

        return made

    def _taker(self, stack: Stack, layer: int) -> Callable[..., None]:
        def taken(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            made, given = self._made.pop((stack, layer - 1), None), first_input(args, kwargs)
            if layer > 0:
                same = made is not None and given is not None and _are_equal(made, given)
                self.seen[stack, layer] = same and self.seen.get((stack, layer), True)

        return taken


def _are_equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.to(one.device).contiguous().view(torch.uint8))
