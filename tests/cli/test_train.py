"""`traceformer train`: what it prints, and what it refuses."""

import json
import random
from pathlib import Path

import pytest

from traceformer.cli import main

QUICK = ["--preset", "tiny", "--num_epochs", "0.1", "--batch-size", "4", "--evaluations", "1", "--device", "cpu"]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "words.txt"
    path.write_text(" ".join(random.Random(0).choices(["a", "few", "short", "words", "again"], k=1500)))
    return path


def test_it_prints_the_folder_and_says_what_comes_next(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK, "--data", str(text)]) == 0
    out, err = capsys.readouterr()
    assert out == "models/tiny-dense-words.txt\n"
    assert Path("models/tiny-dense-words.txt/model.safetensors").is_file()
    last = err.splitlines()[-1]
    assert last == "next: traceformer extract --model models/tiny-dense-words.txt --dataset demo --capture all"
    assert "98,752 parameters" in err
    steps = [line.partition("  ")[::2] for line in err.splitlines() if line.startswith("step ")]
    told = [(step, words.partition("  ")[0]) for step, words in steps]
    assert len(told) == len(set(told)) > 0
    assert "bits per byte on held-out text (xz -9" in err


def test_json_holds_the_figures_and_the_curves(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK, "--data", str(text), "--out_dir", "m", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["folder"] == "m"
    assert outcome["validation"].keys() == {"model", "xz", "ngram"}
    assert outcome["train_curve"][-1][0] == outcome["steps"]
    assert "    traceformer" in Path("m/README.md").read_text()


def test_an_interrupted_training_says_how_to_go_on(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    import traceformer.bytelm.train

    monkeypatch.setattr(traceformer.bytelm.train, "train", interrupt)
    assert main(["train", *QUICK, "--data", str(text)]) == 130
    assert (
        capsys.readouterr().err == "error: interrupted; checkpoints are kept\ntry:   the same command with --resume\n"
    )


THESIS = "--num_epochs 20 --batch_size 32 --seq_length 1024 --learning_rate 1e-4 --seed 42"


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (f"--preset thesis {THESIS} --data missing", 3, "no data 'missing'"),
        (f"--preset small {THESIS} --data words.txt", 2, "windows of 1024 do not fit the preset 'small'"),
        ("--preset tiny --data empty", 3, "empty is empty"),
        ("--preset tiny --data words.txt --learning_rate -1", 2, "--learning-rate cannot be -1.0"),
        ("--preset tiny --data words.txt --repeats 2", 2, "--repeats cannot be 2.0"),
        ("--preset tiny --data words.txt --out_dir .", 3, "is not empty"),
        ("--preset huge", 2, "it is one of tiny, small, thesis"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    flags: str, code: int, words: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").touch()
    assert main(["train", "--device", "cpu", *flags.split()]) == code
    assert words in capsys.readouterr().err
