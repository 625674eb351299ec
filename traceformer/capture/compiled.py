"""Patterns by the compiled core: which calls it takes, what it is told of them, and what a run states of that.

It multiplies, masks, takes the softmax and rounds to float16 while a few rows are in the processor's cache. Sums run in
another order than torch's: of ten thousand cells one or so differs, by one step of float16. So a run states what made
its patterns, and is only resumed with the same.

What it does not take is computed by torch, as ever: scores that are recorded themselves, softcaps, biases, sinks,
edits, masks of an implementation's own, devices other than the processor, and patterns that are not kept as float16.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from traceformer.capture.scores import AttentionCall, Span
from traceformer.core import kernels
from traceformer.core.kernels import PatternCall, Strided, Strided3
from traceformer.core.library import core
from traceformer.shapes import Int64
from traceformer.sites import ArraySpec, Attention, Stack
from traceformer.store.appended import is_appended
from traceformer.store.layout import RunLayout

__all__ = [
    "CompiledPatterns",
    "ExamplePatterns",
    "PatternReduction",
    "PatternSink",
    "cast",
    "compiled_patterns",
    "is_made",
    "kernel_stated",
]


class ExamplePatterns(NamedTuple):
    """One example's patterns, yet to be made: `call` says of what, `heads` are the wanted ones' numbers in it.

    `kept` keeps the memory of what the call is made of.
    """

    example: int
    call: PatternCall
    heads: Int64[np.ndarray, "head"]
    kept: object


@runtime_checkable
class PatternSink(Protocol):
    """A sink that has patterns made where they are to lie."""

    def makes_patterns(self, spec: ArraySpec, *, ahead: bool) -> bool:
        """Returns whether it does so with this array, where queries look at later keys, or not."""
        ...

    def patterns(self, spec: ArraySpec, layer: int, made: Sequence[ExamplePatterns]) -> None:
        """Has the patterns of one layer made, of each example of the batch; `example` counts the batch's rows."""
        ...


@runtime_checkable
class PatternReduction(Protocol):
    """What takes one layer's patterns as the core makes them, to make something else of them."""

    def makes_patterns(self) -> bool:
        """Returns whether it does so."""
        ...

    def patterns(self, made: Sequence[ExamplePatterns]) -> None:
        """Has the patterns of each example of the batch made, and takes them; as of `PatternSink`."""
        ...


class CompiledPatterns:
    """One attention call's patterns, as the compiled core makes them. It must be there until they are made.

    Args:
        call: The call, which it takes.
        heads: The heads that are wanted.
        ahead: Whether a query may look at a later key.
    """

    def __init__(self, call: AttentionCall, heads: Sequence[int], *, ahead: bool) -> None:
        self._call, self._ahead = call, ahead
        self._heads = np.array(heads, np.int64)
        self._query, self._key = _readable(call.query), _readable(call.key)
        self._allowed = self._added = None
        mask = call.mask
        if isinstance(mask, Tensor):
            mask = mask if mask.stride(-1) == 1 else mask.contiguous()
            if mask.dtype == torch.bool:
                self._allowed = mask
            else:
                self._added = mask.float()

    def of(self, example: int, queries: Span, keys: Span) -> ExamplePatterns:
        """Returns the patterns of an example whose true tokens are at these places."""
        call = self._call
        made = PatternCall.of(
            _part(self._query, example, queries),
            _part(self._key, example, keys),
            queries=queries.length,
            keys=keys.length,
            d=call.query.shape[-1],
            scale=call.scaling,
            group=call.query.shape[1] // call.key.shape[1],
            ahead=self._ahead,
            window=call.window if call.mask is None and call.is_causal else None,
            allowed=None if self._allowed is None else _corner(self._allowed, example, queries, keys),
            added=None if self._added is None else _corner(self._added, example, queries, keys),
        )
        return ExamplePatterns(example, made, self._heads, self)


def compiled_patterns(call: AttentionCall, heads: Sequence[int], *, ahead: bool) -> CompiledPatterns | None:
    """Returns the patterns of a call, or None if the compiled core is not there, or does not take it."""
    odd = (call.bias, call.sinks, call.softcap, call.edited_scores, call.edited_pattern)
    if core() is None or any(each is not None for each in odd) or call.query.device.type != "cpu":
        return None
    if not (call.mask is None or isinstance(call.mask, Tensor)):
        return None
    return CompiledPatterns(call, heads, ahead=ahead)


def kernel_stated(layout: RunLayout, model: nn.Module) -> Mapping[str, Any]:
    """Returns what a run states of the kernel that makes its patterns, and what must be equal to resume it.

    Nothing where torch does.
    """
    there = core()
    of_calls: dict[tuple[Stack, Attention | None], list[bool]] = {}
    for spec in layout.kept:
        if spec.key.site in _OF_PATTERNS:
            of_calls.setdefault((spec.key.stack, spec.key.attention), []).append(is_made(layout, spec))
    made = any(all(each) for each in of_calls.values())
    here = any(each.device.type in ("cpu", "meta") for each in model.parameters())  # meta: not loaded yet
    return {"pattern kernel": there.kernel} if there is not None and made and here else {}


_OF_PATTERNS = ("attn_scores", "attn_pattern", "attn_topk", "head_metrics")


def is_made(layout: RunLayout, spec: ArraySpec) -> bool:
    """Returns whether the compiled core may make an array of a run, or the patterns that it is made of."""
    if spec.key.site == "head_metrics":
        return layout.dtype == "float16"
    return spec.key.site == "attn_pattern" and layout.stored(spec) == "float16" and not is_appended(layout, spec)


_CASTS = (torch.float16, torch.bfloat16, torch.float32)


def cast(target: Tensor, source: Tensor) -> bool:
    """Casts rows of float32 to a stored dtype, and returns whether that was done, and all are finite there.

    If not, `target` may hold anything.
    """
    there = core()
    if there is None or source.dtype != torch.float32 or target.dtype not in _CASTS or not 1 <= source.dim() <= 4:
        return False
    if not source.numel() or source.stride(-1) != 1 or target.stride(-1) != 1:
        return False
    lead = 4 - source.dim()
    shape = (1,) * lead + tuple(source.shape)
    return kernels.cast_rows(
        there,
        Strided3(source.data_ptr(), _three(source, lead)),
        Strided3(target.data_ptr(), _three(target, lead)),
        (shape[0], shape[1], shape[2]),
        shape[3],
        brain=target.dtype == torch.bfloat16,
        wide=target.dtype == torch.float32,
    )


def _three(tensor: Tensor, lead: int) -> tuple[int, int, int]:
    one, two, three, _ = (0,) * lead + tensor.stride()
    return one, two, three


def _readable(tensor: Tensor) -> Tensor:
    wide = tensor.float()
    return wide if wide.stride(-1) == 1 else wide.contiguous()


def _part(tensor: Tensor, example: int, span: Span) -> Strided:
    """Where the rows of an example lie, of (batch, head, position, d_head)."""
    batch, head, row, _ = tensor.stride()
    return Strided(tensor.data_ptr() + tensor.itemsize * (example * batch + span.start * row), head, row)


def _corner(mask: Tensor, example: int, queries: Span, keys: Span) -> Strided:
    """Where the corner of a mask lies, whose batch, head and query axes may have size one."""
    batch, head, row, _ = (stride * (size > 1) for stride, size in zip(mask.stride(), mask.shape, strict=True))
    at = example * batch + queries.start * row + keys.start
    return Strided(mask.data_ptr() + mask.itemsize * at, head, row)
