"""`traceformer compare` as a user meets it: a run of the built-in model against itself, and what it lacks."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Terminal


def test_a_run_and_itself_are_alike_in_every_part(terminal: Terminal) -> None:
    typed = terminal.type("compare run run")
    assert typed.code == 0, typed.err
    lines = typed.out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["A", "A", "byte"], ["B", "B", "byte"]]
    assert "the same likeliest token at 100.0%" in typed.out
    assert "KL(A, B) 0 nats" in typed.out
    (cka, procrustes) = (
        lines[next(i for i, line in enumerate(lines) if line.startswith(name)) :][1:5] for name in ("CKA", "Procrustes")
    )
    assert [line.split()[2 + i] for i, line in enumerate(cka)] == ["1.000"] * 4
    assert [line.split()[2 + i] for i, line in enumerate(procrustes)] == ["0.000"] * 4
    assert "24 more heads are nearer; --json has all" in typed.out


def test_json_has_all_numbers(terminal: Terminal) -> None:
    told = json.loads(terminal.type("compare run run --json").out)
    assert told["left_out"] == {}
    assert np.array(told["streams"]["cka"]).shape == (4, 4)
    assert len(told["heads"]["total_variation"]) == 32
    assert told["readouts"]["sources"] == ["dec.resid_post of the last layer"] * 2


def test_all_pairs_name_the_nearest_head(terminal: Terminal) -> None:
    typed = terminal.type("compare run run --parts heads --all-pairs --heads 0-3 --layers 2 --limit 2")
    assert [line.split() for line in typed.out.splitlines()[-4:]] == [[f"L2H{n}", f"L2H{n}", "0.000"] for n in range(4)]


def test_a_picture_is_saved(terminal: Terminal) -> None:
    typed = terminal.type("compare run run --limit 1 --png compared.png")
    assert typed.err.splitlines()[-1].startswith("wrote compared.png; next: traceformer compare run run --parts heads")
    with Image.open(terminal.folder / "compared.png") as picture:
        assert min(picture.size) > 500
    (terminal.folder / "compared.png").unlink()


def test_what_a_run_lacks_is_left_out_and_said_or_refused_where_it_is_asked_for(terminal: Terminal) -> None:
    bare = "extract --model byte --dataset several.txt --capture resid_mid --device cpu --out_dir bare"
    assert terminal.type(bare).code == 0
    typed = terminal.type("compare run bare")
    assert (typed.code, typed.out) == (3, "")
    assert "error: the runs hold nothing that can be compared" in typed.err
    assert "readouts: bare holds neither logits nor the last layer's residual stream" in typed.err
    typed = terminal.type("compare run bare --parts streams --site resid_mid")
    assert typed.code == 3
    assert "run holds dec.embed dec.self.z" in typed.err
    assert "why" in typed.err
    typed = terminal.type("compare bare bare")
    assert typed.code == 0
    assert "heads left out: A holds no attention patterns; it holds dec.resid_mid" in typed.out
    typed = terminal.type("compare run bare --parts heads")
    assert typed.code == 3
    assert "try:   record it with --capture attn" in typed.err


@pytest.mark.filterwarnings("always:texts are cut to")
def test_tokens_that_are_not_the_same_are_refused_and_the_flags_that_match_them_named(terminal: Terminal) -> None:
    capture = "--max_seq_len 9 --capture attn resid_post --device cpu"
    assert terminal.type(f"extract --model byte --dataset several.txt {capture} --out_dir cut").code == 0
    typed = terminal.type("compare run cut")
    assert (typed.code, typed.out) == (2, "")
    assert "are not the same in run and cut" in typed.err
    assert "that of one was cut" in typed.err
    assert "try:   --align start compares what both begin with" in typed.err
    for how in ("characters", "start"):
        typed = terminal.type(f"compare run cut --parts streams,heads --align {how} --json")
        told = json.loads(typed.out)
        assert (told["tokens"], told["align"]) == (6 * 9, how)
        # They are the beginnings of the same texts, of which a decoder has seen no more.
        np.testing.assert_allclose(np.diag(told["streams"]["cka"]), 1, atol=1e-5)
        assert max(told["heads"]["total_variation"]) < 1e-3  # patterns in float16
