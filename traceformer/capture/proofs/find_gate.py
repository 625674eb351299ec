"""A gate between the heads' mixed values and the output projection, found by equality of tensors in one pass.

The projection reads the mixed values times the sigmoid of what some module makes of attention's input: a module of its
own, or, beside the queries, the query projection, which then holds for each head its queries and its gate.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from traceformer.capture.proofs.block import Block, has_matrix, near
from traceformer.capture.proofs.watch import Attended, Call
from traceformer.models.family import Gated, Tap

__all__ = ["gated_projection", "query_beside_gate"]

_Part: TypeAlias = Literal["whole", "heads' second half"]


def gated_projection(block: Block, seen: Attended, adding: Sequence[Call]) -> Gated | None:
    """Returns the gate and the output projection that reads through it; None where there is no such thing.

    Args:
        block: The block as it was watched.
        seen: Its call of the attention function.
        adding: The calls that made what attention adds, one of which may be the projection's.
    """
    mixed = seen.mixed.flatten(2)
    outs = [call for call in block.calls if has_matrix(call) and block.rows(call.given).shape == mixed.shape]
    inside = [call for call in outs if call.path.startswith(f"{seen.path}.") or call in adding]
    for out in inside:
        for call in block.calls:
            if call.ended >= out.began or not has_matrix(call):
                continue
            for part, rows in _gates(block.rows(call.made), seen):
                if near(mixed * rows.sigmoid(), block.rows(out.given)):
                    return Gated(Tap(block.tap_path(call), part=part), block.tap_path(out))
    return None


def _gates(rows: Tensor, seen: Attended) -> Iterator[tuple[_Part, Tensor]]:
    n_heads, width = seen.mixed.shape[2:]
    if rows.dim() == 3 and rows.shape[-1] == n_heads * width:
        yield "whole", rows
    elif rows.dim() == 3 and rows.shape[-1] == 2 * n_heads * width:
        yield "heads' second half", _half(rows, n_heads, 1)


def query_beside_gate(block: Block, seen: Attended, among: Sequence[Call]) -> tuple[Tap, Tensor] | None:
    """Returns the projection whose first half of each head is the query, but for a rotation, and what it reads."""
    n_heads, width = seen.query.shape[1], seen.query.shape[3]
    for call in among:
        rows = block.rows(call.made)
        if has_matrix(call) and rows.dim() == 3 and rows.shape[-1] == 2 * n_heads * width:
            return Tap(block.tap_path(call), part="heads' first half"), block.rows(call.given)
    return None


def _half(rows: Tensor, n_heads: int, number: int) -> Tensor:
    return rows.unflatten(-1, (n_heads, 2, -1)).select(-2, number).flatten(-2)
