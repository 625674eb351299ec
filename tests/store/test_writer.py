"""What is written is what was given, and nothing that goes wrong costs what was there."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.store import runs
from traceformer.errors import (
    ConfigurationChanged,
    NotFound,
    NumericError,
    OutOfSpace,
    RunExists,
    TraceformerError,
    UsageError,
)
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.reader import TraceStore
from traceformer.store.writer import RunWriter, find_unfinished, unfinished_folder

FULL_DISK_SKIP = "needs a small file system of its own: mount a tmpfs and name it in TRACEFORMER_SMALL_DISK"


def begin(folder: Path, shards: int = 0, layout: Any = None, **options: Any) -> Path:
    """Writes the first shards of a run and stops; returns the unfinished folder."""
    with RunWriter.create(
        folder, layout or runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST, **options
    ) as writer:
        runs.write_shards(writer, shards)
        return writer.folder


def complete(folder: Path, layout: Any = None, **options: Any) -> Path:
    with RunWriter.resume(
        folder, layout or runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST, **options
    ) as writer:
        runs.write_shards(writer)
        return writer.finish()


# Identity


@pytest.mark.parametrize("arch", ["enc", "dec", "encdec"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_every_array_reads_back_as_it_was_written(tmp_path: Path, arch: str, dtype: str) -> None:
    layout = runs.plan(arch, dtype=dtype)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    for array in layout.arrays:
        for example in range(layout.n_examples):
            read = store.get(runs.name(example), array.key)
            wanted = runs.expected(layout, array, example)
            assert read.dtype == wanted.dtype
            assert np.array_equal(read, wanted)
    assert verify_run(store.folder) == []


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
@pytest.mark.parametrize("attn_codec", ["exact", "sqrt8"])
def test_codecs_change_no_token_array_and_sqrt8_only_patterns(tmp_path: Path, codec: str, attn_codec: str) -> None:
    layout = runs.plan("dec", codec=codec, attn_codec=attn_codec)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    for array in layout.arrays:
        exact = runs.truth(layout, array, 2).astype(np.float16)
        read = store.get(runs.name(2), array.key)
        if attn_codec == "sqrt8" and array.key.site == "attn_pattern":
            assert np.abs(read - exact).max() <= 0.004 + 5e-4  # half a step of the code, and float16's rounding
            assert np.allclose(read, runs.expected(layout, array, 2), rtol=0, atol=1e-7)
        else:
            assert np.array_equal(read, exact)


def test_an_example_beyond_256_mib_is_split_by_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceformer.store.layout.SHARD_BYTES", 64 * 1024)
    layout = runs.plan(arrays=[runs.spec("dec.self.attn_pattern")], n_examples=3, shard_examples=None)
    assert layout.shard_examples == 1
    store = TraceStore(runs.write(tmp_path / "run", layout))
    assert len(list((store.folder / "dec_self_attn.zarr/attn").glob("c.*"))) == 3 * 2
    for example in range(3):
        assert np.array_equal(store.attn(runs.name(example)), runs.expected(layout, layout.arrays[0], example))


def test_a_recycled_buffer_leaves_nothing_of_the_last_shard(tmp_path: Path) -> None:
    import zarr

    layout = runs.plan("encdec")
    folder = runs.write(tmp_path / "run", layout)
    for array in layout.arrays:
        if array.site.is_matrix:
            on_disk = zarr.open_group(folder / layout.array_path(array.key).split("/")[0], mode="r")
            whole = np.asarray(on_disk[layout.array_path(array.key).split("/")[1]])  # pyright: ignore
            for example in range(layout.n_examples):
                own = runs.expected(layout, array, example)
                padded = np.zeros(whole.shape[1:], whole.dtype)
                padded[:, :, : own.shape[2], : own.shape[3]] = own
                assert np.array_equal(whole[example], padded)


def test_a_shard_without_tokens_is_there(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=2, shard_examples=2)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [0, 0]})
        writer.commit(0, buffer, runs.pa.table({"example_id": ["a", "b"]}))
        store = TraceStore(writer.finish())
    assert store.qkv("a", "q", layer=1, head=0).shape == (0, 8)
    assert store.attn("b", layer=1, head=0).shape == (0, 0)
    assert store.activations("resid_mid", 1).shape == (0, 24)
    assert verify_run(store.folder) == []


def test_token_tables_say_where_each_example_lies(tmp_path: Path) -> None:
    layout = runs.plan("encdec")
    folder = runs.write(tmp_path / "run", layout)
    table = pq.read_table(folder / "tokens.parquet").to_pylist()
    assert [row["example_id"] for row in table] == [runs.name(example) for example in range(11)]
    for example, row in enumerate(table):
        shard, own = example // 4, range(example // 4 * 4, example)
        assert row["shard"] == shard
        assert row["slot"] == shard * 4 * 128 + sum(runs.lengths(layout, other)["enc"] for other in own)
        assert row["dec_slot"] == shard * 4 * 64 + sum(runs.lengths(layout, other)["dec"] for other in own)
    parts = [pq.read_table(folder / f"tokens/{shard}.parquet").to_pylist() for shard in range(3)]
    assert [row for part in parts for row in part] == table


def test_no_lock_and_nothing_temporary_stays_in_a_finished_run(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    left = [path for path in runs.contents(folder) if "lock" in path or "/." in f"/{path}" or path.endswith(".part")]
    assert left == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_per_example_are_those_of_the_rule(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    files = runs.contents(runs.write(tmp_path / "run", layout))
    per_shard = [
        name for name in files if ("/c." in name and "token_" not in name) or name.startswith(("tokens/", "commits/"))
    ]
    assert len(per_shard) == layout.n_shards * (len(runs.FEW) + 2)


# Crashing and resuming


def test_a_resumed_run_equals_an_uninterrupted_one_byte_for_byte(tmp_path: Path) -> None:
    whole = runs.contents(runs.write(tmp_path / "whole/run", runs.plan(arrays=runs.FEW)))
    begin(tmp_path / "parts/run", 1)
    begin_again = unfinished_folder(tmp_path / "parts/run")
    assert committed_shards(begin_again) == [0]
    assert runs.contents(complete(tmp_path / "parts/run")) == whole


def test_what_a_killed_writer_left_of_a_shard_is_replaced(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    whole = runs.contents(runs.write(tmp_path / "whole/run", layout))
    folder = begin(tmp_path / "run", 1)
    for array in layout.arrays:
        for path in layout.shard_files(array, 1):
            (folder / path).write_bytes(b"half a shard")
    (folder / "tokens/1.parquet").write_bytes(b"half a table")
    (folder / "commits/.1.json.99.part").write_bytes(b"half a record")
    (folder / "dec_res_embed.zarr/x/c.1.0.__lock").write_bytes(b"")
    assert runs.contents(complete(tmp_path / "run")) == whole


def spawn(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.runs", str(folder), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_until_finished(folder: Path, kills: int, seconds: float) -> int:
    """Kills and resumes writers of a run at random moments, then lets one finish; returns how many were killed."""
    random, killed = np.random.default_rng(), 0
    for _ in range(kills):
        with spawn(folder) as process:
            time.sleep(random.uniform(0, seconds))
            if process.poll() is None:
                process.kill()
                killed += 1
        if folder.exists():
            return killed
    with spawn(folder) as process:
        process.communicate()
        assert process.returncode == 0
    return killed


def crash_test(tmp_path: Path, kills: int) -> None:
    start = time.perf_counter()
    with spawn(tmp_path / "whole/run") as process:
        process.communicate()
    seconds = time.perf_counter() - start
    whole = runs.contents(tmp_path / "whole/run")
    done = 0
    for attempt in range(kills):
        folder = tmp_path / f"killed-{attempt}/run"
        done += kill_until_finished(folder, min(6, kills - done), seconds / 4)
        assert verify_run(folder) == []
        assert runs.contents(folder) == whole
        assert [path.name for path in folder.parent.iterdir()] == ["run"]
        shutil.rmtree(folder.parent)
        if done >= kills:
            return


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    crash_test(tmp_path, kills=3)


@pytest.mark.slow
def test_a_run_killed_40_times_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    crash_test(tmp_path, kills=40)


def test_finishing_can_be_interrupted_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runs.contents(runs.write(tmp_path / "whole/run", runs.plan(arrays=runs.FEW)))
    steps = ("write_metadata", "_write_positions", "_join_tokens", "write_manifest", "_move_in", "sync_folder")
    for step in steps:
        folder = tmp_path / step / "run"
        begin(folder, 3)
        with monkeypatch.context() as patch:
            patch.setattr(f"traceformer.store.finishing.{step}", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                complete(folder)
        done = folder if folder.exists() else complete(folder)
        assert runs.contents(done) == whole


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_resume_takes_the_unfinished_folder_too(tmp_path: Path) -> None:
    assert complete(begin(tmp_path / "run", 2)) == tmp_path / "run"


def test_nothing_to_resume_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing to resume"):
        complete(tmp_path / "run")


def test_a_folder_that_was_killed_before_it_had_a_head_is_begun_anew(tmp_path: Path) -> None:
    unfinished_folder(tmp_path / "run").mkdir()
    assert TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))).n == 11


def test_the_newest_unfinished_run_of_the_same_configuration_is_found(tmp_path: Path) -> None:
    assert find_unfinished(tmp_path, runs.DIGEST) is None
    for age, name in enumerate(("b", "c", "a")):
        os.utime(begin(tmp_path / name) / "meta.json", (0, age))
    with RunWriter.create(tmp_path / "z", runs.plan(), {}, digest={"model": "other"}):
        assert find_unfinished(tmp_path, runs.DIGEST) == tmp_path / "_tmp_a"
    (tmp_path / "_tmp_a/meta.json").write_text("{}")
    assert find_unfinished(tmp_path, runs.DIGEST) == tmp_path / "_tmp_c"


def test_the_order_of_the_digests_names_does_not_matter(tmp_path: Path) -> None:
    begin(tmp_path / "run", 1)
    shuffled = dict(reversed(runs.DIGEST.items()))
    with RunWriter.resume(tmp_path / "run", runs.plan(arrays=runs.FEW), {}, digest=shuffled) as writer:
        assert writer.pending == [1, 2]


@pytest.mark.parametrize(
    ("digest", "named"),
    [
        ({**runs.DIGEST, "model": "huge"}, 'another model.*"tiny", is "huge"'),
        ({**runs.DIGEST, "revision": "main"}, 'another revision.*null, is "main"'),
        ({"model": "tiny", "sites": ["q"]}, "another sites and batch_size"),
    ],
)
def test_a_changed_configuration_is_refused_and_named(tmp_path: Path, digest: dict[str, Any], named: str) -> None:
    folder = begin(tmp_path / "run", 1)
    before = runs.contents(folder)
    with pytest.raises(ConfigurationChanged, match=named):
        RunWriter.resume(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=digest)
    assert runs.contents(folder) == before


def test_a_changed_layout_is_refused_and_named(tmp_path: Path) -> None:
    begin(tmp_path / "run", 1)
    with pytest.raises(ConfigurationChanged, match=r"another shard_examples.*was 4, is 2"):
        complete(tmp_path / "run", runs.plan(arrays=runs.FEW, shard_examples=2))


# Several writers


def test_two_writers_make_the_run_of_one(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    whole = runs.contents(runs.write(tmp_path / "whole/run", layout))
    folder = tmp_path / "run"
    first = RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST, writer=(0, 2))
    second = RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST, writer=(1, 2))
    with first, second:
        assert (first.pending, second.pending) == ([0, 2], [1])
        runs.write_shards(first)
        assert first.finish() == unfinished_folder(folder)
        runs.write_shards(second)
        assert second.finish() == folder
        assert first.finish() == folder
    found = runs.contents(folder)
    differing = {path for path in whole.keys() | found.keys() if whole.get(path) != found.get(path)}
    assert differing == {"commits/0.json", "commits/1.json", "commits/2.json", "manifest.json"}
    assert verify_run(folder) == []


def test_two_processes_may_finish_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        with spawn(folder, "--writer", "0", "2") as first, spawn(folder, "--writer", "1", "2") as second:
            said = [process.communicate()[0] for process in (first, second)]
            assert [first.returncode, second.returncode] == [0, 0]
        assert f"{folder}\n" in said
        assert verify_run(folder) == []
        shutil.rmtree(folder)


def test_a_joining_writer_must_have_the_same_configuration(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with (
        RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, writer=(0, 2)),
        pytest.raises(RunExists, match="unfinished run"),
    ):
        RunWriter.create(tmp_path / "run", layout, runs.META, digest={"model": "other"}, writer=(1, 2))


@pytest.mark.parametrize("writer", [(1, 1), (-1, 2), (0, 0)])
def test_a_writers_number_must_be_one_of_w(tmp_path: Path, writer: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="writer"):
        begin(tmp_path / "run", writer=writer)


# Locks


@pytest.mark.parametrize("other", [(0, 1), (0, 2), (1, 2)])
def test_a_second_process_is_refused_while_the_first_writes(tmp_path: Path, other: tuple[int, int]) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with (
        RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST),
        pytest.raises(RunExists, match="another process is writing"),
    ):
        complete(tmp_path / "run", writer=other)
    assert complete(tmp_path / "run") == tmp_path / "run"


def test_a_crash_leaves_no_lock_behind(tmp_path: Path) -> None:
    with spawn(tmp_path / "run") as process:
        while not (tmp_path / "_tmp_run/commits/0.json").exists():
            time.sleep(0.01)
        process.kill()
    with RunWriter.resume(tmp_path / "run", runs.long_plan(), runs.META, digest=runs.DIGEST) as writer:
        assert 0 not in writer.pending


def test_overwrite_does_not_touch_a_run_that_is_being_written(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 1)
        with pytest.raises(RunExists, match="another process"):
            begin(tmp_path / "run", overwrite=True)
        assert committed_shards(writer.folder) == [0]


# What is there stays


def test_a_finished_run_is_not_replaced_unless_told(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    before = runs.contents(folder)
    with pytest.raises(RunExists, match="--overwrite"):
        begin(folder)
    with pytest.raises(RunExists):
        complete(folder)
    assert runs.contents(folder) == before


def test_an_unfinished_run_is_not_replaced_unless_told(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", 1)
    with pytest.raises(RunExists, match="--resume"):
        begin(tmp_path / "run")
    assert committed_shards(folder) == [0]
    assert committed_shards(begin(tmp_path / "run", overwrite=True)) == []


def test_an_overwritten_run_is_there_until_the_new_one_is_finished(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    before = runs.contents(folder)
    begin(folder, 1, overwrite=True)
    assert runs.contents(folder) == before
    complete(folder, overwrite=True)
    assert verify_run(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_crash_while_runs_change_places_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    begin(folder, 1, overwrite=True)
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda self, to: _interrupt() if self.name == "_tmp_run" else rename(self, to))
        with pytest.raises(KeyboardInterrupt):
            complete(folder, overwrite=True)
    assert verify_run(tmp_path / "_old_run") == []
    complete(folder, overwrite=True)
    assert verify_run(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(RunExists, match="is not a run"):
        begin(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run/thesis.tex").read_text() == "years of work"


def test_a_run_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    begin(tmp_path / "run", 3)
    with RunWriter.resume(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST) as writer:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/other").touch()
        with pytest.raises(RunExists, match="meanwhile"):
            writer.finish()
    assert committed_shards(tmp_path / "_tmp_run") == [0, 1, 2]


# Bad numbers, bad rows, no space


@pytest.mark.parametrize(
    ("dtype", "value", "said", "hint"),
    [
        ("float16", np.inf, "layer 4 of dec.resid_mid does not fit into float16", "--dtype float32"),
        ("float16", np.nan, "layer 4 of dec.resid_mid is NaN in example 2", "weights"),
        ("float32", np.inf, "layer 4 of dec.resid_mid is infinite in example 2", "weights"),
        ("bfloat16", -np.inf, "layer 4 of dec.resid_mid is infinite", "weights"),
    ],
)
def test_a_value_that_is_no_number_stops_the_run(
    tmp_path: Path, dtype: str, value: float, said: str, hint: str
) -> None:
    layout = runs.plan(arrays=runs.FEW, dtype=dtype)
    key = runs.spec("dec.resid_mid").key
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer)
        buffer.rows(key, 2)[1, 0, 5] = runs.as_stored(layout, runs.spec("dec.resid_mid"), np.array(value, np.float32))
        with pytest.raises(NumericError, match=said) as caught:
            writer.commit(0, buffer, table)
        assert hint in caught.value.hint
        assert committed_shards(writer.folder) == []


def test_rows_that_are_not_the_shards_are_refused(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, writer=(0, 2)) as writer:
        for shard, rows, said in ((1, 4, "not pending"), (0, 3, "has 4 examples"), (2, 4, "has 3 examples")):
            buffer = writer.buffer()
            table = runs.fill(layout, 0, buffer).slice(0, rows)
            with pytest.raises(UsageError, match=said):
                writer.commit(shard, buffer, table)
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer).set_column(0, "example_id", [["a", "b", "a", "c"]])
        with pytest.raises(UsageError, match="twice"):
            writer.commit(0, buffer, table)


def test_lengths_must_fit_the_layout(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", runs.plan("encdec"), runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        for wrong in ({"enc": [1]}, {"enc": [1, 2], "dec": [1]}, {"enc": [], "dec": []}, {"enc": [129], "dec": [1]},
                      {"enc": [1] * 5, "dec": [1] * 5}):  # fmt: skip
            with pytest.raises(UsageError):
                buffer.begin(wrong)


def test_at_most_two_buffers_exist(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        first, second = writer.buffer(), writer.buffer()
        third: list[Any] = []
        waiting = threading.Thread(target=lambda: third.append(writer.buffer()))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        writer.commit(0, second, runs.fill(layout, 0, second))
        waiting.join(5)
        assert third == [second]
        assert first is not second


def test_too_little_space_is_found_before_a_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 1)
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
        with pytest.raises(OutOfSpace, match="1 MiB free"):
            runs.write_shards(writer)
        assert committed_shards(writer.folder) == [0]


def test_a_disk_that_fills_up_while_writing_costs_only_the_open_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = begin(tmp_path / "run", 1)
    before = runs.contents(folder)
    monkeypatch.setattr("traceformer.store.writer.durable_write", full)
    with pytest.raises(OutOfSpace, match="is full"):
        complete(tmp_path / "run")
    assert runs.contents(folder) == before
    monkeypatch.undo()
    assert verify_run(complete(tmp_path / "run")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB: mounted, where the tests may, or the one that the environment names."""
    given = os.environ.get("TRACEFORMER_SMALL_DISK")
    if given:
        folder = Path(given) / f"test-{os.getpid()}"
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
        return
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip(FULL_DISK_SKIP)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("look_first", [True, False])
def test_a_full_disk_keeps_what_is_committed_and_resume_goes_on(
    small_disk: Path, look_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not look_first:
        monkeypatch.setattr(RunWriter, "_check_space", lambda *_: None)
    layout = runs.plan(arrays=runs.FEW, n_examples=400, longest={"dec": 256}, shard_examples=8)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 << 20))
    with pytest.raises(OutOfSpace):
        begin(small_disk / "run", 50, layout)
    store = TraceStore(small_disk / "_tmp_run")
    assert not store.finished
    assert 0 < store.n < 400
    assert verify_run(store.folder) == []
    last = store.n - 1
    assert np.array_equal(store.attn(runs.name(last)), runs.expected(layout, layout.arrays[0], last))
    ballast.unlink()
    committed = store.n // 8
    with RunWriter.resume(small_disk / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        assert writer.pending[0] == committed
        runs.write_shards(writer, 1)
    assert TraceStore(small_disk / "_tmp_run").n == store.n + 8


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=40, shard_examples=1, longest={"dec": 320})
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs.write_shards(writer)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 4 * layout.bytes_per_shard() + (8 << 20)


def test_meta_says_what_it_was_given_and_how_to_read_it(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    meta = json.loads((runs.write(tmp_path / "run", layout) / "meta.json").read_text())
    assert meta["model"] == "tiny"
    assert meta["format_version"] == 1
    assert meta["layout"]["shard_examples"] == 4
    assert meta["configuration"] == runs.DIGEST


def test_an_error_of_the_caller_keeps_what_is_committed(tmp_path: Path) -> None:
    def fail() -> None:
        with RunWriter.create(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST) as writer:
            runs.write_shards(writer, 2)
            raise TraceformerError("the model broke")

    with pytest.raises(TraceformerError, match="broke"):
        fail()
    assert complete(tmp_path / "run") == tmp_path / "run"
