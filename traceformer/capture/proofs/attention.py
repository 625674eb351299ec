"""Claims about attention, from its input to what it adds to the stream.

Scores are rebuilt from the recorded q and k with the module's own scaling and the config's softcap, patterns from
scores and a mask that is made of positions alone, and both ends are tied to the model's own modules.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from traceformer.capture.proofs.place import Claim, NotHere, Place, Rounding, Sides, apply
from traceformer.capture.tensors import part_of
from traceformer.models.dims import StackDims
from traceformer.models.family import Tap
from traceformer.sites import SITES

__all__ = ["ATTENTION_CLAIMS", "own_attention"]


def _merged(rows: Tensor) -> Tensor:
    """(head, position, width) -> (position, head * width)."""
    return rows.transpose(0, 1).flatten(1)


def _by_head(rows: Tensor, width: int) -> Tensor:
    """(position, head * width) -> (head, position, width)."""
    return rows.unflatten(-1, (-1, width)).transpose(0, 1)


def _split(rows: Tensor, tap: Tap, dims: StackDims, which: str) -> Tensor:
    """The part of a projection's output (position, width) that a tap names, as (head, position, d_head)."""
    width = dims.width_of(SITES[which])
    if tap.part.startswith("heads'"):
        rows, tap = part_of(rows, tap, dims), Tap(tap.path)
    if tap.part == "whole":
        return _by_head(rows, width)
    index = "qkv".index(tap.part)
    if tap.fused == "per_head":
        group, heads = dims.n_heads // dims.n_kv_heads, _by_head(rows, width)
        each = [head for head in range(len(heads)) if max(0, head % (group + 2) - group + 1) == index]
        return heads[each]
    first = (0, dims.n_heads, dims.n_heads + dims.n_kv_heads)[index] * dims.d_head
    return _by_head(rows[:, first : first + (dims.n_kv_heads if index else dims.n_heads) * width], width)


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
        recorded, reads = place(f"{which}_proj"), _input_of(place, which)
        latent = place.attention_row.q_latent
        if which == "q" and latent is not None:
            reads = place.apply(latent.norm, place.apply(latent.down, reads))
        return recorded, _split(place.apply(tap.path, reads), tap, place.dims, which)

    return sides


def _kv_latent(place: Place) -> Sides:
    recorded, latent = place("kv_latent"), place.attention_row.kv_latent
    assert latent is not None
    narrow = place.apply(latent.down, _input_of(place, "k"))[:, : place.dims.d_latent]
    return recorded, place.apply(latent.norm, narrow)


def _out_of_latent(place: Place) -> tuple[Tensor, Tensor]:
    """What the latent row is made into: the part of keys that each head has for itself, and values."""
    latent = place.attention_row.kv_latent
    if latent is None:
        raise NotHere
    heads = place.apply(latent.up, place("kv_latent")).unflatten(-1, (place.dims.n_kv_heads, -1)).transpose(0, 1)
    width = place.dims.width_of(SITES["v"])
    return heads[..., :-width], heads[..., -width:]


def _values_of_latent(place: Place) -> Sides:
    recorded = place("v")
    return recorded, _out_of_latent(place)[1]


def _keys_of_latent(place: Place) -> Sides:
    """The part that all heads share is the one that may be rotated, which keeps its lengths."""
    recorded, (own, _), latent = place("k").float(), _out_of_latent(place), place.attention_row.kv_latent
    assert latent is not None
    shared = place.apply(latent.down, _input_of(place, "k"))[:, place.dims.d_latent :]
    whole = torch.cat([own, shared.expand(len(own), *shared.shape)], -1).float()
    return _but_for_rotation(place, recorded, whole)


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
    rotary, module = _rotary(place), place.module(place.attention_row.module)
    if hasattr(module, "rotary_dim"):  # GPT-J's, which has a table of angles and no frequencies
        return _Rotation(module.rotary_dim or place.dims.d_head, 1.0)
    if rotary is None or not getattr(module, "use_rope", True):
        return None
    prefix = f"{_layer_type(place)}_"
    prefix = prefix if hasattr(rotary, f"{prefix}inv_freq") else ""
    if not hasattr(rotary, f"{prefix}inv_freq"):  # which turns layers of other kinds
        return None
    return _Rotation(2 * getattr(rotary, f"{prefix}inv_freq").numel(), getattr(rotary, f"{prefix}attention_scaling"))


