"""Short ways to write blocks down: what most attentions, MLPs and stacks have in common."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from traceformer.models.family import Architecture, AttentionRow, StackRow, Tap, into

__all__ = [
    "decoder",
    "encoder",
    "experts",
    "fused",
    "outside",
    "plain_mlp",
    "separate",
    "shared_expert",
    "stack_of",
]


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


def experts(norm: str, mlp: str, router: str) -> dict[str, Tap]:
    """Returns a mixture of experts: its module, the router in it, and what its `experts` are told."""
    return {
        "resid_mid": into(norm),
        "mlp_norm": Tap(norm),
        "mlp_out": Tap(mlp),
        "router_logits": Tap(f"{mlp}.{router}"),
        "expert_topk": Tap(f"{mlp}.experts", "input", "expert ids"),
        "expert_weight": Tap(f"{mlp}.experts", "input", "expert weights"),
    }


def shared_expert(path: str) -> dict[str, Tap]:
    """Returns the gated MLP at a path that all tokens go through beside their experts."""
    return {
        "shared_up": Tap(f"{path}.up_proj"),
        "shared_act": Tap(f"{path}.act_fn"),
        "shared_mid": into(f"{path}.down_proj"),
        "shared_out": Tap(path),
    }


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
