"""Claims about attention, from its input to what it adds to the stream.

Scores are rebuilt from the recorded q and k with the module's own scaling and the config's softcap, patterns from
scores and a mask that is made of positions alone, and both ends are tied to the model's own modules.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from traceformer.capture.proofs.place import Claim, NotHere, Place, Rounding, Sides
from traceformer.capture.tensors import part_of
from traceformer.models.dims import StackDims
from traceformer.models.family import Tap

__all__ = ["ATTENTION_CLAIMS"]


def _merged(rows: Tensor) -> Tensor:
    """(head, position, width) -> (position, head * width)."""
    return rows.transpose(0, 1).flatten(1)


def _split(rows: Tensor, tap: Tap, dims: StackDims) -> Tensor:
    """The part of a projection's output (position, width) that a tap names, as (head, position, d_head)."""
    if tap.part.startswith("heads'"):
        rows, tap = part_of(rows, tap, dims), Tap(tap.path)
    if tap.part == "whole":
        return rows.unflatten(-1, (-1, dims.d_head)).transpose(0, 1)
    index, heads = "qkv".index(tap.part), _split(rows, Tap(""), dims)
    if tap.fused == "per_head":
        group = dims.n_heads // dims.n_kv_heads
        each = [head for head in range(len(heads)) if max(0, head % (group + 2) - group + 1) == index]
        return heads[each]
    first = (0, dims.n_heads, dims.n_heads + dims.n_kv_heads)[index]
    return heads[first : first + (dims.n_kv_heads if index else dims.n_heads)]


def _stream_into(place: Place) -> Tensor:
    """The residual stream that this attention reads and adds to."""
    stream = place("resid_pre")
    return stream if place.attention == "self" else place.after_attention("self", stream)


def _input_of(place: Place, which: str) -> Tensor:
    if place.attention == "cross" and which != "q":
        return place.at(0, "enc").last_stream()
    return place("attn_norm") if place.attention_row.attn_norm is not None else _stream_into(place)


def _projection(which: str) -> Callable[[Place], Sides]:
    def sides(place: Place) -> Sides:
        tap = place.attention_row.tap(f"{which}_proj")
        assert tap is not None
        recorded = place(f"{which}_proj")
        return recorded, _split(place.apply(tap.path, _input_of(place, which)), tap, place.dims)

    return sides


def _attn_norm(place: Place) -> Sides:
    recorded, tap = place("attn_norm"), place.attention_row.attn_norm
    assert tap is not None
    return recorded, place.apply(tap.path, _stream_into(place))


def _layer_type(place: Place) -> str | None:
    types = getattr(place.config, "layer_types", None) or getattr(place.config, "attention_layers", None)
    return None if types is None or place.layer is None else types[place.layer]


class _Rotation(NamedTuple):
    width: int
    scaling: float


def _rotation(place: Place) -> _Rotation | None:
    """How many features of q and k the model rotates, and by how much it lengthens them (1 but for YaRN)."""
    module = place.module(place.attention_row.module)
    owners = (place.scene.model.base_model, module)
    found = (getattr(owner, name, None) for owner in owners for name in ("rotary_emb", "pos_emb"))
    rotary = next((each for each in found if each is not None), None)
    if hasattr(module, "rotary_dim"):  # GPT-J's, which has a table of angles and no frequencies
        return _Rotation(module.rotary_dim or place.dims.d_head, 1.0)
    if rotary is None:
        return None
    prefix = f"{_layer_type(place)}_"
    prefix = prefix if hasattr(rotary, f"{prefix}inv_freq") else ""
    return _Rotation(2 * getattr(rotary, f"{prefix}inv_freq").numel(), getattr(rotary, f"{prefix}attention_scaling"))