def _rotary(place: Place) -> Any:
    """The module that makes angles: beside the blocks, beside what holds them, or of attention itself."""
    module, names = place.module(place.attention_row.module), ("rotary_emb", "pos_emb")
    found = (*map(place.beside, names), *(getattr(module, name, None) for name in names))
    return next((own for own in found if own is not None), None)


def _normed_projection(place: Place, which: str) -> Tensor:
    """q_proj or k_proj after the family's QK-norm or scaling, where it has one: q or k, but for rotation."""
    module, rows = place.module(place.attention_row.module), _projected(place, which)
    names = (f"{which}_norm", f"{which}_layernorm", "qk_norm")
    norm = next((found for name in names if (found := getattr(module, name, None)) is not None), None)
    if norm is not None:  # one behind the rotation gives the same lengths
        rows = _normed(norm, rows, place.dims)
    rows = _clipped(place, rows)
    if which == "k":
        return rows * getattr(module, "key_multiplier", 1)
    rope = getattr(place.config, "rope_parameters", None) or {}
    stretch = rope.get("llama_4_scaling_beta")
    if stretch:  # queries grow with the logarithm of their position, in steps
        steps = torch.arange(rows.shape[1], device=rows.device) // rope["original_max_position_embeddings"]
        rows = (rows * (1 + stretch * torch.log(1 + steps))[:, None]).to(rows.dtype)
    if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:  # likewise, where nothing is rotated
        steps = (torch.arange(rows.shape[1], device=rows.device) + 1) // module.floor_scale
        rows = (rows * (1 + module.attn_scale * torch.log1p(steps.float()))[:, None]).to(rows.dtype)
    return rows * module.scaling if place.attention_row.scales_queries else rows


def _projected(place: Place, which: str) -> Tensor:
    """q_proj, k_proj or v_proj: recorded or, of keys and values that not all layers project, made again.

    Where a layer has no projection of values, keys' stands for it (Gemma 4).
    """
    try:
        return place(f"{which}_proj")
    except NotHere:
        module, dims = place.module(place.attention_row.module), place.dims
        names = {"k": ("k_proj",), "v": ("v_proj", "k_proj")}.get(which, ())
        own = next((own for name in names if (own := getattr(module, name, None)) is not None), None)
        if own is None or place.attention_row.tap(f"{which}_proj") is not None:
            raise
        read = _input_of(place, which)
        if getattr(own, "in_features", 0) != read.shape[-1]:  # it reads more than the stream
            raise
        rows = apply(own, read)
        if rows.shape[-1] != dims.n_kv_heads * dims.width_of(SITES[which]):
            raise
        return _by_head(rows, dims.width_of(SITES[which]))


def _normed(norm: Any, rows: Tensor, dims: StackDims) -> Tensor:
    """(head, position, d_head) through a QK-norm: of each head, with weights for all or each, or of all at once."""
    weight = next(norm.parameters(), None)
    if weight is None or weight.shape == (dims.d_head,):
        return norm(rows[None])[0]
    if weight.dim() == 2:
        return norm(rows.transpose(0, 1)).transpose(0, 1)
    return _by_head(norm(_merged(rows)), dims.d_head)


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
        recorded = place(which).float()
        if _rotation(place) is None:
            raise NotHere
        return _but_for_rotation(place, recorded, _normed_projection(place, which).float())

    return sides


