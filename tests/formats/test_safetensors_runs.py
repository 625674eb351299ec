"""Runs as safetensors and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.marks import slow
from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import NotFound, RunExists, Unreadable
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.formats.safetensors_runs.read import read_files, recognises
from traceformer.formats.safetensors_runs.write import write_files


def exported(store: TraceStore, folder: Path, **options: object) -> list[Path]:
    return list(write_files(store, folder, ExportOptions(**options)))  # pyright: ignore[reportArgumentType]


def imported(files: list[Path], folder: Path) -> TraceStore:
    return TraceStore(read_files(files, ImportOptions(folder)))


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW, n_examples=3, dtype="float32")))


@pytest.mark.parametrize("arch", ["enc", "dec", "encdec"])
@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16"), slow("float32")])
def test_a_run_goes_out_and_comes_back_bit_for_bit(tmp_path: Path, arch: str, dtype: str) -> None:
    old = TraceStore(runs.write(tmp_path / "run", runs.plan(arch, n_examples=5, shard_examples=2, dtype=dtype)))
    files = exported(old, tmp_path / "out")
    assert [path.name for path in files] == [f"example-{i}.safetensors" for i in range(5)] + ["manifest.json"]
    new = imported(files, tmp_path / "back")
    assert (new.ids, new.dtype, new.arch, new.meta["dims"]) == (old.ids, old.dtype, old.arch, old.meta["dims"])
    assert {each.key for each in new.layout.arrays} == {each.key for each in old.layout.arrays}
    for each in old.layout.arrays:
        assert new.layout.spec(each.key) == each
        for eid in old.ids:
            assert new.get(eid, each.key).tobytes() == old.get(eid, each.key).tobytes()
    columns = [name for name in old.tokens if name not in ("shard", "slot", "dec_slot")]
    assert new.tokens[columns].to_json() == old.tokens[columns].to_json()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_torch_reads_every_tensor_under_its_array_s_name(tmp_path: Path, dtype: str) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=2, dtype=dtype)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    path, *_ = exported(store, tmp_path / "out")
    tensors = load_file(path)
    assert set(tensors) == {str(each.key) for each in runs.FEW}
    for each in runs.FEW:
        assert tensors[str(each.key)].dtype == getattr(torch, dtype)
        assert np.array_equal(tensors[str(each.key)].float().numpy(), runs.expected(layout, each, 0).astype(np.float32))


def test_bytes_of_rounded_patterns_come_back_as_float32(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=2, attn_codec="sqrt8")
    old = TraceStore(runs.write(tmp_path / "run", layout))
    new = imported(exported(old, tmp_path / "out"), tmp_path / "back")
    assert new.dtype == "float32"
    assert all(np.array_equal(new.get(eid, each.key), old.get(eid, each.key)) for eid in old.ids for each in runs.FEW)


def test_some_files_of_a_manifest_can_be_imported(store: TraceStore, tmp_path: Path) -> None:
    files = exported(store, tmp_path / "out")
    assert all(recognises(path) for path in files)
    assert imported([files[2]], tmp_path / "one").ids == ("example-2",)
    assert imported([files[3]], tmp_path / "all").ids == store.ids
    assert exported(store, tmp_path / "less", example_ids=("example-1",))[0].name == "example-1.safetensors"
    (tmp_path / "manifest.json").write_text("{}")
    assert not recognises(tmp_path / "manifest.json")


@pytest.mark.parametrize("name", ["../example-0.safetensors", "/etc/passwd", "..", "a/b.safetensors", "", 3])
def test_a_manifest_cannot_name_files_elsewhere(store: TraceStore, tmp_path: Path, name: object) -> None:
    *_, manifest = exported(store, tmp_path / "out")
    data = json.loads(manifest.read_text())
    data["examples"][0]["file"] = name
    manifest.write_text(json.dumps(data))
    with pytest.raises(Unreadable, match="nowhere else"):
        imported([manifest], tmp_path / "back")


def test_what_is_not_as_the_manifest_says_is_refused(store: TraceStore, tmp_path: Path) -> None:
    first, second, third, manifest = exported(store, tmp_path / "out")
    with pytest.raises(RunExists, match="`overwrite=True`"):
        exported(store, tmp_path / "out")
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Unreadable, match="SHA-256"):
        imported([manifest], tmp_path / "back")
    first.unlink()
    with pytest.raises(NotFound, match=r"no file .*example-0"):
        imported([manifest], tmp_path / "back")
    assert imported([second, third], tmp_path / "two").ids == ("example-1", "example-2")
    (tmp_path / "out" / "other.safetensors").write_bytes(content)
    with pytest.raises(Unreadable, match=r"lists no other\.safetensors"):
        imported([second, tmp_path / "out" / "other.safetensors"], tmp_path / "back")
    data = json.loads(manifest.read_text())
    for name, value in (("arch", "both"), ("arrays", [{}]), ("examples", 3), ("run", 1)):
        manifest.write_text(json.dumps(data | {name: value}))
        with pytest.raises(Unreadable, match="not a manifest"):
            imported([manifest], tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_rows_of_no_numbers_are_refused(store: TraceStore, tmp_path: Path) -> None:
    *_, manifest = exported(store, tmp_path / "out")
    data = json.loads(manifest.read_text())
    arrays = [spec | {"width": 0} for spec in data["arrays"]]
    manifest.write_text(json.dumps(data | {"arrays": arrays}))
    with pytest.raises(Unreadable, match="with rows of no numbers"):
        imported([manifest], tmp_path / "back")
    assert not (tmp_path / "back").exists()
