"""One row per family of models: everything that this package knows of it, by its config's `model_type`.

To add a family, add a row and run `traceformer check FAMILY`: the algebra proves it or names what is wrong. `family.py`
says what a row is made of, `architectures.py` has the blocks. Nothing outside `models` names a family.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from traceformer.errors import Unsupported
from traceformer.models import architectures as blocks
from traceformer.models.family import Architecture, Family, Positions, ReadoutRow, Tap, Tiny
from traceformer.models.mechanisms import mechanisms_of, stated
from traceformer.sites import Stack

__all__ = ["FAMILIES", "architecture_of", "family_of"]

LEARNED = Positions("learned")
BEHIND_PADDING = Positions("learned", "behind padding")
ROTARY = Positions("rotary")
RELATIVE_BIAS = Positions("relative bias", "none")  # what such a config states is only a hint

RMS = ReadoutRow("rms")
RMS_1E5 = ReadoutRow("rms", ("rms_norm_eps", 1e-5))
LAYER_NORM = ReadoutRow("layer", ("layer_norm_epsilon", 1e-5))
T5_NORM = ReadoutRow("rms", ("layer_norm_epsilon", 1e-6))
SOFTCAP = "final_logit_softcapping"

_VOCAB = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    **_VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_WIDE_HEADS = {**_GROUPED, "head_dim": 16}
_GPT2 = {**_VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_T5 = {**_VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
_BART = {
    **_VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
}
_HEAD_PATTERNS = [
    {"window": 2, "columns": []},
    {"window": 5, "columns": [0, 1, 9]},
    {"window": 0, "columns": [0, 4, 8, 12]},
    {"window": 5, "columns": [0, 1, 9]},
]

FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        blocks=blocks.GPT2,
        positions=LEARNED,
        readout=LAYER_NORM,
        tiny=Tiny("GPT2LMHeadModel", _GPT2),
    ),
    "llama": Family(
        blocks=blocks.LLAMA,
        positions=ROTARY,
        readout=RMS,
        tiny=Tiny("LlamaForCausalLM", _GROUPED),
    ),
    "mistral": Family(
        blocks=blocks.LLAMA,
        positions=ROTARY,
        readout=RMS,
        tiny=Tiny("MistralForCausalLM", {**_GROUPED, "sliding_window": 6}),
    ),
    "qwen2": Family(
        blocks=blocks.LLAMA,
        positions=ROTARY,
        readout=RMS,
        tiny=Tiny("Qwen2ForCausalLM", _GROUPED),
    ),
    "qwen3": Family(
        blocks=blocks.LLAMA,
        positions=ROTARY,
        readout=RMS,
        tiny=Tiny("Qwen3ForCausalLM", _WIDE_HEADS),
    ),
    "gemma": Family(
        blocks=blocks.LLAMA,
        positions=ROTARY,
        scaled_embedding=True,
        readout=ReadoutRow("rms_plus_one"),
        tiny=Tiny("GemmaForCausalLM", {**_WIDE_HEADS, "num_key_value_heads": 1}),
    ),
    "gemma2": Family(
        blocks=blocks.GEMMA2,
        positions=ROTARY,
        scaled_embedding=True,
        readout=ReadoutRow("rms_plus_one", softcap=(SOFTCAP, 30.0)),
        tiny=Tiny("Gemma2ForCausalLM", {**_WIDE_HEADS, "sliding_window": 6}),
    ),
    "gemma3_text": Family(
        blocks=blocks.GEMMA2,
        positions=ROTARY,
        scaled_embedding=True,
        readout=ReadoutRow("rms_plus_one", softcap=(SOFTCAP, None)),
        tiny=Tiny("Gemma3ForCausalLM", {**_WIDE_HEADS, "sliding_window": 6}),
    ),
    "phi3": Family(
        blocks=blocks.PHI3,
        positions=ROTARY,
        readout=RMS_1E5,
        tiny=Tiny("Phi3ForCausalLM", _GROUPED),
    ),
    "olmo2": Family(
        blocks=blocks.OLMO2,
        positions=ROTARY,
        readout=RMS_1E5,
        tiny=Tiny("Olmo2ForCausalLM", _GROUPED),
    ),
    "gpt_neox": Family(
        blocks=blocks.GPT_NEOX,
        positions=ROTARY,
        readout=ReadoutRow("layer", ("layer_norm_eps", 1e-5)),
        tiny=Tiny(
            "GPTNeoXForCausalLM",
            {**_SIZES, "use_parallel_residual": False},
            {"gpt_neox_parallel": {"use_parallel_residual": True}},
        ),
    ),
    "opt": Family(
        blocks=blocks.OPT,
        positions=LEARNED,
        readout=ReadoutRow("layer", ("", 1e-5)),
        tiny=Tiny(
            "OPTForCausalLM",
            {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
            {"opt_post_norm": {"do_layer_norm_before": False}},
        ),
    ),
    "mixtral": Family(
        blocks=blocks.MIXTRAL,
        positions=ROTARY,
        readout=RMS_1E5,
        tiny=Tiny("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
    ),
    "gpt_oss": Family(
        blocks=blocks.MIXTRAL,
        positions=ROTARY,
        sinks=True,
        readout=RMS_1E5,
        tiny=Tiny("GptOssForCausalLM", {**_WIDE_HEADS, "num_local_experts": 4, "sliding_window": 6}),
    ),
    "nanochat": Family(
        blocks=blocks.NANOCHAT,
        positions=ROTARY,
        readout=ReadoutRow("rms_bare", softcap=(SOFTCAP, 15.0)),
        tiny=Tiny("NanoChatForCausalLM", _GROUPED),
    ),
    "bert": Family(
        blocks=blocks.BERT,
        positions=LEARNED,
        tiny=Tiny("BertForMaskedLM", _SIZES),
    ),
    "roberta": Family(
        blocks=blocks.BERT,
        positions=BEHIND_PADDING,
        tiny=Tiny("RobertaForMaskedLM", _SIZES),
    ),
    "xlm-roberta": Family(
        blocks=blocks.BERT,
        positions=BEHIND_PADDING,
        tiny=Tiny("XLMRobertaForMaskedLM", _SIZES),
    ),
    "electra": Family(
        blocks=blocks.BERT,
        positions=LEARNED,
        tiny=Tiny("ElectraForMaskedLM", {**_SIZES, "embedding_size": 16}),
    ),
    "distilbert": Family(
        blocks=blocks.DISTILBERT,
        positions=LEARNED,
        tiny=Tiny(
            "DistilBertForMaskedLM",
            {**_VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
        ),
    ),
    "modernbert": Family(
        blocks=blocks.MODERNBERT,
        positions=ROTARY,
        tiny=Tiny("ModernBertForMaskedLM", {**_SIZES, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 6}),
    ),
    "t5": Family(
        blocks=blocks.T5,
        positions=RELATIVE_BIAS,
        readout=replace(T5_NORM, scaled=True),
        tiny=Tiny(
            "T5ForConditionalGeneration",
            _T5,
            {"t5_gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}},
        ),
    ),
    "mt5": Family(
        blocks=blocks.T5._replace(default=True),
        positions=RELATIVE_BIAS,
        readout=T5_NORM,
        tiny=Tiny("MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    ),
    "bart": Family(
        blocks=blocks.BART,
        positions=LEARNED,
        readout=ReadoutRow("layer"),  # post-norm: nothing stands between the last block and the head
        tiny=Tiny("BartForConditionalGeneration", _BART),
    ),
    "gptj": Family(
        blocks=blocks.GPTJ,
        positions=ROTARY,
        readout=LAYER_NORM,
        tiny=Tiny("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}),
    ),
    "bloom": Family(
        blocks=blocks.BLOOM,
        positions=Positions("alibi", "none"),
        readout=LAYER_NORM,
        tiny=Tiny("BloomForCausalLM", {**_VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    ),
    "mpt": Family(
        blocks=blocks.MPT,
        positions=Positions("alibi"),  # its biases are made for as many positions as it states
        readout=LAYER_NORM,
        tiny=Tiny("MptForCausalLM", {**_VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    ),
    "byte_sparse": Family(
        blocks=blocks.LLAMA,
        positions=ROTARY,
        readout=RMS,
        tiny=Tiny("traceformer.bytelm.SparseByteForCausalLM", {**_SIZES, "head_patterns": _HEAD_PATTERNS}),
    ),
}


def family_of(config: Any) -> Family:
    """Returns the row of a model's family, by the `model_type` of its config (an object, or a config.json's dict).

    Raises:
        Unsupported: there is no row for this family.
    """
    model_type = stated(config, "model_type", None)
    row = FAMILIES.get(model_type)
    if row is None:
        raise Unsupported(
            f"no architecture row for model type {model_type!r}",
            why="; ".join(mechanisms_of(config)),
            hint="`traceformer check` on the model says what can be recorded of it, and which row it would need",
        )
    return row


def architecture_of(config: Any) -> Architecture:
    """Returns how a model of this config (an object, or a config.json's dict) is built.

    Raises:
        Unsupported: there is no row for its family.
    """
    found = family_of(config).blocks
    if not isinstance(found, Architecture):
        found = found.when_true if stated(config, found.flag, found.default) else found.when_false
    is_whole = len(found.stacks) == 1 or stated(config, "is_encoder_decoder", True)
    return found if is_whole else _one_stack(found, "dec" if stated(config, "is_decoder") else "enc")


def _one_stack(whole: Architecture, stack: Stack) -> Architecture:
    """The decoder of an encoder-decoder by itself, as BartForCausalLM has it, or its encoder."""
    row = whole.stacks[stack]
    if row.cross is not None and row.attention.post_norm is not None:  # then there is no norm behind cross-attention
        row = replace(row, mlp={**row.mlp, "resid_mid": Tap(row.attention.post_norm)})
    return replace(whole, stacks={stack: replace(row, cross=None)})
