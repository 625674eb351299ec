"""Runs of format 1 open for good: `format1/` was written by the last version of the package that wrote it.

There, `tests.store.runs` filled three examples of 7, 1 and 12 tokens in shards of two: all of `run`, one shard of
`_tmp_begun`.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.store import runs
from traceformer import TraceStore
from traceformer.cli import main
from traceformer.errors import CorruptRun
from traceformer.store.commits import RunHead, verify_run

LENGTHS = (7, 1, 12)


@pytest.fixture
def format1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "lengths", lambda _, example: {"dec": LENGTHS[example]})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    return Path(shutil.copytree(Path(__file__).parent / "format1", tmp_path / "format1"))


def test_a_run_of_format_1_opens_with_its_numbers_and_passes_verify(format1: Path) -> None:
    run = TraceStore(format1 / "run")
    assert (run.meta["format_version"], run.finished, run.n) == (1, True, 3)
    assert runs.holds_what_was_written(run)
    assert run.tokens["n_tokens"].tolist() == list(LENGTHS)
    assert run.text("example-2") == "text 2"
    assert verify_run(format1 / "run") == []


def test_damage_to_a_run_of_format_1_is_found(format1: Path) -> None:
    shard = format1 / "run/dec_res_post_attn.zarr/x/c.0.1.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [str(problem.path) for problem in verify_run(format1 / "run")] == ["dec_res_post_attn.zarr/x/c.0.1.0"]
    with pytest.raises(CorruptRun):
        TraceStore(format1 / "run").get("example-2", "resid_mid")


def test_a_run_of_format_1_is_exported(format1: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(format1 / "run"), "--format", "safetensors", "--output", str(format1 / "out")]) == 0
    layout = RunHead.read(format1 / "run").layout
    arrays = load_file(format1 / "out/example-2.safetensors")
    for spec in layout.arrays:
        wanted = runs.expected(layout, spec, 2)
        assert any(np.array_equal(wanted, each) for each in arrays.values())


def test_a_copy_of_a_run_of_format_1_is_of_the_newest_format(format1: Path) -> None:
    copy = TraceStore(format1 / "run").save(format1 / "copy")
    assert copy.meta["format_version"] == 3
    assert runs.holds_what_was_written(copy)
    assert verify_run(format1 / "copy") == []


def test_an_unfinished_run_of_format_1_is_resumed_and_stays_one(format1: Path) -> None:
    begun = TraceStore(format1 / "_tmp_begun")
    assert (begun.finished, begun.n) == (False, 2)
    assert runs.holds_what_was_written(begun)
    finished = TraceStore(runs.complete(format1 / "begun", begun.layout))
    assert (finished.meta["format_version"], finished.finished, finished.n) == (1, True, 3)
    assert runs.holds_what_was_written(finished)
    assert verify_run(format1 / "begun") == []
