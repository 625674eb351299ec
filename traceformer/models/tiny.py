"""Tiny random models of each family's real class: what the proofs run on when no checkpoint is at hand."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedModel

from traceformer.errors import NotFound

__all__ = ["TINY", "tiny_model"]

_VOCAB = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    **_VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_ENCODER = {"cls_token_id": 1, "sep_token_id": 2}
_GROUPED = {"num_key_value_heads": 2}
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
_OPT = {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}
_HEAD_PATTERNS = [
    {"window": 2, "columns": []},
    {"window": 5, "columns": [0, 1, 9]},
    {"window": 0, "columns": [0, 4, 8, 12]},
    {"window": 5, "columns": [0, 1, 9]},
]

TINY: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "llama": ("LlamaForCausalLM", {**_SIZES, **_GROUPED}),
    "mistral": ("MistralForCausalLM", {**_SIZES, **_GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", {**_SIZES, **_GROUPED}),
    "qwen3": ("Qwen3ForCausalLM", {**_SIZES, **_GROUPED, "head_dim": 16}),
    "gemma": ("GemmaForCausalLM", {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**_SIZES, **_GROUPED, "head_dim": 16, "sliding_window": 6}),
    "gemma3_text": ("Gemma3ForCausalLM", {**_SIZES, **_GROUPED, "head_dim": 16, "sliding_window": 6}),
    "phi3": ("Phi3ForCausalLM", {**_SIZES, **_GROUPED}),
    "olmo2": ("Olmo2ForCausalLM", {**_SIZES, **_GROUPED}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_SIZES, "use_parallel_residual": False}),
    "gpt_neox_parallel": ("GPTNeoXForCausalLM", {**_SIZES, "use_parallel_residual": True}),
    "opt": ("OPTForCausalLM", _OPT),
    "opt_post_norm": ("OPTForCausalLM", {**_OPT, "do_layer_norm_before": False}),
    "mixtral": ("MixtralForCausalLM", {**_SIZES, **_GROUPED, "num_local_experts": 4}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**_SIZES, **_GROUPED, "num_local_experts": 4, "head_dim": 16, "sliding_window": 6},
    ),
    "nanochat": ("NanoChatForCausalLM", {**_SIZES, **_GROUPED}),
    "bert": ("BertForMaskedLM", _SIZES),
    "roberta": ("RobertaForMaskedLM", _SIZES),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _SIZES),
    "electra": ("ElectraForMaskedLM", {**_SIZES, "embedding_size": 16}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {**_VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
    "modernbert": ("ModernBertForMaskedLM", {**_SIZES, **_ENCODER, "local_attention": 6}),
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5_gated": (
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": ("MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", _BART),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}),
    "bloom": ("BloomForCausalLM", {**_VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": ("MptForCausalLM", {**_VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "byte_sparse": ("traceformer.bytelm.SparseByteForCausalLM", {**_SIZES, "head_patterns": _HEAD_PATTERNS}),
}


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Returns a tiny random float32 model of the family's real class, in eval mode.

    Its weights are ten times as spread as at initialisation: patterns are then far from uniform, so that a
    wrong scale, mask or bias shows.

    Raises:
        NotFound: no such family; the message lists those there are.
    """
    if family not in TINY:
        raise NotFound(f"no tiny model of family {family!r}", hint=f"there are {', '.join(TINY)}")
    class_name, sizes = TINY[family]  # of transformers, or with its module in front
    module, _, class_name = class_name.rpartition(".")
    model_class = getattr(import_module(module or "transformers"), class_name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(model_class.config_class(**{**sizes, **changes}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = ".ln_" in name or (parameter.dim() == 1 and "norm" in name.lower())
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.1 * noise if is_norm else 0.2 * noise)
    return model.float().eval()
