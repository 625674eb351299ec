"""A model whose family has no row, as a user meets it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from traceformer.cli import main
from traceformer.models.families import FAMILIES
from traceformer.store.run import Run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def stranger(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a tiny Llama, which nothing here knows by name any more."""
    folder = str(tiny_folder("llama"))
    monkeypatch.delitem(FAMILIES, "llama")  # pyright: ignore[reportArgumentType]
    return folder


def test_a_recording_says_what_was_found_and_its_run_states_it(stranger: str, tmp_path: Path, capsys: Capture) -> None:
    flags = ["--model", stranger, "--device", "cpu", "--dataset", "demo", "--limit", "3", "--capture", "attn", "resid"]
    assert main(["extract", *flags, "--out_dir", str(tmp_path / "run")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no row for")]
    assert said == ["no row for tiny-llama: found that of byte_sparse and proved 83 facts on your texts"]
    row = Run(tmp_path / "run").about.row
    assert row is not None
    assert (row["n_facts"], len(row["facts"]), row["like"]) == (83, 83, None)
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "no row for llama: found that of byte_sparse, 83 facts proved on " in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert main(["heads", str(tmp_path / "run"), "--output", str(tmp_path / "heads.csv")]) == 0
    assert main(["lens", str(tmp_path / "run"), "--example", "0"]) == 4
    assert "try:   --like FAMILY when it is recorded" in capsys.readouterr().err


def test_the_row_of_a_family_is_chosen_by_hand(stranger: str, tmp_path: Path, capsys: Capture) -> None:
    prompt = ["--prompt", "The old", "--max-tokens", "3", "--device", "cpu", "--capture", "resid_post"]
    command = ["generate", "--model", stranger, "--like", "mistral", *prompt, "--out_dir", str(tmp_path / "run")]
    assert main(command) == 0
    assert "no row for tiny-llama: took that of mistral, as asked and proved 83 facts" in capsys.readouterr().err
    about = Run(tmp_path / "run").about
    assert about.row is not None
    assert (about.row["like"], about.attention.rotary) == ("mistral", True)
    assert main([*command[:4], "gpt2", *command[5:], "--overwrite"]) == 4
    assert main([*command[:4], "mistrel", *command[5:], "--overwrite"]) == 3
    assert "try:   mistral" in capsys.readouterr().err


@pytest.mark.slow
def test_heads_of_such_a_model_are_measured(stranger: str, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "heads.csv"
    texts = ["--dataset", "demo", "--num_seqs", "2", "--device", "cpu"]
    assert main(["heads", "--model", stranger, *texts, "--output", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(table)
