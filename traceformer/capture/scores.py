"""The mathematics of scores and patterns: what one call of the attention function makes of queries, keys and mask.

They are computed in float32 from the very q, k, bias and mask of that call, in blocks of queries whose size is
bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["AttentionCall", "OwnMask", "Span", "blocks_of_queries"]

_BLOCK_BYTES = 8 << 20  # of float32 scores in flight: what a processor's cache may hold
_BLOCK_BYTES_OF_DEVICE = 64 << 20  # where each block is a few launches
_PROCESSOR = torch.device("cpu")


class Span(NamedTuple):
    """The true tokens of one row of a padded batch: `start` .. `stop`-1 are not padding."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def counted_from(self, origin: int) -> "Span":
        return Span(self.start - origin, self.stop - origin)


@runtime_checkable
class OwnMask(Protocol):
    """A mask that an attention implementation keeps in a form of its own. It never lets a query look ahead."""

    def allowed(self, example: int | None, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Returns where these queries of these heads may look, boolean: (head, query, key).

        For `example` None (batch or 1, head, query, key). `queries` and `keys` are indices of the call's tensors.
        """
        ...


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one call of the attention function decided its scores from; tensors are the model's own.

    Shapes: `query` (batch, head, position, d_head); `key`, `value` (batch, kv_head, position, d_head); `mask` None,
    boolean (True = may look) or additive, (batch or 1, head or 1, query, key), like `bias`, or an implementation's own.
    `edited_scores` and `edited_pattern`, (batch, head, query, key), stand in the place of what the others make.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | OwnMask | None
    bias: Tensor | None
    sinks: Tensor | None
    scaling: float
    softcap: float | None
    is_causal: bool
    window: int | None
    edited_scores: Tensor | None = None
    edited_pattern: Tensor | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether some query may look at a later key; if not, what lies above the diagonal need not be computed."""
        if self.edited_pattern is not None:
            return True
        if self.mask is None:
            return not self.is_causal
        if self.query.shape[2] != self.key.shape[2]:
            return True
        if not isinstance(self.mask, Tensor):
            return False
        allowed = self.mask if self.mask.dtype == torch.bool else self.mask > torch.finfo(self.mask.dtype).min / 2
        return bool(allowed.triu(1).any())

    def scores(self, example: int | slice | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
        """Returns the scores before the mask, float32 (head, query, key): scaled, softcapped, with position bias.

        For `example` None all rows of the batch, for a slice some: (batch, head, query, key). `queries` and `keys` are
        indices of this call's tensors.
        """
        if self.edited_scores is not None:
            return _cut(self.edited_scores, example, heads, queries, keys).clone()
        query = self.query if example is None else self.query[example]
        key = self.key if example is None else self.key[example]
        group = query.shape[-3] // key.shape[-3]
        q = _choose(_narrow(query, queries), heads).float()
        k = _narrow(key, keys)
        k = (k if heads.shape[0] == query.shape[-3] else k.index_select(-3, heads // group)).float()
        if q.shape[-3] == k.shape[-3]:
            scores = torch.matmul(q, k.transpose(-2, -1)).mul_(self.scaling)
        else:  # heads that share a kv_head are one product with it
            shared = q.unflatten(-3, (-1, group)).flatten(-3, -2)
            scores = torch.matmul(shared, k.transpose(-2, -1)).mul_(self.scaling)
            scores = scores.unflatten(-2, (group, -1)).flatten(-4, -3)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            scores += _cut(self.bias, example, heads, queries, keys)
        return scores

    def pattern(self, scores: Tensor, example: int | slice | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
        """Returns softmax(scores after the mask), float32 and of the shape of `scores`. Overwrites `scores`.

        With attention sinks a row sums to less than one: the sink's share is left out, not redistributed.
        """
        if self.edited_pattern is not None:
            return _cut(self.edited_pattern, example, heads, queries, keys)
        if self.mask is not None:
            mask = _cut_mask(self.mask, example, heads, queries, keys)
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        elif self.is_causal:
            ahead = torch.arange(keys.start, keys.stop, device=scores.device)
            here = torch.arange(queries.start, queries.stop, device=scores.device)[:, None]
            hidden = ahead > here
            if self.window is not None:
                hidden |= ahead <= here - self.window
            scores = scores.masked_fill_(hidden, -torch.inf)
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks[heads].float()[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]


def _cut_mask(mask: Tensor | OwnMask, example: int | slice | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    if isinstance(mask, Tensor):
        return _cut(mask, example, heads, queries, keys)
    assert not isinstance(example, slice), "an implementation's own mask is asked for one example, or all"
    rows, columns = (torch.arange(*span, device=heads.device) for span in (queries, keys))
    return mask.allowed(example, heads, rows, columns)


def _choose(tensor: Tensor, heads: Tensor) -> Tensor:
    """Those heads of (.., head, position, d_head); the tensor itself where they are all of them."""
    return tensor if heads.shape[0] == tensor.shape[-3] else tensor.index_select(-3, heads)


def _narrow(tensor: Tensor, span: Span) -> Tensor:
    """Those positions of (.., position, d_head); the tensor itself where they are all of them."""
    return tensor if span.length == tensor.shape[-2] else tensor.narrow(-2, span.start, span.length)


def _cut(tensor: Tensor, example: int | slice | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    """The (head or 1, query, key) corner of a mask or bias whose batch and head axes may have size one.

    That of one example, of some, or of all rows for None.
    """
    part = tensor if example is None else tensor[example if tensor.shape[0] > 1 else 0]
    part = _choose(part, heads) if part.shape[-3] > 1 else part
    return part[..., queries.start : queries.stop, keys.start : keys.stop]


def blocks_of_queries(span: Span, n_heads: int, n_keys: int, device: torch.device = _PROCESSOR) -> Iterator[Span]:
    """Yields consecutive parts of `span` whose float32 scores over all keys stay within a fixed memory of a device."""
    if span.length == 1:
        yield span
        return
    most = _BLOCK_BYTES if device.type == "cpu" else _BLOCK_BYTES_OF_DEVICE
    rows = max(1, most // (4 * n_heads * max(1, n_keys)))
    for start in range(span.start, span.stop, rows):
        yield Span(start, min(start + rows, span.stop))
