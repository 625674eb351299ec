"""The largest keys of each query, kept in place of patterns: which they are, their weights, and what all others have.

1. A row of a pattern is rounded to the dtype that the run stores, so that what is kept is what a run of whole patterns
   would hold.
2. Of its keys the K largest are kept, the largest first, of equals the earlier one. A key without weight is not kept:
   behind the last one stand key -1 and weight 0.
3. `rest` is what the keys that are not kept have together, added up in float32: 0 where nothing is missing.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from traceformer.capture.scores import Span
from traceformer.capture.sinks import ReducedRows
from traceformer.errors import UsageError
from traceformer.shapes import Float, Float32, Int32, Int64
from traceformer.sites import ArrayKey, ArraySpec

__all__ = ["AttentionTopK", "KeepingTopK", "largest"]

_LOW = 32  # bits of a number that hold its key


@dataclass(frozen=True, slots=True)
class AttentionTopK:
    """The wish for the `k` largest keys of each query, in place of patterns."""

    k: int
    needs_head: ClassVar[bool] = False

    def of(self, pattern: ArraySpec) -> "KeepingTopK":
        """Returns what keeps them of some patterns.

        Raises:
            UsageError: `k` is less than one.
        """
        if self.k < 1:
            raise UsageError(f"the {self.k} largest keys of a query", hint="`store_topk=32`")
        key = pattern.key
        return KeepingTopK(
            key,
            (
                ArraySpec(key._replace(site="attn_topk"), pattern.layers, pattern.heads, self.k),
                ArraySpec(key._replace(site="attn_topk_weight"), pattern.layers, pattern.heads, self.k),
                ArraySpec(key._replace(site="attn_topk_rest"), pattern.layers, pattern.heads, 1),
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class KeepingTopK:
    """The arrays that the largest keys are recorded as, of which patterns, and what these are rounded to first."""

    source: ArrayKey
    specs: tuple[ArraySpec, ArraySpec, ArraySpec]
    dtype: torch.dtype = torch.float16

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"store topk": self.specs[0].width}

    def at_work(self) -> AbstractContextManager[object]:
        return nullcontext()

    def begin(self, layer: int, rows: ReducedRows) -> "_Kept":
        return _Kept(self, rows)


class _Kept:
    """The largest keys of one layer in one pass."""

    def __init__(self, of: KeepingTopK, rows: ReducedRows) -> None:
        self._of, self._rows = of, rows
        self._made: list[Tensor] = []

    def take(self, example: int, queries: Span, keys: Span, block: Float32[Tensor, "head query key"]) -> None:
        if not self._made:
            heads, k = len(self._of.specs[0].heads), self._of.specs[0].width
            shape = (len(self._rows.queries), heads, self._rows.columns)
            self._made = [
                torch.full((*shape, k), -1, dtype=torch.int32, device=block.device),
                torch.zeros((*shape, k), device=block.device),
                torch.zeros((*shape, 1), device=block.device),
            ]
        start = self._rows.queries[example].start
        for whole, part in zip(self._made, largest(block.to(self._of.dtype), self._of.specs[0].width), strict=True):
            whole[example, :, start + queries.start : start + queries.stop, : part.shape[-1]] = part

    def arrays(self) -> Mapping[ArrayKey, Tensor]:
        return {spec.key: whole for spec, whole in zip(self._of.specs, self._made, strict=True)}


def largest(
    block: Float[Tensor, "head query key"], k: int
) -> tuple[Int32[Tensor, "head query rank"], Float32[Tensor, "head query rank"], Float32[Tensor, "head query 1"]]:
    """Returns the `k` largest keys of each query, their weights, and what all others have together.

    Fewer than `k` where there are fewer keys; -1 for a key without weight.
    """
    order = _in_order(block).topk(min(k, block.shape[-1])).values
    places = (1 << _LOW) - 1 - (order & ((1 << _LOW) - 1))
    wide = block.float()
    weights = wide.gather(-1, places)
    rest = wide.scatter(-1, places, 0).sum(dim=-1, keepdim=True)
    return places.masked_fill(weights == 0, -1).int(), weights, rest


def _in_order(block: Float[Tensor, "head query key"]) -> Int64[Tensor, "head query key"]:
    """Numbers in the order of weights, and of equal ones the earlier key before the later."""
    bits = block.view({2: torch.int16, 4: torch.int32}[block.itemsize]).long()
    keys = torch.arange(block.shape[-1], device=block.device)
    return (bits << _LOW) | ((1 << _LOW) - 1 - keys)
