"""What readers notice by themselves: every number is of the file, the example and the layer that were asked for."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import CorruptRun, Unreadable
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.commits import CommitRecord, read_manifest, verify_run
from traceformer.store.files import read_sealed, seal, unseal
from traceformer.store.meta import Dims, RunMeta


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Files in each other's place

ARRAYS = [
    runs.spec("dec.self.q"),
    runs.spec("dec.self.q_proj"),  # as large as q
    runs.spec("dec.self.attn_pattern"),
    runs.spec("dec.embed"),
]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which the files of all shards of an array have the same size: each text has 20 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "lengths", lambda _, __: {"dec": 20})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        layout = runs.plan(arrays=ARRAYS, n_examples=4, shard_examples=2, longest={"dec": 20})
        return runs.write(tmp_path_factory.mktemp("even") / "run", layout)


@pytest.fixture
def copy(even: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(even, tmp_path / "run"))


def read(site: str) -> Callable[[TraceStore], Any]:
    return lambda run: run.get(2, site)


@pytest.mark.parametrize(
    ("damage", "asked"),
    [
        (lambda d: shutil.copy(d / "dec_res_embed.zarr/x/c.0.0", d / "dec_res_embed.zarr/x/c.1.0"), read("embed")),
        (lambda d: swap(d / "dec_self_qkv.zarr/q/c.0.0.1.0", d / "dec_self_qkv_proj.zarr/q/c.0.0.1.0"), read("q")),
        (lambda d: replace_by_folder(d / "dec_res_embed.zarr/x/c.1.0"), read("embed")),
        (lambda d: replace_by_folder(d / "dec_self_attn.zarr/attn/c.1.0.0.0.0"), read("attn_pattern")),
        (lambda d: swap(d / "tokens/0.parquet", d / "tokens/1.parquet"), lambda run: run.text(2)),
        (lambda d: shutil.copy(d / "tokens/0.parquet", d / "tokens.parquet"), lambda run: run.tokens),
    ],
)  # fmt: skip
def test_a_file_in_the_place_of_another_is_an_error(copy: Path, damage: Any, asked: Any) -> None:
    assert asked(TraceStore(copy)) is not None
    sizes = {path: path.stat().st_size for path in (copy / "dec_res_embed.zarr/x").glob("c.*")}
    assert len(set(sizes.values())) == 1  # so that none of it is found by size
    damage(copy)
    with pytest.raises(CorruptRun, match="verify"):
        asked(TraceStore(copy))


def test_all_ways_to_read_a_shard_compare_it_first(copy: Path) -> None:
    shutil.copy(copy / "dec_res_embed.zarr/x/c.0.0", copy / "dec_res_embed.zarr/x/c.1.0")
    run = TraceStore(copy)
    assert run.get(1, "embed").shape == (20, 24)  # of the other shard
    for asked in (
        lambda: run.activations("embed"),
        lambda: list(run.stream("embed")),
        lambda: list(run.head("embed")),
        lambda: run.to_xarray()["dec_res_embed"]["x"].values,
    ):
        with pytest.raises(CorruptRun, match="another file than the one that was written there"):
            asked()


@pytest.mark.parametrize("site", ["embed", "attn_pattern", "q"])
def test_a_run_that_is_moved_while_it_is_open_is_an_error_and_not_zeros(copy: Path, tmp_path: Path, site: str) -> None:
    run = TraceStore(copy)
    before = run.get(2, site)
    copy.rename(tmp_path / "moved")
    with pytest.raises(CorruptRun, match="is missing"):
        run.get(3, site)
    (tmp_path / "moved").rename(copy)
    assert (run.get(2, site) == before).all()


def test_arrays_are_read_after_the_working_directory_has_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    run = TraceStore(Path(copy.name))
    first = run.get(2, "embed")
    monkeypatch.chdir("/")
    assert (run.get(2, "embed") == first).all()
    assert run.get(2, "q").any()


def test_a_file_that_is_replaced_while_it_is_open_is_an_error(copy: Path) -> None:
    run = TraceStore(copy)
    run.get(2, "embed")
    (copy / "dec_res_embed.zarr/x/c.0.0").replace(copy / "dec_res_embed.zarr/x/c.1.0")
    with pytest.raises(CorruptRun, match="another file than the one that was written there"):
        run.get(3, "embed")


def test_a_table_of_other_examples_is_an_error_even_where_the_records_say_so(copy: Path) -> None:
    swap(copy / "tokens/0.parquet", copy / "tokens/1.parquet")
    for shard in (0, 1):
        path = copy / f"commits/{shard}.json"
        record, name = read_sealed(path), f"tokens/{shard}.parquet"
        data = (copy / name).read_bytes()
        record["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_bytes(seal(record))
    with pytest.raises(CorruptRun, match="other examples"):
        TraceStore(copy).text(2)


def test_one_bit_of_a_token_table_is_an_error_wherever_it_is(copy: Path) -> None:
    before = (copy / "tokens.parquet").read_bytes()
    for at in range(0, len(before), 97):
        changed = bytearray(before)
        changed[at] ^= 1 << at % 8
        (copy / "tokens.parquet").write_bytes(changed)
        with pytest.raises(CorruptRun, match="changed after it was written"):
            _ = TraceStore(copy).tokens


def test_pages_of_token_tables_have_checksums_for_other_readers(copy: Path) -> None:
    for name in ("tokens.parquet", "tokens/1.parquet"):
        data = bytearray((copy / name).read_bytes())
        column = pq.ParquetFile(copy / name).metadata.row_group(0).column(0)
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        data[start + column.total_compressed_size - 1] ^= 1  # in the last page's values
        (copy / name).write_bytes(data)
        with pytest.raises(OSError, match="CRC"):
            pq.read_table(copy / name, page_checksum_verification=True)


def test_metadata_that_names_other_files_is_an_error_and_not_zeros(copy: Path) -> None:
    path = copy / "dec_res_embed.zarr/x/zarr.json"
    text = path.read_text()
    assert text.count('"separator": "."') == 1
    path.write_text(text.replace('"separator": "."', '"separator": "/"'))  # one bit
    with pytest.raises(CorruptRun, match="verify"):
        TraceStore(copy).get(0, "embed")


def test_metadata_that_states_another_layer_is_an_error(copy: Path) -> None:
    path = copy / "dec_self_qkv.zarr/q/zarr.json"
    stated = json.loads(path.read_text())
    stated["shape"][0] += 1
    path.write_text(json.dumps(stated))
    with pytest.raises(CorruptRun, match="states the shape"):
        TraceStore(copy).get(0, "q")


def test_metadata_that_nests_too_deep_is_an_error(copy: Path) -> None:
    path = copy / "dec_res_embed.zarr/x/zarr.json"
    codecs = "[" * 100_000 + "]" * 100_000  # which Python's reader refuses; tensorstore would not come back
    path.write_text(json.dumps({**json.loads(path.read_text()), "codecs": []}).replace("[]", codecs, 1))
    with pytest.raises(CorruptRun, match="too deep"):
        TraceStore(copy).get(0, "embed")


@pytest.mark.parametrize("entry", [None, [], {}, {"sha256": "0"}, "text"])
def test_a_manifest_without_checksums_is_an_error(entry: object, copy: Path) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    (copy / "manifest.json").write_bytes(seal({"files": {**files, "meta.json": entry}}))
    with pytest.raises(CorruptRun, match="checksums"):
        read_manifest(copy)


def test_a_manifest_without_the_texts_is_refused(even: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(even, copy)
    files = read_sealed(copy / "manifest.json")["files"]
    del files["tokens.parquet"]
    (copy / "manifest.json").write_bytes(seal({"files": files}))
    with pytest.raises(CorruptRun, match=r"lists no tokens\.parquet"):
        _ = TraceStore(copy).tokens


def test_a_record_keeps_the_crc32c_of_each_files_last_chunk_and_index(copy: Path) -> None:
    import google_crc32c

    for path, file in CommitRecord.read(copy, 1).files.items():
        if path.startswith("tokens/"):
            continue
        data, array = (copy / path).read_bytes(), zarr.open_array(copy / Path(path).parent, mode="r")
        assert array.shards is not None
        index = data[-16 * int(np.prod(np.array(array.shards) // np.array(array.chunks))) - 4 :]
        assert google_crc32c.value(index[:-4]) == int.from_bytes(index[-4:], "little")
        places = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
        start, size = max((int(at), int(n)) for at, n in places if n < 2**64 - 1)
        assert start + size == len(data) - len(index)
        assert file.mark == (data[start + size - 4 : start + size] + index[-4:]).hex()


# The model's own numbers

SELECTED = (0, 6, 11)


def test_layers_and_heads_are_selected_by_the_models_numbers_in_xarray_and_zarr(tmp_path: Path) -> None:
    arrays = [
        ArraySpec(ArrayKey.parse("dec.self.attn_pattern"), SELECTED, (1, 3)),
        ArraySpec(ArrayKey.parse("dec.self.q"), SELECTED, (1, 3), 8),
        ArraySpec(ArrayKey.parse("dec.self.k"), (6,), (0,), 8),  # other layers than its neighbour
        ArraySpec(ArrayKey.parse("dec.hidden"), (0, 12), (), 8),
    ]
    layout = runs.plan(arrays=arrays, n_examples=2, shard_examples=2, longest={"dec": 20})
    unfinished = runs.begin(tmp_path / "run", 1, layout)
    _check_selection(unfinished)
    assert verify_run(unfinished) == []
    coordinate = unfinished / "dec_self_attn.zarr/layer/c.0"
    data = coordinate.read_bytes()
    coordinate.write_bytes(np.array([11, 6, 0], "<i8").tobytes() + data[-4:])
    assert [str(problem.path) for problem in verify_run(unfinished)] == ["dec_self_attn.zarr/layer/c.0"]
    coordinate.unlink()
    assert [str(problem.path) for problem in verify_run(unfinished)] == ["dec_self_attn.zarr/layer/c.0"]
    finished = runs.complete(tmp_path / "run", layout)  # writes it again
    _check_selection(finished)
    assert verify_run(finished) == []
    listed = read_sealed(finished / "manifest.json")["files"].keys()
    assert {f"dec_self_qkv.zarr/{name}/c.0" for name in ("q_layer", "k_layer", "head", "kv_head")} <= listed


def _check_selection(folder: Path) -> None:
    run = TraceStore(folder)
    attn = xr.open_zarr(folder / "dec_self_attn.zarr", chunks=None)["attn"]
    n = run.length(0)
    for layer in SELECTED:
        wanted = run.attn(0, layer=layer, head=3)
        assert np.array_equal(attn.sel(layer=layer, head=3)[0, :n, :n].values, wanted)
        assert not np.isnan(attn.sel(layer=layer).values).any()  # zeros are zeros
    with pytest.raises(KeyError):
        attn.sel(layer=2)
    qkv = xr.open_zarr(folder / "dec_self_qkv.zarr", chunks=None)
    assert np.array_equal(qkv["q"].sel(q_layer=11, head=1)[:n].values, run.qkv(0, "q", 11, 1))
    assert np.array_equal(qkv["k"].sel(k_layer=6, kv_head=0)[:n].values, run.qkv(0, "k", 6, 0))
    hidden = xr.open_zarr(folder / "dec_hidden.zarr", chunks=None)["h"]
    assert np.array_equal(hidden.sel(hidden_layer=12)[:n].values, run.hidden(0, layer=12))
    numbers: Any = zarr.open_group(folder / "dec_self_attn.zarr", mode="r")["layer"]
    assert numbers[:].tolist() == list(SELECTED)


# Heads and records of odd types, sealed all the same


def verified(folder: Path) -> str:
    """Returns what verify finds, or that it can verify nothing there."""
    try:
        return " ".join(str(problem.path) for problem in verify_run(folder))
    except Unreadable as error:
        return str(error)


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 0, 1.5, True, 10**400, {"dec": []}, [[]], [{"key": 3}]])
@pytest.mark.parametrize(
    "name",
    [
        *("format_version", "configuration", "layout", "arrays", "arch", "dtype", "n_examples", "max_tokens"),
        *("chunk_slots", "aliases"),
    ],
)  # fmt: skip
def test_a_head_of_odd_types_is_unreadable_or_read(even: Path, tmp_path: Path, name: str, value: Any) -> None:
    data = unseal((even / "meta.json").read_bytes(), even)
    part = data if name in data else data["layout"]
    part[name] = value
    (tmp_path / "meta.json").write_bytes(seal(data))
    with pytest.raises(Unreadable, match=r"not the head of a run|format version|lost its manifest"):
        TraceStore(tmp_path)
    assert re.search(r"manifest\.json|not the head of a run|format version", verified(tmp_path))


@pytest.mark.parametrize("text", ["NaN", '"\\ud800"', "[" * 100_000 + "]" * 100_000])
def test_what_json_cannot_hold_twice_is_not_believed(even: Path, tmp_path: Path, text: str) -> None:
    sealed = (even / "meta.json").read_text()
    stated = sealed[: sealed.rindex(',\n  "sha256"')].replace('"tiny"', text, 1)
    (tmp_path / "meta.json").write_text(f'{stated},\n  "sha256": "{hashlib.sha256(stated.encode()).hexdigest()}"\n}}\n')
    with pytest.raises(CorruptRun, match="JSON cannot be read"):
        TraceStore(tmp_path)


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 1.5, {"dec": [1]}, {"dec": [20, "20"]}, [1, 2]])
@pytest.mark.parametrize("name", ["shard", "writer", "examples", "lengths", "files", "configuration"])
def test_a_record_of_odd_types_is_corrupt(copy: Path, name: str, value: Any) -> None:
    record = read_sealed(copy / "commits/1.json")
    (copy / "commits/1.json").write_bytes(seal({**record, name: value}))
    if (name, value) == ("writer", [1, 2]):
        assert TraceStore(copy).n == 4  # it is a record of another writer
        return
    with pytest.raises(CorruptRun, match=r"no record of a shard|another shard|another run"):
        TraceStore(copy)
    assert Path("commits/1.json") in [problem.path for problem in verify_run(copy)]


def test_sizes_that_no_model_has_are_not_believed() -> None:
    assert Dims.from_json({"n_layers": -1, "n_heads": 4, "n_kv_heads": 3, "d_head": 0}) == Dims(n_heads=4)
    stated = {"projection": {"site": "dec.resid_post", "names": "kind"}, "attention": {"softcap": float("inf")}}
    assert (RunMeta.from_json(stated).projection, RunMeta.from_json(stated).attention.softcap) == (None, None)
