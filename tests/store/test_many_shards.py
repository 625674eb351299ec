"""A run of many shards: opened by its shards, an example found without the others, everything else as of a few."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import CorruptRun, ExampleNotFound, SelectionError
from traceformer.formats.registry import export
from traceformer.store import finishing, folder, lookup
from traceformer.store.commits import CommitRecord, RunHead, verify_run
from traceformer.store.layout import EXAMPLES, RunLayout
from traceformer.store.lookup import lookup_bytes, open_lookup
from traceformer.store.writer import RunWriter

MANY = {"n_examples": 23, "shard_examples": 2, "arrays": runs.FEW}


@pytest.fixture(autouse=True)
def two_shards_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (folder, finishing):
        monkeypatch.setattr(module, "FEW_SHARDS", 2)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return runs.write(tmp_path / "many", runs.plan(**MANY))


@pytest.fixture
def records_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards whose records were read, in order."""
    read: list[int] = []

    def noting(head: Path, shard: int, own: Callable[..., CommitRecord] = CommitRecord.read) -> CommitRecord:
        read.append(shard)
        return own(head, shard)

    monkeypatch.setattr(CommitRecord, "read", noting)
    return read


def as_of_few(run: Path, monkeypatch: pytest.MonkeyPatch) -> TraceStore:
    """The same run with all of its records read when it is opened."""
    with monkeypatch.context() as patched:
        patched.setattr(folder, "FEW_SHARDS", 1000)
        return TraceStore(run)


