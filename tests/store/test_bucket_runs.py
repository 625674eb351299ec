"""Runs that are written to a bucket: through faults, killed, and without a trace of who has the keys."""

import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.store import bucket_server, runs, steps
from tests.store.bucket_server import Bucket, Fault, Request
from tests.store.contract import worlds
from traceformer.errors import RunExists, Unsupported, UsageError
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.leased import LeasedWriter
from traceformer.store.objects.path import ObjectPath
from traceformer.store.place import Place
from traceformer.store.run import Run

LAYOUT = steps.small_plan()


def write(place: ObjectPath, layout: Any = LAYOUT, **options: Any) -> None:
    with LeasedWriter.create(place, layout, runs.META, digest=runs.DIGEST, **options) as writer:
        worlds.write_shards(writer)
        assert writer.finish() == place


def test_a_run_in_a_bucket_has_the_bytes_of_one_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    """The one fast test of it all; what holds of runs in every place is in `contract`."""
    write(bucket.place("runs/first"))
    assert bucket.contents(bucket.place("runs/first")) == runs.contents(runs.write(tmp_path / "run", LAYOUT))


@pytest.mark.slow
def test_a_bucket_that_fails_and_is_slow_for_a_while_loses_nothing(bucket: Bucket, tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=20, shard_examples=2)
    whole = runs.contents(runs.write(tmp_path / "run", layout))
    dice, slow = random.Random(7), itertools.count()
    kinds: tuple[Fault, ...] = ("500", "503", "broken", "lost")

    def fault(request: Request) -> Fault | None:
        if dice.random() < 0.2:
            return dice.choice(kinds)
        return "slow" if dice.random() < 0.02 and next(slow) < 10 else None

    bucket.proxy.fault = fault
    write(bucket.place("run"), layout)
    bucket.proxy.reset()
    assert bucket.contents(bucket.place("run")) == whole
    assert verify_run(bucket.place("run")) == []


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_to_a_bucket_is_resumed_to_the_same_bytes(
    bucket: Bucket, tmp_path: Path
) -> None:
    whole = runs.contents(runs.write(tmp_path / "run", runs.long_plan()))
    place, killed = bucket.place("run"), 0
    dice = random.Random(3)
    for _ in range(4):
        began = len(bucket.proxy.requests)
        process = spawn(place)
        wanted = began + dice.randrange(20, 120)
        while process.poll() is None and len(bucket.proxy.requests) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
        process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
    assert killed > 2
    assert not (place / "manifest.json").is_file()
    assert committed_shards(place)
    start = time.monotonic()
    process = spawn(place)
    out, _ = process.communicate()
    assert (process.returncode, out.strip().splitlines()[-1]) == (0, str(place))
    assert time.monotonic() - start < 60, "a dead process's lease was waited for"
    assert worlds.without_leases(bucket.contents(place)) == whole
    assert verify_run(place) == []


def spawn(place: ObjectPath) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.store.bucket_writer", str(place)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})


@pytest.mark.slow
def test_neither_keys_nor_the_address_of_the_server_are_written(bucket: Bucket) -> None:
    place = Place(folder=bucket.place("run"))
    place.check()
    write(bucket.place("run"))
    told = b"".join(request.body for request in bucket.proxy.requests)
    for secret in (bucket_server.SECRET_KEY, bucket_server.ACCESS_KEY, bucket.proxy.url, "127.0.0.1"):
        assert secret.encode() not in told


@pytest.mark.slow
def test_what_cannot_work_in_a_bucket_is_said_before_anything_is_written(bucket: Bucket) -> None:
    with pytest.raises(UsageError, match="is a bucket"):
        Place(folder=ObjectPath.parse(f"s3://{bucket.name}")).check()
    with pytest.raises(UsageError, match="thumbnails of a run in a bucket"):
        Place(folder=bucket.place("run"), thumbnails=True).check()
    write(bucket.place("run"))
    with pytest.raises(RunExists, match="run exists"):
        Place(folder=bucket.place("run")).check()
    with pytest.raises(RunExists, match="is finished"):
        Place(folder=bucket.place("run"), resume=True).check()
    Place(folder=bucket.place("run"), overwrite=True).check()


@pytest.mark.slow
def test_a_bucket_that_overwrites_what_must_be_absent_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older servers do, to which the header says nothing."""
    forward = bucket_server.Proxy.forward

    def deaf(self: Any, request: Any, target: str, headers: dict[str, str]) -> Any:
        return forward(
            self, request, target, {name: of for name, of in headers.items() if name.lower() != "if-none-match"}
        )

    monkeypatch.setattr(bucket_server.Proxy, "forward", deaf)
    with pytest.raises(Unsupported, match="overwrites what is to be written only if it is not there"):
        write(bucket.place("run"))


@pytest.mark.slow
def test_a_writer_that_takes_part_only_writes_its_part(bucket: Bucket, tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW[:2], n_examples=8, shard_examples=2)
    for w in range(2):
        with LeasedWriter.create(bucket.place("run"), layout, runs.META, digest=runs.DIGEST, writer=(w, 2)) as writer:
            assert writer.pending == [w, w + 2]
            worlds.write_shards(writer)
            assert writer.finish() == bucket.place("run")
    assert bucket.contents(bucket.place("run")) == runs.contents(runs.write(tmp_path / "run", layout))


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
def test_every_compression_can_be_written_to_a_bucket(bucket: Bucket, tmp_path: Path, codec: str) -> None:
    layout = runs.plan(arrays=runs.FEW[:3], n_examples=5, shard_examples=2, codec=codec)
    write(bucket.place("run"), layout)
    assert bucket.contents(bucket.place("run")) == runs.contents(runs.write(tmp_path / "run", layout))


@pytest.mark.slow
def test_a_run_in_a_bucket_reads_as_it_was_written(bucket: Bucket) -> None:
    write(bucket.place("run"))
    assert runs.holds_what_was_written(Run(bucket.place("run")))  # pyright: ignore[reportArgumentType]
