"""Where each site lives in each model family: rows of module paths, data only.

A row names the blocks of a stack and, relative to a block, the module at whose output or input a site is seen.
`resid_pre`, `resid_post`, `embed`, `hidden` and `logits` need no entry (they are the blocks' and the model's own
inputs and outputs), nor do `q k v z attn_scores attn_pattern` (they pass through the attention function).
To add a family, add a row and run `traceformer check FAMILY`: the algebra proves it or names what is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from traceformer.errors import Unsupported
from traceformer.sites import SITES, ArrayKey, Attention, Stack

__all__ = ["ARCHITECTURES", "Architecture", "AttentionRow", "StackRow", "Tap", "architecture_of"]


class Tap(NamedTuple):
    """A tensor at a module: its first output or its first input, whole or a part of the last axis.

    For fused projections `part` is q, k or v; `fused` says whether the three lie one after the other
    (`concat`: all q heads, all k heads, all v heads) or head by head (`per_head`: q, k, v of head 0, then of head 1).
    """

    path: str
    side: Literal["output", "input"] = "output"
    part: Literal["whole", "first half", "second half", "q", "k", "v"] = "whole"
    fused: Literal["concat", "per_head"] = "concat"


def into(path: str) -> Tap:
    return Tap(path, "input")


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One attention of a block: the module handed to the attention function, its parts, and its sites."""

    module: str
    q_proj: Tap
    k_proj: Tap
    v_proj: Tap
    out_proj: str
    attn_out: Tap
    attn_norm: Tap | None = None
    post_norm: str | None = None  # the norm after the residual addition, in post-norm blocks

    def tap(self, site: str) -> Tap | None:
        return {
            "attn_norm": self.attn_norm,
            "q_proj": self.q_proj,
            "k_proj": self.k_proj,
            "v_proj": self.v_proj,
            "attn_out": self.attn_out,
        }.get(site)


@dataclass(frozen=True, slots=True)
class StackRow:
    """One stack of blocks; every path is relative to the base model (`blocks` ..) or to a block (`mlp` ..)."""

    blocks: str
    token_embed: str
    attention: AttentionRow
    mlp: Mapping[str, Tap]  # resid_mid, mlp_norm, mlp_up, mlp_act, mlp_mid, mlp_down, mlp_out where they exist
    final_norm: str | None = None
    cross: AttentionRow | None = None
    post_norm: str | None = None  # the norm after the MLP's residual addition, in post-norm blocks
    parallel: bool = False  # attention and MLP both read the block's input

    def attention_of(self, kind: Attention | None) -> AttentionRow | None:
        return self.cross if kind == "cross" else self.attention if kind == "self" else None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family: its stacks, and whether its attention passes through transformers' attention function."""

    stacks: Mapping[Stack, StackRow]
    has_attention_function: bool = True

    def has(self, key: ArrayKey) -> bool:
        """Whether this family has such a place. Says nothing of `logits`, which depend on the model's head."""
        row = self.stacks.get(key.stack)
        if row is None:
            return False
        if key.attention is not None:
            attention = row.attention_of(key.attention)
            if attention is None:
                return False
            if key.site in ("q", "k", "v", "z", "attn_scores", "attn_pattern"):
                return self.has_attention_function
            return attention.tap(key.site) is not None
        if key.site == "final_norm":
            return row.final_norm is not None
        if key.site in ("token_embed", "embed", "resid_pre", "resid_post", "hidden", "logits"):
            return True
        return key.site in row.mlp

    def keys(self, site: str) -> tuple[ArrayKey, ...]:
        """Returns the places of a site in this family: encoder before decoder, self before cross."""
        attentions = ("self", "cross") if SITES[site].of_attention else (None,)
        found = (ArrayKey(stack, attention, site) for stack in self.stacks for attention in attentions)
        last = list(self.stacks)[-1]
        return tuple(key for key in found if self.has(key) and (site != "logits" or key.stack == last))


class ByFlag(NamedTuple):
    """A family whose blocks come in two builds, chosen by a flag of its config."""

    flag: str
    when_true: Architecture
    when_false: Architecture


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
LLAMA = _decoder("layers", "embed_tokens", "norm", _LLAMA_ATTENTION, _LLAMA_MLP)

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
    LLAMA, mlp=_plain_mlp("post_attention_layernorm", "mlp.fc1", "mlp.activation_fn", "mlp.fc2", Tap("mlp"))
)

# Mixture of experts: each token has its own experts, so there is no one up projection to record.
_EXPERTS = {site: tap for site, tap in _LLAMA_MLP.items() if site in ("resid_mid", "mlp_norm", "mlp_out")}
MIXTRAL = _stack_of(LLAMA, mlp=_EXPERTS)

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
GPT_NEOX = _decoder(
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
GPT_NEOX_PARALLEL = _stack_of(
    GPT_NEOX, parallel=True, mlp={site: tap for site, tap in _NEOX_MLP.items() if site != "resid_mid"}
)

_OPT_ATTENTION = _separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj", attn_norm=Tap("self_attn_layer_norm"))
OPT = _decoder(
    "decoder.layers",
    "decoder.embed_tokens",
    "decoder.final_layer_norm",
    _OPT_ATTENTION,
    _plain_mlp("final_layer_norm", "fc1", "activation_fn", "fc2"),
)
OPT_POST_NORM = _stack_of(
    OPT,
    attention=replace(_OPT_ATTENTION, attn_norm=None, post_norm="self_attn_layer_norm"),
    mlp={**_plain_mlp(None, "fc1", "activation_fn", "fc2"), "resid_mid": Tap("self_attn_layer_norm")},
    post_norm="final_layer_norm",
    final_norm=None,
)

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
    return replace(row, mlp={**row.mlp, "mlp_up": Tap(f"{up}_1")})


T5 = Architecture({"enc": _t5_stack("encoder"), "dec": _t5_stack("decoder")})
T5_GATED = Architecture({stack: _gated(row) for stack, row in T5.stacks.items()})


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

ARCHITECTURES: Mapping[str, Architecture | ByFlag] = {
    "bart": BART,
    "bert": BERT,
    "bloom": BLOOM,
    "byte_sparse": LLAMA,
    "distilbert": DISTILBERT,
    "electra": BERT,
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gpt2": GPT2,
    "gpt_neox": ByFlag("use_parallel_residual", GPT_NEOX_PARALLEL, GPT_NEOX),
    "gpt_oss": MIXTRAL,
    "gptj": GPTJ,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": MIXTRAL,
    "modernbert": MODERNBERT,
    "mpt": MPT,
    "mt5": ByFlag("is_gated_act", T5_GATED, T5),
    "nanochat": NANOCHAT,
    "olmo2": OLMO2,
    "opt": ByFlag("do_layer_norm_before", OPT, OPT_POST_NORM),
    "phi3": PHI3,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "roberta": BERT,
    "t5": ByFlag("is_gated_act", T5_GATED, T5),
    "xlm-roberta": BERT,
}


def architecture_of(config: Any) -> Architecture:
    """Returns the row of a model's family, by its config's `model_type`.

    Raises:
        Unsupported: there is no row for this family.
    """
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise Unsupported(
            f"no architecture row for model type {config.model_type!r}",
            why=f"rows exist for {', '.join(ARCHITECTURES)}",
            hint="add a row to traceformer/models/families.py (CONTRIBUTING.md says how)",
        )
    if isinstance(row, ByFlag):
        return row.when_true if getattr(config, row.flag) else row.when_false
    return row
