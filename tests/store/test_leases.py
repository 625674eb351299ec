"""Leases in a folder and in a bucket: one owner at a time, taken over once they run out, concluded once."""

import json
import os
import threading
from pathlib import Path

import pytest

from tests.store.bucket_server import Bucket
from traceformer.errors import RunExists
from traceformer.store import leases
from traceformer.store.leases import Lease, Leases, refuse_at_work
from traceformer.store.objects.path import AnyPath


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    if request.param == "folder":
        (tmp_path / "run/leases").mkdir(parents=True)
        return tmp_path / "run"
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.place("run")


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def owners(run: AnyPath, clock: Clock, number: int = 2) -> list[Leases]:
    return [Leases(run, seconds=100, clock=clock) for _ in range(number)]


def test_what_one_has_taken_nobody_else_can_take(run: AnyPath) -> None:
    one, other = owners(run, Clock())
    assert one.take("3")
    assert one.take("3")
    assert not other.take("3")
    assert other.take("4")
    assert (one.holds("3"), other.holds("3"), other.holds("4")) == (True, False, True)
    assert one.look(["2", "3", "4", "5"]) == (["2", "5"], {})
    one.close()
    other.close()


def test_of_many_that_try_at_once_one_has_it(run: AnyPath) -> None:
    many = owners(run, Clock(), 8)
    barrier, taken = threading.Barrier(8), list[bool]()

    def take(owner: Leases) -> None:
        barrier.wait()
        taken.append(owner.take("0"))

    threads = [threading.Thread(target=take, args=(owner,)) for owner in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    for owner in many:
        owner.close()


def test_a_lease_that_ran_out_is_taken_over_and_its_owner_finds_out(run: AnyPath) -> None:
    clock = Clock()
    one, other = owners(run, clock)
    assert one.take("3")
    clock.now += 99
    assert not other.take("3")
    clock.now += 2
    assert other.take("3")
    assert not one.holds("3")
    one.renew()
    assert other.holds("3")
    assert not one.conclude("3", b"{}")
    assert other.conclude("3", b"{}")
    one.release("3", done=True)
    assert other.look(["3"]) == ([], {"3": b"{}"})
    one.close()
    other.close()


def test_a_lease_that_is_renewed_lasts(run: AnyPath) -> None:
    clock = Clock()
    one, other = owners(run, clock)
    assert one.take("3")
    for _ in range(5):
        clock.now += 90
        one.renew()
    assert not other.take("3")
    one.close()


def test_leases_are_renewed_by_themselves_while_their_owner_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    renewed = threading.Event()

    class Renewed(Leases):
        def renew(self) -> None:
            super().renew()
            renewed.set()

    with Renewed(tmp_path, seconds=0.04) as one:
        assert one.take("3")
        before = (tmp_path / "leases/3.1.json").read_bytes()
        assert renewed.wait(30)
        assert (tmp_path / "leases/3.1.json").read_bytes() != before


def test_a_lease_that_was_given_back_can_be_taken_at_once(run: AnyPath) -> None:
    one, other = owners(run, Clock())
    with one:
        assert one.take("3")
    assert other.take("3")
    other.close()


def test_a_lease_of_a_process_of_this_machine_that_is_no_more_has_run_out(
    run: AnyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = owners(run, Clock())
    assert one.take("3")
    monkeypatch.setattr(leases, "is_running", lambda process: process != os.getpid())
    assert other.take("3")
    monkeypatch.undo()
    assert not one.holds("3")
    one.close()
    other.close()


def test_a_process_of_another_machine_may_be_at_work_whatever_its_number() -> None:
    here = Lease("owner", leases.this_machine(), 2**22 + 1, 200.0)  # beyond what Linux gives to a process
    assert not here.is_alive(100.0)
    assert Lease("owner", "elsewhere", 2**22 + 1, 200.0).is_alive(100.0)


def test_what_is_concluded_is_not_taken_but_its_record_is_told(run: AnyPath) -> None:
    clock = Clock()
    one, other = owners(run, clock)
    record = json.dumps({"text": "ein Umlaut: ü\n"}, ensure_ascii=False).encode()
    assert one.take("3")
    assert one.conclude("3", record)
    clock.now += 1000
    assert not other.take("3")
    assert not other.take("3", by_force=True)
    assert other.look(["3"]) == ([], {"3": record})
    one.release("3", done=True)
    assert other.look(["3"]) == (["3"], {})
    one.close()
    other.close()


def test_who_knows_that_an_owner_is_dead_takes_over_before_the_lease_has_run_out(run: AnyPath) -> None:
    one, other = owners(run, Clock())
    assert one.take("3")
    assert other.take("3", by_force=True)
    assert not one.holds("3")
    one.close()
    other.close()


def test_a_lease_that_cannot_be_read_has_run_out(run: AnyPath) -> None:
    (run / "leases/3.7.json").write_bytes(b'{"owner": "some')
    [one] = owners(run, Clock(), 1)
    assert one.take("3")
    assert (run / "leases/3.8.json").is_file()
    one.close()


def test_while_somebody_is_at_work_a_run_is_not_begun_anew(run: AnyPath) -> None:
    with Leases(run) as one:
        one.announce()
        with pytest.raises(RunExists, match="another process is writing"):
            refuse_at_work(run)
    refuse_at_work(run)


def test_in_a_folder_that_was_renamed_nothing_is_taken_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "run/leases").mkdir(parents=True)
    with Leases(tmp_path / "run") as one:
        assert one.take("3")
        (tmp_path / "run").rename(tmp_path / "finished")
        one.renew()
        assert not one.holds("3")
        assert not one.take("4")
        assert not one.conclude("3", b"{}")
    assert not (tmp_path / "run").exists()
