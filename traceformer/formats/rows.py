"""Rows of the token table as plain values that JSON can hold, and back, with their columns' types.

Whole numbers, texts, booleans, nulls, lists and structs are themselves. For what JSON has no value the type says how a
value is meant:

    float, half                        a number, or "NaN", "Infinity", "-Infinity"
    binary                             base64
    decimal                            its digits as text
    date, time, timestamp, duration    the whole number that Arrow holds, in the type's unit
    map                                a list of [key, value]
    dictionary                         the value

The types of all columns are one text: an Arrow schema in base64. A row without it, as other programs write them, gets
the types that its values suggest.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.types as kinds

from traceformer.errors import Unreadable, Unsupported
from traceformer.store.tables import joined

__all__ = ["TokenRow", "check_plain", "read_types", "row_values", "token_ids", "token_table", "types_text"]

_LARGEST_ID = 2**31 - 1


class TokenRow(NamedTuple):
    """A row of the token table as a file has it; the types are those of the columns that the file tells them of."""

    values: Mapping[str, Any]
    types: pa.Schema | None = None


def row_values(table: pa.Table, row: int) -> dict[str, Any]:
    """Returns a row as plain values, by column.

    Raises:
        Unsupported: a column is of a type that has none.
    """
    found: dict[str, Any] = {}
    for field in table.schema:
        _check_kind(field.type, field.name)
        found[field.name] = _plain(table.column(field.name)[row])
    return found


def types_text(schema: pa.Schema) -> str:
    """Returns the types of a table's columns as text."""
    bare: Any = pa.schema([(field.name, field.type) for field in schema])
    return base64.b64encode(bare.serialize().to_pybytes()).decode()


def read_types(text: Any, where: str) -> pa.Schema:
    """Returns the types that `types_text` wrote.

    Raises:
        Unreadable: the text is none of its.
    """
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
        for field in schema:
            _check_kind(field.type, field.name)
    except (pa.ArrowException, ValueError, TypeError, OSError, Unsupported) as error:
        raise Unreadable(f"{where}: its types are not what an export writes", why=str(error)) from error
    if len(set(schema.names)) < len(schema.names):
        raise Unreadable(f"{where}: its types name a column twice")
    return schema


def token_table(rows: Sequence[TokenRow], where: str) -> pa.Table:
    """Returns the table of some rows: each column of its type, or of that which its values suggest.

    Raises:
        Unreadable: a value is not of its column's type, or none that a table can hold.
    """
    for row in rows:
        check_plain(dict(row.values), where)
    parts = [_table(list(own), types, where) for types, own in groupby(rows, lambda row: row.types)]
    return parts[0] if len(parts) == 1 else joined(parts)


