"""Attention that computes only what each head may see: a window before the query, and fixed columns.

1. Heads with the same pattern form a group. Its queries are laid out in blocks, about as long as the window.
2. Near: the queries of a block meet the keys of their block and of those before it that the window reaches, in small
   dense products.
3. Far: pieces of the queries meet the keys at the columns that lie before the piece's end, in one dense product each.
   A column within a query's window was met there, so it is masked here.
4. One softmax over near and far together; then both are mixed with their values.
5. Backward takes the same steps with the weights that were kept; rows are cut out again, since a group's, laid out,
   are a copy of them. It is written out, since autograd would fill a gradient of full size with zeros for every slice,
   and copy every block where blocks overlap.

Time and memory are O(position * (window + columns)) in both directions; nothing of size position * position is made.
What costs most at short lengths is memory that is touched for the first time, hence the operations in place.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from traceformer.bytelm.sparse_mask import Group, SparseMask, Step
from traceformer.shapes import Float

__all__ = ["sparse_attention"]

# Weights are powers of 2, not of e: on the CPU exp of -inf takes thirty times as long as exp2 of it.
_LOG2_E = math.log2(math.e)


def sparse_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch head key d_head"],
    value: Float[Tensor, "batch head key d_head"],
    mask: SparseMask,
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Returns softmax(query key^T * scaling) value, where each head sees only what its pattern allows.

    Equal to scaled_dot_product_attention under the same mask. Products are in the tensors' own precision (autocast's,
    where that is on), the softmax is in float32.
    """
    where = query.device.type
    if torch.is_autocast_enabled(where):
        dtype = torch.get_autocast_dtype(where)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if mask.step is not None:
        return _one_query(query, key, value, mask.step, scaling)
    if mask.order is not None:
        query, key, value = query[:, mask.order], key[:, mask.order], value[:, mask.order]
    with torch.autocast(where, enabled=False):
        output = _SparseAttention.apply(query, key, value, mask, scaling)
    return output if mask.order is None else output[:, torch.tensor(mask.order).argsort()]


def _one_query(query: Tensor, key: Tensor, value: Tensor, step: Step, scaling: float) -> Tensor:
    """Each head's few keys, gathered: beside a cache that costs the same however long the cache is."""
    index = step.keys[..., None].expand(len(query), -1, -1, query.shape[-1])
    scores = (query @ key.gather(2, index).mT).to(torch.promote_types(query.dtype, torch.float32)) * scaling + step.bias
    return scores.softmax(-1).to(value.dtype) @ value.gather(2, index)


class _SparseAttention(torch.autograd.Function):
    """In comments n is batch * heads of the group, and near is the keys that a block sees."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: SparseMask, scaling: float) -> Tensor:
        output, kept = torch.empty_like(query), list[Tensor]()
        for group in mask.groups:
            kept += _mix(output, query, key, value, group, mask, scaling)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.mask, ctx.scaling = mask, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mask: SparseMask = ctx.mask
        query, key, value, output, *kept = ctx.saved_tensors
        saved = iter(kept)
        weights = [(group, next(saved), [next(saved) for _ in group.pieces]) for group in mask.groups]
        # The softmax's own gradient takes from each row what its weights have in common.
        all_common = (grad * output).sum(-1, keepdim=True)
        d_query = torch.empty_like(output)
        # Keys from a cache may be beyond the reach of any window.
        d_key, d_value = (grad.new_zeros(key.shape) if mask.offset else grad.new_empty(key.shape) for _ in "kv")
        # The largest group first: what it needs beside is used again, and the others' gradients are not there yet.
        for group, near, far in sorted(weights, key=lambda each: -each[0].n_heads):
            _add_gradients(
                (d_query, d_key, d_value),
                (query, key, value),
                grad,
                all_common,
                near,
                far,
                group,
                mask,
            )
        return d_query.mul_(ctx.scaling), d_key.mul_(ctx.scaling), d_value, None, None


def _mix(
    output: Tensor, query: Tensor, key: Tensor, value: Tensor, group: Group, mask: SparseMask, scaling: float
) -> list[Tensor]:
    """Writes the output of a group's heads, and returns their weights: near ones, and those of each piece."""
    q, far_k, far_v = _rows(query, group, -group.lead), _far(key, group), _far(value, group)
    near = torch.bmm(_blocks(q, group), _near(key, group, mask).mT).view(*q.shape[:2], -1)
    near = _masked(near, scaling, group.bias)
    far = [_masked(q[:, p.rows] @ far_k[:, : p.n_columns].mT, scaling, p.bias) for p in group.pieces]
    _softmax(near, far, group)
    near, far = near.to(q.dtype), [weights.to(q.dtype) for weights in far]
    mixed = _rows_in(output, group, mask)
    torch.bmm(_blocks(near, group), _near(value, group, mask), out=_blocks(mixed, group))
    for piece, weights in zip(group.pieces, far, strict=True):
        mixed[:, piece.rows].baddbmm_(weights, far_v[:, : piece.n_columns])
    _put_queries(output, mixed, group, mask)
    return [near, *far]


