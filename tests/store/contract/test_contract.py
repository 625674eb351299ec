"""What holds of every run that is being written, on disk and in a bucket, by one writer or by several: one contract.

`folder` is a folder whose writers hold locks, `leases` one whose shards are leased, `bucket` a bucket.
"""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.store import runs, steps
from tests.store.bucket_server import Bucket
from tests.store.contract import worlds
from tests.store.contract.worlds import World
from traceformer.errors import ConfigurationChanged, NotFound, RunExists
from traceformer.store.commits import CommitRecord, committed_shards, record_path
from traceformer.store.layout import MANIFEST, META
from traceformer.store.objects.path import ObjectPath

LAYOUT = steps.small_plan()
LONGER = runs.plan(arrays=runs.FEW[:2], n_examples=12, shard_examples=2)


@pytest.fixture(params=["folder", "leases", pytest.param("bucket", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    bucket = request.getfixturevalue("bucket") if request.param == "bucket" else None
    return worlds.worlds_of(request.param, tmp_path, bucket)


@pytest.fixture(params=["leases", pytest.param("bucket", marks=pytest.mark.slow)])
def shared_world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    bucket = request.getfixturevalue("bucket") if request.param == "bucket" else None
    return worlds.worlds_of(request.param, tmp_path, bucket)


def expected(tmp_path: Path, layout: Any = LAYOUT) -> dict[str, bytes]:
    """Returns the files of the run, as the writer of folders writes them."""
    return runs.contents(runs.write(tmp_path / "expected/run", layout))


def test_a_run_has_the_same_bytes_everywhere(world: World, tmp_path: Path) -> None:
    world.write_or_resume(world.place(), LAYOUT)
    assert world.contents(world.place()) == expected(tmp_path)
    assert world.problems(world.place()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_after_any_change_resumes_to_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.watching(monkeypatch, world.place("watched")):
        world.write_or_resume(world.place("watched"), LAYOUT)
    monkeypatch.setattr("os.fsync", lambda _: None)  # to be quick
    worlds.whoever_had_a_lease_is_dead(monkeypatch)
    whole = expected(tmp_path)
    assert len(world.left) > 20
    for number, left in enumerate(world.left):
        renamed = {name.replace("watched", f"killed-{number}"): data for name, data in left.items()}
        place = world.put_back(renamed, f"killed-{number}")
        world.write_or_resume(place, LAYOUT)
        assert worlds.without_leases(world.contents(place)) == whole


def test_what_is_committed_is_not_written_again(world: World) -> None:
    with world.begin(world.place(), LONGER) as writer:
        worlds.write_shards(writer, 2)
        assert committed_shards(writer.folder) == [0, 1]
    with world.resume(world.place(), LONGER) as writer:
        assert writer.pending == [2, 3, 4, 5]


def test_another_configuration_is_refused_and_named(world: World) -> None:
    with world.begin(world.place(), LONGER) as writer:
        worlds.write_shards(writer, 1)
    before = worlds.without_leases(world.contents(writer.folder))
    with pytest.raises(ConfigurationChanged, match=r'another model.*"tiny", is "huge"'):
        world.resume(world.place(), LONGER, digest={**runs.DIGEST, "model": "huge"})
    with pytest.raises(ConfigurationChanged, match="another n_examples"):
        world.resume(world.place(), runs.plan(arrays=runs.FEW[:2], n_examples=13, shard_examples=2))
    assert worlds.without_leases(world.contents(writer.folder)) == before


def test_there_is_nothing_to_resume_where_nothing_is(world: World) -> None:
    with pytest.raises(NotFound, match="nothing to resume"):
        world.resume(world.place(), LAYOUT)


def test_an_unfinished_run_is_not_begun_anew_unless_told(world: World, tmp_path: Path) -> None:
    with world.begin(world.place(), LAYOUT) as writer:
        worlds.write_shards(writer, 1)
    with pytest.raises(RunExists, match="an unfinished run is in"):
        world.begin(world.place(), LAYOUT)
    with world.begin(world.place(), LAYOUT, overwrite=True) as writer:
        assert writer.pending == [0, 1]
        worlds.write_shards(writer)
        writer.finish()
    assert world.contents(world.place()) == expected(tmp_path)


def test_a_finished_run_is_not_overwritten_unless_told(world: World, tmp_path: Path) -> None:
    world.write_or_resume(world.place(), LONGER)
    before = world.contents(world.place())
    for attempt in (world.begin, world.resume):
        with pytest.raises(RunExists):
            attempt(world.place(), LAYOUT)
    assert world.contents(world.place()) == before
    with world.begin(world.place(), LAYOUT, overwrite=True) as writer:
        worlds.write_shards(writer)
        writer.finish()
    assert world.contents(world.place()) == expected(tmp_path)


def test_what_is_no_run_is_never_written_over(world: World) -> None:
    place = world.place()
    if isinstance(place, Path):
        place.mkdir(parents=True)
    (place / "somebody's.txt").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(RunExists, match="is not a run"):
            world.begin(place, LAYOUT, overwrite=overwrite)
    assert world.contents(place) == {"somebody's.txt": b"precious"}


def test_a_run_that_holds_a_foreign_file_is_not_replaced(world: World) -> None:
    world.write_or_resume(world.place(), LAYOUT)
    (world.place() / "notes.txt").write_bytes(b"precious")
    with pytest.raises(RunExists, match=r"what is not its own: notes\.txt"):
        world.begin(world.place(), LAYOUT, overwrite=True)
    assert (world.place() / "notes.txt").read_bytes() == b"precious"
    assert world.problems(world.place()) == ["notes.txt does not belong to the run"]


def race(world: World, layout: Any, *, joining: dict[str, Any], number: int = 3) -> list[Any]:
    """Has several writers write one run at once, from begin to end, and returns them."""
    done: list[Any] = []
    failed: list[BaseException] = []

    begun = threading.Barrier(number)

    def take_part(w: int) -> None:
        try:
            options = {name: value(w) for name, value in joining.items()}
            with world.begin(world.place(), layout, **options) as writer:
                begun.wait()
                worlds.write_shards(writer)
                writer.finish()
                done.append(writer)
        except BaseException as error:  # a thread's would be lost
            begun.abort()
            failed.append(error)

    threads = [threading.Thread(target=take_part, args=(w,)) for w in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    return done


def test_three_writers_write_one_run_together(world: World, tmp_path: Path) -> None:
    """Those with locks have a third of the shards each; others take what nobody has."""
    how: dict[str, Any] = {"joins": lambda w: True} if world.shared else {"writer": lambda w: (w, 3)}
    writers = race(world, LONGER, joining=how)
    found, whole = world.contents(world.place()), expected(tmp_path, LONGER)
    assert world.problems(world.place()) == []
    if world.shared:
        assert found == whole
        assert sum(writer.lost for writer in writers) == 0
    else:  # records say who wrote them
        assert found.keys() == whole.keys()
        assert {name for name in whole if found[name] != whole[name]} <= {
            MANIFEST,
            *(name for name in whole if name.startswith("commits/")),
        }


def fill_as(owner: int, layout: Any, shard: int, buffer: Any) -> Any:
    """Fills a shard with what only this owner would: numbers of another machine, and its name in the table."""
    table = runs.fill(layout, shard, buffer)
    for array in layout.kept:
        if not array.site.is_matrix:
            for b in range(buffer.n_examples):
                buffer.part(array, b)[...] = owner + 1
    return table.set_column(1, "text", pa.array([f"by {owner}"] * table.num_rows))


def owner_of(world: World, shard: int) -> int:
    """Returns whose a shard is, having looked that all of it is."""
    record = CommitRecord.read(world.place(), shard)
    table = (world.place() / f"tokens/{shard}.parquet").read_bytes()
    [owner] = set(pq.read_table(pa.BufferReader(table))["text"].to_pylist())
    assert record.shard == shard
    return int(owner.split()[1])


@pytest.mark.slow
def test_three_writers_with_other_bytes_that_race_for_the_same_shards_make_one_commit_of_each(
    shared_world: World,
) -> None:
    world = shared_world
    barrier = threading.Barrier(3)
    counts: dict[int, list[int]] = {w: [] for w in range(3)}
    failed: list[BaseException] = []

    def take_part(w: int) -> None:
        try:
            with world.begin(world.place(), LONGER, writer=(w, 0)) as writer:  # told what to write, like the others
                writer.on_commit = lambda record: counts[w].append(record.shard)
                for shard in range(LONGER.n_shards):
                    buffer = writer.buffer()
                    table = fill_as(w, LONGER, shard, buffer)
                    barrier.wait()
                    writer.commit(shard, buffer, table)
                barrier.wait()
                writer.finish()
        except BaseException as error:
            barrier.abort()
            failed.append(error)

    threads = [threading.Thread(target=take_part, args=(w,)) for w in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(shard for own in counts.values() for shard in own) == [*range(LONGER.n_shards)]
    assert world.problems(world.place()) == []
    for w, own in counts.items():
        assert all(owner_of(world, shard) == w for shard in own)


def test_an_owner_that_sleeps_past_its_lease_and_wakes_up_does_no_harm(
    shared_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = shared_world
    from traceformer.store.leases import Leases

    monkeypatch.setattr(Leases, "renew", lambda self: None)
    with world.begin(world.place(), LAYOUT, lease_seconds=0.3) as sleeper:
        shard = next(sleeper.claims())
        buffer = sleeper.buffer()
        table = fill_as(0, LAYOUT, shard, buffer)
        with world.resume(world.place(), LAYOUT) as other:
            for each in other.claims():  # which waits until the lease has run out
                own = other.buffer()
                other.commit(each, own, fill_as(1, LAYOUT, each, own))
                if each == shard:
                    break
            held = world.contents(sleeper.folder)
            sleeper.commit(shard, buffer, table)
            assert (sleeper.lost, other.lost) == (1, 0)
            after = world.contents(sleeper.folder)
            assert worlds.without_leases(after) == worlds.without_leases(held)
            worlds.write_shards(other)
            other.finish()
    assert world.problems(world.place()) == []
    assert owner_of(world, shard) == 1


def test_an_owner_that_falls_asleep_while_it_writes_does_no_harm(
    shared_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = shared_world
    from traceformer.store import placing
    from traceformer.store.leases import Leases

    asleep, awake = threading.Event(), threading.Event()
    name = "keep_object" if isinstance(world.place(), ObjectPath) else "link"
    puts, real = [0], getattr(placing, name)

    def put(*arguments: Any) -> Any:
        mine = threading.current_thread().name.startswith(("sleeper", "put")) and not asleep.is_set()
        if mine and "c.0" in str(arguments[0]) + str(arguments[1] if name == "link" else ""):
            puts[0] += 1
            if puts[0] == 2:  # its first file is there
                asleep.set()
                assert awake.wait(60)
        return real(*arguments)

    monkeypatch.setattr(Leases, "renew", lambda self: None)
    sleeper = world.begin(world.place(), LAYOUT, lease_seconds=0.3)
    shard = next(sleeper.claims())
    assert shard == 0
    buffer = sleeper.buffer()
    table = fill_as(0, LAYOUT, shard, buffer)
    monkeypatch.setattr(placing, name, put)
    sleeping = threading.Thread(target=sleeper.commit, args=(shard, buffer, table), name="sleeper")
    sleeping.start()
    assert asleep.wait(60)
    monkeypatch.setattr(placing, name, real)
    with world.resume(world.place(), LAYOUT) as other:
        for each in other.claims():
            own = other.buffer()
            other.commit(each, own, fill_as(1, LAYOUT, each, own))
        assert record_path(other.folder, shard).is_file()
        awake.set()
        sleeping.join()
        assert (sleeper.lost, other.lost) == (1, 0)
        sleeper.close()
        other.finish()
    assert world.problems(world.place()) == []
    assert owner_of(world, shard) == 1


@pytest.mark.slow
def test_a_run_that_replaces_another_in_a_bucket_is_never_taken_for_it(tmp_path: Path, bucket: Bucket) -> None:
    """Half removed, it has no manifest, and no record of a shard that is not there."""
    world = worlds.worlds_of("bucket", tmp_path, bucket)
    world.write_or_resume(world.place(), LAYOUT)
    left: list[dict[str, bytes]] = []
    place = world.place()
    assert isinstance(place, ObjectPath)
    bucket.proxy.done = lambda request: left.append(world.contents(place))
    with world.begin(place, LAYOUT, overwrite=True):
        pass
    removing = [each for each in left if "tokens.parquet" not in each or MANIFEST not in each]
    assert removing
    for found in removing:
        assert MANIFEST not in found
        for shard in range(LAYOUT.n_shards):
            if f"commits/{shard}.json" in found:
                assert f"tokens/{shard}.parquet" in found
        assert META in found or not found
