"""What many rows of the table share: positions, readouts, sizes of tiny models, and short ways to write a row down."""

from collections.abc import Mapping
from typing import Any

from traceformer.models.family import Architecture, ByFlag, Family, Positions, ReadoutRow, Tiny

__all__ = [
    "BART",
    "BEHIND_PADDING",
    "GPT2",
    "GROUPED",
    "LAYER_NORM",
    "LEARNED",
    "MULTIPLIED",
    "RMS",
    "RMS_1E5",
    "RMS_DIVIDED",
    "ROTARY",
    "SINUSOIDAL",
    "SIZES",
    "SOFTCAP",
    "VOCAB",
    "WIDE_HEADS",
    "WINDOW",
    "WPE",
    "encoder",
    "layer_norm",
    "rms",
    "rotary",
]

LEARNED = Positions("learned")
WPE = Positions("learned", table="wpe")
BEHIND_PADDING = Positions("learned", "behind padding")
ROTARY = Positions("rotary")
SINUSOIDAL = Positions("sinusoidal")

RMS = ReadoutRow("rms")
RMS_1E5 = ReadoutRow("rms", ("rms_norm_eps", 1e-5))
RMS_DIVIDED = ReadoutRow("rms", logit_divisor=("logits_scaling", 1.0))
LAYER_NORM = ReadoutRow("layer", ("layer_norm_epsilon", 1e-5))
SOFTCAP = "final_logit_softcapping"

VOCAB = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    **VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 16}
MULTIPLIED = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GPT2 = {**VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
BART = {
    **VOCAB,
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


def rms(epsilon: float, **more: Any) -> ReadoutRow:
    return ReadoutRow("rms", ("rms_norm_eps", epsilon), **more)


def layer_norm(setting: str, epsilon: float = 1e-5, **more: Any) -> ReadoutRow:
    """Returns a readout through LayerNorm; `setting` is empty where the config has no name for its epsilon."""
    return ReadoutRow("layer", (setting, epsilon), **more)


def rotary(
    blocks: Architecture | ByFlag,
    model: str,
    config: Mapping[str, Any] = GROUPED,
    readout: ReadoutRow | None = RMS_1E5,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    **facts: Any,
) -> Family:
    """Returns the row of a decoder with rotary positions, of which there are as many as its config states."""
    return Family(blocks=blocks, positions=ROTARY, readout=readout, tiny=Tiny(model, config, variants or {}), **facts)


def encoder(
    blocks: Architecture,
    model: str,
    positions: Positions = LEARNED,
    config: Mapping[str, Any] = SIZES,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    **facts: Any,
) -> Family:
    """Returns the row of an encoder, which predicts no next token."""
    return Family(blocks=blocks, positions=positions, tiny=Tiny(model, config, variants or {}), **facts)