def _but_for_rotation(place: Place, recorded: Tensor, projected: Tensor) -> Sides:
    """Both as far as they must be equal: the lengths of what is rotated, and the features that are not.

    With latent attention those come last that are rotated, otherwise first.
    """
    rotation = _rotation(place)
    if rotation is None:
        return recorded, projected
    if place.attention_row.kv_latent is not None:
        recorded, projected = recorded.flip(-1), projected.flip(-1)
    turned = projected[..., : rotation.width].norm(dim=-1, keepdim=True) * rotation.scaling
    lengths = recorded[..., : rotation.width].norm(dim=-1, keepdim=True)
    passed = (recorded[..., rotation.width :], projected[..., rotation.width :])
    return torch.cat([lengths, passed[0]], -1), torch.cat([turned, passed[1]], -1)


def _values(place: Place) -> Sides:
    if _norm_of_values(place) is not None:
        raise NotHere
    return place("v"), _clipped(place, place("v_proj"))


def _norm_of_values(place: Place) -> Any:
    return getattr(place.module(place.attention_row.module), "v_norm", None)


def _normed_values(place: Place) -> Sides:
    norm = _norm_of_values(place)
    if norm is None:
        raise NotHere
    return place("v"), _normed(norm, _projected(place, "v"), place.dims)


