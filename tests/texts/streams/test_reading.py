"""Records in order, and every point of a stream: reading on from there gives what an uninterrupted reading gives."""

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.errors import ConfigurationChanged, UsageError
from traceformer.texts.streams.parts import Found, Listed
from traceformer.texts.streams.reading import Point, Reading, Shuffle


class Numbers:
    """A file of so many records, each a number."""

    has_every_field = False
    restarts = True

    def __init__(self, name: str, first: int, count: int) -> None:
        self.name = self.label = name
        self.size: int | None = count
        self._numbers = range(first, first + count)

    def read(self, start: int) -> Iterator[Found]:
        for number in self._numbers[start:]:
            yield Found({"number": number}, f"line {number}")


def files(*counts: int) -> list[Numbers]:
    return [Numbers(f"{at}.txt", sum(counts[:at]), count) for at, count in enumerate(counts)]


def numbers(reading: Reading) -> list[int]:
    return [record.row["number"] for record in reading]


def test_records_come_in_order_and_say_where_they_are() -> None:
    records = list(Reading(files(2, 0, 3)))
    assert [record.number for record in records] == [record.row["number"] for record in records] == [0, 1, 2, 3, 4]
    assert [record.where for record in records] == [f"{name}.txt, line {n}" for n, name in enumerate("00222")]


def test_shuffled_each_record_comes_once_and_stays_in_its_block() -> None:
    reading = Reading(files(7, 30, 1, 12), Shuffle(seed=5, buffer=8))
    found = numbers(reading)
    assert sorted(found) == list(range(50))
    assert [number // 8 for number in found] == sorted(number // 8 for number in range(50))
    assert found != sorted(found)
    assert found != numbers(Reading(files(7, 30, 1, 12), Shuffle(seed=6, buffer=8)))


def test_the_order_of_a_seed_is_the_same_for_good() -> None:
    # Worked out with hashlib alone: blake2b(f"5 2 {place}".encode(), digest_size=16), sorted.
    assert Shuffle(seed=5, buffer=8).order(2, 8) == EXPECTED


EXPECTED = [7, 0, 5, 6, 3, 4, 2, 1]


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    buffer=st.none() | st.integers(2, 11),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_from_every_point_on_comes_what_would_have_come(
    counts: list[int], buffer: int | None, seed: int, data: st.DataObject
) -> None:
    shuffle = None if buffer is None else Shuffle(seed, buffer)
    whole = numbers(Reading(files(*counts), shuffle))
    stop = data.draw(st.integers(0, len(whole)))
    begun = Reading(files(*counts), shuffle)
    assert numbers_of(begun, stop) == whole[:stop]
    point = Point.from_json(begun.point.to_json())
    assert point.records == stop
    gone_on = Reading(files(*counts), shuffle, point)
    assert gone_on.point == point
    assert numbers(gone_on) == whole[stop:] == numbers(begun)


def numbers_of(reading: Reading, count: int) -> list[int]:
    return [record.row["number"] for record in islice(reading, count)]


def test_an_iterator_is_read_on_without_a_second_beginning() -> None:
    def texts() -> Iterator[dict[str, int]]:
        yield from ({"number": number} for number in range(40))

    shuffle = Shuffle(seed=1, buffer=7)
    whole = numbers(Reading([Listed(texts(), lambda text: "text")], shuffle))
    assert sorted(whole) == list(range(40))
    reading = Reading([Listed(texts(), lambda text: "text")], shuffle)
    reading.pass_over(17)
    assert numbers(reading) == whole[17:]


def test_files_that_changed_before_a_point_are_refused_and_new_ones_behind_it_are_read() -> None:
    begun = Reading(files(3, 3))
    numbers_of(begun, 4)
    point = begun.point
    assert (point.file, point.record) == ("1.txt", 1)
    assert numbers(Reading(files(3, 3, 2), None, point)) == [4, 5, 6, 7]
    with pytest.raises(ConfigurationChanged, match="files before it are not those that were read"):
        Reading(files(4, 3), None, point)
    with pytest.raises(ConfigurationChanged, match=r"there is no file 1\.txt any more"):
        Reading(files(3), None, point)
    with pytest.raises(ConfigurationChanged, match="the stream ends before the place where the run stopped"):
        Reading(files(3, 1), Shuffle(1, 8), Point(6, "0.txt", 0, begun_at(files(3, 3))))


def begun_at(parts: list[Numbers]) -> str:
    return Reading(parts).point.before


def test_a_buffer_of_one_shuffles_nothing_and_is_refused() -> None:
    with pytest.raises(UsageError, match="shuffle_buffer=1"):
        Shuffle(seed=1, buffer=1)


@pytest.mark.parametrize(
    "stated",
    [
        {"records": -1, "file": "", "record": 0, "before": ""},
        {"records": 1, "file": 2, "record": 0, "before": ""},
        {"records": True, "file": "", "record": 0, "before": ""},
    ],
)
def test_a_point_that_is_none_is_refused(stated: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        Point.from_json(stated)
