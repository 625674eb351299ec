"""A tiny config of any text model type of transformers: small sizes, and one layer of each kind that it has.

1. The type's config is made as it comes. Those of its fields that are sizes, by their names, are set to small ones;
   the configs within it are shrunk likewise.
2. Where a config says layer by layer of which kind it is, one layer of each kind is kept.
3. What the names of fields do not tell stands in `corrections.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from traceformer.errors import NotFound
from traceformer.models.corrections import BARE_TEXT_TYPES, CORRECTIONS, LEFT_OUT

__all__ = ["shrunk_config", "text_types"]


_BARE = re.compile(r"(?!sam3_lite_text$).*(?<!_to)_text(_model)?")  # SAM's is a text-guided model of images


@cache
def text_types() -> Mapping[str, str]:
    """Returns the model types of transformers that read text, each with the automatic class that makes it.

    They are those of its language models, masked ones and encoder-decoders among them, those that read text beside
    images, and the text models that come without a head.
    """
    every, seeing = modeling_auto.MODEL_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    bare = [name for name in every if name in BARE_TEXT_TYPES or _BARE.fullmatch(name)]
    return {
        **{name: "AutoModelForImageTextToText" if name in seeing else "AutoModel" for name in bare},
        **dict.fromkeys(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"),
        **dict.fromkeys(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "AutoModelForMaskedLM"),
        **dict.fromkeys(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "AutoModelForSeq2SeqLM"),
    }


def shrunk_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Returns a tiny config of a model type: two to four layers, 4 heads, d_model 32, 300 words.

        shrunk_config("falcon").hidden_size    # 32

    `changes` are set in it besides, and may reach into the configs within. A few types have a class that cannot be made
    from it all the same: without a package of theirs, or without what is not text.

    Raises:
        NotFound: transformers knows no such type.
    """
    if model_type not in CONFIG_MAPPING:
        raise NotFound(f"transformers knows no model type {model_type!r}")
    config_class = CONFIG_MAPPING[model_type]
    small = _merged(_shrunk(config_class()), CORRECTIONS.get(model_type, {}))
    return config_class(**_merged(small, changes))


# The first pattern that a field's whole name matches says its size.
_SIZES = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"hidden_size|hidden_size_per_layer_input|true_hidden_size|attention_hidden_size|char_hidden_size", 32),
        (r"d_model|n_embd|n_embed|dim|dim_model|model_dim|emb_dim|embed_dim|lru_width", 32),
        (r"embedding_size|embedding_hidden_size|word_embed_proj_dim", 32),
        (r"(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads|num_key_value_groups)", 2),
        (r"linear_num_key_heads", 2),
        (r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|linear_num_value_heads)", 4),
        (r"[qko]v?_lora_rank", 16),
        (r"qk_rope_head_dim", 4),
        (r"qk_head_dim", 12),
        (r".*(head_dim|d_kv|kv_channels|d_head|attention_head_size|head_size|key_length)", 8),
        (r".*num_hidden_layers|n_layers?|num_layers|.*(encoder|decoder)_(num_)?layers", 2),
        (r"num_(encoder|decoder)_layers", 2),
        (r".*(moe|shared_expert|expert_ffn)_(intermediate|hidden)_size|intermediate_size_mlp", 24),
        (r".*(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|dim_ff|hidden_dim|ffn_size)", 48),
        (r"(.*_)?vocab_size.*", 300),
        (r".*(max_position_embeddings|n_positions|max_seq_len|max_sequence_length|seq_length)|n_ctx", 64),
        (r".*max_(source|target)_positions|max_(encoder|decoder)_position_embeddings", 64),
        (r".*(sliding_window|window_size|local_attention|attention_chunk_size)", 8),
        (r".*num_(local_|routed_)?experts|n_routed_experts", 4),
        (r".*(n|num)_shared_experts?", 1),
        (r".*(num_experts_per_tok(en)?|moe_k|moe_topk|moe_top_k|top_k_experts|num_selected_experts)", 2),
        (r"n_groups?|topk_group|num_expert_group|num_limited_groups|first_k_dense_replace|mamba_n_groups", 1),
        (r"mamba_d_state|state_size|ssm_state_size|mamba_d_ssm|d_state", 16),
        (r"pad_token_id", 0),
        (r"bos_token_id|decoder_start_token_id|cls_token_id", 1),
        (r"eos_token_id|sep_token_id|forced_[be]os_token_id", 2),
    )
)
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KINDS = ("layer_types", "mlp_layer_types")


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config of this class is made from to be tiny."""
    fields = {field.name for field in dataclasses.fields(config)}
    small: dict[str, Any] = {}
    given = config.to_dict()
    for name, value in given.items():
        inner = vars(config).get(name)
        if isinstance(inner, PreTrainedConfig):
            small[name] = {"model_type": inner.model_type, **_shrunk(inner)}
        elif name in fields and (size := _size(name, value)) is not None:
            small[name] = size
    if given.get("num_key_value_heads") == given.get("num_attention_heads") and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]  # as many as queries, as they come
    return small | _one_of_each_kind(given, fields)


def _size(name: str, value: Any) -> int | None:
    """The size of a field; None for what is none, or is not set but for special tokens."""
    is_token = name.endswith("_token_id") and (value is None or isinstance(value, list))
    if not is_token and (isinstance(value, bool) or not isinstance(value, int)):
        return None
    return next((size for pattern, size in _SIZES if pattern.fullmatch(name)), None)


def _one_of_each_kind(given: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    stated = {name: [*dict.fromkeys(kinds)] for name in _KINDS if name in fields and (kinds := given.get(name))}
    depth = max(2, *map(len, stated.values())) if stated else 2
    kinds = {name: [each[layer % len(each)] for layer in range(depth)] for name, each in stated.items()}
    return {name: depth for name in _DEPTHS if kinds and name in fields} | kinds


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, which reach into the configs within."""
    merged = dict(settings)
    for name, change in changes.items():
        if change is LEFT_OUT:
            merged.pop(name, None)
        elif isinstance(change, Mapping) and isinstance(within := merged.get(name), dict):
            merged[name] = _merged(within, change)
        else:
            merged[name] = change
    return merged