def check_plain(value: Any, where: str) -> None:
    """Makes sure that a value is of dicts, lists, finite numbers, texts, booleans and None, which JSON can hold.

    Raises:
        Unreadable: it is not: it holds a tensor, say, NaN, or half a surrogate pair, which no text has.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each.values(), *each]
            odd = next((name for name in each if not isinstance(name, str)), None)
            if odd is not None:
                raise Unreadable(f"{where}: {odd!r} is where a name should be")
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, str):
            if not each.isascii() and any("\ud800" <= sign <= "\udfff" for sign in each):
                raise Unreadable(f"{where}: {each[:40]!r} holds half a surrogate pair", why="no text does")
        elif isinstance(each, float):
            if not math.isfinite(each):
                raise Unreadable(f"{where}: {each} is where a number should be")
        elif not (each is None or type(each) in (bool, int)):
            raise Unreadable(f"{where}: {type(each).__name__} is where a plain value should be")


def token_ids(values: Any, where: str) -> tuple[int, ...]:
    """Returns token ids.

    Raises:
        Unreadable: these are none.
    """
    ids = () if values is None else values
    if not isinstance(ids, list | tuple) or not all(type(each) is int and abs(each) <= _LARGEST_ID for each in ids):
        raise Unreadable(f"{where}: its token ids are no whole numbers", why=f"of {_LARGEST_ID} at most")
    return tuple(ids)


def _table(rows: Sequence[TokenRow], types: pa.Schema | None, where: str) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    columns: dict[str, pa.Array] = {}
    for name in names:
        values = [row.values.get(name) for row in rows]
        if types is None or name not in types.names:
            columns[name] = _suggested(values)
            continue
        kind = types.field(name).type
        try:
            columns[name] = pa.array([_meant(value, kind) for value in values], kind)
        except (pa.ArrowException, ValueError, TypeError, ArithmeticError, AttributeError) as error:
            raise Unreadable(f"{where}: a value of {name} is no {kind}", why=str(error)) from error
    return pa.table(columns)


def _suggested(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # values of several types
        return pa.array([json.dumps(value, ensure_ascii=False) for value in values])


# What each type is in JSON: its own value, or another one, and back


def _is_itself(kind: pa.DataType) -> bool:
    """Whether JSON has the values of a type, which go as they are."""
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return _is_itself(kind.value_type)
    if kinds.is_struct(kind):
        return all(_is_itself(field.type) for field in kind)
    whole = kinds.is_integer(kind) or kinds.is_boolean(kind) or kinds.is_null(kind)
    return whole or kinds.is_string(kind) or kinds.is_large_string(kind)


def _check_kind(kind: pa.DataType, column: str) -> None:
    """Makes sure that values of a type can be told.

    Raises:
        Unsupported: they cannot; the message names column and type.
    """
    waiting = [kind]
    while waiting:
        each = waiting.pop()
        if kinds.is_dictionary(each) or _is_of_values(each):
            waiting.append(each.value_type)
        elif kinds.is_map(each):
            waiting += [each.key_type, each.item_type]
        elif kinds.is_struct(each):
            waiting += [field.type for field in each]
        elif not (_is_itself(each) or any(holds(each) for holds in (*_OTHERWISE, _is_binary))):
            raise Unsupported(
                f"the column {column} is of the type {kind}", why="no export can hold it", hint="leave the column out"
            )


def _is_of_values(kind: pa.DataType) -> bool:
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind)


def _is_counted(kind: pa.DataType) -> bool:
    return kinds.is_date(kind) or kinds.is_time(kind) or kinds.is_timestamp(kind) or kinds.is_duration(kind)


_OTHERWISE: Sequence[Callable[[pa.DataType], bool]] = (kinds.is_floating, kinds.is_decimal, _is_counted)
_NO_NUMBERS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _plain(value: Any) -> Any:
    """The value of an Arrow scalar in JSON."""
    kind = value.type
    if not value.is_valid:
        return None
    if _is_itself(kind):
        return value.as_py()
    if kinds.is_dictionary(kind):
        return _plain(value.value)
    if kinds.is_floating(kind):
        number = float(value.as_py())
        return number if math.isfinite(number) else _NO_NUMBERS[str(number)]
    if kinds.is_decimal(kind):
        return str(value.as_py())
    if _is_counted(kind):
        return value.value
    if _is_binary(kind):
        return base64.b64encode(value.as_py()).decode()
    if kinds.is_map(kind):
        return [[_plain(key), _plain(item)] for key, item in zip(*value.values.flatten(), strict=True)]
    if kinds.is_struct(kind):
        return {name: _plain(own) for name, own in value.items()}
    return [_plain(each) for each in value.values]


def _meant(value: Any, kind: pa.DataType) -> Any:
    """What a value in JSON means, as `pa.array` takes it for the type."""
    if value is None or _is_itself(kind) or _is_counted(kind):
        return value
    if kinds.is_dictionary(kind):
        return _meant(value, kind.value_type)
    if kinds.is_floating(kind):
        return float(value)
    if kinds.is_decimal(kind):
        return Decimal(value)
    if _is_binary(kind):
        return base64.b64decode(value, validate=True)
    if kinds.is_map(kind):
        return [(_meant(key, kind.key_type), _meant(item, kind.item_type)) for key, item in value]
    if kinds.is_struct(kind):
        return {field.name: _meant(value.get(field.name), field.type) for field in kind}
    return [_meant(each, kind.value_type) for each in value]
