"""Encoders, which predict no next token."""

from collections.abc import Mapping

from traceformer.models.blocks import encoders as blocks
from traceformer.models.family import Family, Positions, Requires
from traceformer.models.table.parts import BEHIND_PADDING, GROUPED, ROTARY, SIZES, VOCAB, encoder

__all__ = ["ENCODERS"]

_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}

ENCODERS: Mapping[str, Family] = {
    "bert": encoder(blocks.BERT, "BertForMaskedLM"),
    "roberta": encoder(blocks.BERT, "RobertaForMaskedLM", BEHIND_PADDING),
    "xlm-roberta": encoder(blocks.BERT, "XLMRobertaForMaskedLM", BEHIND_PADDING),
    "camembert": encoder(blocks.BERT, "CamembertForMaskedLM", BEHIND_PADDING),
    "electra": encoder(blocks.BERT, "ElectraForMaskedLM", config={**SIZES, "embedding_size": 16}),
    "layoutlm": encoder(blocks.BERT, "LayoutLMForMaskedLM", config={**SIZES, "max_2d_position_embeddings": 16}),
    "markuplm": encoder(
        blocks.BERT,
        "MarkupLMModel",
        BEHIND_PADDING,
        {**SIZES, "max_depth": 3, "xpath_unit_hidden_size": 8, "max_xpath_subs_unit_embeddings": 1024},
    ),
    "dpr": encoder(blocks.DPR, "DPRQuestionEncoder"),
    "xlm-roberta-xl": encoder(blocks.BERT_PRE_NORM, "XLMRobertaXLForMaskedLM", BEHIND_PADDING),
    "distilbert": encoder(
        blocks.DISTILBERT,
        "DistilBertForMaskedLM",
        config={**VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
    "modernbert": encoder(
        blocks.MODERNBERT,
        "ModernBertForMaskedLM",
        ROTARY,
        {**SIZES, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 6},
    ),
    "eurobert": encoder(blocks.EUROBERT, "EuroBertForMaskedLM", ROTARY, GROUPED),
    "ultrabert": encoder(
        blocks.EUROBERT,
        "UltrabertForMaskedLM",
        ROTARY,
        {
            **GROUPED,
            "prediction_head_size": 24,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "nomic_bert": encoder(blocks.GTE, "NomicBertForMaskedLM", ROTARY),
    "gte": encoder(blocks.GTE, "GteForMaskedLM", ROTARY),
    "jina_embeddings_v3": encoder(blocks.JINA, "JinaEmbeddingsV3ForMaskedLM", ROTARY),
    "megatron-bert": encoder(blocks.MEGATRON_BERT, "MegatronBertForMaskedLM"),
    "luke": encoder(
        blocks.LUKE, "LukeForMaskedLM", BEHIND_PADDING, {**SIZES, "entity_vocab_size": 20, "entity_emb_size": 16}
    ),
    "mpnet": encoder(
        blocks.MPNET,
        "MPNetForMaskedLM",
        Positions("learned, relative bias", "behind padding"),
        {**SIZES, "pad_token_id": 1, "bos_token_id": 0},
        requires=(Requires("pad_token_id", (1,), "it counts positions from token 1 whatever its padding token is"),),
    ),
    "deberta": encoder(blocks.DEBERTA, "DebertaForMaskedLM", Positions("relative"), {**SIZES, **_RELATIVE}),
    "deberta-v2": encoder(
        blocks.DEBERTA_V2,
        "DebertaV2ForMaskedLM",
        Positions("relative"),
        {**SIZES, **_RELATIVE, "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        {"deberta-v2_own_keys": {"share_att_key": False, "position_buckets": -1, "position_biased_input": True}},
        requires=(Requires("conv_kernel_size", (0,), "a convolution stands between its first two blocks"),),
    ),
    "longformer": encoder(
        blocks.LONGFORMER, "LongformerForMaskedLM", BEHIND_PADDING, {**SIZES, "attention_window": [4, 4, 8]}
    ),
}
