"""The blocks of decoders whose attention passes through transformers' attention function."""

from dataclasses import replace

from traceformer.models.blocks.parts import decoder, experts, fused, plain_mlp, separate, shared_expert, stack_of
from traceformer.models.family import ByFlag, Latent, Tap, into

__all__ = [
    "ARIA",
    "BIOGPT",
    "DEEPSEEK",
    "GEMMA2",
    "GEMMA4",
    "GLM",
    "GLM4",
    "GLM4_MOE",
    "GPT2",
    "GPT_BIGCODE",
    "GPT_NEOX",
    "GPT_OSS",
    "GRANITE",
    "GRANITE_MOE",
    "HYPERCLOVAX",
    "LLAMA",
    "LLAMA_PARALLEL",
    "LLAMA_PLAIN",
    "MINIMAX_M3",
    "MIXTRAL",
    "MODERNBERT_DECODER",
    "NANOCHAT",
    "OLMO2",
    "OPT",
    "PHI",
    "PHI3",
    "QWEN2_MOE",
    "STABLELM",
    "STARCODER2",
    "VAULT_GEMMA",
    "WHISPER_DECODER",
]

_LLAMA_ATTENTION = separate("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", attn_norm=Tap("input_layernorm"))
_LLAMA_MLP = plain_mlp("post_attention_layernorm", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj", Tap("mlp"))
LLAMA = decoder("layers", "embed_tokens", "norm", _LLAMA_ATTENTION, _LLAMA_MLP, mlp_kind="gated")

# The same names around an MLP without a gate.
LLAMA_PLAIN = stack_of(LLAMA, mlp_kind="plain")

# Attention and MLP read the same normed input, and both are added to the stream.
_WITHOUT_NORM = {site: tap for site, tap in _LLAMA_MLP.items() if site not in ("resid_mid", "mlp_norm")}
LLAMA_PARALLEL = stack_of(LLAMA, parallel=True, mlp=_WITHOUT_NORM)
STABLELM = ByFlag("use_parallel_residual", LLAMA_PARALLEL, LLAMA, default=False)

VAULT_GEMMA = stack_of(
    LLAMA,
    mlp={**_LLAMA_MLP, "resid_mid": into("pre_feedforward_layernorm"), "mlp_norm": Tap("pre_feedforward_layernorm")},
)

# Gemma 2 and 3 put a second norm after each sublayer: what is added to the stream is that norm's output.
_GEMMA2_ATTENTION = replace(_LLAMA_ATTENTION, attn_out=Tap("post_attention_layernorm"))
GEMMA2 = stack_of(
    VAULT_GEMMA,
    attention=_GEMMA2_ATTENTION,
    mlp={**VAULT_GEMMA.stacks["dec"].mlp, "mlp_out": Tap("post_feedforward_layernorm")},
)
GRANITE = stack_of(LLAMA, scale="residual_multiplier")
# Gemma 4's blocks may add a third thing behind the MLP, and multiply the stream that they hand on: what the MLP's norm
# makes is then not what is added to it.
GEMMA4 = replace(
    stack_of(GEMMA2, mlp={site: tap for site, tap in GEMMA2.stacks["dec"].mlp.items() if site != "mlp_out"}),
    refused={"dec.mlp_out": "its blocks add an embedding of the layer as well, and multiply the stream behind it"},
)
HYPERCLOVAX = stack_of(
    GRANITE,
    attention=replace(_LLAMA_ATTENTION, attn_out=Tap("post_norm1")),
    mlp={**_LLAMA_MLP, "mlp_out": Tap("post_norm2")},
)

# OLMo 2 norms only what a sublayer adds; its MLP reads the residual stream itself.
OLMO2 = stack_of(
    LLAMA,
    attention=replace(_GEMMA2_ATTENTION, attn_norm=None),
    mlp={**_WITHOUT_NORM, "resid_mid": into("mlp"), "mlp_out": Tap("post_feedforward_layernorm")},
)

_HALVES = {"mlp_up": Tap("mlp.gate_up_proj", part="second half"), "mlp_act": Tap("mlp.activation_fn")}
GLM = stack_of(LLAMA, mlp={**_LLAMA_MLP, **_HALVES})
GLM4 = stack_of(
    GLM,
    attention=replace(_LLAMA_ATTENTION, attn_out=Tap("post_self_attn_layernorm")),
    mlp={**_LLAMA_MLP, **_HALVES, "mlp_out": Tap("post_mlp_layernorm")},
)
PHI3 = stack_of(GLM, attention=fused("self_attn", "qkv_proj", "o_proj", attn_norm=Tap("input_layernorm")))

PHI = decoder(
    "layers",
    "embed_tokens",
    "final_layernorm",
    separate("self_attn", "q_proj", "k_proj", "v_proj", "dense", attn_norm=Tap("input_layernorm")),
    plain_mlp(None, "mlp.fc1", "mlp.activation_fn", "mlp.fc2", Tap("mlp")),
    parallel=True,
)
STARCODER2 = stack_of(
    LLAMA_PLAIN, mlp=plain_mlp("post_attention_layernorm", "mlp.c_fc", "mlp.act", "mlp.c_proj", Tap("mlp"))
)
NANOCHAT = stack_of(
    LLAMA_PLAIN, mlp=plain_mlp("post_attention_layernorm", "mlp.fc1", "mlp.activation_fn", "mlp.fc2", Tap("mlp"))
)

# Mixture of experts: each token has its own experts, so there is no one up projection to record. Some layers may have
# one MLP instead, under the same name.
_EXPERTS = experts("post_attention_layernorm", "mlp", "gate")
_ROUTED = experts("post_attention_layernorm", "mlp", "router")
MIXTRAL = stack_of(LLAMA, mlp=_EXPERTS, mlp_kind="experts")
GPT_OSS = stack_of(MIXTRAL, mlp=_ROUTED)

# One more expert that all tokens go to, beside those that are chosen.
QWEN2_MOE = stack_of(MIXTRAL, mlp={**_EXPERTS, **shared_expert("mlp.shared_expert")})
GLM4_MOE = stack_of(MIXTRAL, mlp={**_EXPERTS, **shared_expert("mlp.shared_experts")})
ARIA = stack_of(MIXTRAL, mlp={**_ROUTED, **shared_expert("mlp.shared_experts")})
# Its activation is no module, and gate and up are one.
_MINIMAX_M3_SHARED = {"shared_mid": into("mlp.shared_experts.down_proj"), "shared_out": Tap("mlp.shared_experts")}
MINIMAX_M3 = stack_of(MIXTRAL, mlp={**_EXPERTS, **_MINIMAX_M3_SHARED})

# Keys and values are made of one narrow row for each token; larger models make queries of another one.
_KV_LATENT = Latent("self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj")
_LATENT_ATTENTION = replace(_LLAMA_ATTENTION, k_proj=None, v_proj=None, kv_latent=_KV_LATENT)
_LATENT_QUERIES = replace(
    _LATENT_ATTENTION,
    q_proj=Tap("self_attn.q_b_proj"),
    q_latent=Latent("self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"),
)
DEEPSEEK = ByFlag(
    "q_lora_rank",
    stack_of(GLM4_MOE, attention=_LATENT_ATTENTION),
    stack_of(GLM4_MOE, attention=_LATENT_QUERIES),
    default=1536,
    when=None,
)
GRANITE_MOE = stack_of(
    MIXTRAL, mlp=experts("post_attention_layernorm", "block_sparse_moe", "router"), scale="residual_multiplier"
)

GPT2 = decoder(
    "h",
    "wte",
    "ln_f",
    fused("attn", "c_attn", "c_proj", attn_norm=Tap("ln_1")),
    plain_mlp("ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj", Tap("mlp")),
)
GPT_BIGCODE = ByFlag(
    "multi_query",
    GPT2,
    stack_of(GPT2, attention=fused("attn", "c_attn", "c_proj", "per_head", attn_norm=Tap("ln_1"))),
    default=True,
)

_NEOX_MLP = plain_mlp(
    "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", Tap("post_mlp_dropout")
)
_NEOX_SEQUENTIAL = decoder(
    "layers",
    "embed_in",
    "final_layer_norm",
    fused(
        "attention",
        "query_key_value",
        "dense",
        "per_head",
        attn_norm=Tap("input_layernorm"),
        attn_out=Tap("post_attention_dropout"),
    ),
    _NEOX_MLP,
)
_NEOX_PARALLEL = stack_of(
    _NEOX_SEQUENTIAL, parallel=True, mlp={site: tap for site, tap in _NEOX_MLP.items() if site != "resid_mid"}
)
GPT_NEOX = ByFlag("use_parallel_residual", _NEOX_PARALLEL, _NEOX_SEQUENTIAL, default=True)

_OPT_ATTENTION = separate(
    *("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    attn_norm=Tap("self_attn_layer_norm"),
    scales_queries=True,
)
_OPT_PRE_NORM = decoder(
    "decoder.layers",
    "decoder.embed_tokens",
    "decoder.final_layer_norm",
    _OPT_ATTENTION,
    plain_mlp("final_layer_norm", "fc1", "activation_fn", "fc2"),
)
_OPT_POST_NORM = stack_of(
    _OPT_PRE_NORM,
    attention=replace(_OPT_ATTENTION, attn_norm=None, post_norm="self_attn_layer_norm"),
    mlp={**plain_mlp(None, "fc1", "activation_fn", "fc2"), "resid_mid": Tap("self_attn_layer_norm")},
    post_norm="final_layer_norm",
    final_norm=None,
)
OPT = ByFlag("do_layer_norm_before", _OPT_PRE_NORM, _OPT_POST_NORM, default=True)

BIOGPT = stack_of(
    _OPT_PRE_NORM,
    blocks="layers",
    token_embed="embed_tokens",
    final_norm="layer_norm",
    attention=replace(_OPT_ATTENTION, scales_queries=False),
)
WHISPER_DECODER = stack_of(_OPT_PRE_NORM, final_norm="decoder.layer_norm")

MODERNBERT_DECODER = decoder(
    "layers",
    "embeddings.tok_embeddings",
    "final_norm",
    separate("attn", "q_proj", "k_proj", "v_proj", "Wo", attn_norm=Tap("attn_norm")),
    {
        **plain_mlp("mlp_norm", "mlp.Wi", "mlp.act", "mlp.Wo", Tap("mlp")),
        "mlp_up": Tap("mlp.Wi", part="second half"),
    },
    mlp_kind="gated",
)
