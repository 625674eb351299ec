"""Decoders with one MLP a block."""

from collections.abc import Mapping
from typing import Any

from traceformer.models.blocks import decoders as blocks
from traceformer.models.blocks import outside
from traceformer.models.family import Family, Positions, ReadoutRow, Requires, Tiny
from traceformer.models.table.parts import (
    BART,
    GPT2,
    GROUPED,
    LAYER_NORM,
    MULTIPLIED,
    RMS,
    RMS_DIVIDED,
    SINUSOIDAL,
    SIZES,
    SOFTCAP,
    VOCAB,
    WIDE_HEADS,
    WINDOW,
    WPE,
    layer_norm,
    rms,
    rotary,
)

__all__ = ["DECODERS"]

_HEAD_PATTERNS = [
    {"window": 2, "columns": []},
    {"window": 5, "columns": [0, 1, 9]},
    {"window": 0, "columns": [0, 4, 8, 12]},
    {"window": 5, "columns": [0, 1, 9]},
]
_FALCON = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
_PHI4_ENCODERS = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "crop_size": 28,
    },
    "audio_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "nemo_conv_channels": 16,
        "input_size": 16,
    },
}
_ROPE_BY_LAYER = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}
_STRETCHED_QUERIES = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "llama_4_scaling_beta": 0.1,
    }
}


