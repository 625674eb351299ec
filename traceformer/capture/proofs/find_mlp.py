"""Which module of a block plays which part in its MLP, found by equality of tensors in one pass.

It is followed backward: down projection, its input, activation, gate, up projection, and the norm before them.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from traceformer.capture.proofs.block import Block, has_matrix, is_leaf, is_norm, near, norm_making, same
from traceformer.capture.proofs.watch import Call
from traceformer.models.family import MlpKind, Tap, into

__all__ = ["experts_of", "mlp_of"]


def mlp_of(block: Block, stream: Tensor, added: Tensor, attn_norm: Tap | None) -> tuple[dict[str, Tap], MlpKind]:
    """Returns the sites of the MLP that reads this stream, perhaps normed, and adds this; and its kind."""
    adding = block.making(added)
    behind = adding[0] if is_norm(adding[0]) else None  # a norm of what is added
    downs = block.making(block.rows(behind.given)) if behind else adding
    down = next((call for call in downs if is_leaf(call) and has_matrix(call)), None)
    inputs = [stream, *(block.rows(call.made) for call in block.reading(stream))]
    found, kind, given = dict[str, Tap](), "experts", None
    if down is not None:
        inner = _inside_mlp(block, down, inputs)
        if inner is not None:
            found, kind, given = inner
    reads = inputs if given is None else [given]
    whole = [call for call in adding if any(same(block.rows(call.given), each) for each in reads)]
    if given is None and whole:
        given = block.rows(whole[-1].given)
    adding = whole[-1:] if whole and behind is None else adding
    norm = None if given is None else norm_making(block, stream, given)
    if norm is not None and (attn_norm is None or block.tap_path(norm) != attn_norm.path):
        found = {"mlp_norm": Tap(block.tap_path(norm)), **found}
    return {**found, "mlp_out": Tap(block.tap_path(adding[0]))}, kind


def experts_of(block: Block) -> dict[str, Tap]:
    """Returns where experts are told their tokens, and the router that says so; empty where that is not one module."""
    told = [call for call in block.calls if call.routing is not None]
    if len(told) != 1 or told[0].routing is None:
        return {}
    path, (ids, _) = block.tap_path(told[0]), told[0].routing
    found = {
        "expert_topk": Tap(path, "input", "expert ids"),
        "expert_weight": Tap(path, "input", "expert weights"),
    }
    routers = [call for call in block.calls if call.chosen is not None and _names_the_same(call.chosen, ids)]
    return {"router_logits": Tap(block.tap_path(routers[0])), **found} if routers else found


def _names_the_same(chosen: Tensor, ids: Tensor) -> bool:
    """Whether each token's experts are the same, in any order."""
    return chosen.shape == ids.shape and same(chosen.sort(dim=-1).values, ids.sort(dim=-1).values)


def _inside_mlp(block: Block, down: Call, inputs: Sequence[Tensor]) -> tuple[dict[str, Tap], MlpKind, Tensor] | None:
    """Up projection, activation, what goes into the down projection; and what the up projection reads."""
    mid = block.rows(down.given)
    found = {"mlp_mid": into(block.tap_path(down)), "mlp_down": Tap(block.tap_path(down))}
    ups = [
        call
        for call in block.calls
        if has_matrix(call) and call.ended < down.began and any(same(block.rows(call.given), each) for each in inputs)
    ]
    wide: list[tuple[Call, _Half, Tensor]] = [
        (call, part, rows) for call in ups for part, rows in _halves(block.rows(call.made), mid.shape[-1])
    ]
    acts = [call for call in block.calls if block.rows(call.made).shape == mid.shape and not has_matrix(call)]
    for act in acts:
        made, given = block.rows(act.made), block.rows(act.given)
        if same(made, mid):
            for call, part, rows in wide:
                if part == "whole" and same(rows, given):
                    taps = {"mlp_up": Tap(block.tap_path(call)), "mlp_act": Tap(block.tap_path(act))}
                    return {**taps, **found}, "plain", block.rows(call.given)
        for call, part, rows in wide:
            if same(made * rows, mid) or (near(made * rows, mid) and not same(rows, given)):
                taps = {"mlp_up": Tap(block.tap_path(call), part=part), "mlp_act": Tap(block.tap_path(act))}
                return {**taps, **found}, "gated", block.rows(call.given)
    whole = [call for call, part, _ in wide if part == "whole"]
    if len(whole) == 1:  # its activation is no module
        return {"mlp_up": Tap(block.tap_path(whole[0])), **found}, "plain", block.rows(whole[0].given)
    return (found, "gated", block.rows(whole[0].given)) if whole else None


_Half: TypeAlias = Literal["whole", "first half", "second half"]


def _halves(rows: Tensor, width: int) -> Iterator[tuple[_Half, Tensor]]:
    if rows.dim() == 3 and rows.shape[-1] == width:
        yield "whole", rows
    elif rows.dim() == 3 and rows.shape[-1] == 2 * width:
        yield "first half", rows[..., :width]
        yield "second half", rows[..., width:]
