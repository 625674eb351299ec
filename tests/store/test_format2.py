"""Runs of format 2 open for good: `format2.tar.xz` was written by the last version of the package that wrote it.

In it, `tests.store.runs` filled three examples of 7, 1 and 12 tokens of the arrays of `tests.store.streams` in shards
of two: all of `run`, one shard of `_tmp_begun`. Every row is stored, however often it is there.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.store import runs, streams
from traceformer import TraceStore
from traceformer.cli import main
from traceformer.errors import CorruptRun
from traceformer.store.commits import RunHead, verify_run

LENGTHS = (7, 1, 12)


@pytest.fixture
def format2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "lengths", lambda _, example: {"dec": LENGTHS[example]})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    streams.patch(monkeypatch)
    shutil.unpack_archive(Path(__file__).parent / "format2.tar.xz", tmp_path / "format2", filter="data")
    return tmp_path / "format2"


def test_a_run_of_format_2_opens_with_its_numbers_and_passes_verify(format2: Path) -> None:
    run = TraceStore(format2 / "run")
    assert (run.meta["format_version"], run.finished, run.n) == (2, True, 3)
    assert (run.layout.aliases, run.layout.kept) == ({}, run.layout.arrays)
    assert "aliases" not in run.meta["layout"]
    assert runs.holds_what_was_written(run)
    assert run.tokens["n_tokens"].tolist() == list(LENGTHS)
    tree = run.to_xarray()
    assert np.array_equal(tree["dec_hidden"]["h"].sel(hidden_layer=4), run.activations("hidden", 4))
    assert verify_run(format2 / "run") == []


def test_damage_to_a_run_of_format_2_is_found_when_it_is_touched(format2: Path) -> None:
    shard = format2 / "run/dec_hidden.zarr/h/c.0.1.0"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert [str(problem.path) for problem in verify_run(format2 / "run")] == ["dec_hidden.zarr/h/c.0.1.0"]
    with pytest.raises(CorruptRun, match="another file"):
        TraceStore(format2 / "run").get("example-2", "hidden")


@pytest.mark.slow
def test_a_run_of_format_2_is_exported(format2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(format2 / "run"), "--format", "safetensors", "--output", str(format2 / "out")]) == 0
    layout = RunHead.read(format2 / "run").layout
    arrays = load_file(format2 / "out/example-2.safetensors")
    for spec in layout.arrays:
        wanted = runs.expected(layout, spec, 2)
        assert any(np.array_equal(wanted, each) for each in arrays.values())


def test_a_copy_of_a_run_of_format_2_is_of_the_newest_format(format2: Path) -> None:
    copy = TraceStore(format2 / "run").save(format2 / "copy")
    assert (copy.meta["format_version"], copy.layout.aliases) == (3, {})
    assert runs.holds_what_was_written(copy)
    assert verify_run(format2 / "copy") == []


def test_an_unfinished_run_of_format_2_is_resumed_and_stays_one(format2: Path) -> None:
    begun = TraceStore(format2 / "_tmp_begun")
    assert (begun.finished, begun.n) == (False, 2)
    assert runs.holds_what_was_written(begun)
    layout = streams.plan(n_examples=3, shard_examples=2, longest={"dec": 12})
    assert layout.aliases
    finished = TraceStore(runs.complete(format2 / "begun", layout))  # as a recording of today would lay it out
    assert (finished.meta["format_version"], finished.finished, finished.n) == (2, True, 3)
    assert runs.holds_what_was_written(finished)
    assert verify_run(format2 / "begun") == []
    files = runs.contents(format2 / "run")
    shards = [path for path in files if path.rpartition("/")[2].startswith("c.")]
    assert [runs.contents(format2 / "begun")[path] for path in shards] == [files[path] for path in shards]
