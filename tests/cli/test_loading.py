"""Every verb that loads a model takes an adapter, and pickled weights if it is told to trust them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from traceformer.cli import main

Folder = Callable[..., Path]
VERBS = {
    "extract": ["extract", "--model", "{}", "--dataset", "demo", "--limit", "1", "--out_dir", "run"],
    "generate": ["generate", "--model", "{}", "--prompt", "Yes", "--max-tokens", "2", "--out_dir", "answer"],
    "heads": ["heads", "--model", "{}", "--dataset", "demo", "--num-seqs", "1"],
    "paths": ["paths", "--model", "{}", "--text", "The river froze over."],
    "check": ["check", "{}"],
    "vectors": ["vectors", "fit", "--positive", "a.txt", "--negative", "b.txt", "--model", "{}", "--output", "out"],
}


@pytest.fixture
def pickled(tiny_folder: Folder, tmp_path: Path) -> Path:
    """A model's folder whose weights are pickled only."""
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder("gpt2"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("".join(f"text {name} {i}\n" for i in range(12)))
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_pickled_weights_are_refused_with_an_option_that_the_verb_has(
    verb: str, pickled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pickled) if part == "{}" else part for part in VERBS[verb]]
    assert main(arguments) == 3
    assert (
        "try:   convert them to safetensors, or load them with --allow-pickle if you trust" in capsys.readouterr().err
    )
    assert main([*arguments, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--allow-pickle" in shown
    assert "--adapter" in shown


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_pickled_weights_are_loaded_where_they_are_trusted(verb: str, pickled: Path) -> None:
    arguments = [str(pickled) if part == "{}" else part for part in VERBS[verb]]
    assert main([*arguments, "--allow-pickle"]) == 0


@pytest.mark.slow
def test_lens_and_paths_of_a_run_with_pickled_weights(pickled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = ["--capture", "attn", "v", "resid", "--limit", "1", "--out_dir", "run", "--allow-pickle"]
    assert main(["extract", "--model", str(pickled), "--dataset", "demo", *what]) == 0
    for asked in (["lens", "run", "--position", "1"], ["paths", "run", "--weighting", "value-norm"]):
        capsys.readouterr()
        assert main(asked) == 3
        assert "load them with --allow-pickle if you trust them" in capsys.readouterr().err
        assert main([*asked, "--allow-pickle"]) == 0


def test_token_ids_on_the_command_line_need_no_tokenizer(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mute"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_folder("gpt2") / name, folder)
    Path("ids.jsonl").write_text('{"text": "Yes", "ids": [5, 6, 7]}\n{"text": "No", "ids": [8]}\n')
    data = ["--model", str(folder), "--dataset", "ids.jsonl"]
    assert main(["extract", *data, "--ids-column", "ids", "--out_dir", "run", "--capture", "resid"]) == 0
    assert main(["heads", *data, "--ids-column", "ids"]) == 0
    assert main(["lens", "run"]) == 0
    capsys.readouterr()
    assert main(["extract", *data, "--out_dir", "other"]) == 2
    assert "--ids-column COLUMN" in capsys.readouterr().err
    Path("ids.jsonl").write_text('{"ids": [5, 400]}\n')
    assert main(["extract", *data, "--ids-column", "ids", "--out_dir", "other"]) == 2
    assert "token id 400 requested, but mute has ids 0-98" in capsys.readouterr().err


def test_a_model_is_spread_over_the_devices_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    record = [
        "extract",
        "--model",
        "byte",
        "--dataset",
        "demo",
        "--limit",
        "1",
        "--capture",
        "resid",
        "--out_dir",
        "run",
    ]
    assert main([*record, "--device-map", "auto", "--offload-folder", "elsewhere"]) == 0
    assert main([*record, "--device-map", "auto", "--device", "cpu", "--overwrite"]) == 2
    assert "--device and --device-map" in capsys.readouterr().err
    assert main([*record, "--offload-folder", "elsewhere", "--overwrite"]) == 2
    assert "--offload-folder without --device-map" in capsys.readouterr().err
