"""Parts of work, done by this process or by workers: in order, each once, whoever dies."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import skip
from traceformer.capture.workers.engine import Ray
from traceformer.capture.workers.team import team
from traceformer.errors import TraceformerError, UsageError


def test_this_process_does_all_of_it_when_it_is_asked_for() -> None:
    done: list[int] = []

    def work(made: str, part: int) -> str:
        done.append(part)
        return f"{made} {part}"

    with team(None, lambda: "made") as everyone:
        assert everyone.one(str.upper) == "MADE"
        of_parts = everyone.each(work, [3, 1, 2])
        assert (next(of_parts), done) == ("made 3", [3])
        assert [*of_parts] == ["made 1", "made 2"]


@pytest.fixture(scope="module")
def one_session() -> Iterator[None]:
    try:
        import ray
    except ImportError:
        skip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


slow = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("one_session")]


class TestWorkers:
    """What Ray's workers do."""

    pytestmark = slow

    def test_what_parts_come_to_is_in_their_order(self) -> None:
        def work(made: int, part: int) -> tuple[int, int]:
            time.sleep(0.02 * (part % 3))
            return made, part

        with team(Ray(workers=2), lambda: 7) as everyone:
            assert everyone.one(lambda made: made + 1) == 8
            assert [*everyone.each(work, range(30))] == [(7, part) for part in range(30)]
            assert [*everyone.each(work, range(3))] == [(7, part) for part in range(3)]
            assert [*everyone.each(work, [])] == []

    def test_the_part_of_a_worker_that_dies_is_done_by_another(self, tmp_path: Path) -> None:
        def work(made: None, part: int) -> int:
            mark = tmp_path / str(part)
            if part in (0, 4, 9) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return part

        died = pytest.warns(UserWarning, match=r"worker \d died; another does its part")
        with died, team(Ray(workers=2), lambda: None) as everyone:
            assert [*everyone.each(work, range(12))] == [*range(12)]
        assert len([*tmp_path.iterdir()]) == 3

    def test_workers_that_die_again_and_again_are_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("traceformer.capture.workers.team._MOST_DEATHS", 2)

        def die(made: None, part: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given_up = pytest.raises(TraceformerError, match="workers died 3 times, and nothing was done between")
            with given_up, team(Ray(workers=2), lambda: None) as everyone:
                list(everyone.each(die, [1]))

    def test_an_error_is_raised_here_and_ends_the_workers(self, tmp_path: Path) -> None:
        def work(made: None, part: int) -> None:
            if part == 1:
                raise UsageError("such a part", hint="another one")
            time.sleep(0.5)
            (tmp_path / str(part)).touch()

        refused = pytest.raises(UsageError, match="such a part; another one")
        with team(Ray(workers=2), lambda: None) as everyone:
            with refused, closing(everyone.each(work, range(9))) as of_parts:
                list(of_parts)
            time.sleep(2)
            assert len([*tmp_path.iterdir()]) <= 1

    def test_what_workers_warn_of_is_said_once(self) -> None:
        def prepare() -> None:
            warnings.warn("texts are cut", stacklevel=1)

        def work(made: None, part: int) -> int:
            warnings.warn("texts are cut", stacklevel=1)
            return part

        warned = pytest.warns(UserWarning, match="texts")
        with warned as said, team(Ray(workers=2), prepare) as everyone:
            assert [*everyone.each(work, range(4))] == [*range(4)]
        assert [str(each.message) for each in said] == ["texts are cut"]
