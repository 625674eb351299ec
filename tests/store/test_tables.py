"""Token tables whose columns differ from shard to shard still make one."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traceformer.store.tables import common_schema, encodable, with_schema


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
