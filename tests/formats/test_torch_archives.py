"""Torch's files read without torch: what `torch.load` reads out of them, and nothing that it would have to run."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from traceformer.errors import NotFound, Unreadable
from traceformer.formats.torch_archives import read_torch_archive

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_those_that_torch_loads(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    path = saved(
        tmp_path / "x.pt", {"whole": tensor, "turned": tensor.T, "part": tensor[1:4, ::2], "one": tensor[2, 3]}
    )
    loaded = torch.load(path, weights_only=True)
    for name, own in read_torch_archive(path).items():
        theirs = loaded[name].float() if dtype == torch.bfloat16 else loaded[name]
        assert own.dtype == theirs.numpy().dtype
        assert np.array_equal(own, theirs.numpy())


def test_containers_and_values_are_as_they_were(tmp_path: Path) -> None:
    value = {3: "a", "list": [1, -(2**40), 2.5, None, True, False], "tuple": (1, (2, "ü"), ()), "more": {"x": {}}}
    assert read_torch_archive(saved(tmp_path / "x.pt", value)) == value
    state = torch.nn.Linear(2, 3).state_dict()
    assert isinstance(state, OrderedDict)  # with a state of its own, what it says of versions
    found = read_torch_archive(saved(tmp_path / "y.pt", state))
    assert {name: own.tolist() for name, own in found.items()} == {name: own.tolist() for name, own in state.items()}
    shared = torch.arange(6.0)
    one, other = read_torch_archive(saved(tmp_path / "z.pt", [shared[:2], shared[2:]]))
    assert (one.tolist(), other.tolist()) == ([0, 1], [2, 3, 4, 5])
    parameter = torch.nn.Parameter(torch.ones(2))
    assert read_torch_archive(saved(tmp_path / "p.pt", [parameter]))[0].tolist() == [1, 1]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.ones(3)})
    code = f"""import sys
from pathlib import Path
from traceformer.formats.torch_archives import read_torch_archive
print(read_torch_archive(Path({str(path)!r}))["a"].sum(), "torch" in sys.modules)"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["3.0", "False"]


class Hostile:
    """What would make a file of it when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def test_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = saved(tmp_path / "x.pt", {"J": {0: torch.ones(2, 2)}, "more": Hostile(made)})
    with pytest.raises(Unreadable, match="holds more than tensors") as refused:
        read_torch_archive(path)
    assert "mkdir" in str(refused.value)
    assert not made.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile(made)))
    with pytest.raises(Unreadable, match=r"no \.pt file of today"):
        read_torch_archive(tmp_path / "plain.pt")
    assert not made.exists()
    for odd in (
        torch.nn.Linear(2, 2),
        {1, 2},
        np.float64(3),
        torch.eye(2).to_sparse(),
    ):
        with pytest.raises(Unreadable, match="more than tensors"):
            read_torch_archive(saved(tmp_path / "odd.pt", odd))


def test_a_file_that_was_cut_short_or_changed_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.arange(1000.0), "b": [1, 2, 3]})
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Unreadable, match=r"no \.pt file of today, or not all of one"):
            read_torch_archive(path)
    changed = bytearray(whole)
    changed[whole.index(np.float32(500).tobytes()) + 1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(Unreadable, match="CRC"):
        read_torch_archive(path)
    with pytest.raises(NotFound):
        read_torch_archive(tmp_path / "nowhere.pt")


def rewritten(path: Path, change: Any, **options: Any) -> Path:
    """The same archive with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


def test_a_tensor_reaches_no_further_than_its_storage(tmp_path: Path) -> None:
    def larger(data: bytes) -> bytes:
        size = b"K\x07"  # of the vector
        assert data.count(size) >= 1
        return data.replace(size, b"K\x09")

    path = rewritten(saved(tmp_path / "x.pt", {"a": torch.arange(7.0)}), larger)
    with pytest.raises(Unreadable, match="beyond its storage"):
        read_torch_archive(path)
    # Which a tensor may that repeats what is there: a million numbers in a few bytes.
    with pytest.raises(Unreadable, match="beyond its storage"):
        read_torch_archive(saved(tmp_path / "y.pt", torch.ones(1).expand(1000, 1000)))


def test_what_torch_would_not_have_written_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.zeros(10_000)})
    with pytest.raises(Unreadable, match="is compressed"):
        read_torch_archive(rewritten(path, lambda data: data, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(Unreadable, match=r"0 times a data\.pkl"):
        read_torch_archive(path)
