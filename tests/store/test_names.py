"""Names on disk and in the API."""

from itertools import product
from typing import get_args

import pytest

from traceformer.sites import SITES, ArrayKey
from traceformer.store.names import Arch, array_path, key_at, public_name, site_keys

KEYS = [key for site in SITES for key in site_keys(site)]


@pytest.mark.parametrize(
    ("arch", "key", "path"),
    [
        ("enc", "enc.self.attn_pattern", "attn.zarr/attn"),
        ("enc", "enc.self.q", "qkv.zarr/q"),
        ("enc", "enc.hidden", "hidden.zarr/h"),
        ("enc", "enc.resid_mid", "res_post_attn.zarr/x"),
        ("enc", "enc.embed", "res_embed.zarr/x"),
        ("dec", "dec.self.attn_pattern", "dec_self_attn.zarr/attn"),
        ("dec", "dec.self.k", "dec_self_qkv.zarr/k"),
        ("dec", "dec.self.k_proj", "dec_self_qkv_proj.zarr/k"),
        ("dec", "dec.hidden", "dec_hidden.zarr/h"),
        ("dec", "dec.resid_pre", "dec_res_pre_attn.zarr/x"),
        ("dec", "dec.resid_post", "dec_res_post_mlp.zarr/x"),
        ("dec", "dec.mlp_act", "dec_mlp.zarr/act"),
        ("dec", "dec.self.attn_norm", "dec_norm.zarr/attn"),
        ("dec", "dec.final_norm", "dec_norm.zarr/final"),
        ("dec", "dec.self.attn_out", "dec_sublayer.zarr/attn_out"),
        ("dec", "dec.logits", "dec_logits.zarr/logits"),
        ("encdec", "enc.self.attn_pattern", "enc_self_attn.zarr/attn"),
        ("encdec", "enc.hidden", "enc_hidden.zarr/h"),
        ("encdec", "dec.cross.attn_pattern", "dec_cross_attn.zarr/attn"),
        ("encdec", "dec.cross.v", "dec_cross_qkv.zarr/v"),
        ("encdec", "dec.cross.attn_norm", "dec_cross_norm.zarr/attn"),
        ("encdec", "dec.cross.attn_out", "dec_cross_sublayer.zarr/attn_out"),
        ("encdec", "dec.cross.z", "dec_cross_z.zarr/z"),
    ],
)
def test_array_lives_where_the_padded_store_has_it(arch: Arch, key: str, path: str) -> None:
    assert array_path(ArrayKey.parse(key), arch) == path
    assert key_at(path, arch) == ArrayKey.parse(key)


@pytest.mark.parametrize("arch", get_args(Arch))
def test_path_and_key_are_each_others_inverse(arch: Arch) -> None:
    keys = [key for key in KEYS if arch == "encdec" or (key.stack == arch and key.attention != "cross")]
    assert [key_at(array_path(key, arch), arch) for key in keys] == keys
    assert len({array_path(key, arch) for key in keys}) == len(keys)


def test_public_names_are_the_padded_stores_and_distinct() -> None:
    names = [public_name(key) for key in KEYS]
    assert len(set(names)) == len(KEYS)
    sides = ("enc", "dec")
    assert {f"{side}_self_{what}" for side, what in product(sides, ("attn", "q", "k", "v"))} <= set(names)
    assert {f"dec_cross_{what}" for what in ("attn", "q", "k", "v")} <= set(names)
    assert {f"{side}_hidden" for side in sides} <= set(names)
    stages = ("embed", "pre_attn", "post_attn", "post_mlp")
    assert {f"{side}_res_{stage}" for side, stage in product(sides, stages)} <= set(names)
