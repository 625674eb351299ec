"""Padded stores: read with zarr and pandas, and written as its own code did, with zarr."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
import zarr.codecs

from tests.marks import slow
from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import RunExists, Unreadable
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.formats.padded_zarr.read import read_files, recognises
from traceformer.formats.padded_zarr.write import write_files


def exported(store: TraceStore, folder: Path, **options: Any) -> Path:
    [path] = write_files(store, folder, ExportOptions(**options))
    return path


def imported(folder: Path, out: Path) -> TraceStore:
    assert recognises(folder / "meta.json")
    return TraceStore(read_files([folder / "meta.json"], ImportOptions(out)))


def array(folder: Path, path: str) -> Any:
    group, leaf = path.split("/")
    return zarr.open_group(str(folder / group), mode="r")[leaf]


@pytest.mark.parametrize("arch", ["enc", "dec", "encdec"])
@pytest.mark.parametrize("dtype", ["float16", slow("float32")])
def test_a_run_goes_out_and_comes_back_bit_for_bit(tmp_path: Path, arch: str, dtype: str) -> None:
    old = TraceStore(with_masks(tmp_path / "run", arch, dtype))
    new = imported(exported(old, tmp_path / "out"), tmp_path / "back")
    assert (new.ids, new.dtype, new.arch, new.meta["dims"]) == (old.ids, old.dtype, old.arch, old.meta["dims"])
    for each in old.layout.arrays:
        assert new.layout.spec(each.key) == each
        for eid in old.ids:
            assert new.get(eid, each.key).tobytes() == old.get(eid, each.key).tobytes()
    columns = [name for name in old.tokens if name not in ("shard", "slot", "dec_slot")]
    assert new.tokens[columns].to_json() == old.tokens[columns].to_json()


def with_masks(folder: Path, arch: str, dtype: str) -> Path:
    """A run whose table has what extractions write."""
    import pyarrow as pa

    from traceformer.store.writer import RunWriter

    layout = runs.plan(arch, n_examples=3, shard_examples=2, dtype=dtype)
    with RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            for stack in layout.stacks:
                prefix = "" if stack == layout.stacks[0] else f"{stack}_"
                lengths = [runs.lengths(layout, example)[stack] for example in layout.shard_range(shard)]
                for name, value in (("attention_mask", 1), ("tokens", "t")):
                    table = table.append_column(prefix + name, pa.array([[value] * n for n in lengths]))
                if prefix:
                    table = table.append_column("dec_input_ids", pa.array([list(range(n)) for n in lengths]))
                    table = table.append_column("dec_n_tokens", pa.array(lengths))
            writer.commit(shard, buffer, table)
        return writer.finish()


def test_zarr_and_pandas_read_what_the_padded_stores_documentation_shows(tmp_path: Path) -> None:
    store = TraceStore(with_masks(tmp_path / "run", "dec", "float16"))
    folder = exported(store, tmp_path / "out")
    lengths = [store.length(eid) for eid in store.ids]
    t = max(lengths)
    table = pd.read_parquet(folder / "tokens.parquet")
    assert list(table.example_id) == list(store.ids)
    for name in ("input_ids", "attention_mask", "tokens"):
        assert [len(each) for each in table[name]] == [t] * 3
    assert [sum(mask) for mask in table.attention_mask] == lengths
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["arch"], meta["n_examples"], meta["max_seq_len"], meta["dtype"]) == ("dec", 3, t, "float16")
    for path, key, shape, chunk in (
        ("dec_self_attn.zarr/attn", "dec.self.attn_pattern", (3, 2, 3, t, t), (1, 1, 1, t, t)),
        ("dec_self_qkv.zarr/q", "dec.self.q", (3, 2, 3, t, 8), (1, 1, 1, t, 8)),
        ("dec_self_qkv.zarr/k", "dec.self.k", (3, 2, 2, t, 8), (1, 1, 1, t, 8)),
        ("dec_hidden.zarr/h", "dec.hidden", (3, 7, t, 24), (1, 1, t, 24)),
        ("dec_res_embed.zarr/x", "dec.embed", (3, t, 24), (1, t, 24)),
        ("dec_res_post_attn.zarr/x", "dec.resid_mid", (3, 2, t, 24), (1, 1, t, 24)),
    ):
        values = array(folder, path)
        assert (values.shape, values.chunks, str(values.dtype)) == (shape, chunk, "float16")
        assert values.metadata.zarr_format == 2
        assert values.metadata.compressor.get_config() == {"id": "zstd", "level": 3} or (
            values.metadata.compressor.get_config()["level"] == 3
        )
        for row, (eid, n) in enumerate(zip(store.ids, lengths, strict=True)):
            expected = store.get(eid, key)
            padded = np.zeros(shape[1:], np.float16)
            padded[tuple(slice(0, size) for size in expected.shape)] = expected
            assert np.array_equal(values[row], padded)
            assert n == expected.shape[-2]


def test_zeros_are_zeros_to_xarray(tmp_path: Path) -> None:
    store = TraceStore(with_masks(tmp_path / "run", "dec", "float16"))
    folder = exported(store, tmp_path / "out")
    for spec in store.layout.arrays:
        group, leaf = store.layout.array_path(spec.key).split("/")
        seen = xr.open_zarr(folder / group, chunks=None, consolidated=False)[leaf]
        plain = array(folder, f"{group}/{leaf}")
        assert seen.dtype == plain.dtype
        assert seen.values.tobytes() == plain[:].tobytes()
        ours = xr.open_zarr(store.folder / group, chunks=None)[leaf]
        assert not np.isnan(ours.values).any()
        assert spec.site.is_per_example or (seen.values == 0).any()  # which padding is, or the future


def test_bfloat16_is_written_as_float32(tmp_path: Path) -> None:
    old = TraceStore(with_masks(tmp_path / "run", "dec", "bfloat16"))
    folder = exported(old, tmp_path / "out", example_ids=(old.ids[1],))
    new = imported(folder, tmp_path / "back")
    assert new.ids == old.ids[1:2]
    assert new.dtype == "float32"
    assert np.array_equal(new.get(old.ids[1], "resid_mid"), old.get(old.ids[1], "resid_mid"))


# The padded store's own code, by what it left on disk

T, LENGTHS, D, D_HEAD = 9, (5, 9, 3), 6, 2
LAYERS, HEADS = [0, 3, 5], [1, 2]


def original(folder: Path, *, left: bool, version: int = 2, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Writes a GPT-2's folder: three layers of six, two heads, padded to 9 tokens on a side; returns its arrays."""
    random = np.random.default_rng(1)
    n = len(LENGTHS)
    masks = np.zeros((n, T), np.int64)
    attention = np.zeros((n, len(LAYERS), len(HEADS), T, T), np.float16)
    for row, length in enumerate(LENGTHS):
        own = slice(T - length, T) if left else slice(0, length)
        masks[row, own] = 1
        causal = np.tril(random.random((len(LAYERS), len(HEADS), length, length)) + 0.1)
        attention[row, :, :, own, own] = causal / causal.sum(-1, keepdims=True)
        if left:  # eager attention spreads a query at padding over everything, the future too
            attention[row, :, :, : T - length] = 1 / T
    hidden = random.standard_normal((n, 7, T, D)).astype(np.float16)
    arrays = {
        "dec_self_attn.zarr/attn": attention,
        **{
            f"dec_self_qkv.zarr/{name}": random.standard_normal((*attention.shape[:4], D_HEAD)).astype(np.float16)
            for name in "qkv"
        },
        "dec_hidden.zarr/h": hidden,
        "dec_res_embed.zarr/x": hidden[:, 0],
        "dec_res_pre_attn.zarr/x": hidden[:, LAYERS],
        **changes,
    }
    for path, values in arrays.items():
        group, leaf = path.split("/")
        if version == 2:
            kept = zarr.open_group(str(folder / group), mode="a", zarr_format=2)
            chunks = (*(1,) * (values.ndim - 2), *values.shape[-2:])
            kept.create_array(leaf, shape=values.shape, chunks=chunks, dtype=values.dtype, fill_value=0)[...] = values
        else:
            kept = zarr.open_group(str(folder / group), mode="a", zarr_format=3)
            kept.create_array(leaf, shape=values.shape, dtype=values.dtype)[...] = values
    meta = {
        "run_id": "20260101-000000_gpt2_csqa_validation_n3",
        **{"model": "gpt2", "arch": "dec", "dataset": "csqa", "split": "validation", "n_examples": n},
        **{"max_seq_len": T, "num_layers": 6, "num_heads": 4, "head_dim": D_HEAD, "dtype": "float16"},
        **{"layers_stored": {"enc": None, "dec": LAYERS}, "heads_stored": {"enc": None, "dec": HEADS}},
        **{"capture": ["attn", "qkv", "hidden", "resid"], "has_targets": None, "time": "2026-01-01 00:00:00"},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    table = pd.DataFrame(
        {
            "example_id": [f"e{i}" for i in range(n)],
            "text": ["a", "b", "c"],
            "input_ids": [list(range(100, 100 + T))] * n,
            "attention_mask": masks.tolist(),
            "offset_mapping": [[[i, i + 1] for i in range(T)]] * n,
            "tokens": [[f"t{i}" for i in range(T)]] * n,
            "answerKey": list("ABC"),
        }
    )
    table.to_parquet(folder / "tokens.parquet")
    return arrays


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_what_the_padded_stores_code_left_becomes_a_run(tmp_path: Path, left: bool, version: int) -> None:
    arrays = original(tmp_path / "old", left=left, version=version)
    store = imported(tmp_path / "old", tmp_path / "run")
    assert store.ids == ("e0", "e1", "e2")
    assert (store.dtype, store.meta["model"], store.meta["dataset"]) == ("float16", "gpt2", "csqa")
    assert list(store.tokens.answerKey) == ["A", "B", "C"]
    for row, length in enumerate(LENGTHS):
        own = slice(T - length, T) if left else slice(0, length)
        eid = f"e{row}"
        assert np.array_equal(store.attn(eid, layer=3, head=2), arrays["dec_self_attn.zarr/attn"][row, 1, 1, own, own])
        assert np.array_equal(store.qkv(eid, "k", layer=5, head=1), arrays["dec_self_qkv.zarr/k"][row, 2, 0, own])
        assert np.array_equal(store.hidden(eid), arrays["dec_hidden.zarr/h"][row, :, own])
        assert np.array_equal(store.resid_embed(eid), arrays["dec_res_embed.zarr/x"][row, own])
        tokens = store.tokens.iloc[row]
        assert list(tokens.input_ids) == list(range(100, 100 + T))[own]
        assert list(tokens.tokens) == [f"t{i}" for i in range(T)][own]
        assert tokens.n_tokens == length


def test_an_embedding_without_positions_gets_its_true_name(tmp_path: Path) -> None:
    of_tokens = np.ones((3, T, D), np.float16)
    original(tmp_path / "old", left=False, **{"dec_res_embed.zarr/x": of_tokens})
    store = imported(tmp_path / "old", tmp_path / "run")
    assert np.array_equal(store.get("e0", "token_embed"), of_tokens[0, :5])
    assert "dec.embed" not in {str(spec.key) for spec in store.layout.arrays}


def test_what_was_left_zero_is_refused(tmp_path: Path) -> None:
    zeros = np.zeros((3, 3, 2, T, T), np.float16)
    original(tmp_path / "old", left=False, **{"dec_self_attn.zarr/attn": zeros})
    with pytest.raises(Unreadable, match="rows of zeros"):
        imported(tmp_path / "old", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def change_meta(folder: Path, **changes: Any) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_no_padded_store_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    original(folder, left=False)
    for changes, message in (
        ({"arch": "both"}, "states the arch 'both'"),
        ({"arch": ["dec"]}, "states the arch"),
        ({"layers_stored": [0, 1]}, "names 2"),
        ({"layers_stored": "all"}, "whole numbers"),
        ({"heads_stored": 3}, "whole numbers"),
        ({"traceformer": {"format": "other"}}, "not what an export writes"),
    ):
        kept = (folder / "meta.json").read_text()
        change_meta(folder, **changes)
        with pytest.raises(Unreadable, match=message):
            imported(folder, tmp_path / "run")
        (folder / "meta.json").write_text(kept)
    table = pd.read_parquet(folder / "tokens.parquet")
    table.assign(attention_mask=[[1, 0, 1] + [0] * 6] * 3).to_parquet(folder / "tokens.parquet")
    with pytest.raises(Unreadable, match="no run of ones"):
        imported(folder, tmp_path / "run")
    table[:2].to_parquet(folder / "tokens.parquet")
    with pytest.raises(Unreadable, match="2 examples"):
        imported(folder, tmp_path / "run")
    table.to_parquet(folder / "tokens.parquet")
    (folder / "dec_mystery.zarr" / "x").mkdir(parents=True)
    (folder / "dec_mystery.zarr" / "x" / ".zarray").write_text("{}")
    with pytest.raises(Unreadable, match="no such array"):
        imported(folder, tmp_path / "run")


@pytest.mark.parametrize("change", [{"width": -1}, {"width": "x"}, {"layers": "01"}, {"heads": {"a": 1}}, {"key": 3}])
def test_a_damaged_description_of_an_array_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = exported(TraceStore(with_masks(tmp_path / "run", "dec", "float32")), tmp_path / "out")
    told = json.loads((folder / "meta.json").read_text())["traceformer"]
    told["arrays"][0] |= change
    change_meta(folder, traceformer=told)
    with pytest.raises(Unreadable, match="not what an export writes"):
        imported(folder, tmp_path / "back")


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    store = TraceStore(with_masks(tmp_path / "run", "dec", "float32"))
    folder = exported(store, tmp_path / "out")
    with pytest.raises(RunExists, match="`overwrite=True`"):
        exported(store, folder)
    exported(store, folder, overwrite=True)
    for other in (store.folder, tmp_path):
        with pytest.raises(RunExists, match="something else"):
            exported(store, other, overwrite=True)
    assert TraceStore(store.folder).n == 3
    assert not recognises(store.folder / "meta.json")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
