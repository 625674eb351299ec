"""What computed a shard is stated by its record, and no longer has to agree for a run to be gone on with."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import ConfigurationChanged
from traceformer.store.commits import CommitRecord, verify_run
from traceformer.store.hosts import UNKNOWN, Host, computed_by
from traceformer.store.leased import LeasedWriter
from traceformer.store.locks import find_unfinished
from traceformer.store.memory import MemoryWriter
from traceformer.store.verification import verify_folder
from traceformer.store.writer import RunWriter

BEFORE = {**runs.DIGEST, "threads": 2}  # as earlier versions stated it
SMALL, LARGE = Host(1, 2, "AVX2"), Host(8, 64, "AVX512")


def write_on(writer: RunWriter | MemoryWriter, *hosts: Host) -> None:
    """Writes as many shards as hosts are given, each as if that one had computed it."""
    for shard, host in zip(writer.pending, hosts, strict=False):
        buffer = writer.buffer()
        writer.commit(shard, buffer, runs.fill(writer.layout, shard, buffer), host)


@pytest.mark.parametrize("now", [runs.DIGEST, {**runs.DIGEST, "threads": 4}])
def test_a_run_that_states_its_threads_is_resumed_with_any_number_of_them(
    tmp_path: Path, now: dict[str, object]
) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=BEFORE) as writer:
        runs.write_shards(writer, 1)
    assert find_unfinished(tmp_path, now) == tmp_path / "_tmp_run"
    with RunWriter.resume(tmp_path / "run", layout, runs.META, digest=now) as writer:
        runs.write_shards(writer)
        folder = writer.finish()
    assert json.loads((folder / "meta.json").read_bytes())["configuration"]["threads"] == 2
    assert verify_run(folder) == []
    assert runs.holds_what_was_written(TraceStore(folder))


def test_what_changes_bytes_must_still_agree(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=BEFORE):
        pass
    other = {**BEFORE, "batch_size": 16}
    assert find_unfinished(tmp_path, other) is None
    with pytest.raises(ConfigurationChanged, match="another batch_size;"):
        RunWriter.resume(tmp_path / "run", layout, runs.META, digest=other)


def test_each_record_states_its_host_and_so_do_verify_and_a_copy(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)  # three shards
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        assert writer.last_host == UNKNOWN
        write_on(writer, SMALL)
        assert writer.last_host == SMALL
    with RunWriter.resume(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        write_on(writer, LARGE, LARGE)
        run = TraceStore(writer.finish())
    assert run.folder is not None
    assert [CommitRecord.read(run.folder, shard).host for shard in range(3)] == [SMALL, LARGE, LARGE]
    told = verify_folder(run.folder)
    assert list(map(str, told.computed)) == [
        "1 thread on 2 cores AVX2: shard 0",
        "8 threads on 64 cores AVX512: shards 1-2",
    ]
    assert told.to_json()["computed"][1] == {"threads": 8, "cores": 64, "instructions": "AVX512", "shards": "1-2"}
    assert run.save(tmp_path / "copy").computed == run.computed == told.computed


def test_a_run_in_memory_keeps_its_hosts(tmp_path: Path) -> None:
    writer = MemoryWriter(runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST)
    write_on(writer, SMALL, SMALL, LARGE)
    run = writer.finish()
    assert run.computed == computed_by({0: SMALL, 1: SMALL, 2: LARGE}) == run.save(tmp_path / "run").computed


def test_a_record_that_states_no_host_has_none(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    assert "host" not in json.loads((folder / "commits/0.json").read_bytes())
    assert TraceStore(folder).computed == verify_folder(folder).computed == ()


@pytest.mark.parametrize(
    ("here", "before", "changed"),
    [
        (SMALL, SMALL, ()),
        (SMALL, UNKNOWN, ()),
        (SMALL, Host(threads=1), ()),
        (SMALL, LARGE, ("threads", "cores", "instructions")),
        (Host(1, 4, "AVX2"), SMALL, ("cores",)),
    ],
)
def test_what_differs_is_what_both_know(here: Host, before: Host, changed: tuple[str, ...]) -> None:
    assert here.changed_from(before) == changed


@given(st.dictionaries(st.integers(0, 40), st.sampled_from([SMALL, LARGE, UNKNOWN])))
def test_ranges_of_shards_name_each_shard_once(hosts: dict[int, Host]) -> None:
    named: dict[int, Host] = {}
    for each in computed_by(hosts):
        for part in each.shards.split(", "):
            first, _, last = part.partition("-")
            shards = range(int(first), int(last or first) + 1)
            assert not named.keys() & {*shards}
            named |= dict.fromkeys(shards, each.host)
    assert named == {shard: host for shard, host in hosts.items() if host != UNKNOWN}


@pytest.mark.parametrize("told", [{}, {"threads": "2"}, {"threads": True}, {"threads": 2, "colour": "red"}])
def test_a_host_of_another_version_is_what_is_known_of_it(told: dict[str, object]) -> None:
    assert Host.from_json(told) == (Host(threads=2) if told.get("threads") == 2 and "colour" in told else UNKNOWN)


def test_writers_that_are_handed_shards_commit_any_of_them_once(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=24)
    with (
        LeasedWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, writer=(3, 0)) as one,
        LeasedWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, writer=(7, 0)) as other,
    ):
        assert one.pending == other.pending == [0, 1, 2, 3, 4, 5]
        for shard, writer in zip((4, 0, 5, 2, 1, 3), (one, one, other, one, other, other), strict=True):
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        assert one.finish() == other.finish() == tmp_path / "run"
    plain = runs.write(tmp_path / "plain", layout)
    for path in plain.rglob("c.*"):
        assert (tmp_path / "run" / path.relative_to(plain)).read_bytes() == path.read_bytes()
    assert verify_run(tmp_path / "run") == []


def test_nothing_is_said_where_nothing_differs() -> None:
    from traceformer.capture.hosts import host_here, warn_of_another_host

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_another_host(UNKNOWN, host_here())
        warn_of_another_host(host_here(), host_here())