def _seeing(text: Mapping[str, Any], *sections: int) -> Mapping[str, Any]:
    """The config of a text model whose positions count in time, height and width, and of a vision model beside it."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*sections]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2}
    return {
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": {**vision, "intermediate_size": 16, "deepstack_visual_indexes": [0]},
    }


DECODERS: Mapping[str, Family] = {
    "gpt2": Family(
        blocks=blocks.GPT2,
        positions=WPE,
        readout=LAYER_NORM,
        tiny=Tiny("GPT2LMHeadModel", GPT2),
    ),
    "gpt_bigcode": Family(
        blocks=blocks.GPT_BIGCODE,
        positions=WPE,
        readout=LAYER_NORM,
        tiny=Tiny("GPTBigCodeForCausalLM", GPT2, {"gpt_bigcode_every_head": {"multi_query": False}}),
    ),
    "llama": rotary(blocks.LLAMA, "LlamaForCausalLM", readout=RMS),
    "mistral": rotary(blocks.LLAMA, "MistralForCausalLM", {**GROUPED, "sliding_window": 6}, RMS),
    "ministral": rotary(blocks.LLAMA, "MinistralForCausalLM", {**WIDE_HEADS, **WINDOW}, RMS),
    "ministral3": rotary(blocks.LLAMA, "Ministral3ForCausalLM", {**WIDE_HEADS, **_STRETCHED_QUERIES}),
    "qwen2": rotary(blocks.LLAMA, "Qwen2ForCausalLM", readout=RMS),
    "qwen3": rotary(blocks.LLAMA, "Qwen3ForCausalLM", WIDE_HEADS, RMS),
    "qwen2_vl_text": rotary(blocks.LLAMA, "Qwen2VLForConditionalGeneration", _seeing(GROUPED, 1, 1, 2)),
    "qwen2_5_vl_text": rotary(blocks.LLAMA, "Qwen2_5_VLForConditionalGeneration", _seeing(GROUPED, 1, 1, 2)),
    "qwen3_vl_text": rotary(blocks.LLAMA, "Qwen3VLForConditionalGeneration", _seeing(WIDE_HEADS, 4, 2, 2), RMS),
    "arcee": rotary(blocks.LLAMA_PLAIN, "ArceeForCausalLM"),
    "cwm": rotary(blocks.LLAMA, "CwmForCausalLM", {**WIDE_HEADS, **WINDOW}),
    "ernie4_5": rotary(blocks.LLAMA, "Ernie4_5ForCausalLM", WIDE_HEADS),
    "granite": rotary(
        blocks.GRANITE, "GraniteForCausalLM", {**GROUPED, **MULTIPLIED}, RMS_DIVIDED, scaled_embedding=True
    ),
    "helium": rotary(blocks.LLAMA, "HeliumForCausalLM", {**GROUPED, "head_dim": 8}, rms(1e-8)),
    "internlm3": rotary(blocks.LLAMA, "LlamaForCausalLM", {"model_type": "internlm3", **WIDE_HEADS}),
    "iquestcoder": rotary(blocks.LLAMA, "LlamaForCausalLM", {"model_type": "iquestcoder", **WIDE_HEADS}),
    "jais2": rotary(blocks.LLAMA_PLAIN, "Jais2ForCausalLM", readout=layer_norm("layer_norm_eps")),
    "nemotron": rotary(
        blocks.LLAMA_PLAIN, "NemotronForCausalLM", readout=ReadoutRow("layer_plus_one", ("norm_eps", 1e-5))
    ),
    "olmo": rotary(
        blocks.LLAMA,
        "OlmoForCausalLM",
        readout=ReadoutRow("layer_bare", ("", 1e-5)),
        variants={"olmo_clipped": {"clip_qkv": 0.5}},
    ),
    "seed_oss": rotary(blocks.LLAMA, "SeedOssForCausalLM", WIDE_HEADS, RMS),
    "smollm3": rotary(
        blocks.LLAMA,
        "SmolLM3ForCausalLM",
        {**GROUPED, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, **WINDOW},
        RMS,
    ),
    "stablelm": rotary(
        blocks.STABLELM,
        "StableLmForCausalLM",
        {**GROUPED, "use_parallel_residual": False},
        layer_norm("layer_norm_eps"),
        {"stablelm_parallel": {"use_parallel_residual": True, "qk_layernorm": True}},
    ),
    "starcoder2": rotary(
        blocks.STARCODER2, "Starcoder2ForCausalLM", {**GROUPED, "sliding_window": 6}, layer_norm("norm_epsilon")
    ),
    "hyperclovax": rotary(
        blocks.HYPERCLOVAX,
        "HyperCLOVAXForCausalLM",
        {**GROUPED, **MULTIPLIED},
        ReadoutRow("rms", logit_scale=("logits_scaling", 1.0)),
        {"hyperclovax_without_post_norm": {"use_post_norm": False}},
        scaled_embedding=True,
    ),
    "gemma": rotary(
        blocks.LLAMA,
        "GemmaForCausalLM",
        {**WIDE_HEADS, "num_key_value_heads": 1},
        ReadoutRow("rms_plus_one"),
        scaled_embedding=True,
    ),
    "gemma2": rotary(
        blocks.GEMMA2,
        "Gemma2ForCausalLM",
        {**WIDE_HEADS, "sliding_window": 6},
        ReadoutRow("rms_plus_one", softcap=(SOFTCAP, 30.0)),
        scaled_embedding=True,
    ),
    "gemma3_text": rotary(
        blocks.GEMMA2,
        "Gemma3ForCausalLM",
        {**WIDE_HEADS, "sliding_window": 6},
        ReadoutRow("rms_plus_one", softcap=(SOFTCAP, None)),
        scaled_embedding=True,
    ),
    "gemma4_text": rotary(
        blocks.GEMMA4,
        "Gemma4ForCausalLM",
        {
            **{**GROUPED, "head_dim": 8, "sliding_window": 6},
            **{"num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2},
            **{"per_layer_config": {layer: {"head_dim": 16, "num_key_value_heads": 1} for layer in ("2", "5")}},
            **{"attention_k_eq_v": True, "num_kv_shared_layers": 3},
            **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99},
        },
        ReadoutRow("rms", softcap=(SOFTCAP, None)),
        {"gemma4_text_without_sharing": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}},
        scaled_embedding=True,
        requires=(
            Requires("use_double_wide_mlp", (False,), "its MLPs are not all as wide"),
            Requires("enable_moe_block", (False,), "experts stand beside its MLPs"),
        ),
    ),
    "vaultgemma": rotary(
        blocks.VAULT_GEMMA,
        "VaultGemmaForCausalLM",
        {**WIDE_HEADS, "sliding_window": 6},
        ReadoutRow("rms_plus_one", softcap=(SOFTCAP, 30.0)),
        scaled_embedding=True,
    ),
    "glm": rotary(blocks.GLM, "GlmForCausalLM", WIDE_HEADS, rms(1.5625e-7)),
    "glm4": rotary(blocks.GLM4, "Glm4ForCausalLM", WIDE_HEADS, rms(1.5625e-7)),
    "phi3": rotary(blocks.PHI3, "Phi3ForCausalLM"),
    "phi4_multimodal": rotary(blocks.PHI3, "Phi4MultimodalForCausalLM", {**GROUPED, **_PHI4_ENCODERS}),
    "phi": rotary(
        blocks.PHI,
        "PhiForCausalLM",
        GROUPED,
        layer_norm("layer_norm_eps"),
        {"phi_normed_queries": {"qk_layernorm": True}},
    ),
    "cohere": rotary(
        blocks.LLAMA_PARALLEL,
        "CohereForCausalLM",
        GROUPED,
        layer_norm("layer_norm_eps", logit_scale=("logit_scale", 0.0625)),
        {"cohere_normed_queries": {"use_qk_norm": True}},
    ),
    "cohere2": rotary(
        blocks.LLAMA_PARALLEL,
        "Cohere2ForCausalLM",
        {**GROUPED, **WINDOW},
        layer_norm("layer_norm_eps", logit_scale=("logit_scale", 0.0625)),
    ),
    "cohere_compass_text": rotary(
        blocks.LLAMA_PARALLEL,
        "CohereCompassForCausalLM",
        {**WIDE_HEADS, **WINDOW, **_ROPE_BY_LAYER, "logit_scale": 0.25},
        layer_norm("layer_norm_eps", logit_scale=("logit_scale", 1.0)),
    ),
    "olmo2": rotary(blocks.OLMO2, "Olmo2ForCausalLM"),
    "olmo3": rotary(blocks.OLMO2, "Olmo3ForCausalLM", {**GROUPED, **WINDOW}),
    "exaone4": rotary(blocks.OLMO2, "Exaone4ForCausalLM", {**WIDE_HEADS, **WINDOW}),
    "gpt_neox": rotary(
        blocks.GPT_NEOX,
        "GPTNeoXForCausalLM",
        {**SIZES, "use_parallel_residual": False},
        layer_norm("layer_norm_eps"),
        {"gpt_neox_parallel": {"use_parallel_residual": True}},
    ),
    "opt": Family(
        blocks=blocks.OPT,
        positions=Positions("learned", table="decoder.embed_positions", first=2),
        readout=layer_norm(""),
        tiny=Tiny(
            "OPTForCausalLM",
            {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
            {"opt_post_norm": {"do_layer_norm_before": False}},
        ),
    ),
    "biogpt": Family(
        blocks=blocks.BIOGPT,
        positions=Positions("learned", table="embed_positions", first=2),
        readout=layer_norm(""),
        tiny=Tiny("BioGptForCausalLM", SIZES),
    ),
    "whisper": Family(
        blocks=blocks.WHISPER_DECODER,
        positions=Positions("learned", table="decoder.embed_positions"),
        readout=layer_norm(""),
        tiny=Tiny(
            "WhisperForCausalLM",
            {**BART, "max_source_positions": 32, "max_target_positions": 64, "is_encoder_decoder": False},
        ),
        requires=(
            Requires(
                "is_encoder_decoder", (False,), "its encoder hears sound; WhisperForCausalLM is its decoder alone"
            ),
        ),
    ),
    "modernbert-decoder": rotary(
        blocks.MODERNBERT_DECODER,
        "ModernBertDecoderForCausalLM",
        {**SIZES, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 6},
        None,
    ),
    "nanochat": rotary(blocks.NANOCHAT, "NanoChatForCausalLM", readout=ReadoutRow("rms_bare", softcap=(SOFTCAP, 15.0))),
    "byte_sparse": rotary(
        blocks.LLAMA, "traceformer.bytelm.SparseByteForCausalLM", {**SIZES, "head_patterns": _HEAD_PATTERNS}, RMS
    ),
    "gptj": rotary(outside.GPTJ, "GPTJForCausalLM", {**GPT2, "rotary_dim": 4}, LAYER_NORM),
    "codegen": rotary(outside.CODEGEN, "CodeGenForCausalLM", {**GPT2, "rotary_dim": 4}, LAYER_NORM),
    "gpt_neo": Family(
        blocks=outside.GPT_NEO,
        positions=WPE,
        readout=LAYER_NORM,
        tiny=Tiny(
            "GPTNeoForCausalLM",
            {
                **VOCAB,
                "hidden_size": 32,
                "num_layers": 3,
                "num_heads": 4,
                "attention_types": [[["global", "local", "global"], 1]],
                "window_size": 6,
                "intermediate_size": 48,
                "max_position_embeddings": 64,
            },
        ),
    ),
    "bloom": Family(
        blocks=outside.BLOOM,
        positions=Positions("alibi", "none"),
        readout=LAYER_NORM,
        tiny=Tiny("BloomForCausalLM", {**VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
        requires=(
            Requires(
                "apply_residual_connection_post_layernorm",
                (False,),
                "what its sublayers add to is a normed stream, not the stream itself",
            ),
        ),
    ),
    "falcon": rotary(
        outside.FALCON,
        "FalconForCausalLM",
        _FALCON,
        LAYER_NORM,
        {
            "falcon_sequential": {"parallel_attn": False, "multi_query": False, "bias": True},
            "falcon_new": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "falcon_new_one_norm": {
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "num_ln_in_parallel_attn": 1,
            },
        },
        requires=(Requires("alibi", (False,), "its eager attention adds ALiBi twice, and its other attention once"),),
    ),
    "mpt": Family(
        blocks=outside.MPT,
        positions=Positions("alibi"),  # its biases are made for as many positions as it states
        readout=LAYER_NORM,
        tiny=Tiny("MptForCausalLM", {**VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    ),
    "xglm": Family(
        blocks=outside.XGLM,
        positions=SINUSOIDAL,
        readout=layer_norm(""),
        tiny=Tiny(
            "XGLMForCausalLM",
            {
                **VOCAB,
                "d_model": 32,
                "num_layers": 3,
                "attention_heads": 4,
                "ffn_dim": 48,
                "max_position_embeddings": 64,
            },
        ),
    ),
}
