"""Files of translators: what is written is read back, and what is damaged or something else is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import traceformer as tf
from tests.analysis.test_translators import BIASES, WEIGHTS, translators
from traceformer.errors import NotFound, RunExists, Unreadable
from traceformer.models.weights import open_file


def test_what_is_written_is_read_back_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    own = translators(about={"site": "dec.resid_post", "seed": 0})
    for name in ("a", "b"):
        own.save(tmp_path / "made" / f"{name}.safetensors")
    found = tf.open_lens(tmp_path / "made/a.safetensors")
    assert (found.weights == WEIGHTS).all()
    assert (found.biases == BIASES).all()
    assert found.to_json() == own.to_json()
    assert repr(found) == repr(own)
    assert (tmp_path / "made/a.safetensors").read_bytes() == (tmp_path / "made/b.safetensors").read_bytes()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a.safetensors", "b.safetensors"]


def test_of_a_lens_of_which_little_is_known_as_much_is_read(tmp_path: Path) -> None:
    own = translators(model=None, model_weights=None, d_vocab=None, held_out=None)
    own.save(tmp_path / "a.safetensors")
    assert tf.open_lens(str(tmp_path / "a.safetensors")).to_json() == own.to_json()


@pytest.mark.parametrize("behind", [1, 20, 60])
def test_one_bit_that_changed_is_refused(behind: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    translators().save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-behind] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Unreadable, match="not those that were written"):
        tf.open_lens(path)


def test_its_tensors_are_read_by_safetensors_itself(tmp_path: Path) -> None:
    translators().save(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert sorted(tensors) == ["biases", "weights"]
    assert (tensors["weights"] == WEIGHTS).all()


def test_whoever_may_read_new_files_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    translators().save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_file_that_is_there_is_replaced_only_if_told_so(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    translators().save(path)
    with pytest.raises(RunExists, match="is there already"):
        translators(model="n").save(path)
    translators(model="n").save(path, overwrite=True)
    assert tf.open_lens(path).model == "n"


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(NotFound, match="no file"):
        tf.open_lens(path)
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(Unreadable, match="not a safetensors file"):
        tf.open_lens(path)
    translators().save(path, overwrite=True)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Unreadable, match="not a safetensors file, or not all of one"):
            tf.open_lens(path)
    save_file({"weights": WEIGHTS, "biases": BIASES}, path)
    with pytest.raises(Unreadable, match="holds no translators"):
        tf.open_lens(path)


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "a later format": ({"format": "traceformer translators 2"}, "of format 'traceformer translators 2'"),
    "no kind": ({"kind": "linear"}, "kind 'linear'"),
    "layers out of order": ({"layers": [4, 1]}, r"layers \(4, 1\)"),
    "a layer twice": ({"layers": [1, 1]}, r"layers \(1, 1\)"),
    "no layers": ({"layers": []}, "layers"),
    "a layer more": ({"layers": [1, 2, 4], "held_out": None}, "it names 3 layers"),
    "a vocabulary in words": ({"d_vocab": "many"}, "d_vocab 'many'"),
    "figures of one layer": ({"held_out": "kl"}, "damaged"),
    "figures beyond floats": ({"held_out": {"kl": [10**400]}}, "damaged"),
    "nothing known": ({"about": None}, "about None"),
}


def test_a_header_with_metadata_of_null_holds_no_translators(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(Unreadable):
        tf.open_lens(path)


@pytest.mark.parametrize("what", DAMAGED)
def test_what_says_something_else_is_refused(what: str, tmp_path: Path) -> None:
    changes, said = DAMAGED[what]
    path = tmp_path / "a.safetensors"
    translators().save(path)
    told = json.loads(open_file(path)[1]["traceformer"])
    save_file({"weights": WEIGHTS, "biases": BIASES}, path, metadata={"traceformer": json.dumps({**told, **changes})})
    with pytest.raises(Unreadable, match=said):
        tf.open_lens(path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weights": WEIGHTS}, "holds no biases"),
        ({"weights": WEIGHTS, "biases": BIASES[:, :2]}, "of shapes"),
        ({"weights": WEIGHTS[:1], "biases": BIASES}, "of shapes"),
        ({"weights": WEIGHTS, "biases": np.float32([[0, 0, np.nan]] * 2)}, "biases hold NaN"),
        ({"weights": WEIGHTS.astype(np.int32), "biases": BIASES}, "is I32"),
    ],
)
def test_other_tensors_are_refused(tensors: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    translators().save(path)
    save_file(tensors, path, metadata=open_file(path)[1])
    with pytest.raises(Unreadable, match=said):
        tf.open_lens(path)
