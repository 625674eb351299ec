"""Decoders with mixtures of experts, in all of their layers or in some."""

from collections.abc import Mapping

from traceformer.models.blocks import decoders as blocks
from traceformer.models.family import Family, ReadoutRow, Requires
from traceformer.models.table.parts import (
    GROUPED,
    MULTIPLIED,
    RMS,
    RMS_DIVIDED,
    SIZES,
    WIDE_HEADS,
    WINDOW,
    layer_norm,
    rotary,
)

__all__ = ["EXPERTS"]

_SMALL = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_NUMBERED = {**_SMALL, "num_experts": 4}
_ROUTED = {**_SMALL, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
_LATENT = {
    **{**SIZES, **_ROUTED, "num_key_value_heads": 4},
    **{"q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
}
_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}

EXPERTS: Mapping[str, Family] = {
    "deepseek_v2": rotary(
        blocks.DEEPSEEK,
        "DeepseekV2ForCausalLM",
        {**_LATENT, "first_k_dense_replace": 1},
        RMS,
        {"deepseek_v2_latent_queries": {"q_lora_rank": 16}},
    ),
    "deepseek_v3": rotary(
        blocks.DEEPSEEK,
        "DeepseekV3ForCausalLM",
        {**_LATENT, "first_k_dense_replace": 1},
        RMS,
        {"deepseek_v3_latent_queries": {"q_lora_rank": 16}},
    ),
    "glm4_moe_lite": rotary(
        blocks.DEEPSEEK._replace(default=768), "Glm4MoeLiteForCausalLM", {**_LATENT, **_DENSE_FIRST, "q_lora_rank": 16}
    ),
    "mixtral": rotary(blocks.MIXTRAL, "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}),
    "gpt_oss": rotary(
        blocks.GPT_OSS,
        "GptOssForCausalLM",
        {**WIDE_HEADS, "num_local_experts": 4, "sliding_window": 6},
        sinks=True,
    ),
    "qwen2_moe": rotary(
        blocks.QWEN2_MOE,
        "Qwen2MoeForCausalLM",
        {**GROUPED, **_NUMBERED, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
        RMS,
    ),
    "qwen3_moe": rotary(
        blocks.MIXTRAL, "Qwen3MoeForCausalLM", {**WIDE_HEADS, **_NUMBERED, "mlp_only_layers": [0]}, RMS
    ),
    "olmoe": rotary(
        blocks.MIXTRAL, "OlmoeForCausalLM", {**GROUPED, **_NUMBERED}, variants={"olmoe_clipped": {"clip_qkv": 0.5}}
    ),
    "phimoe": rotary(
        blocks.GPT_OSS, "PhimoeForCausalLM", {**GROUPED, **_LOCAL, "lm_head_bias": True}, layer_norm("rms_norm_eps")
    ),
    "glm4_moe": rotary(
        blocks.GLM4_MOE,
        "Glm4MoeForCausalLM",
        {**WIDE_HEADS, **_ROUTED, "first_k_dense_replace": 1, "use_qk_norm": True},
    ),
    "dots1": rotary(blocks.GLM4_MOE, "Dots1ForCausalLM", {**GROUPED, **_ROUTED, "first_k_dense_replace": 1}, RMS),
    "ernie4_5_moe": rotary(
        blocks.GLM4_MOE,
        "Ernie4_5_MoeForCausalLM",
        {
            **GROUPED,
            "moe_intermediate_size": 24,
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
    ),
    "exaone_moe": rotary(
        blocks.GLM4_MOE,
        "ExaoneMoeForCausalLM",
        {**WIDE_HEADS, **_NUMBERED, **WINDOW, **_DENSE_FIRST, "n_group": 1, "topk_group": 1},
    ),
    "flint": rotary(
        blocks.QWEN2_MOE,
        "FlintForCausalLM",
        {**WIDE_HEADS, **_NUMBERED, **WINDOW, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
        RMS,
        sinks=True,
    ),
    "granitemoe": rotary(
        blocks.GRANITE_MOE,
        "GraniteMoeForCausalLM",
        {**GROUPED, **_LOCAL, **MULTIPLIED},
        RMS_DIVIDED,
        scaled_embedding=True,
    ),
    "hy_v3": rotary(
        blocks.GLM4_MOE, "HYV3ForCausalLM", {**WIDE_HEADS, **_NUMBERED, **_DENSE_FIRST, "num_shared_experts": 1}
    ),
    "mellum": rotary(blocks.MIXTRAL, "MellumForCausalLM", {**WIDE_HEADS, **_NUMBERED, **WINDOW, **_DENSE_FIRST}, RMS),
    "minimax_m2": rotary(blocks.MIXTRAL, "MiniMaxM2ForCausalLM", {**WIDE_HEADS, **_LOCAL}, RMS),
    "minimax_m3_vl_text": rotary(
        blocks.MINIMAX_M3,
        "MiniMaxM3VLForCausalLM",
        {
            **WIDE_HEADS,
            **_LOCAL,
            **_DENSE_FIRST,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 24,
            "rotary_dim": 8,
            "layer_types": ["full_attention"] * 3,
        },
        ReadoutRow("rms_plus_one"),
        requires=(
            Requires(
                "layer_types",
                ("full_attention",),
                "the keys of its sparse layers are chosen by an index that is not understood here",
            ),
        ),
    ),
    "solar_open": rotary(blocks.GLM4_MOE, "SolarOpenForCausalLM", {**WIDE_HEADS, **_ROUTED}),
    "aria_text": rotary(
        blocks.ARIA,
        "AriaTextForCausalLM",
        {**SIZES, "num_key_value_heads": 2, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        RMS,
    ),
}
