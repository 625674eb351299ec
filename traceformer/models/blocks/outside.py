"""The blocks of decoders that compute attention in code of their own."""

from dataclasses import replace

from traceformer.models.blocks.decoders import BIOGPT
from traceformer.models.blocks.parts import decoder, fused, outside, plain_mlp, separate, stack_of
from traceformer.models.family import AttentionRow, ByFlag, Tap

__all__ = ["BLOOM", "CODEGEN", "FALCON", "GPTJ", "GPT_NEO", "MPT", "XGLM"]

GPTJ = outside(
    decoder(
        "h",
        "wte",
        "ln_f",
        separate("attn", "q_proj", "k_proj", "v_proj", "out_proj", attn_norm=Tap("ln_1")),
        plain_mlp(None, "mlp.fc_in", "mlp.act", "mlp.fc_out", Tap("mlp")),
        parallel=True,
    ),
    "gptj",
)
# Its one projection holds q, v and k in four groups, as it was trained on four devices.
CODEGEN = stack_of(GPTJ, attention=AttentionRow("attn", None, None, None, "attn.out_proj", Tap("attn"), Tap("ln_1")))

GPT_NEO = outside(
    decoder(
        "h",
        "wte",
        "ln_f",
        separate("attn.attention", "q_proj", "k_proj", "v_proj", "out_proj", attn_norm=Tap("ln_1"), scaling=1.0),
        plain_mlp("ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj", Tap("mlp")),
    ),
    "gpt_neo",
)

BLOOM = outside(
    decoder(
        "h",
        "word_embeddings",
        "ln_f",
        fused(
            "self_attention",
            "query_key_value",
            "dense",
            "per_head",
            attn_norm=Tap("input_layernorm"),
            attn_out=Tap("self_attention.dense"),
        ),
        plain_mlp("post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"),
    ),
    "bloom",
)

_FALCON_ATTENTION = fused("self_attention", "query_key_value", "dense", "per_head", attn_norm=Tap("input_layernorm"))
_FALCON_MLP = ("mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h")
_FALCON_SEQUENTIAL = outside(
    decoder(
        "h",
        "word_embeddings",
        "ln_f",
        _FALCON_ATTENTION,
        plain_mlp("post_attention_layernorm", *_FALCON_MLP),
    ),
    "falcon",
)
_FALCON_ONE_NORM = stack_of(_FALCON_SEQUENTIAL, parallel=True, mlp=plain_mlp(None, *_FALCON_MLP))
_FALCON_TWO_NORMS = stack_of(
    _FALCON_ONE_NORM,
    attention=replace(_FALCON_ATTENTION, attn_norm=Tap("ln_attn")),
    mlp={**plain_mlp(None, *_FALCON_MLP), "mlp_norm": Tap("ln_mlp")},
)
FALCON = ByFlag(
    "new_decoder_architecture",
    ByFlag("num_ln_in_parallel_attn", _FALCON_ONE_NORM, _FALCON_TWO_NORMS, default=None, when=1),
    ByFlag("parallel_attn", _FALCON_ONE_NORM, _FALCON_SEQUENTIAL, default=True),
    default=False,
)

MPT = outside(
    decoder(
        "blocks",
        "wte",
        "norm_f",
        fused("attn", "Wqkv", "out_proj", attn_norm=Tap("norm_1")),
        plain_mlp("norm_2", "ffn.up_proj", "ffn.act", "ffn.down_proj"),
    ),
    "mpt",
)

XGLM = outside(BIOGPT)