def _add_gradients(
    gradients: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    all_common: Tensor,
    near: Tensor,
    fars: Sequence[Tensor],
    group: Group,
    mask: SparseMask,
) -> None:
    """Writes the gradients of a group's queries, keys and values, before scaling; `grad` is that of the output.

    What is cut out is made when it is needed, and kept no longer.
    """
    (query, key, value), (d_query, d_key, d_value) = inputs, gradients
    q, g, common = (_rows(x, group, -group.lead) for x in (query, grad, all_common))
    g_blocks = _blocks(g, group)
    d_near = torch.bmm(g_blocks, _near(value, group, mask).mT).view(near.shape).sub_(common).mul_(near)
    d_q = _rows_in(d_query, group, mask)
    torch.bmm(_blocks(d_near, group), _near(key, group, mask), out=_blocks(d_q, group))
    _put_rows(d_key, _near_gradient(d_near, _blocks(q, group), group), group, mask)
    _put_rows(d_value, _near_gradient(near, g_blocks, group), group, mask)
    far_k, far_v = _far(key, group), _far(value, group)
    d_far_k, d_far_v = torch.zeros_like(far_k), torch.zeros_like(far_v)
    for piece, far in zip(group.pieces, fars, strict=True):
        rows, columns = piece.rows, slice(0, piece.n_columns)
        d_far = (g[:, rows] @ far_v[:, columns].mT).sub_(common[:, rows]).mul_(far)
        d_q[:, rows].baddbmm_(d_far, far_k[:, columns])
        d_far_k[:, columns].baddbmm_(d_far.mT, q[:, rows])
        d_far_v[:, columns].baddbmm_(far.mT, g[:, rows])
    _put_queries(d_query, d_q, group, mask)
    _add_far(d_key, d_far_k, group)
    _add_far(d_value, d_far_v, group)


def _rows(x: Tensor, group: Group, first: int, reach: int | None = None) -> Tensor:
    """A group's rows of (batch, head, position, width) from position `first` on, zeros where there is none.

    As (n, row, width); with `reach`, as they follow one another, (row of all, width), after that many empty blocks.
    """
    there = slice(max(first, 0), min(first + group.n_rows, x.shape[2]))
    margin, width = (reach or 0) * group.block, x.shape[-1]
    is_whole = there.stop - there.start == group.n_rows
    if is_whole and not margin:
        flat = x[:, group.heads, there].reshape(-1, width)
    else:
        size = (margin + len(x) * group.n_heads * group.n_rows, width)
        flat = x.new_empty(size) if is_whole else x.new_zeros(size)
        flat[:margin] = 0
        rows = flat[margin:].view(len(x), group.n_heads, group.n_rows, width)
        rows[:, :, there.start - first : there.stop - first] = x[:, group.heads, there]
    return flat.view(-1, group.n_rows, width) if reach is None else flat


def _rows_in(x: Tensor, group: Group, mask: SparseMask) -> Tensor:
    """Memory for (n, row, width) of a group's queries: their place in (batch, head, query, width), if it is like that.

    `_put_queries` then has nothing to do.
    """
    own, width = x[:, group.heads], x.shape[-1]
    if group.n_rows == mask.n_queries and own.is_contiguous():
        return own.view(-1, group.n_rows, width)
    return x.new_empty(len(x) * group.n_heads, group.n_rows, width)


