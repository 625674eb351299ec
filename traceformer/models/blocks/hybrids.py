"""The blocks of decoders that have attention in some layers only, or beside a recurrence, or not at all.

A row says where attention is in a block that has some; which ones have, the config says, layer by layer.
"""

from dataclasses import replace

from traceformer.models.blocks.decoders import LLAMA, MIXTRAL, QWEN2_MOE
from traceformer.models.blocks.parts import decoder, experts, plain_mlp, separate, stack_of
from traceformer.models.family import AttentionRow, ByFlag, Gated, Tap, into

__all__ = [
    "BAMBA",
    "FALCON_H1",
    "GRANITE_HYBRID",
    "JAMBA",
    "LFM2",
    "LFM2_MOE",
    "MAMBA",
    "QWEN3_5",
    "QWEN3_NEXT",
    "XLSTM",
    "ZAMBA2",
]

# The query projection holds each head's queries and its gate, which what goes into W_O is multiplied by.
_GATED = replace(
    LLAMA.stacks["dec"].attention,
    q_proj=Tap("self_attn.q_proj", part="heads' first half"),
    out_proj=None,
    gated=Gated(Tap("self_attn.q_proj", part="heads' second half"), "self_attn.o_proj"),
)
QWEN3_5 = stack_of(LLAMA, attention=_GATED)
QWEN3_NEXT = stack_of(QWEN2_MOE, attention=_GATED)

_JAMBA_MLP = plain_mlp(
    *("pre_ff_layernorm", "feed_forward.up_proj", "feed_forward.act_fn", "feed_forward.down_proj"), Tap("feed_forward")
)
BAMBA = stack_of(LLAMA, final_norm="final_layernorm", mlp=_JAMBA_MLP)
JAMBA = stack_of(MIXTRAL, final_norm="final_layernorm", mlp=experts("pre_ff_layernorm", "feed_forward", "router"))

# Its MLP is not as wide as its config says.
LFM2 = decoder(
    "layers",
    "embed_tokens",
    "embedding_norm",
    separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj", attn_norm=Tap("operator_norm")),
    {"resid_mid": into("ffn_norm"), "mlp_norm": Tap("ffn_norm"), "mlp_out": Tap("feed_forward")},
    mlp_kind="gated",
)

LFM2_MOE = stack_of(LFM2, mlp=experts("ffn_norm", "feed_forward", "gate"), mlp_kind="experts")

# Experts and an MLP beside them are added up by no module. Without experts that MLP is as wide as another setting says.
_BEHIND_ATTENTION = {"resid_mid": into("post_attention_layernorm"), "mlp_norm": Tap("post_attention_layernorm")}
GRANITE_HYBRID = ByFlag(
    "num_local_experts",
    stack_of(LLAMA, mlp={**_BEHIND_ATTENTION, "mlp_out": Tap("shared_mlp")}, scale="residual_multiplier"),
    stack_of(MIXTRAL, mlp=_BEHIND_ATTENTION, scale="residual_multiplier"),
    default=8,
    when=0,
)

# A state-space model beside attention in every block, each scaled before both are added to the stream at once.
FALCON_H1 = stack_of(
    LLAMA,
    final_norm="final_layernorm",
    attention=replace(LLAMA.stacks["dec"].attention, out_proj=None, attn_out=None),
    mlp={site: tap for site, tap in _JAMBA_MLP.items() if site != "mlp_down"},  # it is scaled, too
)

# Attention reads the stream beside the embeddings, and what it gives is read by the state-space model, not added.
ZAMBA2 = decoder(
    "layers",
    "embed_tokens",
    "final_layernorm",
    AttentionRow("shared_transformer.self_attn", None, None, None, None, None),
    {},
)

MAMBA = decoder("layers", "embeddings", "norm_f", AttentionRow("", None, None, None, None, None), {}, attends=False)
XLSTM = stack_of(
    MAMBA,
    blocks="blocks",
    final_norm="out_norm",
    mlp={"resid_mid": into("norm_ffn"), "mlp_norm": Tap("norm_ffn"), "mlp_out": Tap("ffn")},
    mlp_kind="gated",
)
