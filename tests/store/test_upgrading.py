"""A run of an older format in the newest one: the same numbers, each row once, and the old run as safe as ever."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.store import runs, streams
from tests.store.test_memory import kept
from traceformer.cli import main
from traceformer.errors import CorruptRun, RunExists, Unsupported, UsageError
from traceformer.store import saving, upgrading
from traceformer.store.commits import verify_run
from traceformer.store.run import Run

LENGTHS = (7, 1, 12)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of format 2 whose arrays are `streams.STREAM`."""
    monkeypatch.setattr(runs, "lengths", lambda _, example: {"dec": LENGTHS[example]})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    streams.patch(monkeypatch)
    shutil.unpack_archive(Path(__file__).parent / "format2.tar.xz", tmp_path, filter="data")
    return tmp_path / "run"


def holds_all(run: Run) -> bool:
    return all(
        np.array_equal(run.get(example, array.key), runs.expected(run.layout, array, example))
        for array in streams.STREAM
        for example in range(run.n)
    )


def test_rows_that_are_equal_in_all_examples_are_stored_once(old: Path) -> None:
    before = runs.contents(old)
    new = tf.upgrade(old)
    assert new.folder == old.with_name("run_format3")
    assert (new.meta["format_version"], new.meta["run_id"], new.finished) == (3, "run_format3", True)
    assert {str(rows): str(one) for rows, one in new.layout.aliases.items()} == streams.ALIASES
    assert {str(spec.key): spec.layers for spec in new.layout.kept} == streams.KEPT
    assert (new.layout.triangles, new.layout.matrix_codec) == ((), "bitshuffle-lz4")  # these look at later keys
    assert holds_all(new)
    assert new.table.equals(Run(old).table)
    assert verify_run(old.with_name("run_format3")) == []
    assert runs.contents(old) == before


def test_causal_patterns_become_triangles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = runs.truth

    def causal(layout: Any, array: Any, example: int) -> np.ndarray:
        found = truth(layout, array, example)
        return np.tril(found) if array.site.is_matrix else found

    monkeypatch.setattr(runs, "truth", causal)
    squares = Run(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW, n_examples=5)))
    assert not squares.layout.triangles
    monkeypatch.setattr(upgrading, "FORMAT_VERSION", 4)  # of which this is an older one
    new = tf.upgrade(squares)
    assert [*map(str, new.layout.triangles)] == ["dec.self.attn_pattern"]
    for example in range(new.n):
        np.testing.assert_array_equal(new.attn(example), runs.expected(squares.layout, runs.FEW[0], example))


def test_rows_that_differ_in_one_example_stay_apart(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = runs.truth

    def other_in_the_last(layout: Any, array: Any, example: int) -> np.ndarray:
        found = truth(layout, array, example)
        if example == 2 and array.key.site == "resid_post":
            found[1, -1, -1] += 1  # layer 3
        return found

    monkeypatch.setattr(runs, "truth", other_in_the_last)
    layout = streams.plan(n_examples=3, shard_examples=2, longest={"dec": 12})
    folder = runs.write(old.with_name("other"), replace(layout, aliases={}))
    written = Run(folder)
    object.__setattr__(written.on_disk().head, "version", 2)
    new = tf.upgrade(written)
    assert {str(rows) for rows in new.layout.aliases} == streams.ALIASES.keys() - {"dec.resid_post[3]"}
    assert holds_all(new)


def test_an_upgraded_run_takes_the_old_one_s_place_when_asked_to(old: Path) -> None:
    new = tf.upgrade(old, replace=True)
    assert (new.folder, new.meta["run_id"], new.meta["format_version"]) == (old, "run", 3)
    assert holds_all(new)
    assert sorted(path.name for path in old.parent.iterdir()) == ["_tmp_begun", "run"]


def test_a_run_of_format_1_is_upgraded(old: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = Path(shutil.copytree(Path(__file__).parent / "format1/run", tmp_path / "first"))
    before = {(example, str(spec.key)): Run(first).get(example, spec.key) for example in range(3) for spec in runs.FEW}
    new = tf.upgrade(first, tmp_path / "new")
    assert (new.meta["format_version"], new.layout.aliases) == (3, {})
    assert all(np.array_equal(new.get(example, key), values) for (example, key), values in before.items())
    assert verify_run(tmp_path / "new") == []


def test_a_run_of_the_newest_format_is_left_as_it_is(old: Path) -> None:
    new = tf.upgrade(old)
    assert tf.upgrade(new) is new
    assert tf.upgrade(new, old.with_name("third")) is new
    assert not old.with_name("third").exists()


def test_what_cannot_be_upgraded_is_refused(old: Path) -> None:
    with pytest.raises(UsageError, match="`out` and `replace`"):
        tf.upgrade(old, old.with_name("new"), replace=True)
    with pytest.raises(UsageError, match="not finished"):
        tf.upgrade(old.with_name("_tmp_begun"))
    with pytest.raises(Unsupported, match="in memory"):
        tf.upgrade(kept(streams.plan(n_examples=3, longest={"dec": 12})))
    tf.upgrade(old, old.with_name("new"))
    with pytest.raises(RunExists):
        tf.upgrade(old, old.with_name("new"))
    assert tf.upgrade(old, old.with_name("new"), overwrite=True).verify().ok


def test_a_damaged_run_stays_and_nothing_is_left_of_a_new_one(old: Path) -> None:
    shard = old / "dec_res_post_mlp.zarr/x/c.0.1.0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptRun):
        tf.upgrade(old, replace=True)
    assert sorted(path.name for path in old.parent.iterdir()) == ["_tmp_begun", "run"]


def test_an_interrupted_upgrade_leaves_the_old_run_and_can_be_done_again(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = runs.contents(old)
    with monkeypatch.context() as patched:
        patched.setattr(saving.RunWriter, "finish", runs.interrupt)
        with pytest.raises(KeyboardInterrupt):
            tf.upgrade(old, replace=True)
    assert runs.contents(old) == before
    assert holds_all(tf.upgrade(old, replace=True))


def test_the_command_says_what_it_did(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upgrade", str(old)]) == 0
    typed = capsys.readouterr()
    assert typed.out == f"{old}_format3\n"
    assert typed.err.startswith("format 3, ")
    assert typed.err.endswith(f"{old} is as it was; next: traceformer verify {old}_format3\n")
    assert main(["upgrade", str(old), "--replace", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["out"], told["upgraded"]) == (str(old), str(old), True)
    assert told["bytes"] < told["bytes_before"]
    assert main(["upgrade", str(old)]) == 0
    assert "is of format 3 already" in capsys.readouterr().err
