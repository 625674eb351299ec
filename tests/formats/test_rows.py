"""Columns of every type that a data set can hold go out in every format and come back as they were."""

import datetime
import json
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store import runs
from traceformer import Run
from traceformer.errors import Unreadable, Unsupported
from traceformer.formats.registry import export, import_run
from traceformer.formats.rows import TokenRow, check_plain, read_types, row_values, token_table, types_text
from traceformer.store.writer import RunWriter

FORMATS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "padded-zarr": {},
    "json": {},
    "pt": {"layout": "residual"},
}
SPECS = tuple(
    runs.ArraySpec(runs.ArrayKey.parse(f"dec.{site}"), (0,), heads, width)
    for site, heads, width in (
        *(("resid_pre", (), 4), ("resid_mid", (), 4), ("resid_post", (), 4)),
        ("self.attn_pattern", (0, 1, 2, 3), 0),
    )
)
COLUMNS: dict[str, pa.Array] = {
    "whole beside a null": pa.array([9007199254740993, None]),
    "largest": pa.array([2**64 - 1, None], pa.uint64()),
    **{f"int{bits}": pa.array([-(2 ** (bits - 1)), None], f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": pa.array([2**bits - 1, None], f"uint{bits}") for bits in (8, 16, 32)},
    "float": pa.array([float("nan"), None]),
    "floats": pa.array([-0.0, float("-inf")]),
    "float32": pa.array([0.1, None], pa.float32()),
    "float16": pa.array(np.array([1.5, np.inf], np.float16)),
    "bool": pa.array([True, None]),
    "a text": pa.array(["é\n\x00😀", None]),
    "large text": pa.array(["é", None], pa.large_string()),
    "binary": pa.array([b"\x00\xff", None]),
    "large binary": pa.array([b"", None], pa.large_binary()),
    "binary of 2": pa.array([b"ab", None], pa.binary(2)),
    "zoned": pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns", "Europe/Berlin")),
    "timestamp": pa.array([-1, None], pa.timestamp("ms")),
    "date": pa.array([datetime.date(1, 1, 1), None]),
    "date64": pa.array([86_400_000, None], pa.date64()),
    "time": pa.array([86_399_999, None], pa.time32("ms")),
    "time64": pa.array([1000, None], pa.time64("ns")),
    "duration": pa.array([-5, None], pa.duration("us")),
    "decimal": pa.array([Decimal("-1.10"), None], pa.decimal128(38, 2)),
    "list": pa.array([[1, None], None], pa.list_(pa.int16())),
    "list of 2": pa.array([[1.5, None], None], pa.list_(pa.float64(), 2)),
    "list of nulls": pa.array([[None], []], pa.list_(pa.null())),
    "struct": pa.array([{"a": 2**62 + 1, "b": [b"x"]}, None]),
    "map": pa.array([[("k", float("inf"))], None], pa.map_(pa.string(), pa.float64())),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "nothing": pa.nulls(2),
}


def recorded(folder: Path, columns: dict[str, pa.Array]) -> Run:
    """A run of two examples whose token table has these columns, too."""
    layout = runs.plan(arrays=SPECS, n_examples=2, shard_examples=2, longest={"dec": 3})
    with RunWriter.create(folder, layout, runs.META, digest={}) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer)
        for name, column in columns.items():
            table = table.append_column(name, column)
        writer.commit(0, buffer, table)
        return Run(writer.finish())


def assert_same(new: pa.Table, old: pa.Table, names: list[str]) -> None:
    for name in names:
        assert new.schema.field(name).type == old.schema.field(name).type, name
        assert repr(new.column(name).to_pylist()) == repr(old.column(name).to_pylist()), name  # nan, and -0.0


@pytest.mark.parametrize("name", FORMATS)
def test_every_type_of_column_goes_out_and_comes_back(name: str, tmp_path: Path) -> None:
    own = {column: values for column, values in COLUMNS.items() if column != "list of nulls"}
    old = recorded(tmp_path / "run", own)
    assert repr(old.table.column("whole beside a null").to_pylist()) == "[9007199254740993, None]"
    export(old, name, tmp_path / "out", **FORMATS[name])
    new = import_run(tmp_path / "out", name, tmp_path / "back")
    assert_same(new.table, old.table, ["text", "input_ids", *own])
    assert new.tokens["whole beside a null"].tolist() == [9007199254740993, None]  # in pandas, too


@pytest.mark.parametrize("name", ["safetensors", "json"])
def test_what_is_exported_is_json_by_any_reader(name: str, tmp_path: Path) -> None:
    def none_such(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    run = recorded(tmp_path / "run", {"floats": COLUMNS["floats"], "float": COLUMNS["float"]})
    for path in export(run, name, tmp_path / "out"):
        if path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=none_such)


WHOLE = {f"{sign}int{bits}": (bits, sign) for bits in (8, 16, 32, 64) for sign in ("", "u")}
LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    *(
        (
            getattr(pa, name)(),
            st.integers(0, 2**bits - 1) if sign else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        )
        for name, (bits, sign) in WHOLE.items()
    ),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.string(), st.text()),
    (pa.large_string(), st.text()),
    (pa.binary(), st.binary()),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(datetime.UTC))),
    (pa.time64("us"), st.times()),
    (pa.duration("us"), st.timedeltas(datetime.timedelta(-(10**5)), datetime.timedelta(10**5))),
    (pa.decimal128(38, 9), st.decimals(-(10**28), 10**28, places=9)),
    (pa.dictionary(pa.int32(), pa.string()), st.text()),
]


