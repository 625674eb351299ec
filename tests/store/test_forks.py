"""Worker processes: each reads, or says why it cannot and what would work; none is aborted."""

import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.store import runs
from tests.store.bucket_server import Bucket
from traceformer import TraceStore
from traceformer.errors import TraceformerError, Unsupported
from traceformer.store import chunks


def forked(work: Callable[[], object]) -> str:
    """Returns what a forked child says of its work: its result or its error; `killed` if it said nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = repr(work())
        except TraceformerError as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said or "killed"


def in_time(work: Callable[[], object]) -> object:
    """Does a child's work, and ends the child if it waits for what a thread of its parent had."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(4)
    return work()


def main() -> None:
    """What a process of its own does: pytest's has used tensorstore already, and has threads."""
    from torch.utils.data import DataLoader

    run = TraceStore(sys.argv[1])
    sums = np.load(sys.argv[2]).tolist()
    assert forked(lambda: Sums(run)[3]) == repr(sums[3])  # nothing was read here so far
    assert list(DataLoader(Sums(run), batch_size=None, num_workers=2, multiprocessing_context="fork")) == sums
    assert Sums(run)[0] == sums[0]
    said = forked(lambda: Sums(run)[3])
    assert said.startswith("Unsupported: arrays cannot be read in a process that was forked"), said
    assert "multiprocessing_context='spawn'" in said
    assert forked(lambda: run.text(3)) == "'text 3'"
    with pytest.raises(Unsupported, match="multiprocessing_context='spawn'"):
        list(DataLoader(Sums(run), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert list(DataLoader(Sums(run), batch_size=None, num_workers=2, multiprocessing_context="spawn")) == sums


class Sums:
    """A data set as torch has it: of each example the sum of its embeddings."""

    def __init__(self, run: TraceStore) -> None:
        self.run = run

    def __len__(self) -> int:
        return self.run.n

    def __getitem__(self, row: int) -> float:
        return float(self.run.get(row, "embed").sum())


@pytest.mark.slow
def test_forked_workers_read_or_say_why_not_and_spawned_ones_read(decoder: TraceStore, tmp_path: Path) -> None:
    np.save(tmp_path / "sums.npy", [Sums(decoder)[row] for row in range(decoder.n)])
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.store.test_forks",
            str(decoder.folder),
            str(tmp_path / "sums.npy"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_process_forked_after_reading_gets_an_error_and_no_abort(decoder: TraceStore) -> None:
    run = decoder
    before = run.get(0, "embed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's process has threads, and Python says so
        assert forked(lambda: run.get(1, "embed")).startswith("Unsupported: arrays cannot be read in a process that")
        assert forked(lambda: run.text(1)) == "'text 1'"
    assert np.array_equal(run.get(0, "embed"), before)


def test_a_process_forked_in_the_midst_of_looking_for_chunks_finds_its_own(tmp_path: Path) -> None:
    run = TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW[3:4])))
    spec, slots = run.layout.kept[0], run.layout.shard_slots("dec")
    grid = (len(spec.layers), slots // run.layout.chunk_shape(spec)[-2], 1)
    one, other = (run.layout.shard_files(spec, shard)[0] for shard in (0, 1))
    indexes, said = chunks._Indexes(str(run.folder)), set[str]()  # pyright: ignore[reportPrivateUsage]

    def look() -> object:
        sys.settrace(None)
        return in_time(lambda: indexes.of(other, grid).shape)

    def at_each_line(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != chunks.__file__ or frame.f_code.co_name != "of":
            return None
        if event == "line":
            said.add(forked(look))
        return at_each_line

    traced = sys.gettrace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.settrace(at_each_line)
        try:
            shape = indexes.of(one, grid).shape
        finally:
            sys.settrace(traced)
    assert said == {repr(shape)}


@pytest.mark.slow
def test_a_process_forked_after_a_bucket_was_asked_gets_an_error_and_waits_for_nothing(
    bucket: Bucket, tmp_path: Path
) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    run = tf.sync(folder, f"s3://{bucket.name}/run")
    reads: list[Callable[[], object]] = [
        lambda: run.get(1, "resid_mid"),
        lambda: run.attn(1),
        lambda: run.text(1),
        lambda: tf.open_run(f"s3://{bucket.name}/run"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for read in reads:
            assert forked(lambda read=read: in_time(read)).startswith(
                "Unsupported: buckets cannot be asked in a process"
            )
    assert np.array_equal(run.get(1, "resid_mid"), TraceStore(folder).get(1, "resid_mid"))


def test_a_run_is_pickled_as_its_folder(decoder: TraceStore) -> None:
    again = pickle.loads(pickle.dumps(decoder))
    assert (again.folder, again.ids) == (decoder.folder, decoder.ids)


if __name__ == "__main__":
    main()
