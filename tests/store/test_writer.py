"""What is written is what was given; what cannot be stored stops the run."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.marks import slow
from tests.store import runs
from traceformer.errors import NumericError, TraceformerError, UsageError
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.run import TraceStore
from traceformer.store.sizes import filled_bytes
from traceformer.store.writer import RunWriter
from traceformer.store.zarr3 import coordinate_files


@pytest.mark.parametrize("arch", ["enc", "dec", "encdec"])
@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16"), slow("float32")])
def test_every_array_reads_back_as_it_was_written(tmp_path: Path, arch: str, dtype: str) -> None:
    layout = runs.plan(arch, dtype=dtype)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    for array in layout.arrays:
        for example in (0, 3, 10):  # the first, the one with one token, the last
            read = store.get(runs.name(example), array.key)
            wanted = runs.expected(layout, array, example)
            assert read.dtype == wanted.dtype
            assert np.array_equal(read, wanted)
    assert verify_run(store.folder) == []


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
@pytest.mark.parametrize("attn_codec", ["exact", "sqrt8"])
def test_codecs_change_no_token_array_and_sqrt8_only_patterns(tmp_path: Path, codec: str, attn_codec: str) -> None:
    layout = runs.plan("dec", codec=codec, attn_codec=attn_codec)
    store = TraceStore(runs.write(tmp_path / "run", layout))
    for array in layout.arrays:
        exact = runs.truth(layout, array, 2).astype(np.int32 if array.site.holds_ids else np.float16)
        read = store.get(runs.name(2), array.key)
        if attn_codec == "sqrt8" and array.key.site == "attn_pattern":
            assert np.abs(read - exact).max() <= 0.004 + 5e-4  # half a step of the code, and float16's rounding
            assert np.allclose(read, runs.expected(layout, array, 2), rtol=0, atol=1e-7)
        else:
            assert np.array_equal(read, exact)


def test_an_example_beyond_256_mib_is_split_by_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceformer.store.layout.SHARD_BYTES", 64 * 1024)
    layout = runs.plan(arrays=[runs.spec("dec.self.attn_pattern")], n_examples=3, shard_examples=None)
    assert layout.shard_examples == 1
    store = TraceStore(runs.write(tmp_path / "run", layout))
    assert len(list((store.folder / "dec_self_attn.zarr/attn").glob("c.*"))) == 3 * 2
    for example in range(3):
        assert np.array_equal(store.attn(runs.name(example)), runs.expected(layout, layout.arrays[0], example))


def test_a_recycled_buffer_leaves_nothing_of_the_last_shard(tmp_path: Path) -> None:
    import zarr

    layout = runs.plan("encdec")
    folder = runs.write(tmp_path / "run", layout)
    for array in layout.arrays:
        if array.site.is_matrix:
            on_disk = zarr.open_group(folder / layout.array_path(array.key).split("/")[0], mode="r")
            whole = np.asarray(on_disk[layout.array_path(array.key).split("/")[1]])  # pyright: ignore
            for example in range(layout.n_examples):
                own = runs.expected(layout, array, example)
                padded = np.zeros(whole.shape[1:], whole.dtype)
                padded[:, :, : own.shape[2], : own.shape[3]] = own
                assert np.array_equal(whole[example], padded)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_shard_compressed_ahead_is_the_same_and_is_not_kept(tmp_path: Path, codec: str) -> None:
    layout = runs.plan("encdec", codec=codec, n_examples=4)
    usual = runs.write(tmp_path / "usual", layout)
    with RunWriter.create(tmp_path / "ahead", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        tokens = runs.fill(layout, 0, buffer)
        buffer.compress()
        for array in layout.arrays:
            if layout.codec_of(array) == "zstd" and not array.site.is_matrix:
                buffer.arrays[array.key][...] = 1  # comes too late
        writer.commit(0, buffer, tokens)
        assert not buffer.compressed
        ahead = writer.finish()
    for path in usual.rglob("c.*"):
        assert (ahead / path.relative_to(usual)).read_bytes() == path.read_bytes()


def test_a_shard_without_tokens_is_there(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=2, shard_examples=2)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [0, 0]})
        writer.commit(0, buffer, runs.pa.table({"example_id": ["a", "b"]}))
        store = TraceStore(writer.finish())
    assert store.qkv("a", "q", layer=1, head=0).shape == (0, 8)
    assert store.attn("b", layer=1, head=0).shape == (0, 0)
    assert store.activations("resid_mid", 1).shape == (0, 24)
    assert verify_run(store.folder) == []


def test_token_tables_say_where_each_example_lies(tmp_path: Path) -> None:
    layout = runs.plan("encdec")
    folder = runs.write(tmp_path / "run", layout)
    table = pq.read_table(folder / "tokens.parquet").to_pylist()
    assert [row["example_id"] for row in table] == [runs.name(example) for example in range(11)]
    for example, row in enumerate(table):
        shard, own = example // 4, range(example // 4 * 4, example)
        assert row["shard"] == shard
        assert row["slot"] == shard * 4 * 128 + sum(runs.lengths(layout, other)["enc"] for other in own)
        assert row["dec_slot"] == shard * 4 * 64 + sum(runs.lengths(layout, other)["dec"] for other in own)
    parts = [pq.read_table(folder / f"tokens/{shard}.parquet").to_pylist() for shard in range(3)]
    assert [row for part in parts for row in part] == table


def test_no_lock_and_nothing_temporary_stays_in_a_finished_run(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    left = [path for path in runs.contents(folder) if "lock" in path or "/." in f"/{path}" or path.endswith(".part")]
    assert left == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_per_example_are_those_of_the_rule(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    files = runs.contents(runs.write(tmp_path / "run", layout))
    per_shard = [
        name
        for name in files
        if ("/c." in name and "token_" not in name and name not in coordinate_files(layout))
        or name.startswith(("tokens/", "commits/"))
    ]
    assert len(per_shard) == layout.n_shards * (len(runs.FEW) + 2)


@pytest.mark.parametrize(
    ("dtype", "value", "said", "hint"),
    [
        ("float16", np.inf, "layer 4 of dec.resid_mid does not fit into float16", '`dtype="float32"`'),
        ("float16", np.nan, "layer 4 of dec.resid_mid is NaN in example 2", "weights"),
        ("float32", np.inf, "layer 4 of dec.resid_mid is infinite in example 2", "weights"),
        ("bfloat16", -np.inf, "layer 4 of dec.resid_mid is infinite", "weights"),
    ],
)
def test_a_value_that_is_no_number_stops_the_run(
    tmp_path: Path, dtype: str, value: float, said: str, hint: str
) -> None:
    layout = runs.plan(arrays=runs.FEW, dtype=dtype)
    key = runs.spec("dec.resid_mid").key
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer)
        buffer.rows(key, 2)[1, 0, 5] = runs.as_stored(layout, runs.spec("dec.resid_mid"), np.array(value, np.float32))
        with pytest.raises(NumericError, match=said) as caught:
            writer.commit(0, buffer, table)
        assert hint in caught.value.hint
        assert committed_shards(writer.folder) == []


def test_rows_that_are_not_the_shards_are_refused(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, writer=(0, 2)) as writer:
        for shard, rows, said in ((1, 4, "not pending"), (0, 3, "has 4 examples"), (2, 4, "has 3 examples")):
            buffer = writer.buffer()
            table = runs.fill(layout, 0, buffer).slice(0, rows)
            with pytest.raises(UsageError, match=said):
                writer.commit(shard, buffer, table)
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer).set_column(0, "example_id", [["a", "b", "a", "c"]])
        with pytest.raises(UsageError, match="twice"):
            writer.commit(0, buffer, table)


def test_lengths_must_fit_the_layout(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", runs.plan("encdec"), runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        for wrong in ({"enc": [1]}, {"enc": [1, 2], "dec": [1]}, {"enc": [], "dec": []}, {"enc": [129], "dec": [1]},
                      {"enc": [1] * 5, "dec": [1] * 5}):  # fmt: skip
            with pytest.raises(UsageError):
                buffer.begin(wrong)


def test_at_most_two_buffers_exist(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        first, second = writer.buffer(), writer.buffer()
        third: list[Any] = []
        waiting = threading.Thread(target=lambda: third.append(writer.buffer()))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        writer.commit(0, second, runs.fill(layout, 0, second))
        waiting.join(5)
        assert third == [second]
        assert first is not second


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=60, shard_examples=1, longest={"dec": 640})
    process = psutil.Process()
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 20)
        before = process.memory_info().rss
        runs.write_shards(writer)
        grown = process.memory_info().rss - before
    assert filled_bytes(layout, {"dec": [300] * 40}) > 30 << 20  # what it would be, if all of it were kept
    assert grown < 12 << 20


def test_meta_says_what_it_was_given_and_how_to_read_it(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    meta = json.loads((runs.write(tmp_path / "run", layout) / "meta.json").read_text())
    assert meta["model"] == "tiny"
    assert meta["format_version"] == 3
    assert meta["layout"]["shard_examples"] == 4
    assert meta["configuration"] == runs.DIGEST


def test_an_error_of_the_caller_keeps_what_is_committed(tmp_path: Path) -> None:
    def fail() -> None:
        with RunWriter.create(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST) as writer:
            runs.write_shards(writer, 2)
            raise TraceformerError("the model broke")

    with pytest.raises(TraceformerError, match="broke"):
        fail()
    assert runs.complete(tmp_path / "run") == tmp_path / "run"
