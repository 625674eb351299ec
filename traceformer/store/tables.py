"""Token tables of several shards, joined into one.

What a data set adds may have another type in every shard: nothing at all, whole numbers, then text. A column whose
types no one type can hold exactly is kept as JSON text, and so is one that Parquet cannot hold, so that a run never
fails on it, and no value becomes another.
"""

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

__all__ = ["PARQUET", "as_json", "common_schema", "encodable", "joined", "taken", "with_schema"]

PARQUET: Mapping[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How token tables are written. Pages have checksums for whoever else reads them; `Run` compares the whole file's."""


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Returns the schema that all tables can take: the columns of all, each of a type that holds it in every table."""
    names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    return pa.schema(
        [
            (name, _common_type([schema.field(name).type for schema in schemas if name in schema.names]) or pa.string())
            for name in names
        ]
    )


def _common_type(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """Returns the type that holds every value of all of these exactly; None if there is none.

    Nothing is widened but what loses nothing: a null to anything, inside lists and objects too, whole numbers to
    longer ones, floats to longer ones. Whole numbers beside floats are refused: those beyond 2^53 are no floats.
    """
    known = [kind for kind in dict.fromkeys(kinds) if not types.is_null(kind)]
    if len(known) < 2:
        return known[0] if known else pa.null()
    if all(map(_is_list, known)):
        item = _common_type([kind.value_type for kind in known])
        return None if item is None else pa.list_(item)
    if all(map(types.is_struct, known)):
        return _common_struct(known)
    if all(map(types.is_map, known)):
        key, item = (_common_type([getattr(kind, part) for kind in known]) for part in ("key_type", "item_type"))
        return None if key is None or item is None else pa.map_(key, item)
    if all(map(_is_text, known)):
        return pa.string()
    if all(map(_is_binary, known)):
        return pa.binary()
    for same in (types.is_signed_integer, types.is_unsigned_integer, types.is_floating):
        if all(map(same, known)):
            return max(known, key=_width)
    return _common_decimal(known) if all(map(types.is_decimal, known)) else None


def _common_struct(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    found: dict[str, list[pa.DataType]] = {}
    for kind in kinds:
        for field in kind.fields:
            found.setdefault(field.name, []).append(field.type)
    common = {name: _common_type(own) for name, own in found.items()}
    return None if None in common.values() else pa.struct(list(common.items()))


def _common_decimal(kinds: Sequence[Any]) -> pa.DataType | None:
    scale = max(kind.scale for kind in kinds)
    precision = scale + max(kind.precision - kind.scale for kind in kinds)
    return (
        None
        if precision > 76
        else pa.decimal128(precision, scale)
        if precision <= 38
        else pa.decimal256(precision, scale)
    )


def _width(kind: pa.DataType) -> int:
    return kind.bit_width


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
            types.is_list_view,
            types.is_large_list_view,
        )
    )


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of all tables in one."""
    schema = common_schema([table.schema for table in tables])
    return pa.concat_tables([with_schema(table, schema) for table in tables])


def taken(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Returns these rows of a table, in this order.

    Rows that follow each other are one slice, which copies nothing.
    """
    if not rows:
        return table.slice(0, 0)
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1] + 1]
    counts = [stop - start for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]
    return pa.concat_tables([table.slice(rows[start], count) for start, count in zip(starts, counts, strict=True)])


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with exactly the schema's columns: missing ones empty, others widened or as JSON text."""
    return pa.table([_column(table, field) for field in schema], schema=schema)


def _column(table: pa.Table, field: pa.Field) -> Any:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table.column(field.name)
    # Never cast to its own type: pyarrow 26 makes an invalid array of a list of nulls.
    if column.type == field.type:
        return column
    values = column.to_pylist()
    if types.is_string(field.type) and not _is_text(column.type):
        values = map(as_json, values)
    return pa.chunked_array([pa.array(values, field.type)])


def encodable(table: pa.Table) -> pa.Table:
    """Returns the table with columns that Parquet cannot hold (such as objects without a field) as JSON text."""
    schema = pa.schema(
        [(field.name, field.type if _parquet_holds(field.type) else pa.string()) for field in table.schema]
    )
    return with_schema(table, schema)


@lru_cache(maxsize=256)
def _parquet_holds(kind: pa.DataType) -> bool:
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([("", kind)])).close()
    except pa.ArrowNotImplementedError:
        return False
    return True


def as_json(value: object) -> str | None:
    """Returns a value as JSON text: a null stays one, and what JSON does not know is written as Python shows it."""
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
