"""Encoder-decoders."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from traceformer.models.blocks import encoder_decoders as blocks
from traceformer.models.family import Architecture, Family, Positions, ReadoutRow, Tiny
from traceformer.models.table.parts import BART, LEARNED, SINUSOIDAL, VOCAB

__all__ = ["ENCODER_DECODERS"]

_RELATIVE_BIAS = Positions("relative bias", "none")  # what such a config states is only a hint
_T5_NORM = ReadoutRow("rms", ("layer_norm_epsilon", 1e-6))
_T5 = {**VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}


def _like_bart(model: str, blocks: Architecture = blocks.BART, positions: Positions = LEARNED, **more: Any) -> Family:
    # Its norms have no epsilon in the config; where they come after sublayers, nothing stands before the head.
    readout = ReadoutRow("layer", ("", 1e-5))
    tiny = Tiny(f"{model}ForConditionalGeneration", {**BART, **more})
    return Family(blocks=blocks, positions=positions, readout=readout, tiny=tiny)


ENCODER_DECODERS: Mapping[str, Family] = {
    "t5": Family(
        blocks=blocks.T5,
        positions=_RELATIVE_BIAS,
        readout=replace(_T5_NORM, scaled=True),
        tiny=Tiny(
            "T5ForConditionalGeneration",
            _T5,
            {"t5_gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}},
        ),
    ),
    "mt5": Family(
        blocks=blocks.T5._replace(default=True),
        positions=_RELATIVE_BIAS,
        readout=_T5_NORM,
        tiny=Tiny("MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    ),
    "bart": _like_bart("Bart"),
    "plbart": _like_bart("PLBart"),
    "blenderbot-small": _like_bart("BlenderbotSmall"),
    "marian": Family(
        blocks=blocks.BART,
        positions=SINUSOIDAL,
        readout=ReadoutRow("layer", ("", 1e-5)),
        tiny=Tiny("MarianMTModel", {**BART, "scale_embedding": True}),
    ),
    "mbart": _like_bart("MBart", blocks.BART_PRE_NORM, scale_embedding=True),
    "blenderbot": _like_bart("Blenderbot", blocks.BART_PRE_NORM),
    "pegasus": _like_bart("Pegasus", blocks.BART_PRE_NORM, SINUSOIDAL, scale_embedding=True),
    "m2m_100": _like_bart("M2M100", blocks.BART_PRE_NORM, SINUSOIDAL, scale_embedding=True),
}
