"""Token tables of several shards, joined into one.

What a data set adds may have another type in every shard: nothing at all, whole numbers, then text. A column whose
types no one type can hold is kept as JSON text, so that a run never fails on it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

__all__ = ["PARQUET", "common_schema", "encodable", "joined", "with_schema"]

PARQUET: Mapping[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How token tables are written. Pages have checksums for whoever else reads them; `Run` compares the whole file's."""


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Returns the schema that all tables can take: the columns of all, each of a type that holds it in every table."""
    names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    return pa.schema([(name, _common_type([s.field(name).type for s in schemas if name in s.names])) for name in names])


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    known = [each for each in dict.fromkeys(types) if not pa.types.is_null(each)]
    if len(known) < 2:
        return known[0] if known else pa.null()
    try:
        unified = pa.unify_schemas([pa.schema([("", each)]) for each in known], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()
    # Whole numbers beyond 2^53 are not floats.
    mixes = pa.types.is_floating(unified.field(0).type) and any(pa.types.is_integer(each) for each in known)
    return pa.string() if mixes else unified.field(0).type


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of all tables in one."""
    schema = common_schema([table.schema for table in tables])
    return pa.concat_tables([with_schema(table, schema) for table in tables])


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with exactly the schema's columns: missing ones empty, others cast or written as JSON text."""
    return pa.table([_column(table, field) for field in schema], schema=schema)


def _column(table: pa.Table, field: pa.Field) -> Any:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table.column(field.name)
    if pa.types.is_string(field.type) and not pa.types.is_string(column.type):
        return pa.chunked_array([pa.array(map(_as_json, column.to_pylist()), pa.string())])
    return column.cast(field.type)


def encodable(table: pa.Table) -> pa.Table:
    """Returns the table with columns that Parquet cannot hold (objects without a field) as JSON text."""
    schema = pa.schema([(field.name, pa.string() if _is_hollow(field.type) else field.type) for field in table.schema])
    return with_schema(table, schema)


def _is_hollow(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_is_hollow(field.type) for field in kind)
    return pa.types.is_list(kind) and _is_hollow(kind.value_type)


def _as_json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
