"""Files of probes: what was damaged or is something else is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.probed import probes_of
from traceformer.errors import NotFound, Unreadable
from traceformer.formats.results.probes import open_probes, write_probes
from traceformer.models.weights import open_file


def written(folder: Path) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    """Returns a file of probes, its tensors, and what it says."""
    path = folder / "probes.safetensors"
    write_probes(probes_of(layers=(1, 3), heads=(0, 2)), path)
    return path, load_file(path), json.loads(open_file(path)[1]["probes"])


def test_the_same_probes_are_the_same_bytes_and_whoever_may_read_new_files_may_read_them(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    files = [tmp_path / f"{n}.safetensors" for n in range(6)]
    for path in files:
        write_probes(probes_of(layers=(1, 3)), path)
    assert len({path.read_bytes() for path in files}) == 1
    assert files[0].stat().st_mode == (tmp_path / "new").stat().st_mode


def test_probes_come_back(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path)
    back, probes = open_probes(str(path)), probes_of(layers=(1, 3), heads=(0, 2))
    assert back.to_json() == probes.to_json()
    assert np.array_equal(back.at(3, 2).weights, probes.at(3, 2).weights)


WRONG = {
    "no classes": (("classes", []), {}),
    "another format": (("format", "traceformer probes 9"), {}),
    "other counts": (("counts", [1]), {}),
    "counts of words": (("counts", ["a", "b"]), {}),
    "classes of two types": (("classes", ["a", 1]), {}),
    "classes that are lists": (("classes", [["a"], ["b"]]), {}),
    "no probes": (("probes", []), {}),
    "probes that are none": (("probes", [3]), {}),
    "a setting of another type": (("about", {"label": 3}), {}),
    "a missing tensor": ((), {"0.weights": None}),
    "weights of another width": ((), {"1.weights": np.zeros((2, 5))}),
    "weights of an axis": ((), {"1.weights": np.zeros(3)}),
    "weights of other classes": ((), {"2.weights": np.zeros((3, 3))}),
    "NaN": ((), {"2.bias": np.array([np.nan, 1.0])}),
    "a scale of nothing": ((), {"2.scale": np.zeros(3)}),
    "float32": ((), {"2.bias": np.zeros(2, np.float32)}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_as_it_is_written_is_refused(what: str, tmp_path: Path) -> None:
    path, tensors, told = written(tmp_path)
    changed, others = WRONG[what]
    if changed:
        told[changed[0]] = changed[1]
    tensors = {name: own for name, own in {**tensors, **others}.items() if own is not None}
    save_file(tensors, path, metadata={"probes": json.dumps(told)})
    with pytest.raises(Unreadable, match=r"probes\.safetensors: its (probes are not as|weights are)"):
        open_probes(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        open_probes(tmp_path / "nothing.safetensors")
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(Unreadable, match="is no file of probes"):
        open_probes(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(Unreadable, match="is not a safetensors file"):
        open_probes(tmp_path / "text.safetensors")
