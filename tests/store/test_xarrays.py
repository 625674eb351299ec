"""zarr-python and xarray read the same numbers, with named dimensions and without a warning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.marks import slow
from tests.store import runs
from traceformer import TraceStore

GROUPS = (
    "dec_self_attn",
    "dec_self_qkv",
    "dec_hidden",
    "dec_res_embed",
    "dec_norm",
    "dec_mlp",
    "dec_sublayer",
    "dec_logits",
    "dec_lens",
)


def opened_by_both(folder: Path, group: str) -> tuple[zarr.Group, xr.Dataset]:
    return zarr.open_group(folder / f"{group}.zarr", mode="r"), xr.open_zarr(folder / f"{group}.zarr", chunks=None)


@pytest.mark.parametrize(
    ("arch", "codec", "dtype"),
    [("enc", "none", "float16"), ("dec", "none", "bfloat16"), ("dec", "lz4", "float16"),
     slow("dec", "zstd", "float32"), slow("encdec", "none", "float32"), slow("encdec", "lz4", "bfloat16")],
)  # fmt: skip
def test_zarr_and_xarray_read_every_array_as_it_is_stored(tmp_path: Path, arch: str, codec: str, dtype: str) -> None:
    layout = runs.plan(arch, codec=codec, dtype=dtype, attn_codec="sqrt8" if codec == "lz4" else "exact")
    folder = runs.write(tmp_path / "run", layout)
    table = TraceStore(folder).tokens
    for array in layout.arrays:
        group, leaf = layout.array_path(array.key).split("/")
        by_zarr, by_xarray = opened_by_both(folder, group.removesuffix(".zarr"))
        assert by_xarray[leaf].dims == layout.axes(array)
        stored: Any = by_zarr[leaf]
        assert stored.attrs["stored_dtype"] == layout.stored(array)
        for example in (0, 3, 10):
            wanted = runs.as_stored(layout, array, runs.truth(layout, array, example))
            if array.site.is_matrix:
                place: tuple[Any, ...] = (example, ..., slice(wanted.shape[2]), slice(wanted.shape[3]))
            elif array.site.is_per_example:
                place = (example, ...)
            else:
                own = "dec_slot" if arch == "encdec" and array.key.token_stack == "dec" else "slot"
                place = (..., slice(table[own][example], table[own][example] + wanted.shape[-2]), slice(None))
            assert np.array_equal(stored[place], wanted)
            assert np.array_equal(by_xarray[leaf][place].values, wanted)


def test_token_coordinates_say_whose_token_lies_where(encoder_decoder: TraceStore) -> None:
    store = encoder_decoder
    _, group = opened_by_both(store.folder, "dec_cross_qkv")
    table = store.tokens
    for prefix, stack, slot in (("", "dec", "dec_slot"), ("enc_", "enc", "slot")):
        examples, positions = group[f"{prefix}token_example"].values, group[f"{prefix}token_position"].values
        assert group[f"{prefix}token_example"].dims == (f"{stack}_token",)
        wanted = np.full(len(examples), -1)
        for row in range(store.n):
            length = store.length(runs.name(row), stack)
            own = slice(table[slot][row], table[slot][row] + length)
            wanted[own] = row
            assert positions[own].tolist() == list(range(length))
        assert examples.tolist() == wanted.tolist()
        assert (positions[examples == -1] == -1).all()
        assert f"{prefix}token_example" in group.coords


def test_coordinates_survive_the_end_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zarr3", "finishing"):
        monkeypatch.setattr(f"traceformer.store.{module}.POSITIONS_PER_FILE", 97)
    layout = runs.plan(arrays=runs.FEW)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    _, group = opened_by_both(store.folder, "dec_res_embed")
    kept = group["token_example"].values >= 0
    assert group["token_example"].values[kept].tolist() == store.token_examples().tolist()
    lengths = [store.length(name) for name in store.ids]
    assert group["token_position"].values[kept].tolist() == [p for length in lengths for p in range(length)]


def test_the_tree_has_no_gaps_and_the_models_numbers(decoder: TraceStore) -> None:
    tree = decoder.to_xarray()
    assert set(GROUPS) <= set(tree.children)
    residual = tree["dec_res_post_attn"]["x"]
    assert residual.dims == ("layer", "dec_token", "d_model")
    assert residual.layer.values.tolist() == [1, 4]
    assert np.array_equal(residual.sel(layer=4).values, decoder.activations("resid_mid", 4))
    assert np.array_equal(tree["dec_self_z"]["z"].sel(layer=1, head=3).values, decoder.activations("z", 1, head=3))
    assert np.array_equal(tree["dec_self_qkv"]["k"].sel(layer=1, kv_head=1).values, decoder.activations("k", 1, head=3))
    own = residual.where(residual.token_example == 6, drop=True).sel(layer=1)
    assert np.array_equal(own.values, decoder.get("example-6", "resid_mid", 1))
    assert own.token_position.values.tolist() == list(range(decoder.length("example-6")))
    pattern = tree["dec_self_attn"].to_dataset().isel(example=6).sel(layer=1, head=0)
    n = int(pattern.n_query)
    assert pattern.example_id.item() == "example-6"
    assert np.array_equal(pattern["attn"].values[:n, :n], decoder.attn("example-6", 1, 0))


def test_the_tree_decodes_bfloat16_and_sqrt8(tmp_path: Path) -> None:
    store = TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW, dtype="bfloat16", attn_codec="sqrt8")))
    tree = store.to_xarray()
    assert np.array_equal(tree["dec_res_embed"]["x"].values, store.activations("embed"))
    assert tree["dec_self_attn"]["attn"].dtype == np.float32
    length = store.length("example-2")
    assert np.array_equal(
        tree["dec_self_attn"]["attn"][2, 0, 1, :length, :length].values, store.attn("example-2", 1, 2)
    )


@st.composite
def indexers(draw: st.DrawFn, size: int) -> Any:
    bound = st.none() | st.integers(-size - 3, size + 3)
    slices = st.builds(slice, bound, bound, st.none() | st.integers(1, 9) | st.integers(-9, -1))
    return draw(
        st.integers(-size, size - 1)
        | slices.filter(lambda each: range(size)[each] or (each.step or 1) > 0)  # xarray fails on empty backward ones
        | st.lists(st.integers(-size, size - 1), max_size=6).map(lambda places: np.array(places, np.int64))
    )


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_slices_of_the_tree_are_slices_of_the_whole_array(decoder: TraceStore, data: st.DataObject) -> None:
    group, leaf = data.draw(st.sampled_from([("dec_self_qkv", "q"), ("dec_res_embed", "x"), ("dec_self_attn", "attn")]))
    lazy = decoder.to_xarray()[group][leaf]
    loaded = lazy.copy(data=lazy.values)
    key = {axis: data.draw(indexers(size)) for axis, size in lazy.sizes.items()}
    assert np.array_equal(lazy.isel(key).values, loaded.isel(key).values)
    name = data.draw(st.sampled_from(list(key)))
    assert np.array_equal(lazy.isel({name: key[name]}).values, loaded.isel({name: key[name]}).values)


def test_a_tree_of_many_shards_is_read_piece_by_piece(tmp_path: Path) -> None:
    layout = runs.plan(arrays=[runs.spec("dec.embed")], n_examples=90, shard_examples=1)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    lazy = store.to_xarray()["dec_res_embed"]["x"]
    assert np.array_equal(lazy.values, store.activations("embed"))
    assert np.array_equal(lazy[::-7].values, store.activations("embed")[::-7])
