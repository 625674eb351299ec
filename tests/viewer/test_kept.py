"""What is kept: made once by whoever comes first, and forgotten beyond a number or a size."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from traceformer.progress import OnStep
from traceformer.viewer.kept import Kept, Pending, bytes_of


def test_what_many_threads_ask_for_is_made_once() -> None:
    kept, made = Kept(10, 1000_000), []

    def make() -> int:
        made.append(1)
        time.sleep(0.05)
        return 7

    with ThreadPoolExecutor(20) as pool:
        assert [*pool.map(lambda _: kept.get("key", make), range(20))] == [7] * 20
    assert made == [1]


def test_what_fails_is_made_anew() -> None:
    kept = Kept(10, 1000_000)
    with pytest.raises(ZeroDivisionError):
        kept.get("key", lambda: 1 // 0)
    assert kept.get("key", lambda: 5) == 5


def test_beyond_a_number_those_asked_for_least_lately_are_forgotten() -> None:
    kept = Kept(2, 1000_000)
    for key in "ab":
        kept.get(key, lambda: "old")
    kept.get("a", lambda: "new")
    kept.get("c", lambda: "old")
    assert len(kept) == 2
    assert [kept.get(key, lambda: "new") for key in "acb"] == ["old", "old", "new"]


def test_beyond_a_size_too_but_never_the_last() -> None:
    kept = Kept(100, 10_000)
    for key in range(5):
        kept.get(key, lambda: np.zeros(4000, np.uint8))
    assert len(kept) == 2
    kept.get("large", lambda: np.zeros(1 << 20, np.uint8))
    assert len(kept) == 1


def test_arrays_and_texts_are_counted_wherever_they_are() -> None:
    value = {"a": [np.zeros(1000), (np.zeros(10, np.uint8), "x" * 500)]}
    assert 8510 <= bytes_of(value) <= 8510 + 6 * 256


def test_long_work_says_how_far_it_is_and_is_done_once() -> None:
    kept, go_on, made = Kept(10, 1000_000), threading.Event(), []

    def work(tell: OnStep) -> str:
        made.append(1)
        tell(3, 8)
        assert go_on.wait(60)
        return "done"

    while (at := kept.later("key", work, patience=0.01)) == Pending(0, 0):
        pass
    assert at == Pending(3, 8)
    assert at.to_json() == {"pending": {"done": 3, "of": 8}}
    go_on.set()
    assert kept.later("key", work, patience=60) == "done"
    assert kept.later("key", work) == "done"
    assert made == [1]


def test_quick_work_is_answered_at_once_and_a_failure_is_told() -> None:
    kept = Kept(10, 1000_000)
    assert kept.later("key", lambda _: 5, patience=60) == 5

    def fail(_: OnStep) -> None:
        raise KeyError("key")

    for _ in range(2):
        with pytest.raises(KeyError):
            kept.later("other", fail, patience=60)
