"""Token tables whose columns differ from shard to shard still make one."""

import datetime
import decimal
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traceformer.store.tables import common_schema, encodable, with_schema

D = decimal.Decimal


def joined(*shards: dict[str, list[Any]]) -> dict[str, list[Any]]:
    tables = [encodable(pa.table(shard)) for shard in shards]
    schema = common_schema([table.schema for table in tables])
    return pa.concat_tables([with_schema(table, schema) for table in tables]).to_pydict()


def test_columns_of_one_type_are_taken_as_they_are() -> None:
    assert joined({"x": [1, 2]}, {"x": [3]}) == {"x": [1, 2, 3]}
    assert joined({"x": ["a"]}, {"x": ["b"]}) == {"x": ["a", "b"]}


def test_a_column_that_is_empty_or_absent_in_a_shard_has_the_others_type() -> None:
    assert joined({"x": [None]}, {"x": [3], "y": ["a"]}) == {"x": [None, 3], "y": [None, "a"]}
    assert joined({"x": [None]}, {"x": [None]}) == {"x": [None, None]}


@pytest.mark.parametrize(
    ("first", "second"),
    [(1, "u"), (True, 1), (2**60 + 1, 1.5), ([1, 2], {"a": 1}), ("u", [1.5]), (1.5, [True])],
)
def test_types_that_no_type_holds_become_json_and_lose_nothing(first: Any, second: Any) -> None:
    found = joined({"x": [first, None]}, {"x": [second]})["x"]
    back = [
        each if isinstance(own, str) else json.loads(each)
        for each, own in zip(found[::2], (first, second), strict=True)
    ]
    assert back == [first, second]
    assert found[1] is None


def test_objects_without_a_field_can_be_written(tmp_path: Any) -> None:
    table = encodable(pa.table({"x": [{}, {}], "y": [[{}], []], "z": [{"a": 1}, None]}))
    pq.write_table(table, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {
        "x": ["{}", "{}"],
        "y": ["[{}]", "[]"],
        "z": [{"a": 1}, None],
    }


KINDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "null": (pa.null(), [None, None]),
    "int8": (pa.int8(), [None, -1]),
    "uint64": (pa.uint64(), [2**64 - 1, None]),
    "float16": (pa.float16(), [1.5, None]),
    "large text": (pa.large_string(), [None, "a"]),
    "text view": (pa.string_view(), ["a", None]),
    "bytes": (pa.binary(), [b"\xff", None]),
    "fixed bytes": (pa.binary(2), [b"ab", None]),
    "decimal": (pa.decimal256(50, 2), [D("1" * 40 + ".10"), None]),
    "date": (pa.date32(), [datetime.date(1, 1, 1), None]),
    "time": (pa.timestamp("us", "Europe/Berlin"), [None, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)]),
    "span": (pa.duration("us"), [datetime.timedelta(1), None]),
    "list of nulls": (pa.list_(pa.null()), [[None], [None, None]]),
    "long list of nulls": (pa.large_list(pa.null()), [[None, None], []]),
    "fixed list": (pa.list_(pa.int32(), 2), [[1, None], None]),
    "list view": (pa.list_view(pa.null()), [[None, None], None]),
    "lists of lists of nulls": (pa.list_(pa.list_(pa.null())), [[[None], []], [None]]),
    "object of nulls": (
        pa.struct([("a", pa.null()), ("b", pa.list_(pa.null()))]),
        [{"a": None, "b": [None, None]}, None],
    ),
    "map": (pa.map_(pa.string(), pa.list_(pa.null())), [[("a", [None, None])], []]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", None]),
    "list of a dictionary": (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a", "b", "a"], None]),
}
"""Arrow types that a data set can hold, with values."""


def written(table: pa.Table) -> pa.Table:
    stream = io.BytesIO()
    pq.write_table(encodable(table), stream)
    return pq.read_table(stream)


@pytest.mark.parametrize("name", KINDS)
def test_a_column_of_any_type_stays_what_it_is_alone_and_beside_shards_without_values(name: str) -> None:
    kind, values = KINDS[name]
    table = written(pa.table({"x": pa.array(values, kind)}))
    for tables in (
        [table],
        [table, table],
        [written(pa.table({"x": [None]})), table],
        [written(pa.table({"y": [1]})), table],
    ):
        schema = common_schema([each.schema for each in tables])
        whole = pa.concat_tables([with_schema(each, schema) for each in tables])
        whole.validate(full=True)
        rows = [row for each in tables for row in (each["x"].to_pylist() if "x" in each.column_names else [None])]
        assert whole["x"].to_pylist() == rows
        assert rows[-len(values) :] == values


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ([None, None], ["a"], [[None, None], ["a"]]),
        ([[None, None], None], [["a"]], [[[None, None], None], [["a"]]]),
        (D("1.25"), D("12345678901234567890"), [D("1.25"), D("12345678901234567890")]),
        ([{"a": [None, None]}], [{"a": [{"b": 1.5}]}], [[{"a": [None, None]}], [{"a": [{"b": 1.5}]}]]),
        # An object has all the fields that any has; those that it lacks are null.
        ({"a": [None, None]}, {"a": ["x"], "c": 1}, [{"a": [None, None], "c": None}, {"a": ["x"], "c": 1}]),
    ],
)
def test_nulls_take_the_type_that_another_shard_has_for_them(first: Any, second: Any, both: list[Any]) -> None:
    assert joined({"x": [first]}, {"x": [second]})["x"] == both


def test_what_parquet_cannot_hold_is_kept_as_json() -> None:
    spans = pa.array([pa.MonthDayNano([1, 2, 3]), None], pa.month_day_nano_interval())
    table = pa.table({"span": spans, "inner": pa.array([[{}], None], pa.large_list(pa.struct([])))})
    assert written(table).to_pydict() == {"span": ["[1, 2, 3]", None], "inner": ["[{}]", None]}


def test_whole_numbers_inside_objects_never_become_floats() -> None:
    found = joined({"x": [{"n": 2**53 + 1}]}, {"x": [{"n": 1.5}]})["x"]
    assert [json.loads(each) for each in found] == [{"n": 2**53 + 1}, {"n": 1.5}]
