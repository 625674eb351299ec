"""`traceformer extract` as a user meets it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from traceformer.capture import extract as extraction
from traceformer.capture.extract import Estimate
from traceformer.cli import main
from traceformer.cli.choices import Loading, TextChoice
from traceformer.progress import OnProgress, Progress
from traceformer.sites import Selection
from traceformer.store.place import Place, Storage

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Asked:
    """What a command line means: the values that reach the extraction."""

    model: tuple[str, Loading]
    texts: TextChoice
    selection: Selection
    place: Place
    batch_size: int | None
    batch_tokens: int | str | None = None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """All that reaches the extraction, which then pretends to have recorded two examples."""
    seen: list[Asked] = []

    def pretend(model: Any, texts: Any, selection: Selection, place: Place, *, progress: OnProgress, **how: Any) -> Any:
        seen.append(Asked(model, texts, selection, place, **how))
        progress(Progress(2, 2, 30, 4000, 1.5, "recording"))
        return SimpleNamespace(folder=place.folder or Path("traces/made"))

    # No model is loaded and no text read: the flags themselves stand for them.
    monkeypatch.setattr(Loading, "load", lambda self, name, with_head: (name, self))
    monkeypatch.setattr(TextChoice, "read", lambda self: self)
    monkeypatch.setattr(extraction, "extract", pretend)
    return seen


def test_the_defaults_are_the_padded_stores(asked: list[Asked]) -> None:
    assert main(["extract"]) == 0
    [own] = asked
    assert own.model == ("roberta-base", Loading())
    assert own.selection == Selection(("attn", "qkv"), {"enc": None, "dec": None}, {"enc": None, "dec": None})
    assert own.place == Place(parent=Path("traces"), command_line=own.place.command_line)
    assert own.place.storage == Storage("float16")
    texts = own.texts
    assert (texts.dataset, texts.limit, texts.max_seq_len, texts.dec_max_len) == ("ud_ewt", 32, 128, 64)
    assert (own.batch_size, own.batch_tokens) == (None, None)  # which means 8 texts: see tests/capture/test_packing.py


FLAGS = (
    "--model gpt2 --model_path m --dataset csqa --split test --limit 7 --max_seq_len auto --dec_max_len 5 "
    "--batch_size 3 --capture attn qkv hidden --dtype float32 --targets_file t.txt --out_dir traces/x --device cpu "
    "--revision main --codec zstd --attn_codec sqrt8 --resume --overwrite --text_column body --hidden_layers 0,6 "
    "--num_shards 4 --shard_index 2 --model_dtype bfloat16 --allow_pickle --rows_codec q8"
)


@pytest.mark.parametrize("flags", [FLAGS, FLAGS.replace("_", "-")], ids=["underscores", "hyphens"])
def test_every_flag_has_its_meaning_in_both_spellings(flags: str, asked: list[Asked]) -> None:
    assert main(["extract", *flags.split()]) == 0
    [own] = asked
    assert own == Asked(
        model=("m", Loading(device="cpu", model_dtype="bfloat16", revision="main", allow_pickle=True)),
        texts=TextChoice(
            dataset="csqa",
            split="test",
            text_column="body",
            targets_file=Path("t.txt"),
            limit=7,
            max_seq_len="auto",
            dec_max_len=5,
        ),
        selection=Selection(
            ("attn", "qkv", "hidden"), {"enc": None, "dec": None}, {"enc": None, "dec": None}, hidden_layers=(0, 6)
        ),
        place=Place(
            folder=Path("traces/x"),
            resume=True,
            overwrite=True,
            writer=(2, 4),
            storage=Storage("float32", "zstd", "sqrt8", rows_codec="q8"),
            command_line=own.place.command_line,
        ),
        batch_size=3,
    )


@pytest.mark.parametrize(("given", "meant"), [("4096", 4096), ("auto", "auto")])
def test_batches_are_bound_by_tokens_in_place_of_texts(given: str, meant: int | str, asked: list[Asked]) -> None:
    assert main(["extract", "--batch_tokens", given]) == 0
    assert (asked[0].batch_size, asked[0].batch_tokens) == (None, meant)


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
    flags: list[str], enc: object, dec: object, asked: list[Asked]
) -> None:
    assert main(["extract", *flags]) == 0
    assert asked[0].selection.layers == {"enc": enc, "dec": dec}
    assert main(["extract", *(flag.replace("layers", "heads") for flag in flags)]) == 0
    assert asked[1].selection.heads == {"enc": enc, "dec": dec}


@pytest.mark.parametrize(
    "arguments",
    ["--capture attn qkv resid_mid", "--capture attn,qkv,resid_mid", "--capture attn --capture qkv resid_mid"],
)
def test_several_sites_may_be_written_in_several_ways(arguments: str, asked: list[Asked]) -> None:
    assert main(["extract", *arguments.split(), "--limit", "all"]) == 0
    assert asked[0].selection.capture == ("attn", "qkv", "resid_mid")
    assert asked[0].texts.limit == "all"


@pytest.mark.usefixtures("asked")
def test_it_ends_with_the_run_on_stdout_and_the_next_command_on_stderr(capsys: Capture) -> None:
    assert main(["extract"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "traces/made\n"
    assert shown.err.splitlines()[-1] == (
        "2 examples, 30 tokens, 4.00 kB written in 1.5 s; next: traceformer inspect traces/made"
    )


@pytest.mark.usefixtures("asked")
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
    capsys: Capture, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Estimate(12, 340, 5_600_000, 9, 65.4, ("mlp_act",))
    monkeypatch.setattr(extraction, "estimate", lambda *_, **__: expected)
    assert main(["extract", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "12 examples, 340 tokens: 5.60 MB in 9 files, about 1 min 05 s\n"
    assert shown.err == "not in this model: mlp_act\n"
    assert main(["extract", "--dry_run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 5_600_000
    assert asked == []


def test_an_interruption_says_what_is_kept_and_how_to_go_on(
    capsys: Capture, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, progress: Callable[[Progress], None], **__: Any) -> Any:
        progress(Progress(3, 9, 30, 4000, 1.5, "recording"))
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "extract", interrupted)
    assert main(["extract"]) == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: interrupted; what was committed is kept",
        "try:   the same command with --resume",
    ]


def test_a_stream_is_asked_for_with_its_order(asked: list[Asked]) -> None:
    line = "extract --dataset shards/*.tar --streaming --limit all --shuffle 7 --shuffle_buffer 500"
    assert main(line.split()) == 0
    texts = asked[0].texts
    assert (texts.dataset, texts.streaming, texts.limit) == ("shards/*.tar", True, "all")
    assert (texts.shuffle, texts.shuffle_buffer) == (7, 500)


def test_a_stream_is_recorded_gone_on_with_and_finished(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(9)))
    line = "extract --model byte --device cpu --dataset *.jsonl --streaming --capture resid_post --layers 0 --out_dir x"
    assert main([*line.split(), "--limit", "5"]) == 0
    assert capsys.readouterr().out.strip() == "x"
    assert main(["finish", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "x", "n_examples": 5}
    (tmp_path / "a.jsonl").write_text('{"text": "text"}\n{"label": 1}\n')
    assert main([*line.split(), "--overwrite"]) == 3
    assert "a.jsonl, line 2: nothing where the text 'text' should be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dry-run", "an estimate of a stream"),
        ("--targets_file t.txt", "--targets_file does not apply to a stream"),
        ("--num-shards 2 --shard-index 0 --out_dir x", "several writers of one stream"),
    ],
)
def test_what_a_stream_cannot_be_is_refused(flags: str, words: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.txt").write_text("a text\nanother\n")
    assert (
        main(["extract", "--model", "byte", "--device", "cpu", "--dataset", "a.txt", "--streaming", *flags.split()])
        == 2
    )
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--store-topk", "--store_topk"])
def test_the_largest_keys_are_wished_for_beside_the_sites(flag: str, asked: list[Asked]) -> None:
    from traceformer.capture.topk import AttentionTopK

    assert main(["extract", "--capture", "attn", "resid", flag, "7"]) == 0
    assert asked[0].selection.capture == ("attn", "resid")
    assert asked[0].selection.derived == (AttentionTopK(7),)


def test_no_largest_keys_are_none_that_can_be_asked_for(capsys: Capture) -> None:
    assert main(["extract", "--store-topk", "0"]) == 2
    assert "--store-topk" in capsys.readouterr().err


def test_head_metrics_are_a_group(asked: list[Asked]) -> None:
    assert main(["extract", "--capture", "heads"]) == 0
    assert asked[0].selection.sites == ("head_metrics",)


@pytest.mark.slow
def test_what_is_kept_in_place_of_patterns_is_inspected(capsys: Capture, tmp_path: Path) -> None:
    flags = "--model byte --dataset demo --limit 2 --max_seq_len auto --device cpu --out_dir"
    assert main(["extract", *flags.split(), "top", "--capture", "attn", "--store-topk", "3"]) == 0
    assert main(["extract", *flags.split(), "heads", "--capture", "heads"]) == 0
    capsys.readouterr()
    assert main(["inspect", "top", "--example", "0", "--site", "attn_topk", "--head", "L1H2"]) == 0
    assert "keys" in capsys.readouterr().out
    assert main(["inspect", "heads", "--example", "0", "--site", "head_metrics", "--head", "L1H2"]) == 0
    assert "effective_span" in capsys.readouterr().out
    assert main(["heads", "heads"]) == 0
    assert "entropy" in capsys.readouterr().out
    assert main(["verify", "top"]) == main(["verify", "heads"]) == 0
    assert main(["heads", "top"]) != 0
    assert "no attention patterns" in capsys.readouterr().err


def test_patterns_by_recipe_are_asked_for_refused_and_shown(
    asked: list[Asked], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["extract", "--patterns", "recipe"]) == 0
    assert asked[-1].place.storage == Storage(patterns="recipe")
    assert main(["extract", "--patterns", "recipe", "--attn-codec", "sqrt8"]) == 2
    assert "error: --attn-codec sqrt8 and --patterns recipe" in capsys.readouterr().err
    monkeypatch.undo()
    made = ["--model", "byte", "--dataset", "demo", "--limit", "2", "--patterns", "recipe"]
    assert main(["extract", *made, "--capture", "resid_pre"]) == 2
    assert "try:   --capture attn records them" in capsys.readouterr().err
    assert main(["extract", *made, "--capture", "attn", "--layers", "2", "--out_dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "by recipe" in next(line for line in shown.splitlines() if line.startswith("dec.self.attn_pattern"))
    assert "dec.self.attn_pattern: made anew of dec.self.q and dec.self.k, in float32, by recipe 1" in shown
    assert main(["inspect", str(tmp_path / "run"), "--json"]) == 0
    arrays = {each["key"]: each["recipe"] for each in json.loads(capsys.readouterr().out)["arrays"]}
    assert arrays == {"dec.self.q": None, "dec.self.k": None, "dec.self.attn_pattern": 1}