def _put_queries(x: Tensor, rows: Tensor, group: Group, mask: SparseMask) -> None:
    """Writes the queries' rows of (n, row, width) to (batch, head, query, width)."""
    own = x[:, group.heads]
    if rows.data_ptr() != own.data_ptr():
        own.copy_(rows.unflatten(0, (-1, group.n_heads))[:, :, group.lead : group.lead + mask.n_queries])


def _put_rows(x: Tensor, flat: Tensor, group: Group, mask: SparseMask) -> None:
    """Writes to (batch, head, position, width) what `_rows` would read from there."""
    first = mask.offset - group.lead
    there = slice(max(first, 0), min(first + group.n_rows, x.shape[2]))
    rows = flat[group.reach * group.block :].view(len(x), group.n_heads, group.n_rows, -1)
    x[:, group.heads, there] = rows[:, :, there.start - first : there.stop - first]


def _blocks(rows: Tensor, group: Group) -> Tensor:
    """(n, row, width) -> (n * block, row, width), without a copy."""
    return rows.view(-1, group.block, rows.shape[-1])


def _near(x: Tensor, group: Group, mask: SparseMask) -> Tensor:
    """The keys (or values) that each block sees, (n * block, near, d_head), each cut out once.

    The first blocks of a head reach into the head before it, where the mask lets none of them look (only a NaN there
    would show).
    """
    flat = _rows(x, group, mask.offset - group.lead, group.reach)
    return flat.unfold(0, (1 + group.reach) * group.block, group.block).mT


def _near_gradient(weights: Tensor, rows: Tensor, group: Group) -> Tensor:
    """Returns what each key gets from the rows of all blocks that see it; the reverse of `_near`."""
    size, n_rows = group.block, rows.shape[0] * rows.shape[1]
    flat = rows.new_empty(group.reach * size + n_rows, rows.shape[-1])
    *before, own = _blocks(weights, group).split(size, dim=-1)
    torch.bmm(own.mT, rows, out=flat[group.reach * size :].view(rows.shape))
    for first, part in enumerate(before):
        flat[first * size :][:n_rows].view(rows.shape).baddbmm_(part.mT, rows)
    return flat


def _columns(x: Tensor, group: Group) -> Tensor:
    """The index of the columns along the keys, (batch, head, column, d_head)."""
    return group.columns[:, None, :, None].expand(len(x), group.n_heads, -1, x.shape[-1])


def _far(x: Tensor, group: Group) -> Tensor:
    """The keys at the columns, (n, column, d_head)."""
    return x[:, group.heads].gather(2, _columns(x, group)).flatten(0, 1)


def _add_far(total: Tensor, grad: Tensor, group: Group) -> None:
    total[:, group.heads].scatter_add_(2, _columns(total, group), grad.unflatten(0, (len(total), -1)))


def _masked(products: Tensor, scaling: float, bias: Tensor) -> Tensor:
    """Scores (n, row, key) to the base of 2, in float32 at least, -inf where a query may not look."""
    scores = products.to(torch.promote_types(products.dtype, torch.float32))
    by_row = scores.unflatten(0, (len(bias), -1))
    torch.add(bias, by_row, alpha=scaling * _LOG2_E, out=by_row)
    return scores


def _softmax(near: Tensor, far: Sequence[Tensor], group: Group) -> None:
    """Turns scores into weights, in place: each row sums to one over its near keys and its far ones together."""
    parts = [(piece.rows, scores) for piece, scores in zip(group.pieces, far, strict=True)]
    peak = near.amax(-1, keepdim=True)
    for rows, scores in parts:
        peak[:, rows] = peak[:, rows].maximum(scores.amax(-1, keepdim=True))
    parts.append((slice(None), near))
    total = torch.zeros_like(peak)
    for rows, scores in parts:
        total[:, rows] += scores.sub_(peak[:, rows]).exp2_().sum(-1, keepdim=True)
    for rows, scores in parts:
        scores.div_(total[:, rows])
