"""What a tiny config of a model type needs that the names of its fields do not tell, as `shrunk.py` asks for it.

Sizes that must divide, or add up to, one another; settings without which the class of a default config cannot be made.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["BARE_TEXT_TYPES", "CORRECTIONS", "LEFT_OUT"]

LEFT_OUT: Any = object()
"""In place of a setting that its config must be made without."""

BARE_TEXT_TYPES = (
    *("bros", "canine", "dpr", "layoutlmv3", "lilt", "markuplm", "splinter", "t5gemma2_encoder", "udop"),
    *("embedding_gemma2", "glm5_next", "kimi_k25", "mistral4", "mistral_large4", "openai_privacy_filter", "step3p7"),
    *("diffusion_gemma", "internvl", "llava", "mistral3", "muse_glimmer", "muse_spark", "paligemma", "smolvlm"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
)
"""Model types that read text, or text beside images, and are in none of transformers' mappings of language models."""

_MAMBA = {
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16},
    **{"mamba_expand": 2, "mamba_chunk_size": 8},
}
_HYBRID = {
    **{"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    **{"num_attention_heads": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "use_mamba_kernels": False},
}
_TWO_KINDS = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
_GEMMA3N = {
    **{"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    **{"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8},
}
_DOTS3 = {
    **{"num_hidden_layers": 2, "layer_types": ["indexed_attention", "sliding_attention"]},
    **{"mlp_layer_types": ["dense", "sparse"], "index_topk": 4, "index_head_dim": 8, "head_dim": 12},
    **{"shared_experts_intermediate_size": 24},
    **{"per_layer_config": {"1": {"num_attention_heads": 2, "num_key_value_heads": 2}}},
}
_EMBEDDING_GEMMA2 = {"embedding_dim": 32, "per_layer_config": {"1": {"head_dim": 16, "num_key_value_heads": 1}}}
_QWEN4 = {
    **{"ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 2, "split_ngram_parts": 2},
    **{"heads_per_ngram": 2, "hc_lowrank": 8, "ple_embed_dim": 32, "indexer_n_heads": 2, "indexer_kv_heads": 1},
    **{"indexer_head_dim": 8, "indexer_budget": 4, "indexer_compress_ratio": 1},
}
_WIDE_LAYER = {"per_layer_config": {"1": {"head_dim": 16}}}


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **more}


def _sections(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary frequencies shared out between time, height and width."""
    return {"rope_parameters": _rope(mrope_section=[*sections], **more)}


CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "axk2": {"index_topk": 4},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _rope(), "sliding_attention": _rope()},
    },
    "cosmos3_edge_text": _sections(1, 1, 2),
    "dbrx": {
        "num_key_value_heads": LEFT_OUT,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 48},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": 4},
    "deepseek_v32": {"index_topk": 4, "index_n_heads": 16},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "embedding_gemma2": {"text_config": _EMBEDDING_GEMMA2},
    "embedding_gemma2_text": _EMBEDDING_GEMMA2,
    "esm": {"vocab_size": 300, "mask_token_id": 4},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": _GEMMA3N,
    "gemma4": {"text_config": _WIDE_LAYER},
    "gemma4_text": _WIDE_LAYER,
    "gemma4_unified": {"text_config": _WIDE_LAYER},
    "gemma4_unified_text": _WIDE_LAYER,
    "glm4v_moe_text": _sections(1, 1, 0, partial_rotary_factor=0.5),
    "glm4v_text": _sections(1, 1, 0, partial_rotary_factor=0.5),
    "glm_moe_dsa": {"index_topk": 4},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0}},
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "glm_image_text": _sections(1, 1, 2, partial_rotary_factor=1.0),
    "glm_ocr_text": _sections(1, 1, 2, partial_rotary_factor=1.0),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "intermediate_size": 48, "attention_layers": LEFT_OUT},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 2},
    "hy_v4": {"index_topk": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "hrm_text": {"num_hidden_layers": 4, "num_layers_per_stack": 2, "H_cycles": 1, "L_cycles": 1, "L_bp_cycles": [1]},
    "hunyuan_vl_text": {"head_dim": 8, **_sections(1, 1, 1, 1)},
    "jamba": {
        **{"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"mamba_dt_rank": 4, "use_mamba_kernels": False},
    },
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "led": {"attention_window": 8},
    "lfm2": _TWO_KINDS,
    "lfm2_moe": {**_TWO_KINDS, "num_dense_layers": 1},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "longcat_flash": {"zero_expert_num": 1, "moe_topk": 2, "head_dim": 4},
    "longt5": {"decoder_start_token_id": 0},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8, "expand": 2},
    "ministral": {"head_dim": 8},
    "muse_glimmer": {"out_hidden_size": 32, "projector_hidden_size": 32},
    "muse_spark": {
        **{"out_hidden_size": 32, "projector_hidden_size": 32},
        "audio_config": {
            **{"num_hidden_layers": 2, "patch_sizes": [4, 4], "hidden_sizes": [8, 16], "depths": [1, 1]},
            **{"out_hidden_size": 32},
        },
    },
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {
        "per_layer_config": {"1": {"sliding_window": 16}},
        "rope_parameters": {
            "full_attention": _rope(partial_rotary_factor=0.5),
            "sliding_attention": _rope(partial_rotary_factor=0.5),
        },
    },
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2, "vocab_size": 300},
    "plbart": {"decoder_start_token_id": 0},
    "qwen2_5_vl": {"text_config": _sections(1, 1, 2)},
    "qwen2_5_vl_text": _sections(1, 1, 2),
    "qwen2_vl": {"text_config": _sections(1, 1, 2)},
    "qwen2_vl_text": _sections(1, 1, 2),
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        **{"is_decoder": False, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
        **{"attn_layers": ["local", "lsh"], "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8},
    },
    "step3p7": {"text_config": {"sliding_window": 8}},
    "switch_transformers": {"decoder_start_token_id": 0},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "umt5": {"decoder_start_token_id": 0},
    "xlstm": {
        **{"hidden_size": 64, "embedding_dim": 64, "num_heads": 4, "num_blocks": 2, "chunk_size": 8},
        "qk_dim_factor": 1.0,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{**_HYBRID, "attn_layer_period": 2, "attn_layer_offset": 1, "num_key_value_heads": 4},
        **{"mamba_dt_rank": 4},
    },
    "zamba2": {
        **{**_HYBRID, "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"]},
        **{"num_key_value_heads": LEFT_OUT, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1},
        **{"hybrid_layer_ids": [2], "adapter_rank": 8, "num_mem_blocks": 1, "kv_channels": 8, "num_query_groups": 4},
        **{"chunk_size": 8},
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
