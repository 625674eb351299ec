"""`traceformer check` as a user meets it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from traceformer.cli import main
from traceformer.models.families import FAMILIES


def test_a_familys_name_checks_a_tiny_model_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt2", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "a tiny random gpt2: float32 on cpu, sdpa attention"
    assert lines[2].split() == ["site", "what", "must", "hold", "error", "tolerance"]
    assert any(line.startswith("dec.self.attn_pattern  equals the softmax") for line in lines)
    assert not any("FAILS" in line for line in lines)
    assert lines[-1].startswith("all 86 facts about 25 arrays hold; the largest error is ")


def test_sites_that_a_family_lacks_are_named_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "xglm", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "no attn_pattern: its attention does not pass through transformers' attention function" in shown
    assert main(["check", "gptj", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "no resid_mid: attention and MLP run in parallel, so there is nothing between them" in shown


def test_below_float32_it_says_what_is_not_proved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt2", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert "not proved, is the same in a padded batch as alone: a batch of another shape" in capsys.readouterr().out


def test_a_real_model_is_checked_on_texts(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "check",
        str(minilm),
        "--device",
        "cpu",
        "--text",
        "One text.",
        "Another one, which is longer.",
        "--json",
    ]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["supported"], data["ok"], data["dtype"], data["attention"]) == (True, True, "float32", "sdpa")
    assert {proof["key"] for proof in data["proofs"]} >= {"enc.self.attn_pattern", "enc.resid_mid", "enc.mlp_act"}
    assert data["refused"]["logits"] == "it was loaded without a language-model head"


def test_a_fact_that_fails_is_shown_and_makes_the_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(FAMILIES["gemma2"], blocks=FAMILIES["llama"].blocks)
    monkeypatch.setitem(FAMILIES, "gemma2", wrong)  # pyright: ignore[reportArgumentType]
    assert main(["check", "gemma2", "--device", "cpu"]) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "4 of 85 facts FAIL: dec.resid_mid, dec.mlp_up, dec.resid_post"
    assert sum(line.endswith("FAILS") for line in shown.splitlines()) == 4


def test_a_family_without_a_row_is_told_what_was_found_and_how_to_add_it(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_folder("gpt2"))
    for family in [*FAMILIES]:
        monkeypatch.delitem(FAMILIES, family)  # pyright: ignore[reportArgumentType]
    assert main(["check", folder, "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "tiny-gpt2: no row for model type 'gpt2'"
    assert any(line.startswith("dec.self.attn_pattern  equals the softmax") for line in lines)
    assert lines[-4].startswith("all 84 facts about 25 arrays hold; the largest error is ")
    assert lines[-2:] == [
        "found: a row of its own",
        "to add it: add 'gpt2' to FAMILIES in traceformer/models/table with the blocks that `--write-row` prints",
    ]
    assert f"next: traceformer extract --model {folder} --dataset demo" in shown.err
    assert main(["check", folder, "--device", "cpu", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["supported"], data["ok"], data["result"]["ok"]) == (False, True, True)
    assert main(["check", folder, "--device", "cpu", "--write-row"]) == 0
    assert capsys.readouterr().out.startswith('    "gpt2": Family(\n        blocks=blocks.GPT2,\n')


def test_the_row_of_another_family_is_proved_where_it_is_asked_for(
    tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check", str(tiny_folder("mistral")), "--device", "cpu", "--like"]
    assert main([*command, "llama"]) == 0
    shown = capsys.readouterr()
    assert "all 83 facts about 25 arrays hold" in shown.out
    assert "--like llama --dataset demo" in shown.err
    assert main([*command, "gpt2"]) == 4
    assert "none was found that holds: the row does not fit" in capsys.readouterr().out
    assert main([*command, "lama"]) == 3
    assert "try:   llama" in capsys.readouterr().err


def test_only_a_found_row_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt2", "--device", "cpu", "--write-row"]) == 2
    assert "its family has one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["check", "gpt2", "--text", "hello"], 2, "--text needs a tokenizer"),
        (["check", "./no/such/folder"], 3, "no model folder ./no/such/folder"),
        (["check", "gtp2"], 3, "try:   gpt2"),
        (["check", "gpt2", "--dtype", "int8"], 2, "int8"),
        (["check"], 2, "MODEL"),
    ],
)
def test_what_cannot_be_checked_is_an_error(
    command: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