def nested(inner: tuple[pa.DataType, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    kind, values = inner[0], st.none() | inner[1]
    return st.sampled_from(
        [
            (pa.list_(kind), st.lists(values, max_size=3)),
            (pa.large_list(kind), st.lists(values, max_size=3)),
            (pa.list_(kind, 2), st.lists(values, min_size=2, max_size=2)),
            (
                pa.struct([("a", kind), ("b", pa.int64())]),
                st.fixed_dictionaries({"a": values, "b": st.integers(0, 2**60)}),
            ),
            (pa.map_(pa.string(), kind), st.lists(st.tuples(st.text(), values), max_size=2)),
        ]
    )


TYPED = st.recursive(st.sampled_from(LEAVES), lambda inner: inner.flatmap(nested), max_leaves=3)
TABLES = st.lists(TYPED, min_size=1, max_size=4).flatmap(
    lambda columns: st.fixed_dictionaries(
        {f"c{i}": st.lists(st.none() | values, min_size=2, max_size=2) for i, (_, values) in enumerate(columns)}
    ).map(lambda drawn: {f"c{i}": pa.array(drawn[f"c{i}"], kind) for i, (kind, _) in enumerate(columns)})
)


@settings(max_examples=30)
@given(columns=TABLES)
def test_rows_are_exact_as_json(columns: dict[str, pa.Array]) -> None:
    table = pa.table(columns)
    types = read_types(types_text(table.schema), "here")
    told = [json.loads(json.dumps(row_values(table, row), allow_nan=False)) for row in range(2)]
    assert_same(token_table([TokenRow(row, types) for row in told], "here"), table, list(columns))


@pytest.mark.slow
@settings(max_examples=40)
@given(columns=TABLES)
def test_any_column_goes_through_every_format(columns: dict[str, pa.Array], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("columns")
    old = recorded(folder / "run", columns)
    for name, options in FORMATS.items():
        export(old, name, folder / name, **options)
        assert_same(import_run(folder / name, name, folder / f"back {name}").table, old.table, list(columns))


def test_a_type_that_no_file_can_hold_is_refused_by_name() -> None:
    table = pa.table({"x": pa.array([[(1, 2, 3)]], pa.list_(pa.month_day_nano_interval()))})
    with pytest.raises(Unsupported, match="the column x is of the type list<item: month_day_nano_interval>"):
        row_values(table, 0)
    with pytest.raises(Unreadable, match="types are not what an export writes"):
        read_types(types_text(table.schema), "here")


@pytest.mark.parametrize("types", ["", "no base64", "AAAA", 3, None, "/////wA="])
def test_types_that_are_none_are_refused(types: Any) -> None:
    with pytest.raises(Unreadable, match="types are not what an export writes"):
        read_types(types, "here")


@pytest.mark.parametrize(
    ("column", "value"),
    [("int8", 128), ("binary", "no base64!"), ("decimal", "1e99"), ("float", "much"), ("date", "today"), ("map", [1])],
)
def test_a_value_of_another_type_is_refused(column: str, value: Any) -> None:
    types = pa.schema([(column, COLUMNS[column].type)])
    with pytest.raises(Unreadable, match=f"a value of {column} is no"):
        token_table([TokenRow({column: value}, types)], "here")


@pytest.mark.parametrize(
    "value", [np.zeros(2), float("nan"), float("inf"), "half \ud83d", {1: 2}, {"a": [b""]}, {"\udc00": 1}]
)
def test_what_json_cannot_hold_is_no_plain_value(value: Any) -> None:
    check_plain({"a": [1, None, True, "😀", {"b": 1.5}]}, "here")
    with pytest.raises(Unreadable, match=r"^here: "):
        check_plain({"a": [value]}, "here")


# Files that hold what they should not


ODD = (float("nan"), "half \ud83d", float("-inf"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file that describes a run, of each format."""
    folder = tmp_path_factory.mktemp("files")
    run = recorded(folder / "run", {})
    return {name: export(run, name, folder / name, **FORMATS[name])[-1] for name in ("safetensors", "pt", "json")}


def changed(path: Path, name: str, member: str, value: Any, folder: Path) -> Path:
    """Returns a copy of a file in whose description a member is another, with what lies beside it."""
    shutil.copytree(path.parent, folder, dirs_exist_ok=True)
    path = folder / path.name
    data = torch.load(path, weights_only=True) if name == "pt" else json.loads(path.read_text())
    told = data["traceformer"] if name == "pt" else data["metadata"]["traceformer"] if name == "json" else data
    inside = told["examples"][0] if (name, member) == ("safetensors", "row") else told
    assert member in inside or member == "layer"
    inside[member] = value
    if name == "pt":
        torch.save(data, path)
    else:
        path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("member", ["row", "run", "arrays", "types"])
@pytest.mark.parametrize("name", ["safetensors", "pt", "json"])
def test_a_description_with_odd_values_is_refused(
    files: dict[str, Path], name: str, member: str, tmp_path: Path
) -> None:
    for odd in ODD:
        value = {"arrays": [odd], "types": odd}.get(member, {"x": odd})
        with pytest.raises(Unreadable):
            import_run(changed(files[name], name, member, value, tmp_path / "odd"), name, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("member", ["row", "run", "arrays", "types", "layer", "dtype"])
def test_a_description_with_a_tensor_is_refused(files: dict[str, Path], member: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"ndarray is where a plain value should be|is not what an export writes"):
        import_run(changed(files["pt"], "pt", member, torch.zeros(2), tmp_path / "odd"), "pt", tmp_path / "back")


TRACE = """{{"trace_id": "t", "timestamp": "", "prompt": "a", "response": "", "category": null, "metadata": {{}},
"tokens": {{"input_tokens": {ids}, "output_tokens": []}},
"model_data": {{"token_embeddings": {{"data": [[[1.0, 2.0]]], "shape": {shape}, "dtype": "torch.float32"}}}}}}"""


@pytest.mark.parametrize(
    ("ids", "shape"),
    [
        *((f"[{odd}]", "[1, 1, 2]") for odd in ("Infinity", "NaN", "1e400", "1.5", "true", str(2**31), "1" * 5000)),
        *(("[7]", f"[1, 1, {odd}]") for odd in ("Infinity", "NaN", "2.5", str(10**30), '"2"', "null")),
        *(("[7]", odd) for odd in ("3", "null", "{}", '"12"')),
        *((odd, "[1, 1, 2]") for odd in ("7", '"7"', '{"7": 1}')),
    ],
)
def test_a_trace_with_absurd_ids_or_shapes_is_refused(ids: str, shape: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(TRACE.format(ids="[7]", shape="[1, 1, 2]"))
    assert import_run(tmp_path / "t.json", "json", tmp_path / "right").table.column("input_ids").to_pylist() == [[7]]
    (tmp_path / "t.json").write_text(TRACE.format(ids=ids, shape=shape))
    with pytest.raises(Unreadable):
        import_run(tmp_path / "t.json", "json", tmp_path / "back")


def made(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["pt", "transformerlens"])
def test_the_same_export_is_the_same_bytes(name: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", {})
    export(run, name, tmp_path / "here")
    export(run, name, tmp_path / "there")
    assert made(tmp_path / "here") == made(tmp_path / "there") != {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FORMATS, "transformerlens"])
def test_another_process_exports_the_same_bytes(name: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", {"float": COLUMNS["float"]})
    export(run, name, tmp_path / "here")
    code = "import sys, traceformer as tf; tf.export(tf.open_run(sys.argv[1]), sys.argv[2], sys.argv[3])"
    subprocess.run([sys.executable, "-c", code, str(run.folder), name, str(tmp_path / "there")], check=True)
    assert made(tmp_path / "here") == made(tmp_path / "there") != {}
