"""A small decoder of a class of its own, as a model of transformers: what `docs/questions/my-model.md` records.

Three things let it be recorded wholly: its config states layers, heads and widths by the usual names; a module of each
block calls transformers' attention function; and blocks hand one residual stream on.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class MineConfig(PreTrainedConfig):
    """Sizes; and how many times what the MLP makes is added to the stream, which is once where all is well."""

    model_type = "mine"

    def __init__(self, adds=1.0, **more):
        self.vocab_size, self.max_position_embeddings = 258, 512
        self.num_hidden_layers, self.num_attention_heads = 3, 4
        self.hidden_size, self.intermediate_size = 32, 64
        self.adds = adds
        super().__init__(**more)


def plain_attention(module, query, key, value, mask, scaling, **_):
    """The attention function in plain torch, for `attn_implementation="eager"`."""
    scores = query @ key.transpose(2, 3) * scaling
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.is_causal, self.scaling = config, True, 8**-0.5
        self.ask, self.tell, self.give, self.say = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x, mask):
        q, k, v = (part(x).unflatten(-1, (4, 8)).transpose(1, 2) for part in (self.ask, self.tell, self.give))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, plain_attention)
        mixed, weights = attend(self, q, k, v, mask, scaling=self.scaling)
        return self.say(mixed.flatten(2)), weights


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.before, self.attention, self.between = nn.LayerNorm(32), Attention(config), nn.LayerNorm(32)
        self.grow, self.bend, self.shrink = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)
        self.adds = config.adds

    def forward(self, x, mask):
        heard, weights = self.attention(self.before(x), mask)
        x = x + heard
        thought = self.shrink(self.bend(self.grow(self.between(x))))
        return x + (thought if self.adds == 1 else self.adds * thought), weights


class MineForCausalLM(PreTrainedModel):
    config_class = MineConfig
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        self.words, self.places = nn.Embedding(258, 32), nn.Embedding(512, 32)
        self.blocks, self.norm = nn.ModuleList(Block(config) for _ in range(3)), nn.LayerNorm(32)
        self.speak = nn.Linear(32, 258, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.speak

    def forward(self, input_ids, attention_mask=None, position_ids=None, output_attentions=False, **_):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        x = self.words(input_ids) + self.places(position_ids)
        mask = create_causal_mask(self.config, x, attention_mask, None, position_ids)
        seen = []
        for block in self.blocks:
            x, weights = block(x, mask)
            seen.append(weights)
        return CausalLMOutput(logits=self.speak(self.norm(x)), attentions=tuple(seen) if output_attentions else None)
