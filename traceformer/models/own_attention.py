"""How families that compute attention in code of their own make scores of queries and keys.

Each function here is told one call of an attention module: what it was given, what its projections made in it, and,
where the module has a method that scores are made in or a bias of them, what that was given and gave. It returns what
the module's own scores were made of, so that these can be made again: softmax(scaling q k^T + bias, masked).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from traceformer.errors import Unsupported

__all__ = ["OWN_ATTENTION", "ModuleCall", "Operands", "OwnAttention"]


@dataclass(slots=True)
class ModuleCall:
    """One call of an attention module.

    Attributes:
        module: The module itself.
        given: Its arguments, by name.
        made: What the modules in it put out, by name, in order.
        method: The arguments of its noted method and what that returned; None where it was not called.
    """

    module: Any
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    made: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    method: tuple[Sequence[Any], Any] | None = None

    def heads(self, name: str, d_head: int) -> Tensor:
        """Returns what a projection made first, (batch, head, position, d_head)."""
        return self.made[name][0].unflatten(-1, (-1, d_head)).transpose(1, 2)

    def cached(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values with those of earlier passes in front, as the module had them."""
        cache, layer = self.given.get("layer_past") or self.given.get("past_key_values"), self.module.layer_idx
        return (key, value) if cache is None else (cache.layers[layer].keys, cache.layers[layer].values)


class Operands(NamedTuple):
    """What a module's scores are made of.

    Shapes: `query` (batch, head, position, d_head); `key`, `value` (batch, kv_head, position, d_head); `bias` and
    `mask` whatever broadcasts to (batch, head, query, key); a mask is additive, or boolean where True may look.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None = None
    bias: Tensor | None = None


class OwnAttention(NamedTuple):
    """How a family's scores are read from a call; `method` of the module is noted while it runs."""

    operands: Callable[[ModuleCall], Operands]
    method: str = ""

    def fits(self, module: Any) -> bool:
        """Whether the module makes scores itself: GPT-J's calls transformers' attention function from 5.24 on."""
        return not self.method or hasattr(module, self.method)


def _in_its_method(scaling: Callable[[Any], float]) -> Callable[[ModuleCall], Operands]:
    """For modules with a method `_attn` of queries and keys as they enter the scores, values and an additive mask."""

    def operands(call: ModuleCall) -> Operands:
        assert call.method is not None
        query, key, value, mask = call.method[0]
        return Operands(query, key, value, scaling(call.module), mask)

    return operands


def _gpt_neo(call: ModuleCall) -> Operands:
    """Unscaled; the module holds where its kind of layer may look, and adds the mask of padding to that."""
    plain = _in_its_method(lambda _: 1.0)(call)
    queries, keys = plain.query.shape[2], plain.key.shape[2]
    allowed = call.module.bias[:, :, keys - queries : keys, :keys]
    if plain.mask is not None:
        allowed = allowed & (plain.mask >= 0)
    return plain._replace(mask=allowed)


def _bloom(call: ModuleCall) -> Operands:
    query, key, value = call.module._reshape(call.made["query_key_value"][0])
    bias: Tensor = call.given["alibi"]
    return Operands(
        query,
        *call.cached(key, value),
        call.module.inv_norm_factor,
        call.given["attention_mask"],
        bias.unflatten(0, (query.shape[0], -1)),
    )


def _falcon(call: ModuleCall) -> Operands:
    """Keys and values may have been repeated for all heads that share them."""
    module, (cos, sin) = call.module, call.given["position_embeddings"]
    query, key, value = (each.transpose(1, 2) for each in module._split_heads(call.made["query_key_value"][0]))
    query, key = sys.modules[type(module).__module__].apply_rotary_pos_emb(query, key, cos, sin)
    key, value = call.cached(key, value)
    repeated = key.shape[1] // module.num_kv_heads
    return Operands(
        query, key[:, ::repeated], value[:, ::repeated], module.inv_norm_factor, call.given["attention_mask"]
    )


def _mpt(call: ModuleCall) -> Operands:
    module, made = call.module, call.made["Wqkv"][0]
    if module.clip_qkv:
        made = made.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    query, key, value = (each.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for each in made.chunk(3, dim=2))
    key, value = call.cached(key, value)
    bias, masked = call.given["position_bias"], call.given["attention_mask"]
    if bias is not None:
        bias = bias[..., max(0, bias.shape[2] - key.shape[2]) :]
        # The module counts from the last key, which may be padding. What that adds to a row no pattern takes notice of.
        bias = bias - bias[..., :1]
    return Operands(query, key, value, module.softmax_scale, None if masked is None else ~masked, bias)


def _mpnet(call: ModuleCall) -> Operands:
    width = call.module.attention_head_size
    query, key, value = (call.heads(name, width) for name in ("q", "k", "v"))
    return Operands(query, key, value, width**-0.5, call.given["attention_mask"], call.given["position_bias"])


def _bert(call: ModuleCall) -> Operands:
    width = call.module.attention_head_size
    query, key, value = (call.heads(name, width) for name in ("query", "key", "value"))
    return Operands(query, key, value, width**-0.5, call.given["attention_mask"])


def _longformer(call: ModuleCall) -> Operands:
    """Each query sees the keys of a window around it. Projections lie position before batch, queries are scaled there.

    Raises:
        Unsupported: some tokens see all others, and are seen by all: these have projections of their own.
    """
    module = call.module
    if call.given["is_global_attn"]:
        raise Unsupported(
            "attention of a Longformer in which some tokens look everywhere",
            why="these are projected by other matrices, so that no one q and k make all scores",
            hint="the stream can be recorded: resid, hidden, mlp",
        )
    query, key, value = (
        call.made[name][0].unflatten(-1, (module.num_heads, -1)).permute(1, 2, 0, 3)
        for name in ("query", "key", "value")
    )
    position = torch.arange(query.shape[2], device=query.device)
    is_near = (position[:, None] - position).abs() <= module.one_sided_attn_window_size
    return Operands(query, key, value, 1.0, is_near & (call.given["attention_mask"] >= 0)[:, None, None, :])


def _deberta_v2(call: ModuleCall) -> Operands:
    """Each kind of score between contents and positions is one part of the scores, all of the same size."""
    module, heads = call.module, call.module.num_attention_heads
    width = module.attention_head_size
    query, key, value = (call.heads(f"{name}_proj", width) for name in ("query", "key", "value"))
    parts = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    made = None if call.method is None else call.method[1]
    bias = made.unflatten(0, (-1, heads)) if isinstance(made, Tensor) else None
    return Operands(query, key, value, (width * parts) ** -0.5, call.given["attention_mask"].bool(), bias)


def _by_width(module: Any) -> float:
    return module.head_dim**-0.5


OWN_ATTENTION: Mapping[str, OwnAttention] = {
    "gptj": OwnAttention(_in_its_method(_by_width), "_attn"),
    "gpt_neo": OwnAttention(_gpt_neo, "_attn"),
    "bloom": OwnAttention(_bloom),
    "falcon": OwnAttention(_falcon),
    "mpt": OwnAttention(_mpt),
    "mpnet": OwnAttention(_mpnet),
    "bert": OwnAttention(_bert),
    "longformer": OwnAttention(_longformer),
    "deberta-v2": OwnAttention(_deberta_v2, "disentangled_attention_bias"),
}
"""By the name that blocks have for it."""
