"""A processor's batch of text, images and sounds, as a model's forward takes it.

A batch is one pass, whatever it holds: it goes to the model unchanged, on the model's device. Nothing is padded, parted
or put beside it, and no positions are passed that it does not hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from traceformer.capture.scores import Span
from traceformer.errors import UsageError

__all__ = ["Batches", "Given", "ProcessorBatch", "batches_in"]

ProcessorBatch: TypeAlias = Mapping[str, Any]
"""What a processor of transformers returns: `input_ids`, `attention_mask`, `pixel_values`, ... as tensors."""

Batches: TypeAlias = ProcessorBatch | Sequence[ProcessorBatch]


def batches_in(texts: Any) -> list[ProcessorBatch] | None:
    """Returns the batches of a processor that are to be read; None where something else is.

    Raises:
        UsageError: one of them has no `input_ids`.
    """
    batches: list[Any] = [texts] if isinstance(texts, Mapping) else list(texts) if _is_list_of_batches(texts) else []
    if not batches:
        return None
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise UsageError(
                f"batch {number} has no input_ids",
                hint="what the model's processor returns, with return_tensors='pt': processor(text=..., images=...)",
            )
    return batches


def _is_list_of_batches(texts: Any) -> bool:
    return isinstance(texts, list | tuple) and bool(texts) and isinstance(texts[0], Mapping)


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A processor's batch: what goes to the model, and where each row's true tokens are."""

    inputs: Mapping[str, Any]
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, batch: ProcessorBatch, number: int) -> "Given":
        """Returns a batch as tensors.

        Raises:
            UsageError: its ids are no matrix, or its mask hides tokens between others, or all of a row.
        """
        inputs = {name: _tensor(value) for name, value in batch.items()}
        ids = inputs["input_ids"]
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            raise UsageError(f"the input_ids of batch {number} are no (row, token) of whole numbers")
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(ids)
        if mask.shape != ids.shape:
            raise UsageError(
                f"the attention_mask of batch {number} is {tuple(mask.shape)}, its input_ids {tuple(ids.shape)}"
            )
        return cls(inputs, tuple(_span(row, number) for row in mask.bool()))

    def ids(self, row: int) -> list[int]:
        """Returns the true tokens of a row."""
        return self.inputs["input_ids"][row, self.spans[row].start : self.spans[row].stop].tolist()

    def on(self, device: str) -> dict[str, Any]:
        """Returns the inputs on a device, else as they are."""
        return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in self.inputs.items()}


def _tensor(value: Any) -> Any:
    if isinstance(value, Tensor) or value is None or isinstance(value, str | bool | int | float):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal parts, which some models take
        return value


def _span(row: Tensor, number: int) -> Span:
    there = row.nonzero()[:, 0].tolist()
    if not there or len(there) != there[-1] - there[0] + 1:
        raise UsageError(
            f"the attention_mask of batch {number} {'has holes' if there else 'hides a whole row'}",
            why="the tokens of an example lie side by side, with padding before or behind them",
        )
    return Span(there[0], there[-1] + 1)
