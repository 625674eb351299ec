"""`traceformer inspect` as a user meets it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import SENTENCES, causal_pattern
from tests.store import runs
from traceformer import record
from traceformer.cli import main
from traceformer.store.writer import RunWriter

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, arguments: str) -> str:
    """Returns what a command that must succeed prints on stdout."""
    code = main(arguments.split())
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def without_sizes(text: str) -> str:
    return re.sub(r" +\d[\d.]* [kMG]?B", " SIZE", text)


def test_a_run_tells_what_it_holds(capsys: Capture, decoder_run: Path) -> None:
    assert without_sizes(run(capsys, "inspect latest")).splitlines() == [
        "run        traces/dec",
        "model      tiny  (decoder)",
        "data set   demo validation: 3 examples, 8 dec tokens (longest 4)",
        "stored as  float16, SIZE on disk, begun 2026-01-02 03:04:05",
        "",
        "array                  dimensions of one example     on disk  per token",
        "dec.self.attn_pattern  layer 2, head 3, query, key SIZE SIZE",
        "dec.resid_post         layer 1, position, d_model 8 SIZE SIZE",
        "",
        "dec: only layer 2, 5 of 8",
        "dec: only head 0, 1, 3 of 4",
        "dec: only layer 5 of 8",
    ]


def test_an_unfinished_run_says_so(capsys: Capture, unfinished_run: Path) -> None:
    told = run(capsys, f"inspect {unfinished_run}")
    assert f"{unfinished_run}  (unfinished: what is committed so far)" in told
    assert "1 examples, 3 enc tokens (longest 3), 2 dec tokens (longest 2)" in told


def test_the_sizes_told_are_those_of_the_files(capsys: Capture, decoder_run: Path) -> None:
    told = json.loads(run(capsys, "inspect dec --json"))
    assert told["bytes"] == sum(path.stat().st_size for path in decoder_run.rglob("*") if path.is_file())
    pattern, resid = told["arrays"]
    assert (pattern["key"], pattern["path"]) == ("dec.self.attn_pattern", "dec_self_attn.zarr/attn")
    assert pattern["dims"] == {"layer": 2, "head": 3, "query": None, "key": None}
    assert resid["bytes"] == sum(p.stat().st_size for p in (decoder_run / resid["path"]).rglob("*") if p.is_file())
    assert resid["bytes_per_token"] == resid["bytes"] / 8


@pytest.mark.parametrize("name", ["ex1", "1"])
def test_an_example_shows_its_text_and_tokens_with_positions(capsys: Capture, decoder_run: Path, name: str) -> None:
    assert run(capsys, f"inspect dec --example {name}").splitlines() == [
        "example ex1",
        "",
        r"Hello , Ġ\nworld !",
        "",
        "position  dec token",
        "       0  Hello",
        "       1  ,",
        "       2  Ġ↵world",  # no name of such a vocabulary holds a line break: it is shown as it stands
        "       3  !",
    ]


def test_parts_of_a_character_are_bytes_and_say_of_what_they_are_a_part(capsys: Capture, tmp_path: Path) -> None:
    record("byte", ["é b"], "attn", layers=(0,), out=tmp_path / "traces/bytes")
    assert run(capsys, "inspect bytes --example 0").splitlines()[4:] == [
        "position  dec token",
        r"       0  \xc3       byte C3, part of é",
        r"       1  \xa9       byte A9, part of é",
        "       2  ·",
        "       3  b",
    ]
    told = json.loads(run(capsys, "inspect bytes --example 0 --json"))
    assert told["tokens"] == {"dec": [r"\xc3", r"\xa9", " ", "b"]}
    assert told["names"] == {"dec": ["Ã", "©", "Ġ", "b"]}


def test_an_example_of_an_encoder_decoder_shows_both_stacks(capsys: Capture, unfinished_run: Path) -> None:
    told = json.loads(run(capsys, f"inspect {unfinished_run} --example ex0 --json"))
    assert told["tokens"] == {"enc": ["le", "chat", "dort"], "dec": ["<s>", "the"]}


@pytest.mark.parametrize("place", ["--head L5H3", "--layer 5 --head 3", "--layer 5 --head H3"])
def test_a_head_has_the_numbers_that_were_written(capsys: Capture, decoder_run: Path, place: str) -> None:
    told = json.loads(run(capsys, f"inspect dec --example ex1 {place} --json"))
    assert (told["array"], told["layer"], told["head"]) == ("dec.self.attn_pattern", 5, 3)
    assert told["tokens"] == told["key_tokens"] == list(SENTENCES[1])
    assert np.array_equal(np.array(told["values"], np.float16), causal_pattern(1, 5, 3, 4))


def test_a_head_is_drawn_with_its_tokens(capsys: Capture, decoder_run: Path) -> None:
    lines = run(capsys, "inspect dec --head L2H1").splitlines()
    assert lines[0] == "L2H1  dec.self.attn_pattern  example ex0"
    assert [line.split()[:2] for line in lines[3:6]] == [["0", "The"], ["1", "·cat"], ["2", "·sat"]]
    pattern = causal_pattern(0, 2, 1, 3)
    for query, line in enumerate(lines[3:6]):
        key = int(pattern[query].argmax())
        assert line.endswith(f" → {lines[3 + key].split()[1]} {pattern[query, key]:.2f}")


def test_a_row_site_is_a_table_of_norms(capsys: Capture, decoder_run: Path) -> None:
    assert run(capsys, "inspect dec --site resid_post").splitlines() == [
        "L5  dec.resid_post  example ex0",
        "",
        "position  token  norm  min  max",
        "       0  The       0    0    0",
        "       1  ·cat      5   -4    3",
        "       2  ·sat     10   -8    6",
    ]


def test_cross_attention_has_the_decoder_s_queries_and_the_encoder_s_keys(
    capsys: Capture, unfinished_run: Path
) -> None:
    told = json.loads(run(capsys, f"inspect {unfinished_run} --site dec.cross.attn_pattern --json"))
    assert told["tokens"] == ["<s>", "the"]
    assert told["key_tokens"] == ["le", "chat", "dort"]
    assert told["values"] == [[0.5] * 3] * 2


def test_png_saves_one_head_or_all_of_them(capsys: Capture, decoder_run: Path, tmp_path: Path) -> None:
    assert run(capsys, "inspect dec --png all.png") == "all.png: all heads of dec.self.attn_pattern, example ex0\n"
    run(capsys, "inspect dec --head L5H0 --png one.png")
    sizes = []
    for name in ("all.png", "one.png"):
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size)
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--example ex9", 3, "error: no example 'ex9'"),
        ("--head L3H0", 2, "layer 3"),
        ("--head L5H2", 2, "head 2"),
        ("--head 3", 2, "error: which layer?"),
        ("--layer 5", 2, "error: which head?"),
        ("--site logits", 3, "error: logits was not recorded"),
        ("--site atn_pattern", 2, "error: no site 'atn_pattern'"),
        ("--site resid_post --png x.png", 2, "error: dec.resid_post is no (query, key) matrix"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    capsys: Capture, decoder_run: Path, arguments: str, code: int, message: str
) -> None:
    assert main(["inspect", "dec", *arguments.split()]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


def test_a_site_that_is_there_several_times_must_be_named_in_full(capsys: Capture, unfinished_run: Path) -> None:
    assert main(["inspect", str(unfinished_run), "--site", "attn_pattern"]) == 2
    assert "enc.self.attn_pattern or dec.self.attn_pattern or dec.cross.attn_pattern" in capsys.readouterr().err


def test_what_a_classifier_says_of_a_text_is_shown_by_its_labels(capsys: Capture, tmp_path: Path) -> None:
    layout = runs.plan(arrays=[runs.spec("dec.class_logits")], n_examples=2, dtype="float32")
    labels = ["calm", "angry", "glad", "sad", "a\nb"]
    with RunWriter.create(tmp_path / "run", layout, {**runs.META, "labels": labels}, digest=runs.DIGEST) as writer:
        runs.write_shards(writer)
        folder = writer.finish()
    values = runs.truth(layout, layout.arrays[0], 1).tolist()
    summary = run(capsys, f"inspect {folder}").splitlines()
    assert summary[3] == r"labels     calm, angry, glad, sad, a\nb"
    assert summary[7].split() == ["dec.class_logits", "label", "5", *summary[7].split()[3:5], "-"]
    assert json.loads(run(capsys, f"inspect {folder} --json"))["labels"] == labels
    rows = [line.split() for line in run(capsys, f"inspect {folder} --example 1 --site class_logits").splitlines()[3:]]
    assert rows == [[name, f"{value:.4g}"] for name, value in zip([*labels[:4], r"a\nb"], values, strict=True)]
    shown = json.loads(run(capsys, f"inspect {folder} --example 1 --site class_logits --json"))
    assert (shown["array"], shown["labels"], shown["values"]) == ("dec.class_logits", labels, values)
