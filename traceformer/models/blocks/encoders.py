"""The blocks of encoders."""

from dataclasses import replace

from traceformer.models.blocks.decoders import LLAMA
from traceformer.models.blocks.parts import encoder, fused, outside, plain_mlp, separate, stack_of
from traceformer.models.family import Architecture, AttentionRow, Tap

__all__ = [
    "BERT",
    "BERT_PRE_NORM",
    "DEBERTA",
    "DEBERTA_V2",
    "DISTILBERT",
    "DPR",
    "EUROBERT",
    "GTE",
    "JINA",
    "LONGFORMER",
    "LUKE",
    "MEGATRON_BERT",
    "MODERNBERT",
    "MPNET",
]

_BERT_ATTENTION = AttentionRow(
    "attention.self",
    Tap("attention.self.query"),
    Tap("attention.self.key"),
    Tap("attention.self.value"),
    "attention.output.dense",
    attn_out=Tap("attention.output.dense"),
    post_norm="attention.output.LayerNorm",
)
_BERT_MLP = plain_mlp(None, "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")
BERT = encoder(
    "encoder.layer",
    "embeddings.word_embeddings",
    _BERT_ATTENTION,
    {"resid_mid": Tap("attention.output.LayerNorm"), **_BERT_MLP},
    post_norm="output.LayerNorm",
)
DPR = stack_of(BERT, blocks="bert_model.encoder.layer", token_embed="bert_model.embeddings.word_embeddings")


def _pre_norm(attention_norm: str, mlp_norm: str, final_norm: str) -> Architecture:
    """BERT's blocks with norms in other places."""
    return stack_of(
        BERT,
        attention=replace(_BERT_ATTENTION, attn_norm=Tap(attention_norm), post_norm=None),
        mlp=plain_mlp(mlp_norm, "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
        post_norm=None,
        final_norm=final_norm,
    )


BERT_PRE_NORM = _pre_norm("attention.self_attn_layer_norm", "LayerNorm", "encoder.LayerNorm")
MEGATRON_BERT = outside(_pre_norm("attention.ln", "ln", "encoder.ln"), "bert")

LUKE = outside(BERT, "bert")
DEBERTA_V2 = stack_of(
    outside(BERT, "deberta-v2"),
    attention=replace(
        _BERT_ATTENTION,
        q_proj=Tap("attention.self.query_proj"),
        k_proj=Tap("attention.self.key_proj"),
        v_proj=Tap("attention.self.value_proj"),
    ),
)
# DeBERTa adds biases behind its one projection; Longformer's rows lie position before batch there.
_UNSEEN = replace(_BERT_ATTENTION, q_proj=None, k_proj=None, v_proj=None)
DEBERTA = stack_of(outside(BERT), attention=_UNSEEN)
LONGFORMER = replace(
    stack_of(outside(BERT, "longformer"), attention=replace(_UNSEEN, scales_queries=True, scaling=1.0)),
    pads_texts=True,  # up to a multiple of its window
)

MPNET = stack_of(
    outside(BERT, "mpnet"),
    attention=separate("attention.attn", "q", "k", "v", "o", post_norm="attention.LayerNorm"),
    mlp={"resid_mid": Tap("attention.LayerNorm"), **_BERT_MLP},
)

DISTILBERT = encoder(
    "transformer.layer",
    "embeddings.word_embeddings",
    separate("attention", "q_lin", "k_lin", "v_lin", "out_lin", post_norm="sa_layer_norm"),
    {
        "resid_mid": Tap("sa_layer_norm"),
        **plain_mlp(None, "ffn.lin1", "ffn.activation", "ffn.lin2", Tap("ffn")),
    },
    post_norm="output_layer_norm",
)
MODERNBERT = encoder(
    "layers",
    "embeddings.tok_embeddings",
    fused("attn", "Wqkv", "Wo", attn_norm=Tap("attn_norm")),
    {
        **plain_mlp("mlp_norm", "mlp.Wi", "mlp.act", "mlp.Wo", Tap("mlp")),
        "mlp_up": Tap("mlp.Wi", part="second half"),
    },
    final_norm="final_norm",
    mlp_kind="gated",
)

EUROBERT = Architecture({"enc": LLAMA.stacks["dec"]})

_GTE_ATTENTION = separate("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", post_norm="post_attention_layernorm")
JINA = encoder(
    "layers",
    "embeddings.word_embeddings",
    _GTE_ATTENTION,
    {
        "resid_mid": Tap("post_attention_layernorm"),
        **plain_mlp(None, "mlp.fc1", "mlp.activation_fn", "mlp.fc2", Tap("mlp")),
    },
    post_norm="post_mlp_layernorm",
)
GTE = stack_of(
    JINA,
    mlp={
        "resid_mid": Tap("post_attention_layernorm"),
        **plain_mlp(None, "mlp.up_proj", "mlp.act_fn", "mlp.down_proj", Tap("mlp")),
    },
    mlp_kind="gated",
)
