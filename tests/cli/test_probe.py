"""`traceformer probe` as a user meets it: where its probes go."""

from pathlib import Path

import pytest

import traceformer as tf
from traceformer.cli import main
from traceformer.models.loaded import LoadedModel

Capture = pytest.CaptureFixture[str]
LINE = ["probe", "run", "--label", "input_ids", "--layers", "1", "--output"]


@pytest.fixture
def run(byte: LoadedModel) -> Path:
    tf.record(byte, ["abab abab", "baba baba", "abba abba", "aabb aabb"] * 2, "resid_post", layers=[1], out="run")
    return Path("run")


@pytest.mark.usefixtures("run")
def test_a_file_in_the_way_is_left_before_anything_is_fitted(capsys: Capture) -> None:
    path = Path("made/probes.safetensors")
    path.parent.mkdir()
    path.write_text("mine")
    assert main([*LINE, str(path)]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{path} is there already" in shown.err
    assert "--overwrite" in shown.err
    assert path.read_text() == "mine"
    assert main([*LINE, str(path), "--overwrite"]) == 0
    assert f"wrote {path}; next: traceformer probe run --label input_ids" in capsys.readouterr().err
    assert set(tf.open_probes(path).classes) == set(b"ab ")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("name", ["probes.txt", "probes"])
def test_a_file_of_another_ending_is_refused(name: str, capsys: Capture) -> None:
    assert main([*LINE, name]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"probes in {name}" in shown.err
    assert "a name that ends in .safetensors" in shown.err
    assert not Path(name).exists()