def test_all_that_is_read_is_what_was_written(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = TraceStore(many), as_of_few(many, monkeypatch)
    assert (run.n, run.ids) == (23, tuple(map(runs.name, range(23))))
    assert runs.holds_what_was_written(run)
    assert run.lengths().tolist() == [runs.lengths(run.layout, example)["dec"] for example in range(23)]
    assert [run.length(example) for example in range(23)] == run.lengths().tolist()
    assert np.array_equal(run.activations("resid_mid", 4), other.activations("resid_mid", 4))
    assert [name for name, _ in run.head("q", 1, 2)] == list(run.ids)
    assert run.table.equals(other.table)
    assert run.to_xarray().identical(other.to_xarray())
    assert run.verify().ok


def test_opening_reads_one_record_and_an_example_one_more(many: Path, records_read: list[int]) -> None:
    run = TraceStore(many)
    assert records_read == [11]
    assert run.row("example-7") == 7
    assert run.length("example-7") == runs.lengths(run.layout, 7)["dec"]
    assert (run.text(7), run.attn(7).shape[-1]) == ("text 7", run.length(7))
    assert records_read == [11, 3]
    assert not run.has("example-99")
    assert run.lengths().sum() > 0
    assert records_read == [11, 3]
    with pytest.raises(ExampleNotFound, match="no example 'example-99'"):
        run.row("example-99")


def test_a_part_of_the_table_is_read_from_its_own_shards(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read = as_of_few(many, monkeypatch).table, list[str]()
    own = folder.RunFolder._read_table

    def noting(self: Any, name: str, *further: Any) -> pa.Table:
        read.append(name)
        return own(self, name, *further)

    monkeypatch.setattr(folder.RunFolder, "_read_table", noting)
    run = TraceStore(many)
    assert run.table_of([8, "example-9", -1]).equals(whole.take([8, 9, 22]))
    assert run.table_of([]).schema == whole.schema
    assert list(run.columns) == whole.column_names
    assert read == ["tokens/4.parquet", "tokens/11.parquet"]
    assert run.columns_of(["text", "nothing"]).equals(whole.select(["text"]))


def test_an_export_of_two_examples_reads_two_tables(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(as_of_few(many, monkeypatch), "safetensors", tmp_path / "whole", examples=[3, 21])
    monkeypatch.setattr(folder.RunFolder, "token_table", runs.interrupt)
    part = export(TraceStore(many), "safetensors", tmp_path / "part", examples=[3, 21])
    assert [path.read_bytes() for path in part] == [path.read_bytes() for path in whole]


def test_rows_of_shards_of_other_types_have_those_of_the_whole_table(tmp_path: Path) -> None:
    layout = runs.plan(**MANY)
    with RunWriter.create(tmp_path / "mixed", layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            column = [[shard] * table.num_rows, ["word"] * table.num_rows][shard % 2]
            writer.commit(shard, buffer, table.append_column("label", pa.array(column)))
        run = TraceStore(writer.finish())
    found = run.table_of([0, 2]).column("label").to_pylist()
    assert found == run.table.column("label").take([0, 2]).to_pylist() == ["0", "word"]


def test_a_run_without_the_file_is_read_all_the_same(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = as_of_few(many, monkeypatch)
    (many / EXAMPLES).unlink()
    run = TraceStore(many)
    assert (run.row("example-20"), run.ids, run.lengths().tolist()) == (20, whole.ids, whole.lengths().tolist())
    assert run.table_of([20]).equals(whole.table.take([20]))
    assert [str(problem.path) for problem in verify_run(many)] == [EXAMPLES]


def test_an_unfinished_run_is_opened_by_its_shards_too(tmp_path: Path, records_read: list[int]) -> None:
    begun = runs.begin(tmp_path / "run", 5, runs.plan(**MANY))
    run = TraceStore(begun)
    assert (run.n, run.finished, records_read) == (10, False, [4])
    assert runs.holds_what_was_written(run)
    assert run.row("example-9") == 9
    finished = TraceStore(runs.complete(tmp_path / "run", runs.plan(**MANY)))
    assert finished.n == 23
    assert (finished.on_disk().folder / EXAMPLES).is_file()


def test_a_run_of_a_few_shards_has_no_such_file(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "few", runs.plan(n_examples=4, shard_examples=2, arrays=runs.FEW))
    assert not (run / EXAMPLES).exists()


def test_damage_is_found_when_it_is_touched(many: Path, tmp_path: Path) -> None:
    record = many / "commits/3.json"
    text = record.read_text()
    record.write_text(text.replace("example-7", "example-8"))
    run = TraceStore(many)
    assert run.text(0) == "text 0"
    with pytest.raises(CorruptRun, match=r"commits.3\.json was changed"):
        run.text(7)
    record.write_text(text)
    index = many / EXAMPLES
    data = bytearray(index.read_bytes())
    for place, ask in ((5000, lambda run: run.row("example-7")), (9000, lambda run: run.lengths()), (20, TraceStore)):
        changed = data.copy()
        changed[place] ^= 1
        index.write_bytes(changed)
        with pytest.raises(CorruptRun, match=r"examples\.index was changed after it was written"):
            ask(many if ask is TraceStore else TraceStore(many))
    other = runs.write(tmp_path / "other", runs.plan(**{**MANY, "n_examples": 21}))
    index.write_bytes((other / EXAMPLES).read_bytes())
    with pytest.raises(CorruptRun, match="another run's"):
        TraceStore(many)


def test_a_record_of_more_shards_is_found_when_the_run_is_opened(many: Path, tmp_path: Path) -> None:
    other = runs.write(tmp_path / "other", runs.plan(**{**MANY, "n_examples": 40}))
    (many / "commits/19.json").write_bytes((other / "commits/19.json").read_bytes())
    with pytest.raises(CorruptRun, match="belongs to another run"):
        TraceStore(many)
    (many / "commits/19.json").unlink()
    (many / "commits/5.json").unlink()
    with pytest.raises(CorruptRun, match="lost commit records"):
        TraceStore(many)


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_hash", lambda example_id: len(example_id))
    run = TraceStore(runs.write(tmp_path / "run", runs.plan(**MANY)))
    assert [run.row(f"example-{number}") for number in range(23)] == list(range(23))
    assert not run.is_id("example-42")


def test_two_examples_of_one_id_are_refused_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "name", lambda example: f"example-{example % 20}")
    run = TraceStore(runs.write(tmp_path / "run", runs.plan(**MANY)))
    with pytest.raises(SelectionError, match="several examples have the id 'example-2'"):
        run.row("example-2")
    assert run.row("example-5") == 5


@pytest.mark.parametrize("count", [1, 255, 256, 700])
def test_every_id_is_found_where_it_is(count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(count)
    ids = [f"{number}\u00fc" for number in random.integers(0, 600, count).tolist()]  # several are of one id
    layout = RunLayout.plan(
        arch="dec", arrays=[runs.spec("dec.embed")], n_examples=len(ids), longest={"dec": 9}, shard_examples=64
    )
    records = [
        CommitRecord(
            shard,
            (0, 1),
            "",
            tuple(ids[shard * 64 : shard * 64 + 64]),
            {"dec": (1,) * len(ids[shard * 64 : shard * 64 + 64])},
            {},
        )
        for shard in range(layout.n_shards)
    ]
    head, place = RunHead(runs.META, layout, runs.DIGEST), tmp_path
    (place / EXAMPLES).write_bytes(lookup_bytes(head, records, pa.schema([("text", pa.string())])))
    found = open_lookup(place, head)
    assert found is not None
    for name in {*ids[:40], ids[-1], "600", ""}:
        assert found.rows(name) == [row for row, own in enumerate(ids) if own == name]
    assert found.lengths("dec").tolist() == [1] * len(ids)