def _normed_projection(place: Place, which: str) -> Tensor:
    """q_proj or k_proj after the family's QK-norm or scaling, where it has one: q or k, but for rotation."""
    module, rows = place.module(place.attention_row.module), place(f"{which}_proj")
    norm = getattr(module, f"{which}_norm", None) or getattr(module, f"{which}_layernorm", None)
    if norm is not None:
        rows = _normed(norm, rows, place.dims)
    rows = _clipped(place, rows)
    if which == "k":
        return rows * getattr(module, "key_multiplier", 1)
    rope = getattr(place.config, "rope_parameters", None) or {}
    stretch = rope.get("llama_4_scaling_beta")
    if stretch:  # queries grow with the logarithm of their position, in steps
        steps = torch.arange(rows.shape[1], device=rows.device) // rope["original_max_position_embeddings"]
        rows = (rows * (1 + stretch * torch.log(1 + steps))[:, None]).to(rows.dtype)
    return rows * module.scaling if place.attention_row.scales_queries else rows


def _normed(norm: Any, rows: Tensor, dims: StackDims) -> Tensor:
    """(head, position, d_head) through a QK-norm: of each head, with weights for all or each, or of all at once."""
    weight = next(norm.parameters(), None)
    if weight is None or weight.shape == (dims.d_head,):
        return norm(rows[None])[0]
    if weight.dim() == 2:
        return norm(rows.transpose(0, 1)).transpose(0, 1)
    return _split(norm(_merged(rows)), Tap(""), dims)


def _clipped(place: Place, rows: Tensor) -> Tensor:
    """A projection as it goes on: some families cut off what is too large."""
    bound = getattr(getattr(place.config, "attn_config", place.config), "clip_qkv", None)
    return rows if bound is None else rows.clamp(-bound, bound)


def _unrotated(which: str) -> Callable[[Place], Sides]:
    def sides(place: Place) -> Sides:
        recorded = place(which)
        if _rotation(place) is not None:
            raise NotHere
        return recorded, _normed_projection(place, which)

    return sides


def _rotated(which: str) -> Callable[[Place], Sides]:
    """A rotation keeps lengths, so this needs no knowledge of its angles; the features it passes by must be equal."""

    def sides(place: Place) -> Sides:
        recorded, rotation = place(which).float(), _rotation(place)
        if rotation is None:
            raise NotHere
        projected = _normed_projection(place, which).float()
        turned = projected[..., : rotation.width].norm(dim=-1, keepdim=True) * rotation.scaling
        lengths = recorded[..., : rotation.width].norm(dim=-1, keepdim=True)
        passed = (recorded[..., rotation.width :], projected[..., rotation.width :])
        return torch.cat([lengths, passed[0]], -1), torch.cat([turned, passed[1]], -1)

    return sides


def _values(place: Place) -> Sides:
    return place("v"), _clipped(place, place("v_proj"))


