import json
from collections.abc import Callable
from pathlib import Path

import pytest
from traceformer.capture.prepare import ExtractRequest

from traceformer.capture import extract as extraction
from traceformer.capture.extract import Estimate, Progress
from traceformer.cli import main
from traceformer.sites import Selection

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ExtractRequest]:
    """The requests that reach the extraction, which then pretends to have recorded two examples."""
    seen: list[ExtractRequest] = []

    def pretend(request: ExtractRequest, progress: Callable[[Progress], None]) -> Path:
        seen.append(request)
        progress(Progress(2, 2, 30, 4000, 1.5, "recording"))
        return request.out_dir or Path("traces/made")

    monkeypatch.setattr(extraction, "extract", pretend)
    return seen


def test_the_defaults_are_the_padded_stores(requests: list[ExtractRequest], capsys: Capture) -> None:
    assert main(["extract"]) == 0
    (request,) = requests
    selection = Selection(("attn", "qkv"), {"enc": None, "dec": None}, {"enc": None, "dec": None})
    defaults = ExtractRequest(selection, command_line=request.command_line)
    assert request == defaults
    assert (request.model, request.dataset, request.limit, request.max_seq_len) == ("roberta-base", "ud_ewt", 32, 128)
    assert (request.dec_max_len, request.batch_size, request.dtype) == (64, 8, "float16")


FLAGS = (
    "--model gpt2 --model_path m --dataset csqa --split test --limit 7 --max_seq_len auto --dec_max_len 5 "
    "--batch_size 3 --capture attn qkv hidden --dtype float32 --targets_file t.txt --out_dir traces/x --device cpu "
    "--revision main --codec zstd --attn_codec sqrt8 --resume --overwrite --text_column body --hidden_layers 0,6 "
    "--num_shards 4 --shard_index 2 --model_dtype bfloat16 --allow_pickle"
)


@pytest.mark.parametrize("flags", [FLAGS, FLAGS.replace("_", "-")], ids=["underscores", "hyphens"])
def test_every_flag_reaches_the_request_in_both_spellings(flags: str, requests: list[ExtractRequest]) -> None:
    assert main(["extract", *flags.split()]) == 0
    (request,) = requests
    assert request == ExtractRequest(
        selection=Selection(
            ("attn", "qkv", "hidden"), {"enc": None, "dec": None}, {"enc": None, "dec": None}, hidden_layers=(0, 6)
        ),
        model="gpt2",
        model_path=Path("m"),
        dataset="csqa",
        split="test",
        limit=7,
        max_seq_len="auto",
        dec_max_len=5,
        batch_size=3,
        dtype="float32",
        targets_file=Path("t.txt"),
        out_dir=Path("traces/x"),
        device="cpu",
        model_dtype="bfloat16",
        revision="main",
        codec="zstd",
        attn_codec="sqrt8",
        resume=True,
        overwrite=True,
        allow_pickle=True,
        text_column="body",
        writer=(2, 4),
        command_line=request.command_line,
    )


@pytest.mark.parametrize(
    ("flags", "enc", "dec"),
    [
        (["--layers", "0,3"], (0, 3), (0, 3)),
        (["--layers-dec", "0,5,11"], None, (0, 5, 11)),
        (["--layers", "0 3", "--layers-enc", "1-2"], (1, 2), (0, 3)),
        (["--layers", "-1,2"], (-1, 2), (-1, 2)),
    ],
)
def test_index_lists_of_a_stack_go_before_those_of_both(
    flags: list[str], enc: object, dec: object, requests: list[ExtractRequest]
) -> None:
    assert main(["extract", *flags]) == 0
    assert requests[0].selection.layers == {"enc": enc, "dec": dec}
    assert main(["extract", *(flag.replace("layers", "heads") for flag in flags)]) == 0
    assert requests[1].selection.heads == {"enc": enc, "dec": dec}


@pytest.mark.parametrize(
    "arguments",
    ["--capture attn qkv resid_mid", "--capture attn,qkv,resid_mid", "--capture attn --capture qkv resid_mid"],
)
def test_several_sites_may_be_written_in_several_ways(arguments: str, requests: list[ExtractRequest]) -> None:
    assert main(["extract", *arguments.split(), "--limit", "all"]) == 0
    assert requests[0].selection.capture == ("attn", "qkv", "resid_mid")
    assert requests[0].limit is None


@pytest.mark.usefixtures("requests")
def test_it_ends_with_the_run_on_stdout_and_the_next_command_on_stderr(capsys: Capture) -> None:
    assert main(["extract"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "traces/made\n"
    assert shown.err.splitlines()[-1] == (
        "2 examples, 30 tokens, 4.00 kB written in 1.5 s; next: traceformer inspect traces/made"
    )


@pytest.mark.usefixtures("requests")
def test_json_is_the_outcome_and_nothing_else(capsys: Capture) -> None:
    assert main(["extract", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": "traces/made",
        "examples": 2,
        "tokens": 30,
        "bytes": 4000,
        "seconds": 1.5,
    }


def test_a_dry_run_says_what_to_expect_and_extracts_nothing(
    capsys: Capture, requests: list[ExtractRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Estimate(12, 340, 5_600_000, 9, 65.4, ("mlp_act",))
    monkeypatch.setattr(extraction, "estimate", lambda request: expected)
    assert main(["extract", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "12 examples, 340 tokens: 5.60 MB in 9 files, about 1 min 05 s\n"
    assert shown.err == "not in this model: mlp_act\n"
    assert main(["extract", "--dry_run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 5_600_000
    assert requests == []


def test_an_interruption_says_what_is_kept_and_how_to_go_on(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(request: ExtractRequest, progress: Callable[[Progress], None]) -> Path:
        progress(Progress(3, 9, 30, 4000, 1.5, "recording"))
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "extract", interrupted)
    assert main(["extract"]) == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: interrupted; what was committed is kept",
        "try:   the same command with --resume",
    ]
