"""`traceformer fit-lens` as a user meets it."""

import json
from pathlib import Path

import pytest
from PIL import Image

import traceformer as tf
from traceformer.cli import main
from traceformer.models.loaded import LoadedModel

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(byte: LoadedModel) -> Path:
    texts = [f"line {i}: {i * i}" for i in range(12)]
    tf.record(byte, texts, "resid_post", out="run")
    return Path("run")


def test_it_says_layer_by_layer_what_the_library_finds(run: Path, capsys: Capture) -> None:
    assert main(["fit-lens", "run", "--kind", "ridge", "--layers", "0,3", "--output", "made/lens.safetensors"]) == 0
    shown = capsys.readouterr()
    found = tf.fit_lens(tf.open_run(run), kind="ridge", layers=[0, 3])
    own = found.held_out
    assert own is not None
    lines = shown.out.splitlines()
    assert lines[0].startswith("byte  ridge lens of dec.resid_post, fitted on ")
    assert f"on {own.rows:,} rows of {own.examples} examples that neither has seen" in lines[1]
    assert lines[3].split() == ["layer", "KL", "logit", "lens", "top-1", "logit", "lens", "map"]
    assert lines[4].split()[:3] == ["L0", f"{own.kl[0]:.4f}", f"{own.logit_kl[0]:.4f}"]
    assert lines[5].split() == ["L3", "0.0000", "0.0000", "100.0", "%", "100.0", "%", "identity"]
    assert "wrote made/lens.safetensors; next: traceformer lens run --with made/lens.safetensors" in shown.err
    assert tf.open_lens("made/lens.safetensors").to_json() == found.to_json()


def test_json_is_all_but_the_numbers_of_the_maps(run: Path, capsys: Capture) -> None:
    settings = ["--steps", "4", "--seed", "2", "--limit", "10"]
    assert main(["fit-lens", "run", *settings, "--json", "--output", "lens.safetensors"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("file") == "lens.safetensors"
    assert told == tf.open_lens("lens.safetensors").to_json()
    assert (told["about"]["steps"], told["about"]["seed"], sum(told["about"]["examples"].values())) == (4, 2, 10)


def test_a_file_in_the_way_is_left_before_anything_is_fitted(run: Path, capsys: Capture) -> None:
    Path("lens.safetensors").write_text("mine")
    line = ["fit-lens", "run", "--kind", "ridge", "--output", "lens.safetensors"]
    assert main(line) == 3
    assert "lens.safetensors is there already" in capsys.readouterr().err
    assert Path("lens.safetensors").read_text() == "mine"
    assert main([*line, "--overwrite"]) == 0
    assert tf.open_lens("lens.safetensors").kind == "ridge"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("kind", ["tuned", "ridge", "jacobian"])
def test_a_file_of_another_ending_is_refused_before_anything_is_fitted(kind: str, capsys: Capture) -> None:
    assert main(["fit-lens", "run", "--kind", kind, "--output", "y.txt"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"a {kind} lens in y.txt" in shown.err
    assert ".safetensors or .pt" in shown.err if kind == "jacobian" else "ends in .safetensors\n" in shown.err
    assert not Path("y.txt").exists()


def test_a_picture_is_saved_in_the_format_of_its_name(run: Path, capsys: Capture) -> None:
    assert main(["fit-lens", "run", "--kind", "ridge", "--png", "made/lens.png"]) == 0
    with Image.open("made/lens.png") as picture:
        assert picture.format == "PNG"
    assert "wrote made/lens.png; next: traceformer fit-lens run --output lens.safetensors" in capsys.readouterr().err
    assert main(["fit-lens", "run", "--png", "lens.xyz"]) == 2


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("fit-lens", 2, "a RUN, or --model MODEL --dataset TEXTS"),
        ("fit-lens --model byte", 2, "a RUN, or --model MODEL --dataset TEXTS"),
        ("fit-lens run --dataset demo", 2, "a run has its texts"),
        ("fit-lens run --device cpu", 2, "a run and --device"),
        ("fit-lens run --kind linear", 2, "--kind cannot be 'linear'"),
        ("fit-lens run --steps 0", 2, "--steps cannot be '0'"),
        ("fit-lens run --kind ridge --steps 5", 2, "--steps of a ridge lens"),
        ("fit-lens run --max-tokens 9", 2, "--max-tokens of a tuned lens"),
        ("fit-lens run --layers 9", 2, "this run holds layers 0, 1, 2, 3"),
        ("fit-lens run --limit 5", 2, "a lens of 5 examples"),
        ("fit-lens run --model nowhere", 3, "no model at nowhere"),
        ("fit-lens nowhere", 3, "no run 'nowhere'"),
    ],
)
def test_what_makes_no_sense_is_said(run: Path, line: str, code: int, said: str, capsys: Capture) -> None:
    assert main(line.split()) == code
    assert said in capsys.readouterr().err
