"""Short ways to write blocks down: what most attentions, MLPs and stacks have in common."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from traceformer.models.family import Architecture, AttentionRow, StackRow, Tap, into

__all__ = ["decoder", "encoder", "fused", "outside", "plain_mlp", "separate", "stack_of"]


def separate(module: str, q: str, k: str, v: str, out: str, **rest: Any) -> AttentionRow:
    """Returns an attention whose projections are modules of their own."""
    rest.setdefault("attn_out", Tap(module))
    return AttentionRow(
        module, Tap(f"{module}.{q}"), Tap(f"{module}.{k}"), Tap(f"{module}.{v}"), f"{module}.{out}", **rest
    )


def fused(
    module: str, qkv: str, out: str, fused: Literal["concat", "per_head"] = "concat", **rest: Any
) -> AttentionRow:
    """Returns an attention whose projections are one module."""
    q, k, v = (Tap(f"{module}.{qkv}", part=part, fused=fused) for part in ("q", "k", "v"))
    rest.setdefault("attn_out", Tap(module))
    return AttentionRow(module, q, k, v, f"{module}.{out}", **rest)


def plain_mlp(norm: str | None, up: str, act: str, down: str, out: Tap | None = None) -> dict[str, Tap]:
    """Returns up projection, activation, down projection; the norm before them reads the residual stream."""
    norms = {"resid_mid": into(norm), "mlp_norm": Tap(norm)} if norm else {}
    rows = {"mlp_up": Tap(up), "mlp_act": Tap(act), "mlp_mid": into(down), "mlp_down": Tap(down)}
    return {**norms, **rows, "mlp_out": out or Tap(down)}


def decoder(
    blocks: str, embed: str, norm: str, attention: AttentionRow, mlp: Mapping[str, Tap], **rest: Any
) -> Architecture:
    return Architecture({"dec": StackRow(blocks, embed, attention, mlp, final_norm=norm, **rest)})


def encoder(blocks: str, embed: str, attention: AttentionRow, mlp: Mapping[str, Tap], **rest: Any) -> Architecture:
    return Architecture({"enc": StackRow(blocks, embed, attention, mlp, **rest)})


def outside(architecture: Architecture, own_attention: str = "") -> Architecture:
    """Returns the same blocks, whose attention does not pass through transformers' attention function."""
    return replace(architecture, has_attention_function=bool(own_attention), own_attention=own_attention)


def stack_of(architecture: Architecture, **changes: Any) -> Architecture:
    """Returns the same blocks of one stack with some fields of its row changed."""
    [(stack, row)] = architecture.stacks.items()
    return replace(architecture, stacks={stack: replace(row, **changes)})