def _shared(which: str) -> Callable[[Place], Sides]:
    """Keys and values that a layer has from an earlier one: the last of its kind that makes its own."""

    def sides(place: Place) -> Sides:
        recorded, path = place(which), place.attention_row.module
        assert place.layer is not None
        if not getattr(place.module(path), "is_kv_shared_layer", False):
            raise NotHere
        kind = _layer_type(place)
        before = (place.at(layer) for layer in reversed(range(place.layer)))
        makes = (own for own in before if not own.module(path).is_kv_shared_layer and _layer_type(own) == kind)
        return recorded, next(makes)(which)

    return sides


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
    base, module = place.part, place.module(place.attention_row.module)
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
    band = _band(place)
    if band is not None:
        return band
    if kind is not None:
        windows = {"sliding_attention": "sliding_window", "local": "window_size"}
        return getattr(config, windows[kind]) if kind in windows else None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def _band(place: Place) -> int | None:
    """How many keys to either side a Longformer's query sees in this layer."""
    windows = getattr(place.config, "attention_window", None)
    if windows is None or place.layer is None:
        return None
    return (windows if isinstance(windows, int) else windows[place.layer]) // 2


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
    if _layer_type(place) == "chunked_attention":  # Llama 4: a query sees its own part of the text
        size = place.config.attention_chunk_size
        return (distance >= 0) & (queries[:, None] // size == keys // size)
    return (distance >= 0) & (distance < (len(keys) if window is None else window))


def _picked(place: Place) -> int | None:
    """How many keys an indexer picks for each query; None where there is none."""
    has_one = getattr(place.module(place.attention_row.module), "indexer", None) is not None
    return getattr(place.config, "index_topk", None) if has_one else None


def _looks_where_picked(place: Place) -> Sides:
    """How many keys each query looks at: those before it, as many as are picked; and none behind it."""
    pattern, picked = place("attn_pattern"), _picked(place)
    if picked is None:
        raise NotHere
    seen = torch.cat([(pattern > 0).sum(-1), (pattern.triu(1) > 0).sum(-1)], -1)
    before = (torch.arange(pattern.shape[1], device=pattern.device) + 1).clamp(max=picked)
    return seen.float(), torch.cat([before, torch.zeros_like(before)]).expand(len(pattern), -1).float()


def _softmax(place: Place) -> Sides:
    recorded, scores = place("attn_pattern"), place("attn_scores")
    if _picked(place) is not None:
        raise NotHere
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


def own_attention(place: Place) -> Tensor:
    """Returns what the model itself does as this attention's pattern, cut to the true tokens: (head, query, key)."""
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
    own, band = whole[number][place.example].float(), _band(place)
    own = own if band is None or place.stack == "dec" else _in_place(own, band)
    return own[:, : len(ids[place.stack]), : len(keys)]


def _in_place(banded: Tensor, band: int) -> Tensor:
    """(head, query, key) of a band that is (head, query, 2 band + 1): its first column is the key `band` before."""
    heads, queries, _ = banded.shape
    whole = banded.new_zeros(heads, queries, queries + 2 * band)
    columns = torch.arange(queries, device=banded.device)[:, None] + torch.arange(2 * band + 1, device=banded.device)
    whole.scatter_(2, columns.expand(heads, -1, -1), banded)
    return whole[:, :, band : band + queries]


def _eager_attentions(place: Place) -> Sides:
    return place("attn_pattern"), own_attention(place)


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
    return recorded, place.normed(row.attn_out.path, place.apply(path, merged)) * place.scale


def _out_of_z(place: Place) -> Sides:
    if place.attention_row.gated is not None:
        raise NotHere
    return _projected_out(place, place("z"))


def _out_of_gated_z(place: Place) -> Sides:
    if place.attention_row.gated is None:
        raise NotHere
    return _projected_out(place, place("z"))


def _out_of_own_attentions(place: Place) -> Sides:
    values, pattern, norm = _clipped(place, place("v_proj")), own_attention(place), _norm_of_values(place)
    values = values if norm is None else _normed(norm, values, place.dims)
    return _projected_out(place, (pattern @ _grouped(values.float(), len(pattern))).to(values.dtype))


def _alibi(place: Place) -> Sides:
    """Families outside the attention function whose positions are a bias (Bloom, MPT): q k^T + ALiBi, masked."""
    q, k = (_clipped(place, place(site)).float() for site in ("q_proj", "k_proj"))
    bias = _alibi_of(place, *q.shape[:2])
    if bias is None:
        raise NotHere
    scores = q @ k.transpose(1, 2) * place.dims.d_head**-0.5 + bias
    return scores.masked_fill(~_may_look(place, scores), -torch.inf).softmax(-1), own_attention(place)


def _alibi_of(place: Place, n_heads: int, length: int) -> Tensor | None:
    base = place.part
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
    Claim("kv_latent", "equals the normed narrow row of attention's input", _kv_latent, Rounding.MODEL),
    Claim("k", "is made of kv_latent, but for the part that heads share", _keys_of_latent, Rounding.MODEL),
    Claim("v", "is made of kv_latent", _values_of_latent, Rounding.MODEL),
    Claim("q", "equals q_proj (normed or scaled where the family does)", _unrotated("q"), Rounding.MODEL),
    Claim("k", "equals k_proj (normed where the family does)", _unrotated("k"), Rounding.MODEL),
    Claim("q", "has the lengths of q_proj (normed where the family does)", _rotated("q"), Rounding.MODEL),
    Claim("k", "has the lengths of k_proj (normed where the family does)", _rotated("k"), Rounding.MODEL),
    Claim("v", "equals v_proj", _values, Rounding.NONE),
    Claim("v", "equals v_proj, normed", _normed_values, Rounding.MODEL),
    Claim("k", "is that of the layer that it is shared with", _shared("k"), Rounding.NONE),
    Claim("v", "is that of the layer that it is shared with", _shared("v"), Rounding.NONE),
    Claim("attn_scores", "equals q k^T, scaled, softcapped, biased", _scores, Rounding.FLOAT32),
    Claim("attn_pattern", "equals the softmax of attn_scores in a mask built by hand", _softmax, Rounding.FLOAT32),
    Claim("attn_pattern", "looks at as many keys as its index picks", _looks_where_picked, Rounding.NONE),
    Claim("attn_pattern", "equals the model's own eager attentions", _eager_attentions, Rounding.SOFTMAX),
    Claim("attn_pattern", "has rows that sum to 1", _rows_sum_to_one, Rounding.FLOAT32),
    Claim("attn_pattern", "has rows that sum to at most 1 (sinks)", _rows_sum_to_less, Rounding.FLOAT32),
    Claim("z", "equals attn_pattern v", _mixed_values, Rounding.SOFTMAX),
    Claim("attn_out", "equals W_O z + b, after the post-norm where there is one", _out_of_z, Rounding.MODEL),
    Claim("attn_out", "equals W_O of z times its gate, after the post-norm", _out_of_gated_z, Rounding.MODEL),
)
