"""The blocks of encoder-decoders: a row for each stack."""

from dataclasses import replace
from typing import Literal

from traceformer.models.blocks.parts import plain_mlp, separate
from traceformer.models.family import Architecture, AttentionRow, ByFlag, StackRow, Tap

__all__ = ["BART", "BART_PRE_NORM", "T5"]


def _t5_stack(stack: Literal["encoder", "decoder"]) -> StackRow:
    mlp = "layer.1" if stack == "encoder" else "layer.2"
    dense = f"{mlp}.DenseReluDense"
    return StackRow(
        f"{stack}.block",
        f"{stack}.embed_tokens",
        separate("layer.0.SelfAttention", "q", "k", "v", "o", attn_norm=Tap("layer.0.layer_norm")),
        plain_mlp(f"{mlp}.layer_norm", f"{dense}.wi", f"{dense}.act", f"{dense}.wo"),
        final_norm=f"{stack}.final_layer_norm",
        cross=None
        if stack == "encoder"
        else separate("layer.1.EncDecAttention", "q", "k", "v", "o", attn_norm=Tap("layer.1.layer_norm")),
    )


def _gated(row: StackRow) -> StackRow:
    up = row.mlp["mlp_up"].path
    return replace(row, mlp={**row.mlp, "mlp_up": Tap(f"{up}_1")}, mlp_kind="gated")


_T5_PLAIN = Architecture({"enc": _t5_stack("encoder"), "dec": _t5_stack("decoder")})
_T5_GATED = Architecture({stack: _gated(row) for stack, row in _T5_PLAIN.stacks.items()})
T5 = ByFlag("is_gated_act", _T5_GATED, _T5_PLAIN, default=False)


def _bart_attention(module: str, *, is_post_norm: bool) -> AttentionRow:
    norm = f"{module}_layer_norm"
    norms = {"post_norm": norm} if is_post_norm else {"attn_norm": Tap(norm)}
    return separate(module, "q_proj", "k_proj", "v_proj", "out_proj", **norms)


def _bart_stack(stack: Literal["encoder", "decoder"]) -> StackRow:
    has_cross = stack == "decoder"
    return StackRow(
        f"{stack}.layers",
        f"{stack}.embed_tokens",
        _bart_attention("self_attn", is_post_norm=True),
        {
            "resid_mid": Tap("encoder_attn_layer_norm" if has_cross else "self_attn_layer_norm"),
            **plain_mlp(None, "fc1", "activation_fn", "fc2"),
        },
        cross=_bart_attention("encoder_attn", is_post_norm=True) if has_cross else None,
        post_norm="final_layer_norm",
    )


def _pre_norm(row: StackRow) -> StackRow:
    """The same names with each norm before its sublayer, and one more behind the last block."""
    return replace(
        row,
        attention=_bart_attention("self_attn", is_post_norm=False),
        mlp=plain_mlp("final_layer_norm", "fc1", "activation_fn", "fc2"),
        cross=None if row.cross is None else _bart_attention("encoder_attn", is_post_norm=False),
        post_norm=None,
        final_norm=row.blocks.replace("layers", "layer_norm"),
    )


BART = Architecture({"enc": _bart_stack("encoder"), "dec": _bart_stack("decoder")})
BART_PRE_NORM = Architecture({stack: _pre_norm(row) for stack, row in BART.stacks.items()})
