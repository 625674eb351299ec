"""A run in memory answers as the same run on disk does, and is saved to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store import runs
from traceformer.errors import NotRecorded, NumericError, OutOfSpace, RunExists, SelectionError, Unsupported, UsageError
from traceformer.store import memory, room
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter, check_memory
from traceformer.store.room import available_memory
from traceformer.store.run import Run
from traceformer.store.sizes import filled_bytes

LAYOUTS: dict[str, dict[str, Any]] = {
    "decoder": {"arch": "dec"},
    "encoder-decoder": {"arch": "encdec"},
    "bfloat16 and bytes": {"arch": "dec", "dtype": "bfloat16", "attn_codec": "sqrt8"},
    "one shard": {"arch": "dec", "shard_examples": 16},
}


def kept(layout: RunLayout) -> Run:
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            buffer.compress()
            writer.commit(shard, buffer, table)
        return writer.finish()


SLOW: dict[str, dict[str, Any]] = {
    "rows as bytes": {"arch": "encdec", "rows_codec": "q8"},
    "bfloat16 rows as bytes": {"arch": "dec", "dtype": "bfloat16", "rows_codec": "q8", "codec": "zstd"},
}


@pytest.fixture(
    scope="module",
    params=[*LAYOUTS.values(), *(pytest.param(layout, marks=pytest.mark.slow) for layout in SLOW.values())],
    ids=[*LAYOUTS, *SLOW],
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same run in memory and on disk."""
    layout = runs.plan(**request.param)
    return kept(layout), Run(runs.write(tmp_path_factory.mktemp("runs") / "run", layout))


def test_some_rows_of_an_example_are_those_of_all(both: tuple[Run, Run]) -> None:
    for run in both:
        for spec in run.layout.arrays:
            if not spec.site.is_per_token or spec.heads:
                continue
            layer = spec.layers[-1] if spec.layers else None
            for example in (0, run.n - 1):
                whole = run.get(example, spec.key, layer)
                some = [len(whole) - 1, 0]
                found = run.rows(example, spec.key, some, layer)
                assert found.dtype == whole.dtype
                assert np.array_equal(found, whole[some])
                assert run.rows(example, spec.key, [], layer).shape == (0, whole.shape[1])


def test_rows_that_are_not_there_are_refused(both: tuple[Run, Run]) -> None:
    run = both[0]
    spec = next(spec for spec in run.layout.arrays if spec.site.is_per_token and spec.layers and not spec.heads)
    length = run.length(0, spec.key.token_stack)
    with pytest.raises(SelectionError, match=f"positions {length}; this example has positions 0-{length - 1}"):
        run.rows(0, spec.key, [0, length], spec.layers[0])
    with pytest.raises(SelectionError, match="which layer of"):
        run.rows(0, spec.key, [0])
    pattern = next(spec for spec in run.layout.arrays if spec.site.is_matrix)
    with pytest.raises(SelectionError, match="is a matrix"):
        run.rows(0, pattern.key, [0], pattern.layers[0])


def test_every_array_of_every_example_is_the_one_on_disk(both: tuple[Run, Run]) -> None:
    in_memory, on_disk = both
    for spec in on_disk.layout.arrays:
        for example in range(on_disk.n):
            found, expected = (run.get(example, spec.key) for run in both)
            assert np.array_equal(found, expected)
            assert found.dtype == expected.dtype
        layer, head = spec.layers[-1] if spec.layers else None, spec.heads[0] if spec.heads else None
        if "kv_head" in spec.site.axes:
            head = 3
        for one, other in zip(*(run.head(spec.key, layer, head) for run in both), strict=True):
            assert one[0] == other[0]
            assert np.array_equal(one[1], other[1])
        if not spec.site.is_matrix:
            assert np.array_equal(*(run.activations(spec.key, layer) for run in both))
            for shuffle in (False, True):
                streams = [run.stream(spec.key, layer, batch_tokens=50, shuffle=shuffle, seed=1) for run in both]
                assert all(np.array_equal(*batches) for batches in zip(*streams, strict=True))
    assert in_memory.finished


def test_what_a_run_says_of_itself_is_what_it_says_on_disk(both: tuple[Run, Run]) -> None:
    in_memory, on_disk = both
    assert in_memory.meta == on_disk.meta
    assert list(in_memory.meta) == list(on_disk.meta)
    assert (in_memory.ids, in_memory.arrays()) == (on_disk.ids, on_disk.arrays())
    columns = list(in_memory.tokens)
    assert in_memory.tokens.equals(on_disk.tokens[columns])
    assert set(on_disk.tokens) - set(columns) <= {"shard", "slot", "dec_slot"}  # where on disk
    for side in on_disk.layout.stacks:
        assert np.array_equal(*(run.token_examples(side) for run in both))
        assert in_memory.length(4, side) == on_disk.length(4, side)
    assert (in_memory.text(4), in_memory.encodings(4)) == (on_disk.text(4), on_disk.encodings(4))
    assert repr(in_memory) == f"Run(in memory: 11 examples, {len(on_disk.layout.arrays)} arrays)"
    assert (in_memory.name, on_disk.name) == ("run", "run")


