"""`traceformer check` as a user meets it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from traceformer.cli import main
from traceformer.models.families import FAMILIES
from traceformer.models.tiny import TINY


def test_a_familys_name_checks_a_tiny_model_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt2", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "a tiny random gpt2: float32 on cpu, sdpa attention"
    assert lines[2].split() == ["site", "what", "must", "hold", "error", "tolerance"]
    assert any(line.startswith("dec.self.attn_pattern  equals the softmax") for line in lines)
    assert not any("FAILS" in line for line in lines)
    assert lines[-1].startswith("all 54 facts about 25 arrays hold; the largest error is ")


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
    assert shown.splitlines()[-1] == "3 of 53 facts FAIL: dec.resid_mid, dec.mlp_up, dec.resid_post"
    assert sum(line.endswith("FAILS") for line in shown.splitlines()) == 3


STRANGER: tuple[str, dict[str, Any]] = (
    "StableLmForCausalLM",
    {
        "vocab_size": 99,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
)


def test_a_family_without_a_row_is_told_what_fits_and_how_to_add_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(FAMILIES, "stablelm")  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(TINY, "stablelm", STRANGER)  # pyright: ignore[reportArgumentType]
    assert main(["check", "stablelm", "--device", "cpu"]) == 4
    shown = capsys.readouterr().out
    assert shown.startswith("a tiny random stablelm: no architecture row for model type 'stablelm'\n")
    assert "blocks          layers\n" in shown
    assert "attention       layers.*.self_attn\n" in shown
    assert "without a row:\n" in shown
    assert re.search(r"with the row of byte_sparse, .*llama, .*qwen3.*: 53 of 53 facts hold\n", shown)
    assert re.match("to add it: the blocks of byte_sparse, .*llama", shown.splitlines()[-1])
    assert main(["check", "stablelm", "--device", "cpu", "--json"]) == 4
    data = json.loads(capsys.readouterr().out)
    assert (data["supported"], data["nearest"]["result"]["ok"]) == (False, True)


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
