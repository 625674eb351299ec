"""What is refused: one bad input for every verb, with its exit code and the lines that say why and what would do."""

import pytest

from tests.cli.conftest import Terminal
from traceformer.cli import VERBS

USAGE, INPUT, MODEL = 2, 3, 4

REFUSED: dict[str, tuple[str, int, str, str]] = {
    "demo": ("demo --frobnicate", USAGE, "demo has no option '--frobnicate'", "traceformer demo --help"),
    "check": ("check gptt2 --device cpu", INPUT, "gptt2", "gpt2"),
    "extract": ("extract --model byte --dataset demoo", INPUT, "demoo", "demo"),
    "generate": ("generate --model byte --prompt The --max-tokens 0", USAGE, "--max-tokens cannot be '0'", "--help"),
    "list": ("list nowhere", INPUT, "nowhere", ""),
    "inspect": ("inspect run --site resid_middle", USAGE, "no site 'resid_middle'", "resid_mid"),
    "analyze": ("analyze rum", INPUT, "no run 'rum'", ""),
    "heads": ("heads", USAGE, "", ""),
    "circuits": ("circuits nothing", INPUT, "no model at nothing", ""),
    "cluster": ("cluster nothing.csv", INPUT, "nothing.csv", ""),
    "compare": ("compare run nowhere", INPUT, "no run 'nowhere'", ""),
    "paths": ("paths run --example 99", INPUT, "no example '99'", ""),
    "project": ("project run --vector short.npy", USAGE, "the vectors of short are 3 wide", ""),
    "vectors": ("vectors show texts.txt", INPUT, "texts.txt is no file of directions", ""),
    "fit-lens": ("fit-lens run", USAGE, "a lens of 6 examples", "more texts"),
    "lens": ("lens run --position 999", USAGE, "999", ""),
    "patch": ("patch byte --clean ab --corrupt abc --answer c --wrong d", USAGE, "tokens", "--align end"),
    "ablate": ("ablate byte demoo", INPUT, "demoo", "demo"),
    "edges": ("edges byte --clean ab --corrupt ax --answer c", USAGE, "no wrong", "--wrong"),
    "probe": ("probe run --label upos", INPUT, "no column 'upos'", "input_ids"),
    "dose": ("dose byte dynamic --direction short.npy --layer 1 --scales 1", USAGE, "3", ""),
    "attribute": ("attribute run --position 999", USAGE, "999", ""),
    "view": ("view nowhere", INPUT, "no run 'nowhere'", "traceformer extract"),
    "export": ("export run --format npz", USAGE, "no format 'npz'", "safetensors"),
    "import": ("import texts.txt", INPUT, "texts.txt is of no known format", "safetensors"),
    "verify": ("verify nowhere", INPUT, "no run 'nowhere'", ""),
    "finish": ("finish nowhere", INPUT, "no run 'nowhere'", ""),
    "upgrade": ("upgrade nowhere", INPUT, "no run 'nowhere'", ""),
    "sync": ("sync run s3://", USAGE, "no place in a bucket: 's3://'", "s3://bucket"),
    "train": ("train --data nothing.txt --preset tiny", INPUT, "nothing.txt", ""),
}
"""For each verb a line, the exit code, and what `error:` and `try:` name."""


def test_every_verb_is_asked() -> None:
    assert REFUSED.keys() == VERBS.keys()


@pytest.mark.parametrize("verb", REFUSED)
def test_what_cannot_be_is_refused_in_three_lines(verb: str, terminal: Terminal) -> None:
    line, code, error, hint = REFUSED[verb]
    before = sorted(terminal.folder.rglob("*"))
    typed = terminal.type(line)
    assert (typed.code, typed.out) == (code, ""), typed.err
    said = dict(line.split(":", 1) for line in typed.err.splitlines() if line.startswith(("error:", "why:", "try:")))
    assert error in said["error"]
    assert {"why", "try"} & said.keys(), typed.err
    assert hint in said.get("try", "")
    assert "Traceback" not in typed.err
    assert sorted(terminal.folder.rglob("*")) == before


def test_a_vector_of_another_width_is_refused_before_a_folder_is_begun(terminal: Terminal) -> None:
    before = sorted(terminal.folder.rglob("*"))
    typed = terminal.type("generate --model byte --prompt The --steer short.npy:2@1 --max-tokens 2 --device cpu")
    assert (typed.code, typed.out) == (USAGE, "")
    assert "error: a direction of width 3\nwhy:   dec.resid_post has rows of width 256" in typed.err
    assert sorted(terminal.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "train --preset tiny --data texts.txt --out_dir s3://bucket/model",
            "on disk, and this is a place in a bucket",
        ),
        ("export run --output gs://bucket/files", "on disk, and this is a place in a bucket"),
        ("ablate byte demo --out_dir s3://bucket/effects", "on disk, and this is a place in a bucket"),
        ("extract --model byte --dataset demo --out_dir s3://", "no place in a bucket: 's3://'"),
        ("extract --model byte --dataset demo --out_dir gcs://b/x", "gcs: is neither a bucket's scheme nor a folder"),
    ],
)
def test_no_folder_is_made_of_what_means_a_bucket(line: str, why: str, terminal: Terminal) -> None:
    before = sorted(terminal.folder.rglob("*"))
    typed = terminal.type(line)
    assert (typed.code, typed.out) == (USAGE, "")
    assert why in typed.err
    assert sorted(terminal.folder.rglob("*")) == before
