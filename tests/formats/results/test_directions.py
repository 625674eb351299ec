"""Files of trait vectors: what is written is read back; what others write is read; what is none is refused."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from traceformer.analysis.directions import Direction
from traceformer.errors import NotFound, TraceformerError, Unreadable
from traceformer.formats.results.directions import read_direction, write_direction

V = np.arange(1, 7, dtype=np.float32)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    about, quality = {"method": "probe", "examples": [3, 4], "model": None}, {2: {"held_out_accuracy": 0.9}}
    written = Direction("kindness", {2: V, 10: -V}, about, quality)
    write_direction(written, tmp_path / "new/probe.safetensors")
    found = read_direction(tmp_path / "new/probe.safetensors")
    assert (found.name, found.layers, found.width) == ("kindness", (2, 10), 6)
    assert np.array_equal(found.by_layer[10], -V)
    assert (found.about, found.quality) == (about, quality)
    assert found.at(3) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["probe.safetensors"]


def test_it_is_plain_safetensors_to_others(tmp_path: Path) -> None:
    write_direction(Direction("x", {3: V}, {}), tmp_path / "v.safetensors")
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "v.safetensors")["layer_3"], V)


def test_a_site_without_layers_has_a_vector_without_one(tmp_path: Path) -> None:
    write_direction(Direction("x", {None: V}, {}), tmp_path / "v.safetensors")
    found = read_direction(tmp_path / "v.safetensors")
    assert found.layers == ()
    assert np.array_equal(found.at(None), V)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("probe_layer16", 16), ("mean_diff.L3", 3), ("kindness", None), ("kindness-2", None), ("model16", None), ("7", 7)],
)
@pytest.mark.parametrize("kind", ["pt", "npy"])
def test_a_lone_vector_belongs_to_the_layer_in_the_files_name(
    kind: str, name: str, layer: int | None, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.{kind}"
    if kind == "pt":
        torch.save(torch.from_numpy(V), path)
    else:
        np.save(path, V)
    found = read_direction(path)
    assert found.layers == (() if layer is None else (layer,))
    assert np.array_equal(found.at(5), V)  # it serves for any layer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_any_floating_point_dtype_is_read_as_float32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor, path = torch.from_numpy(V).to(dtype), tmp_path / f"v.{kind}"
    if kind == "pt":
        torch.save(tensor, path)
    else:
        safetensors.torch.save_file({"anything": tensor}, path)
    found = read_direction(path).at(None)
    assert found.dtype == np.float32
    assert np.array_equal(found, V)


@pytest.mark.parametrize("keys", [["layer_3", "layer_12"], ["3", "12"], ["model.layers.3", "model.layers.12"], [3, 12]])
def test_vectors_are_told_apart_by_the_layers_in_their_names(keys: list[str | int], tmp_path: Path) -> None:
    vectors = {keys[0]: torch.from_numpy(V), keys[1]: -torch.from_numpy(V)}
    torch.save(vectors, tmp_path / "v.pt")
    paths = [tmp_path / "v.pt"]
    if isinstance(keys[0], str):
        safetensors.torch.save_file(vectors, tmp_path / "v.safetensors")
        paths.append(tmp_path / "v.safetensors")
    for path in paths:
        found = read_direction(path)
        assert found.layers == (3, 12)
        assert np.array_equal(found.by_layer[12], -V)


def test_rows_of_a_matrix_are_the_layers_from_the_first_on(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.stack([V, 2 * V]))
    assert read_direction(tmp_path / "v.npy").layers == (0, 1)
    np.save(tmp_path / "one.npy", V[None])
    assert read_direction(tmp_path / "one.npy").layers == ()


BAD = {
    "nan": (np.array([1, np.nan, 2]), "NaN or inf"),
    "inf": (np.array([1, np.inf]), "NaN or inf"),
    "zero": (np.zeros(4), "all zeros"),
    "integers": (np.arange(4), "int64"),
    "truth": (np.ones(4, bool), "bool"),
    "complex": (np.ones(4, np.complex64), "complex64"),
    "cube": (np.ones((2, 2, 2)), "shape"),
    "nothing": (np.ones(0), "shape"),
    "number": (np.ones(()), "shape"),
    "beyond": (np.array([1e300, 1]), "beyond float32"),
    "objects": (np.array([None, 1], dtype=object), "no .npy file of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_vector_is_refused(name: str, tmp_path: Path) -> None:
    values, message = BAD[name]
    np.save(tmp_path / "v.npy", values, allow_pickle=True)
    with pytest.raises(Unreadable, match=message):
        read_direction(tmp_path / "v.npy")


def test_vectors_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    torch.save({3: torch.ones(4), 4: torch.ones(5)}, tmp_path / "widths.pt")
    torch.save({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "names.pt")
    torch.save({}, tmp_path / "empty.pt")
    torch.save("words", tmp_path / "words.pt")
    for name, message in {
        "widths": "4, 5",
        "names": "which layer is 'a' for",
        "empty": "no vectors",
        "words": "str",
    }.items():
        with pytest.raises(Unreadable, match=message):
            read_direction(tmp_path / f"{name}.pt")


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({3: Malicious(tmp_path / "ran")}, tmp_path / "v.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    for name in ("v.pt", "bare.pt"):
        with pytest.raises(Unreadable, match="more than tensors"):
            read_direction(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["v.pt", "v.npy", "v.safetensors"])
def test_a_file_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_direction(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(TraceformerError):
        read_direction(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(TraceformerError):
        read_direction(tmp_path / name)


@pytest.mark.parametrize("name", ["v.npy", "../../v.npy"])
def test_an_archive_is_no_vector(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", V)
    with zipfile.ZipFile(tmp_path / "v.npy", "w") as archive:
        archive.write(tmp_path / "own.npy", name)
    before = set(tmp_path.parent.parent.rglob("v.npy"))
    with pytest.raises(Unreadable, match=r"no \.npy file of numbers"):
        read_direction(tmp_path / "v.npy")
    assert set(tmp_path.parent.parent.rglob("v.npy")) == before


@pytest.mark.filterwarnings("ignore:.*quantized:UserWarning", "ignore:TypedStorage:UserWarning")
def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path: Path) -> None:
    v = torch.from_numpy(V)
    odd = (v.to_sparse(), v.to(torch.float8_e4m3fn), v.to("meta"), torch.quantize_per_tensor(v, 0.1, 0, torch.qint8))
    for tensor in odd:
        torch.save(tensor, tmp_path / "v.pt")
        with pytest.raises(Unreadable, match="no plain array"):
            read_direction(tmp_path / "v.pt")


@pytest.mark.parametrize("metadata", [{"name": "{"}, {"quality": "[1]"}, {"quality": '{"1": 2}'}])
def test_damaged_metadata_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    told = {"format": "traceformer directions 1", **metadata}
    safetensors.numpy.save_file({"layer_1": V}, tmp_path / "v.safetensors", told)
    with pytest.raises(Unreadable, match=r"metadata|quality"):
        read_direction(tmp_path / "v.safetensors")


def test_a_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"\.npy"):
        read_direction(tmp_path / "v.csv")
