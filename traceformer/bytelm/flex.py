"""Sparse attention by PyTorch's FlexAttention, which skips blocks of the mask that are empty: a kernel for CUDA.

It is compiled there. Elsewhere it runs as PyTorch's reference does: over whole matrices, and forward only.
"""

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from traceformer.bytelm.sparse_attention import sparse_attention
from traceformer.bytelm.sparse_mask import SparseMask
from traceformer.shapes import Float

__all__ = ["flex_sparse_attention"]


def flex_sparse_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch head key d_head"],
    value: Float[Tensor, "batch head key d_head"],
    mask: SparseMask,
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Returns what `sparse_attention` returns; a single query beside a cache is left to it."""
    if mask.step is not None:
        return sparse_attention(query, key, value, mask, scaling)
    attend = _compiled() if query.is_cuda else flex_attention
    return attend(query, key, value, block_mask=_block_mask(mask, query.device), scale=scaling)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


@lru_cache(maxsize=4)
def _block_mask(mask: SparseMask, device: torch.device) -> BlockMask:
    """The mask in blocks; the layers of a model share it."""
    windows = torch.tensor([pattern.window for pattern in mask.patterns], device=device)
    is_column = torch.zeros(len(mask.patterns), mask.n_keys, dtype=torch.bool, device=device)
    for head, pattern in enumerate(mask.patterns):
        is_column[head, [column for column in pattern.columns if column < mask.n_keys]] = True
    rows = 1 if mask.starts is None else len(mask.starts)
    offset = mask.offset
    # Without padding one row stands for all.
    starts = torch.zeros(rows, dtype=torch.long, device=device) if mask.starts is None else mask.starts.to(device)

    return create_block_mask(
        lambda row, head, query, key: (
            (
                ((query + offset - key <= windows[head]) | is_column[head, (key - starts[row % rows]).clamp(min=0)])
                & (query + offset >= key)
                & (key >= starts[row % rows])
            )
            | (query + offset == key)
        ),
        None if mask.starts is None else rows,
        len(mask.patterns),
        mask.n_queries,
        mask.n_keys,
        device=str(device),
        _compile=device.type == "cuda",
    )
