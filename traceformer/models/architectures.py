"""Where each site lives in a block: paths of modules, data only; families whose blocks are built alike share them.

A row names the blocks of a stack and, relative to a block, the module at whose output or input a site is seen.
`resid_pre`, `resid_post`, `embed`, `hidden` and `logits` need no entry (they are the blocks' and the model's own
inputs and outputs), nor do `q k v z attn_scores attn_pattern` (they pass through the attention function).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from traceformer.models.family import Architecture, AttentionRow, ByFlag, StackRow, Tap, into

__all__ = [
    "BART",
    "BERT",
    "BLOOM",
    "DISTILBERT",
    "GEMMA2",
    "GPT2",
    "GPTJ",
    "GPT_NEOX",
    "LLAMA",
    "MIXTRAL",
    "MODERNBERT",
    "MPT",
    "NANOCHAT",
    "OLMO2",
    "OPT",
    "PHI3",
    "T5",
]


def _separate(module: str, q: str, k: str, v: str, out: str, **rest: Any) -> AttentionRow:
    rest.setdefault("attn_out", Tap(module))
    return AttentionRow(
        module, Tap(f"{module}.{q}"), Tap(f"{module}.{k}"), Tap(f"{module}.{v}"), f"{module}.{out}", **rest
    )


def _fused(
    module: str, qkv: str, out: str, fused: Literal["concat", "per_head"] = "concat", **rest: Any
) -> AttentionRow:
    q, k, v = (Tap(f"{module}.{qkv}", part=part, fused=fused) for part in ("q", "k", "v"))
    rest.setdefault("attn_out", Tap(module))
    return AttentionRow(module, q, k, v, f"{module}.{out}", **rest)


def _plain_mlp(norm: str | None, up: str, act: str, down: str, out: Tap | None = None) -> dict[str, Tap]:
    """Up projection, activation, down projection; the norm before it reads the residual stream."""
    norms = {"resid_mid": into(norm), "mlp_norm": Tap(norm)} if norm else {}
    rows = {"mlp_up": Tap(up), "mlp_act": Tap(act), "mlp_mid": into(down), "mlp_down": Tap(down)}
    return {**norms, **rows, "mlp_out": out or Tap(down)}


def _decoder(
    blocks: str, embed: str, norm: str, attention: AttentionRow, mlp: Mapping[str, Tap], **rest: Any
) -> Architecture:
    return Architecture({"dec": StackRow(blocks, embed, attention, mlp, final_norm=norm, **rest)})


def _stack_of(architecture: Architecture, **changes: Any) -> Architecture:
    """The same single-stack family with some fields of its row changed."""
    [(stack, row)] = architecture.stacks.items()
    return Architecture({stack: replace(row, **changes)}, architecture.has_attention_function)


_LLAMA_ATTENTION = _separate("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", attn_norm=Tap("input_layernorm"))
_LLAMA_MLP = _plain_mlp("post_attention_layernorm", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj", Tap("mlp"))
LLAMA = _decoder("layers", "embed_tokens", "norm", _LLAMA_ATTENTION, _LLAMA_MLP, mlp_kind="gated")

# Gemma 2 and 3 put a second norm after each sublayer: what is added to the stream is that norm's output.
GEMMA2 = _stack_of(
    LLAMA,
    attention=replace(_LLAMA_ATTENTION, attn_out=Tap("post_attention_layernorm")),
    mlp={
        **_LLAMA_MLP,
        "resid_mid": into("pre_feedforward_layernorm"),
        "mlp_norm": Tap("pre_feedforward_layernorm"),
        "mlp_out": Tap("post_feedforward_layernorm"),
    },
)

# OLMo 2 norms only what a sublayer adds; its MLP reads the residual stream itself.
OLMO2 = _stack_of(
    LLAMA,
    attention=replace(_LLAMA_ATTENTION, attn_norm=None, attn_out=Tap("post_attention_layernorm")),
    mlp={
        **{site: tap for site, tap in _LLAMA_MLP.items() if site != "mlp_norm"},
        "resid_mid": into("mlp"),
        "mlp_out": Tap("post_feedforward_layernorm"),
    },
)

PHI3 = _stack_of(
    LLAMA,
    attention=_fused("self_attn", "qkv_proj", "o_proj", attn_norm=Tap("input_layernorm")),
    mlp={
        **_LLAMA_MLP,
        "mlp_up": Tap("mlp.gate_up_proj", part="second half"),
        "mlp_act": Tap("mlp.activation_fn"),
    },
)

NANOCHAT = _stack_of(
    LLAMA,
    mlp=_plain_mlp("post_attention_layernorm", "mlp.fc1", "mlp.activation_fn", "mlp.fc2", Tap("mlp")),
    mlp_kind="plain",
)

# Mixture of experts: each token has its own experts, so there is no one up projection to record.
_EXPERTS = {site: tap for site, tap in _LLAMA_MLP.items() if site in ("resid_mid", "mlp_norm", "mlp_out")}
MIXTRAL = _stack_of(LLAMA, mlp=_EXPERTS, mlp_kind="experts")

GPT2 = _decoder(
    "h",
    "wte",
    "ln_f",
    _fused("attn", "c_attn", "c_proj", attn_norm=Tap("ln_1")),
    _plain_mlp("ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj", Tap("mlp")),
)

_NEOX_MLP = _plain_mlp(
    "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", Tap("post_mlp_dropout")
)
_NEOX_SEQUENTIAL = _decoder(
    "layers",
    "embed_in",
    "final_layer_norm",
    _fused(
        "attention",
        "query_key_value",
        "dense",
        "per_head",
        attn_norm=Tap("input_layernorm"),
        attn_out=Tap("post_attention_dropout"),
    ),
    _NEOX_MLP,
)
_NEOX_PARALLEL = _stack_of(
    _NEOX_SEQUENTIAL, parallel=True, mlp={site: tap for site, tap in _NEOX_MLP.items() if site != "resid_mid"}
)
GPT_NEOX = ByFlag("use_parallel_residual", _NEOX_PARALLEL, _NEOX_SEQUENTIAL, default=True)

_OPT_ATTENTION = _separate(
    *("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    attn_norm=Tap("self_attn_layer_norm"),
    scales_queries=True,
)
_OPT_PRE_NORM = _decoder(
    "decoder.layers",
    "decoder.embed_tokens",
    "decoder.final_layer_norm",
    _OPT_ATTENTION,
    _plain_mlp("final_layer_norm", "fc1", "activation_fn", "fc2"),
)
_OPT_POST_NORM = _stack_of(
    _OPT_PRE_NORM,
    attention=replace(_OPT_ATTENTION, attn_norm=None, post_norm="self_attn_layer_norm"),
    mlp={**_plain_mlp(None, "fc1", "activation_fn", "fc2"), "resid_mid": Tap("self_attn_layer_norm")},
    post_norm="final_layer_norm",
    final_norm=None,
)
OPT = ByFlag("do_layer_norm_before", _OPT_PRE_NORM, _OPT_POST_NORM, default=True)

# Outside transformers' attention interface: everything but the sites inside attention.
GPTJ = Architecture(
    {
        "dec": StackRow(
            "h",
            "wte",
            _separate("attn", "q_proj", "k_proj", "v_proj", "out_proj", attn_norm=Tap("ln_1")),
            _plain_mlp(None, "mlp.fc_in", "mlp.act", "mlp.fc_out", Tap("mlp")),
            final_norm="ln_f",
            parallel=True,
        )
    },
    has_attention_function=False,
)
BLOOM = Architecture(
    {
        "dec": StackRow(
            "h",
            "word_embeddings",
            _fused(
                "self_attention",
                "query_key_value",
                "dense",
                "per_head",
                attn_norm=Tap("input_layernorm"),
                attn_out=Tap("self_attention.dense"),
            ),
            _plain_mlp("post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"),
            final_norm="ln_f",
        )
    },
    has_attention_function=False,
)
MPT = Architecture(
    {
        "dec": StackRow(
            "blocks",
            "wte",
            _fused("attn", "Wqkv", "out_proj", attn_norm=Tap("norm_1")),
            _plain_mlp("norm_2", "ffn.up_proj", "ffn.act", "ffn.down_proj"),
            final_norm="norm_f",
        )
    },
    has_attention_function=False,
)

BERT = Architecture(
    {
        "enc": StackRow(
            "encoder.layer",
            "embeddings.word_embeddings",
            AttentionRow(
                "attention.self",
                Tap("attention.self.query"),
                Tap("attention.self.key"),
                Tap("attention.self.value"),
                "attention.output.dense",
                attn_out=Tap("attention.output.dense"),
                post_norm="attention.output.LayerNorm",
            ),
            {
                "resid_mid": Tap("attention.output.LayerNorm"),
                **_plain_mlp(None, "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
            },
            post_norm="output.LayerNorm",
        )
    }
)
DISTILBERT = Architecture(
    {
        "enc": StackRow(
            "transformer.layer",
            "embeddings.word_embeddings",
            _separate("attention", "q_lin", "k_lin", "v_lin", "out_lin", post_norm="sa_layer_norm"),
            {
                "resid_mid": Tap("sa_layer_norm"),
                **_plain_mlp(None, "ffn.lin1", "ffn.activation", "ffn.lin2", Tap("ffn")),
            },
            post_norm="output_layer_norm",
        )
    }
)
MODERNBERT = Architecture(
    {
        "enc": StackRow(
            "layers",
            "embeddings.tok_embeddings",
            _fused("attn", "Wqkv", "Wo", attn_norm=Tap("attn_norm")),
            {
                **_plain_mlp("mlp_norm", "mlp.Wi", "mlp.act", "mlp.Wo", Tap("mlp")),
                "mlp_up": Tap("mlp.Wi", part="second half"),
            },
            final_norm="final_norm",
            mlp_kind="gated",
        )
    }
)


def _t5_stack(stack: Literal["encoder", "decoder"]) -> StackRow:
    mlp = "layer.1" if stack == "encoder" else "layer.2"
    dense = f"{mlp}.DenseReluDense"
    return StackRow(
        f"{stack}.block",
        f"{stack}.embed_tokens",
        _separate("layer.0.SelfAttention", "q", "k", "v", "o", attn_norm=Tap("layer.0.layer_norm")),
        _plain_mlp(f"{mlp}.layer_norm", f"{dense}.wi", f"{dense}.act", f"{dense}.wo"),
        final_norm=f"{stack}.final_layer_norm",
        cross=None
        if stack == "encoder"
        else _separate("layer.1.EncDecAttention", "q", "k", "v", "o", attn_norm=Tap("layer.1.layer_norm")),
    )


def _gated(row: StackRow) -> StackRow:
    up = row.mlp["mlp_up"].path
    return replace(row, mlp={**row.mlp, "mlp_up": Tap(f"{up}_1")}, mlp_kind="gated")


_T5_PLAIN = Architecture({"enc": _t5_stack("encoder"), "dec": _t5_stack("decoder")})
_T5_GATED = Architecture({stack: _gated(row) for stack, row in _T5_PLAIN.stacks.items()})
T5 = ByFlag("is_gated_act", _T5_GATED, _T5_PLAIN, default=False)


def _bart_stack(stack: Literal["encoder", "decoder"]) -> StackRow:
    has_cross = stack == "decoder"
    return StackRow(
        f"{stack}.layers",
        f"{stack}.embed_tokens",
        _separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj", post_norm="self_attn_layer_norm"),
        {
            "resid_mid": Tap("encoder_attn_layer_norm" if has_cross else "self_attn_layer_norm"),
            **_plain_mlp(None, "fc1", "activation_fn", "fc2"),
        },
        cross=_separate("encoder_attn", "q_proj", "k_proj", "v_proj", "out_proj", post_norm="encoder_attn_layer_norm")
        if has_cross
        else None,
        post_norm="final_layer_norm",
    )


BART = Architecture({"enc": _bart_stack("encoder"), "dec": _bart_stack("decoder")})