def test_saving_writes_the_bytes_of_a_run_recorded_there(both: tuple[Run, Run], tmp_path: Path) -> None:
    in_memory, on_disk = both
    saved = in_memory.save(tmp_path / "run")
    assert saved.verify().ok
    assert runs.contents(tmp_path / "run") == runs.contents(on_disk.folder)


def test_saving_a_run_that_is_on_disk_copies_it(both: tuple[Run, Run], tmp_path: Path) -> None:
    _, on_disk = both
    copy = on_disk.save(tmp_path / "run")
    assert copy.verify().ok
    assert copy.meta == on_disk.meta
    assert copy.tokens.equals(on_disk.tokens)
    arrays = [name for name in runs.contents(tmp_path / "run") if ".zarr/" in name]
    assert all((tmp_path / "run" / name).read_bytes() == on_disk.folder.joinpath(name).read_bytes() for name in arrays)


def test_saving_gives_the_run_its_new_name_and_replaces_another_only_when_told(tmp_path: Path) -> None:
    run = kept(runs.plan(arrays=runs.FEW))
    saved = run.save(tmp_path / "other")
    assert saved.meta["run_id"] == "other"
    with pytest.raises(RunExists):
        run.save(tmp_path / "other")
    assert run.save(tmp_path / "other", overwrite=True).verify().ok


def test_an_unfinished_run_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not finished"):
        Run(runs.begin(tmp_path / "run", shards=1)).save(tmp_path / "copy")


@pytest.mark.parametrize("ask", [Run.verify, Run.to_xarray])
def test_what_only_files_can_do_says_to_save_first(ask: Callable[[Run], object]) -> None:
    with pytest.raises(Unsupported, match="save"):
        ask(kept(runs.plan(arrays=runs.FEW)))


def test_a_run_in_memory_lies_in_no_folder(both: tuple[Run, Run]) -> None:
    in_memory, on_disk = both
    assert in_memory.folder is None
    assert on_disk.folder is not None
    assert on_disk.folder.is_dir()


def test_what_a_reader_gets_is_its_own(both: tuple[Run, Run]) -> None:
    in_memory, _ = both
    first = in_memory.get(0, in_memory.layout.arrays[0].key)
    first[...] = 0
    assert in_memory.get(0, in_memory.layout.arrays[0].key).any()


def test_what_was_not_recorded_is_refused_as_on_disk() -> None:
    with pytest.raises(NotRecorded, match="logits was not recorded"):
        kept(runs.plan(arrays=runs.FEW)).get(0, "logits")


def test_a_value_that_is_no_number_is_never_kept() -> None:
    layout = runs.plan(arrays=runs.FEW)
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer)
        buffer.rows(runs.FEW[-1].key, 2)[0, 0] = np.inf
        with pytest.raises(NumericError, match="does not fit into float16"):
            writer.commit(0, buffer, table)
        assert writer.pending == [0, 1, 2]
        assert writer.buffer() is buffer


def test_a_writer_counts_what_it_keeps_and_is_not_done_before_its_last_shard() -> None:
    layout = runs.plan(arrays=runs.FEW)
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in (2, 0):  # in any order
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        with pytest.raises(UsageError, match="1 of 3 shards"):
            writer.finish()
        with pytest.raises(UsageError, match="shard 0 is not pending"):
            writer.commit(0, writer.buffer(), runs.fill(layout, 0, writer.buffer()))
        buffer = writer.buffer()
        writer.commit(1, buffer, runs.fill(layout, 1, buffer))
        lengths = [runs.lengths(layout, example)["dec"] for example in range(layout.n_examples)]
        assert writer.bytes_written == filled_bytes(layout, {"dec": lengths})
        assert writer.finish().ids == tuple(map(runs.name, range(layout.n_examples)))


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=4)
    check_memory(layout, {"dec": [60] * 4})
    monkeypatch.setattr(memory, "available_memory", lambda: 3 << 20)
    check_memory(layout, {"dec": [60] * 4})
    with pytest.raises(OutOfSpace, match=r"takes up to \d+ MiB of memory, 3 MiB are free.*`out`"):
        check_memory(layout, {"dec": [600] * 4})


def test_memory_is_what_the_system_says_is_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     512 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    assert available_memory() == 512 << 10
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    assert (available_memory() or 0) > 1 << 28
