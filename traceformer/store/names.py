"""Where each array lives in a run's folder, and what `Run` calls it. Nothing else decides names.

The groups are the padded store's: an encoder's have no prefix (`attn.zarr/attn`), a decoder's have `dec_`, an
encoder-decoder's have `enc_`, `dec_` and `dec_cross_`. Groups that hold one kind of attention say which
(`dec_self_qkv.zarr/k`); groups that mix it with the MLP say so for cross-attention only (`dec_norm.zarr/attn`,
`dec_cross_norm.zarr/attn`). The words for kinds of runs, numbers and codecs stand here too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from traceformer.sites import SITES, ArrayKey, Attention, Stack

__all__ = [
    "TRACES",
    "Arch",
    "AttnCodec",
    "Codec",
    "Dtype",
    "MatrixCodec",
    "RowsCodec",
    "Stored",
    "array_path",
    "key_at",
    "public_name",
    "site_keys",
]

Arch: TypeAlias = Literal["enc", "dec", "encdec"]
Dtype: TypeAlias = Literal["float16", "float32", "bfloat16"]
Stored: TypeAlias = Literal["float16", "float32", "bfloat16", "sqrt8", "q8", "int32"]
AttnCodec: TypeAlias = Literal["exact", "small", "sqrt8"]
RowsCodec: TypeAlias = Literal["exact", "q8"]
Codec: TypeAlias = Literal["none", "zstd", "lz4"]
MatrixCodec: TypeAlias = Literal["zstd", "bitshuffle-lz4", "shuffle-zstd"]

TRACES = Path("traces")
"""Where runs lie that nobody gave a place."""

_PLACES: Mapping[str, tuple[str, str]] = {
    "token_embed": ("token_embed", "x"),
    "embed": ("res_embed", "x"),
    "resid_pre": ("res_pre_attn", "x"),
    "resid_mid": ("res_post_attn", "x"),
    "resid_post": ("res_post_mlp", "x"),
    "attn_norm": ("norm", "attn"),
    "mlp_norm": ("norm", "mlp"),
    "final_norm": ("norm", "final"),
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "kv_latent": ("kv_latent", "x"),
    "q": ("qkv", "q"),
    "k": ("qkv", "k"),
    "v": ("qkv", "v"),
    "attn_scores": ("scores", "scores"),
    "attn_pattern": ("attn", "attn"),
    "z": ("z", "z"),
    "attn_out": ("sublayer", "attn_out"),
    "mlp_out": ("sublayer", "mlp_out"),
    "mlp_up": ("mlp", "up"),
    "mlp_act": ("mlp", "act"),
    "mlp_mid": ("mlp", "mid"),
    "mlp_down": ("mlp", "down"),
    "router_logits": ("experts", "router"),
    "expert_topk": ("experts", "topk"),
    "expert_weight": ("experts", "weight"),
    "shared_up": ("shared_expert", "up"),
    "shared_act": ("shared_expert", "act"),
    "shared_mid": ("shared_expert", "mid"),
    "shared_out": ("shared_expert", "out"),
    "hidden": ("hidden", "h"),
    "logits": ("logits", "logits"),
    "class_logits": ("class_logits", "class_logits"),
    "token_class_logits": ("token_class_logits", "token_class_logits"),
    "projection": ("projection", "projection"),
    "lens_topk": ("lens", "topk"),
    "lens_topk_prob": ("lens", "prob"),
    "attn_topk": ("attn_topk", "key"),
    "attn_topk_weight": ("attn_topk", "weight"),
    "attn_topk_rest": ("attn_topk", "rest"),
    "head_metrics": ("heads", "metrics"),
}
_SHARED_GROUPS = frozenset(("norm", "sublayer"))
_SEVERAL_ARRAYS = frozenset(
    ("norm", "sublayer", "qkv", "qkv_proj", "mlp", "experts", "shared_expert", "lens", "attn_topk")
)


def array_path(key: ArrayKey, arch: Arch) -> str:
    """Returns the array's path inside the run's folder: `dec_self_attn.zarr/attn`."""
    group, leaf = _PLACES[key.site]
    return f"{_prefix(key, group, arch)}{group}.zarr/{leaf}"


def key_at(path: str, arch: Arch) -> ArrayKey:
    """Returns the key whose array lives at `path`: the inverse of `array_path`.

    Raises:
        KeyError: no array of a run of this kind lives there.
    """
    return {array_path(key, arch): key for key in _all_keys(arch)}[path]


def public_name(key: ArrayKey) -> str:
    """Returns the padded store's name of the array: `dec_self_attn`, `enc_self_q`, `dec_res_pre_attn`, `enc_hidden`."""
    group, _ = _PLACES[key.site]
    return _prefix(key, group, "encdec") + (key.site if group in _SEVERAL_ARRAYS else group)


def site_keys(site: str) -> Iterator[ArrayKey]:
    """Yields the site in every place where a model can have it: encoder, decoder, cross-attention."""
    places: tuple[tuple[Stack, Attention], ...] = (("enc", "self"), ("dec", "self"), ("dec", "cross"))
    for stack, attention in places:
        if SITES[site].of_attention:
            yield ArrayKey(stack, attention, site)
        elif attention == "self":
            yield ArrayKey(stack, None, site)


def _prefix(key: ArrayKey, group: str, arch: Arch) -> str:
    if arch == "enc":
        return ""
    shown = key.attention == "cross" or (key.attention == "self" and group not in _SHARED_GROUPS)
    return f"{key.stack}_{key.attention}_" if shown else f"{key.stack}_"


def _all_keys(arch: Arch) -> Iterator[ArrayKey]:
    for site in SITES:
        for key in site_keys(site):
            if arch == "encdec" or (key.stack == arch and key.attention != "cross"):
                yield key
