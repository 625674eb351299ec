"""A decoder of a class that transformers does not know, with names of its own: what the fallback is tested on."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["OddConfig", "OddForCausalLM", "odd_model"]


class OddConfig(PreTrainedConfig):
    """Sizes, and what may be odd.

    Args:
        adds: How many times what the MLP makes is added to the stream.
        across_batch: Whether its norms look at all texts of a batch.
        own_attention: Whether attention is computed in code of its own.
        from_block: Whether a block calls the attention function itself.
        looks_ahead: Whether tokens look at later ones.
    """

    model_type = "oddity"

    def __init__(
        self,
        vocab_size: int = 99,
        hidden_size: int = 32,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int = 48,
        max_position_embeddings: int = 64,
        adds: float = 1.0,
        across_batch: bool = False,
        own_attention: bool = False,
        from_block: bool = False,
        looks_ahead: bool = False,
        **more: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.adds = adds
        self.across_batch = across_batch
        self.own_attention = own_attention
        self.from_block = from_block
        self.looks_ahead = looks_ahead
        super().__init__(**more)


class Calm(nn.Module):
    """A norm that has another name, and may look across the batch."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.across_batch = config.across_batch

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().mean(dim=(0, -1) if self.across_batch else -1, keepdim=True)
        return self.scale * x / (square + 1e-6).sqrt()


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(2, 3) * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Ear(nn.Module):
    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.is_causal = config, not config.looks_ahead
        self.n_heads, self.scaling = config.num_attention_heads, (width // config.num_attention_heads) ** -0.5
        self.asks, self.tells, self.gives = (nn.Linear(width, width) for _ in range(3))
        self.says = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, block: nn.Module) -> tuple[Tensor, Tensor | None]:
        q, k, v = (
            part(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (self.asks, self.tells, self.gives)
        )
        attend = eager_attention_forward
        if not self.config.own_attention:
            implementation: str = getattr(self.config, "_attn_implementation")  # noqa: B009
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        caller = block if self.config.from_block else self
        mixed, weights = attend(caller, q, k, v, mask, scaling=self.scaling)
        return self.says(mixed.flatten(2)), weights


class Floor(nn.Module):
    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.calm, self.ear, self.quiet = Calm(config), Ear(config), Calm(config)
        self.grows = nn.Linear(config.hidden_size, config.intermediate_size)
        self.bends = nn.GELU()
        self.shrinks = nn.Linear(config.intermediate_size, config.hidden_size)
        self.adds, self.is_causal = config.adds, not config.looks_ahead

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        heard, weights = self.ear(self.calm(x), mask, self)
        x = x + heard
        thought = self.shrinks(self.bends(self.grows(self.quiet(x))))
        return x + (thought if self.adds == 1 else self.adds * thought), weights


class Tower(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "tower"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.steps = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.floors = nn.ModuleList(Floor(config) for _ in range(config.num_hidden_layers))
        self.roof = Calm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **more: Any
    ) -> BaseModelOutput:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.words(input_ids) + self.steps(position_ids)
        if self.config.looks_ahead:
            mask = create_bidirectional_mask(self.config, x, attention_mask)
        else:
            mask = create_causal_mask(self.config, x, attention_mask, None, position_ids)  # renamed in 5.24
        if self.config.own_attention and mask is None:
            ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            mask = torch.zeros(1, 1, *ahead.shape).masked_fill(ahead, -torch.inf)
        elif self.config.own_attention and mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -1e30)
        hidden, attentions = [x], []
        for floor in self.floors:
            x, weights = floor(x, mask)
            hidden.append(x)
            attentions.append(weights)
        hidden[-1] = x = self.roof(x)
        shown = more.get("output_attentions") and attentions[0] is not None
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(hidden) if more.get("output_hidden_states") else None,
            attentions=tuple(attentions) if shown else None,
        )


class OddForCausalLM(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "tower"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.tower = Tower(config)
        self.speaks = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.speaks

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> CausalLMOutputWithPast:
        seen = self.tower(input_ids, attention_mask, **more)
        return CausalLMOutputWithPast(
            logits=self.speaks(seen.last_hidden_state), hidden_states=seen.hidden_states, attentions=seen.attentions
        )


def odd_model(**changes: Any) -> OddForCausalLM:
    """Returns a tiny random one, its weights spread so that patterns are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OddForCausalLM(OddConfig(**changes))
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.2 * noise)
    return model.eval()
