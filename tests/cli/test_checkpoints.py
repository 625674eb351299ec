"""`extract --checkpoints` and `heads FOLDER`: a run for each step, and what its heads do along them."""

import csv
import json
from pathlib import Path

import pytest

import traceformer as tf
from tests.capture.trainings import write_training
from tests.cli.conftest import Typed
from traceformer.cli import main

RECORD = "extract --checkpoints training --dataset texts.txt --capture attn --device cpu --out_dir steps"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training of three checkpoints, texts, and the runs that were recorded of both."""
    folder = tmp_path_factory.mktemp("place")
    write_training(folder / "training", (0, 3, 20))
    (folder / "texts.txt").write_text("abcabcab\nxyzxyz\n")
    return folder


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    monkeypatch.chdir(place)
    code = main([*RECORD.split(), *(["--resume"] if (place / "steps").exists() else [])])
    return Typed(code, *capsys.readouterr())


def test_a_run_for_each_step_and_what_is_next(typed: Typed, place: Path) -> None:
    assert typed.code == 0, typed.err
    assert typed.out == "steps\n"
    assert "3 runs, of steps 0 to 20; next: traceformer heads steps --plot" in typed.err
    assert tf.open_checkpoints(place / "steps").steps == (0, 3, 20)


def test_heads_of_the_folder_are_curves(typed: Typed, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "steps", "--output", "curves.csv", "--plot"]) == 0
    out, err = capsys.readouterr()
    assert "steps: 2 heads at 3 steps, examples: 2 of dec.self; exact convention" in out
    lines = [line.split() for line in out.splitlines()]
    curves = tf.heads(place / "steps")
    for step in (0, 3, 20):
        assert str(step) in [line[0] for line in lines if line]
    best = curves.strongest("induction", 1)[0]
    assert f"{curves.names[best]}" in lines[lines.index(["induction"]) + 1]
    with (place / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["layer"], row["head"]) for row in rows[:3]] == [
        ("0", "0", "0"),
        ("0", "0", "1"),
        ("3", "0", "0"),
    ]
    assert float(rows[3]["entropy"]) == pytest.approx(curves.at(3).values["entropy"][1])
    assert (place / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote curves.csv and curves.png in" in err
    assert main(["heads", "steps", "--json", "--output", "curves.csv"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [0, 3, 20]


def test_patterns_are_by_recipe_in_every_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    line = RECORD.replace("--out_dir steps", "--out_dir recipes").split()
    assert main([*line, "--patterns", "recipe"]) == 0
    assert all(run.layout.recipes for run in tf.open_checkpoints("recipes"))
    capsys.readouterr()
    assert main([*line, "--resume"]) == 3
    assert "why:   patterns was 'recipe', is 'stored'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--revision main", "error: --checkpoints with --revision"),
        ("--dry-run", "error: --checkpoints with --dry-run"),
        ("--num-shards 2", "error: --checkpoints with --num-shards"),
        ("--checkpoints nowhere", "error: no folder nowhere"),
        ("", "error: steps holds runs of checkpoints"),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: str, said: str, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    line = RECORD.replace("--checkpoints training", "") if "--checkpoints" in flags else RECORD
    assert main([*line.split(), *flags.split()]) in (2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_checkpoints_need_a_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(RECORD.replace("--out_dir steps", "").split()) == 2
    assert "try:   --out_dir DIR" in capsys.readouterr().err


def test_steps_to_keep_are_a_word_or_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--keep-steps", "often"]) == 2
    assert "error: cannot read the steps 'often'" in capsys.readouterr().err
