"""Decoders that have attention in some layers only, or none; in place of it they have recurrences or convolutions."""

from collections.abc import Mapping
from typing import Any

from traceformer.models.blocks import hybrids as blocks
from traceformer.models.family import Architecture, ByFlag, Family, Positions, ReadoutRow, Requires, Tiny
from traceformer.models.table.parts import GROUPED, MULTIPLIED, RMS_DIVIDED, SIZES, VOCAB, WIDE_HEADS, rms, rotary

__all__ = ["HYBRIDS"]

_RMS_1E6 = rms(1e-6)
_PLUS_ONE = ReadoutRow("rms_plus_one")
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention", "conv"]}
_STATES = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_RECURRENT = Positions("recurrent", "none")


def _by_state(
    blocks: Architecture | ByFlag,
    model: str,
    config: Mapping[str, Any],
    readout: ReadoutRow | None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    **facts: Any,
) -> Family:
    """Returns the row of a decoder that tells positions by its recurrences alone."""
    return Family(
        blocks=blocks, positions=_RECURRENT, readout=readout, tiny=Tiny(model, config, variants or {}), **facts
    )


HYBRIDS: Mapping[str, Family] = {
    "qwen3_next": rotary(
        blocks.QWEN3_NEXT,
        "Qwen3NextForCausalLM",
        {**WIDE_HEADS, **_LINEAR, **_EXPERTS, "mlp_only_layers": [0]},
        _PLUS_ONE,
    ),
    "qwen3_5_text": rotary(blocks.QWEN3_5, "Qwen3_5ForCausalLM", {**WIDE_HEADS, **_LINEAR}, _PLUS_ONE),
    "qwen3_5_moe_text": rotary(
        blocks.QWEN3_NEXT, "Qwen3_5MoeForCausalLM", {**WIDE_HEADS, **_LINEAR, **_EXPERTS}, _PLUS_ONE
    ),
    "lfm2": rotary(blocks.LFM2, "Lfm2ForCausalLM", {**GROUPED, **_CONVOLUTIONS}, ReadoutRow("rms", ("norm_eps", 1e-5))),
    "lfm2_moe": rotary(
        blocks.LFM2_MOE,
        "Lfm2MoeForCausalLM",
        {
            **{**GROUPED, **_CONVOLUTIONS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
            "num_dense_layers": 1,
        },
        ReadoutRow("rms", ("norm_eps", 1e-5)),
    ),
    "jamba": _by_state(
        blocks.JAMBA,
        "JambaForCausalLM",
        {
            **{**GROUPED, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8},
            "use_mamba_kernels": False,
        },
        _RMS_1E6,
    ),
    "granitemoehybrid": _by_state(
        blocks.GRANITE_HYBRID,
        "GraniteMoeHybridForCausalLM",
        {
            **{**GROUPED, **_STATES, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
            **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
            **MULTIPLIED,
        },
        RMS_DIVIDED,
        {
            "granitemoehybrid_dense": {"num_local_experts": 0},
            "granitemoehybrid_rotary": {"position_embedding_type": "rope"},
        },
        scaled_embedding=True,
    ),
    "bamba": rotary(blocks.BAMBA, "BambaForCausalLM", {**GROUPED, **_STATES, "attn_layer_indices": [1]}),
    "falcon_h1": rotary(
        blocks.FALCON_H1,
        "FalconH1ForCausalLM",
        {
            **{**GROUPED, **_STATES, "mamba_d_ssm": 64, "key_multiplier": 0.5, "attention_out_multiplier": 0.5},
            **{"embedding_multiplier": 2.0, "lm_head_multiplier": 0.25, "mlp_multipliers": [0.5, 0.25]},
        },
        ReadoutRow("rms", ("rms_norm_eps", 1e-5), logit_scale=("lm_head_multiplier", 1.0)),
        scaled_embedding=True,
        requires=(Requires("attention_in_multiplier", (1,), "what its attention reads is scaled behind the norm"),),
    ),
    "zamba2": _by_state(
        blocks.ZAMBA2,
        "Zamba2ForCausalLM",
        {
            **{**SIZES, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"], "num_mem_blocks": 1},
            **{"mamba_d_state": 8, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "mamba_expand": 2},
            **{"adapter_rank": 4, "chunk_size": 8, "use_mamba_kernels": False},
        },
        rms(1e-5),
        {"zamba2_rotary": {"use_mem_rope": True, "use_shared_attention_adapter": True}},
    ),
    "mamba": _by_state(
        blocks.MAMBA,
        "MambaForCausalLM",
        {**VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 4},
        ReadoutRow("rms", ("layer_norm_epsilon", 1e-5)),
    ),
    "falcon_mamba": _by_state(
        blocks.MAMBA,
        "FalconMambaForCausalLM",
        {**VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 4},
        ReadoutRow("rms", ("layer_norm_epsilon", 1e-5)),
    ),
    "xlstm": _by_state(
        blocks.XLSTM,
        "xLSTMForCausalLM",
        {
            **{
                **VOCAB,
                "hidden_size": 64,
                "embedding_dim": 64,
                "num_heads": 4,
                "num_blocks": 3,
                "num_hidden_layers": 3,
            },
            **{"chunk_size": 8, "qk_dim_factor": 1.0},
        },
        ReadoutRow("rms", ("norm_eps", 1e-6), softcap=("output_logit_soft_cap", 30.0)),
    ),
    "mamba2": _by_state(
        blocks.MAMBA,
        "Mamba2ForCausalLM",
        {
            **{**VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "num_heads": 8, "head_dim": 8},
            **{"n_groups": 1, "chunk_size": 8, "expand": 2},
        },
        ReadoutRow("rms", ("layer_norm_epsilon", 1e-5)),
    ),
}