def _grouped(rows: Tensor, n_heads: int) -> Tensor:
    """(kv_head, position, d_head) -> (head, position, d_head): each key or value head as its queries see it."""
    return rows.repeat_interleave(n_heads // rows.shape[0], dim=0)


def _scores(place: Place) -> Sides:
    recorded, q, k = place("attn_scores"), place("q").float(), place("k").float()
    module = place.module(place.attention_row.module)
    scaling = getattr(module, "scaling", place.attention_row.scaling or place.dims.d_head**-0.5)
    scores = q @ _grouped(k, len(q)).transpose(1, 2)
    if not place.attention_row.scales_queries:
        scores = scores * scaling
    softcap = getattr(place.config, "attn_logit_softcapping", None)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    first = place.at(place.dims.attention_layers[0]).module(place.attention_row.module)
    if hasattr(first, "relative_attention_bias"):  # the first block's bias serves all of T5's
        scores = scores + first.compute_bias(*scores.shape[1:])[0].float()
    if place.scene.row.own_attention:
        scores = _with_own_bias(place, scores)
    return recorded, scores


def _with_own_bias(place: Place, scores: Tensor) -> Tensor:
    """Scores with what families outside the attention function add: ALiBi, a bias of distances, scores of positions."""
    base, module = place.scene.model.base_model, place.module(place.attention_row.module)
    encoder: Any = getattr(base, "encoder", None)
    if hasattr(module, "disentangled_attention_bias"):
        parts = 1 + len({"c2p", "p2c"} & {*module.pos_att_type})
        bias = module.disentangled_attention_bias(place("q"), place("k"), None, encoder.get_rel_embedding(), parts)
        return scores * parts**-0.5 + bias
    if hasattr(encoder, "compute_position_bias"):
        return scores + encoder.compute_position_bias(scores[:1])[0]
    bias = _alibi_of(place, *scores.shape[:2])
    return scores if bias is None else scores + bias


def _window(place: Place) -> int | None:
    config, kind = place.config, _layer_type(place)
    if kind is not None:
        windows = {"sliding_attention": "sliding_window", "local": "window_size"}
        return getattr(config, windows[kind]) if kind in windows else None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def _may_look(place: Place, scores: Tensor) -> Tensor:
    """Where a query may look, (query, key) or by head too, from positions and the config alone; padding is cut off."""
    queries, keys = (torch.arange(size, device=scores.device) for size in scores.shape[1:])
    distance = queries[:, None] - keys
    window = _window(place)
    if place.attention == "cross":
        return torch.ones_like(distance, dtype=torch.bool)
    if not getattr(place.module(place.attention_row.module), "is_causal", place.stack == "dec"):
        reach = len(keys) if window is None else window if place.stack == "enc" else window - 1
        return distance.abs() <= reach
    patterns = getattr(place.config, "head_patterns", None)
    if patterns is not None:
        seen = [(distance <= each["window"]) | torch.isin(keys, keys.new_tensor(each["columns"])) for each in patterns]
        return torch.stack(seen) & (distance >= 0) | (distance == 0)
    return (distance >= 0) & (distance < (len(keys) if window is None else window))


def _softmax(place: Place) -> Sides:
    recorded, scores = place("attn_pattern"), place("attn_scores")
    scores = scores.masked_fill(~_may_look(place, scores), -torch.inf)
    sinks = _sinks(place)
    if sinks is None:
        return recorded, scores.softmax(-1)
    with_sink = torch.cat([sinks.float()[:, None, None].expand(*scores.shape[:2], 1), scores], dim=-1)
    return recorded, with_sink.softmax(-1)[..., 1:]


def _sinks(place: Place) -> Tensor | None:
    return getattr(place.module(place.attention_row.module), "sinks", None)


def _rows_sum_to_one(place: Place) -> Sides:
    sums = place("attn_pattern").sum(-1)
    if _sinks(place) is not None:
        raise NotHere
    return sums, torch.ones_like(sums)


def _rows_sum_to_less(place: Place) -> Sides:
    sums = place("attn_pattern").sum(-1)
    if _sinks(place) is None:
        raise NotHere
    return sums, sums.clamp(min=0, max=1)


def _own_attention(place: Place) -> Tensor:
    """What the model itself returns as this attention's pattern, cut to the true tokens: (head, query, key)."""
    assert place.attention is not None
    assert place.layer is not None
    whole = place.scene.reference.attentions.get((place.stack, place.attention))
    if whole is None:
        raise NotHere
    layers = place.dims.attention_layers
    if len(whole) == len(layers):  # some models return those of layers with attention alone
        number = layers.index(place.layer)
    elif len(whole) == place.dims.n_layers:
        number = place.layer
    else:
        raise NotHere
    ids = place.scene.ids[place.example]
    keys = ids["enc"] if place.attention == "cross" else ids[place.stack]
    return whole[number][place.example, :, : len(ids[place.stack]), : len(keys)].float()


def _eager_attentions(place: Place) -> Sides:
    return place("attn_pattern"), _own_attention(place)


def _mixed_values(place: Place) -> Sides:
    pattern, v = place("attn_pattern"), place("v").float()
    return place("z"), pattern @ _grouped(v, len(pattern))


def _projected_out(place: Place, mixed: Tensor) -> Sides:
    recorded, row = place("attn_out"), place.attention_row
    path, merged = row.out_proj, _merged(mixed)
    if row.gated is not None:
        made = place.apply(row.gated.gate.path, _input_of(place, "q"))
        path, merged = row.gated.out_proj, merged * part_of(made, row.gated.gate, place.dims).sigmoid()
    if path is None or row.attn_out is None:
        raise NotHere
    return recorded, place.normed(row.attn_out.path, place.apply(path, merged))


def _out_of_z(place: Place) -> Sides:
    if place.attention_row.gated is not None:
        raise NotHere
    return _projected_out(place, place("z"))


def _out_of_gated_z(place: Place) -> Sides:
    if place.attention_row.gated is None:
        raise NotHere
    return _projected_out(place, place("z"))


def _out_of_own_attentions(place: Place) -> Sides:
    values, pattern = _clipped(place, place("v_proj")), _own_attention(place)
    return _projected_out(place, (pattern @ _grouped(values.float(), len(pattern))).to(values.dtype))


def _alibi(place: Place) -> Sides:
    """Families outside the attention function whose positions are a bias (Bloom, MPT): q k^T + ALiBi, masked."""
    q, k = (_clipped(place, place(site)).float() for site in ("q_proj", "k_proj"))
    bias = _alibi_of(place, *q.shape[:2])
    if bias is None:
        raise NotHere
    scores = q @ k.transpose(1, 2) * place.dims.d_head**-0.5 + bias
    return scores.masked_fill(~_may_look(place, scores), -torch.inf).softmax(-1), _own_attention(place)


def _alibi_of(place: Place, n_heads: int, length: int) -> Tensor | None:
    base: Any = place.scene.model.base_model
    device = place.scene.model.device
    if hasattr(base, "build_alibi_tensor"):
        return base.build_alibi_tensor(torch.ones(1, length, device=device), n_heads, torch.float32)
    if hasattr(base, "build_mpt_alibi_tensor"):
        bias = base.build_mpt_alibi_tensor(n_heads, length, device=device)
        return bias - bias[..., :1]  # of which only differences count
    return None


ATTENTION_CLAIMS = (
    Claim("attn_norm", "equals the norm of the residual stream", _attn_norm, Rounding.MODEL),
    Claim("q_proj", "equals W_Q of attention's input", _projection("q"), Rounding.MODEL),
    Claim("k_proj", "equals W_K of attention's input", _projection("k"), Rounding.MODEL),
    Claim("v_proj", "equals W_V of attention's input", _projection("v"), Rounding.MODEL),
    Claim("v_proj", "gives attn_out through the model's own attentions", _out_of_own_attentions, Rounding.SOFTMAX),
    Claim("q_proj", "gives the model's own attentions with k_proj and ALiBi", _alibi, Rounding.SOFTMAX),
    Claim("q", "equals q_proj (normed or scaled where the family does)", _unrotated("q"), Rounding.MODEL),
    Claim("k", "equals k_proj (normed where the family does)", _unrotated("k"), Rounding.MODEL),
    Claim("q", "has the lengths of q_proj (normed where the family does)", _rotated("q"), Rounding.MODEL),
    Claim("k", "has the lengths of k_proj (normed where the family does)", _rotated("k"), Rounding.MODEL),
    Claim("v", "equals v_proj", _values, Rounding.NONE),
    Claim("attn_scores", "equals q k^T, scaled, softcapped, biased", _scores, Rounding.FLOAT32),
    Claim("attn_pattern", "equals the softmax of attn_scores in a mask built by hand", _softmax, Rounding.FLOAT32),
    Claim("attn_pattern", "equals the model's own eager attentions", _eager_attentions, Rounding.SOFTMAX),
    Claim("attn_pattern", "has rows that sum to 1", _rows_sum_to_one, Rounding.FLOAT32),
    Claim("attn_pattern", "has rows that sum to at most 1 (sinks)", _rows_sum_to_less, Rounding.FLOAT32),
    Claim("z", "equals attn_pattern v", _mixed_values, Rounding.SOFTMAX),
    Claim("attn_out", "equals W_O z + b, after the post-norm where there is one", _out_of_z, Rounding.MODEL),
    Claim("attn_out", "equals W_O of z times its gate, after the post-norm", _out_of_gated_z, Rounding.MODEL),
)
