"""Ready-made sizes of byte-level models, dense or sparse."""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import LlamaConfig, PretrainedConfig

from traceformer.bytelm.model import SparseByteConfig
from traceformer.bytelm.tokenizer import D_VOCAB, END_OF_TEXT, PAD
from traceformer.errors import UsageError

__all__ = ["PRESETS", "build_config"]

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny": {
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
    },
    "small": {
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "hidden_size": 256,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
    },
    "thesis": {
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_size": 512,
        "intermediate_size": 1376,  # three matrices of this size count as many parameters as the thesis's two of 2048
        "max_position_embeddings": 1024,
    },
}


def build_config(preset: str, attention: Literal["dense", "sparse"], **changes: Any) -> PretrainedConfig:
    """Returns the config of a byte-level model: a Llama with tied embeddings, or its sparse sibling of the same size.

    `changes` are named as in LlamaConfig. The sparse patterns follow from the number of heads and the context, unless
    `head_patterns` gives them.

    Raises:
        UsageError: no such preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}", hint=f"there are {', '.join(PRESETS)}")
    tokens = {"vocab_size": D_VOCAB, "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": PAD}
    config_class = {"dense": LlamaConfig, "sparse": SparseByteConfig}[attention]
    settings: dict[str, Any] = {**PRESETS[preset], **tokens, "tie_word_embeddings": True, **changes}
    return config_class(**settings)
