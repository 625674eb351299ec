"""The sparse byte-level model: Llama's own parts, with attention that computes only what each head may see.

Its attention and the mask that goes with it are registered with transformers under one name, so everything that works
on other models works on it: recording, generation with a cache, saving and loading. Under `byte_sparse_flex` PyTorch's
FlexAttention takes its place; under eager or SDPA attention the model gets the same mask written out. Only a static
cache, whose masks are made elsewhere, is refused.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
)
from transformers.masking_utils import eager_mask, sdpa_mask

from traceformer.bytelm.patterns import patterns_from_json, patterns_to_json, thesis_patterns
from traceformer.bytelm.sparse_attention import sparse_attention
from traceformer.bytelm.sparse_mask import SparseMask, sparse_mask
from traceformer.errors import Unsupported, UsageError

__all__ = ["SparseByteConfig", "SparseByteForCausalLM", "SparseByteModel"]

_NAME = "byte_sparse"
_FLEX = "byte_sparse_flex"


@strict
class SparseByteConfig(LlamaConfig):
    """A Llama's config and `head_patterns`: each head's window and columns, the same in all layers.

    Without `head_patterns` heads get those of the byte-transformer thesis, for this number of heads and this context.
    """

    __no_type_check__ = True  # transformers has its __init__ take more than its signature says, and checks the fields
    model_type = _NAME
    head_patterns: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_patterns is None:
            patterns = thesis_patterns(self.num_attention_heads, self.max_position_embeddings)
            self.head_patterns = patterns_to_json(patterns)
        kwargs.setdefault("attn_implementation", _NAME)
        super().__post_init__(**kwargs)

    def validate_head_patterns(self) -> None:
        """Part of what `strict` validates: a pattern for each head, and nothing that sparse attention lacks."""
        n_patterns = len(patterns_from_json(self.head_patterns or ()))
        if n_patterns != self.num_attention_heads:
            raise ValueError(f"{n_patterns} head_patterns for {self.num_attention_heads} heads")
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError("sparse attention has as many key and value heads as heads")
        if self.attention_dropout:
            raise ValueError("sparse attention has no dropout: set attention_dropout to 0")


class SparseByteModel(LlamaModel):
    """A Llama whose heads see what `config.head_patterns` says."""

    config_class = SparseByteConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs Llama's own forward pass; eager and SDPA attention are handed the sparse mask written out.

        Raises:
            Unsupported: several texts are packed into one row, or the mask is one that was made for other attention.
        """
        if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
            raise Unsupported("a ready-made mask leaves no room for the heads' own", hint="use no static cache")
        if position_ids is not None and attention_mask is None and bool((position_ids.diff() != 1).any()):
            raise Unsupported("several texts packed into one row", hint="give each text a row, padded")
        implementation: Any = self.config._attn_implementation  # pyright: ignore[reportPrivateUsage]
        made_by = AttentionMaskInterface()[implementation]
        if made_by is not _mask_of_call:
            tokens = input_ids if inputs_embeds is None else inputs_embeds
            assert tokens is not None
            n_queries, past = tokens.shape[1], 0
            n_keys = n_queries
            cache: Cache | None = kwargs.get("cache", kwargs.get("past_key_values"))  # renamed by transformers 5.24
            if cache is not None:
                past, n_keys = cache.get_seq_length(), cache.get_mask_sizes(n_queries, 0)[0]
            mask = _mask_of_call(n_queries, n_keys, past, attention_mask, self.config, tokens.device)
            attention_mask = _written_out(mask, made_by, self.dtype, tokens.device)
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return super().forward(**given, **kwargs)


class SparseByteForCausalLM(LlamaForCausalLM):
    """The sparse model with its language-model head, tied to the embeddings if the config says so."""

    config_class = SparseByteConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: SparseByteConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # as LlamaForCausalLM's own, but for the class of the model
        self.model = SparseByteModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def _mask_of_call(
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: Tensor | None = None,
    config: Any = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> SparseMask:
    """Returns the mask of one forward pass, in the signature that transformers calls mask functions with."""
    if kv_length != q_offset + q_length:
        raise Unsupported("a cache that is longer than what it holds", hint="use the default cache, not a static one")
    starts = None
    if attention_mask is not None:
        seen = attention_mask.bool()
        if seen.shape[-1] != kv_length:
            raise UsageError(f"the attention mask covers {seen.shape[-1]} tokens, but there are {kv_length}")
        if bool((seen.int().diff().ne(0).sum(-1) > 1 + ~seen[:, 0]).any()):
            raise Unsupported("padding within a text", hint="pad on the left to generate")
        starts = seen.int().argmax(-1)
    return sparse_mask(
        patterns_from_json(config.head_patterns),
        q_length,
        kv_length,
        starts if starts is not None and bool(starts.any()) else None,
        device,
    )


def _written_out(mask: SparseMask, made_by: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask as eager attention takes it (added to scores) or SDPA (boolean), (batch or 1, head, query, key)."""
    if made_by not in (eager_mask, sdpa_mask):
        raise Unsupported("this attention implementation knows no sparse mask", hint=f"use {_NAME}, sdpa or eager")
    sizes = (len(mask.patterns), mask.n_queries, mask.n_keys)
    allowed = mask.allowed(None, *(torch.arange(size, device=device) for size in sizes))
    if made_by is sdpa_mask:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)


def _attention_of_call(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it; returns (batch, query, head, d_head) and no weights."""
    _check_mask(module, attention_mask)
    return sparse_attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


def _flex_of_call(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The same by FlexAttention, which is imported for it only."""
    from traceformer.bytelm.flex import flex_sparse_attention

    _check_mask(module, attention_mask)
    return flex_sparse_attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


def _check_mask(module: nn.Module, mask: Any) -> None:
    if not isinstance(mask, SparseMask):
        raise Unsupported(f"{type(module).__name__} with the attention of {_NAME}, but not with its mask")


for name, attention in ((_NAME, _attention_of_call), (_FLEX, _flex_of_call)):
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _mask_of_call)
AutoConfig.register(_NAME, SparseByteConfig)
AutoModel.register(SparseByteConfig, SparseByteModel)
AutoModelForCausalLM.register(SparseByteConfig, SparseByteForCausalLM)
