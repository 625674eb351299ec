"""Runs in a bucket give what the same runs on disk give, in few requests, whatever the bucket does meanwhile."""

import itertools
import pickle
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.store import runs, streams
from tests.store.bucket_server import ACCESS_KEY, SECRET_KEY, Proxy
from tests.store.buckets import BucketServer, shared_bucket
from traceformer import TraceStore
from traceformer.errors import CorruptRun, NotFound, Unreachable, UsageError
from traceformer.sites import ArrayKey
from traceformer.store.folders import find_runs, list_runs
from traceformer.store.run import Run


@pytest.fixture(scope="module")
def server(s3_server: Proxy) -> Generator[BucketServer]:
    with shared_bucket(s3_server, "bucket") as made:
        yield made


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(runs.write(tmp_path_factory.mktemp("runs") / "run", runs.plan(arrays=(runs.FEW[0], *runs.FEW[3:]))))


@pytest.fixture(scope="module")
def remote(local: Run, server: BucketServer) -> Run:
    assert isinstance(local.folder, Path)
    return Run(str(server.put_folder(local.folder, "runs/run")))


def same(one: Run, other: Run, *, every: bool = False) -> None:
    """Every array, example by example, and all examples together; `every` layer and head, as read and as stored."""
    assert (one.ids, one.finished, one.arrays()) == (other.ids, other.finished, other.arrays())
    assert one.table.equals(other.table)
    for spec, dtype in itertools.product(one.layout.arrays, ("float32", "stored") if every else ("float32",)):
        for example in range(0, one.n, 1 if every else 4):
            assert np.array_equal(one.get(example, spec.key, dtype=dtype), other.get(example, spec.key, dtype=dtype))
        layers = [None, *spec.layers[-1:]] if spec.layers and every else [*spec.layers[-1:]] or [None]
        heads = [None, *spec.heads[-1:]] if spec.heads and "kv_head" not in spec.site.axes else [None]
        for layer, head in itertools.product(layers, heads):
            here, there = (run.head(spec.key, layer, head, dtype=dtype) for run in (one, other))
            for (name, mine), (their_name, theirs) in zip(here, there, strict=True):
                assert name == their_name
                assert mine.dtype == theirs.dtype
                assert np.array_equal(mine, theirs, equal_nan=True)
        if not spec.site.is_matrix:
            layer = spec.layers[0] if spec.layers else None
            assert np.array_equal(
                one.activations(spec.key, layer, dtype=dtype), other.activations(spec.key, layer, dtype=dtype)
            )
            for shuffle in (False, True) if every else (True,):
                batches = zip(
                    one.stream(spec.key, layer, 100, shuffle, dtype=dtype),
                    other.stream(spec.key, layer, 100, shuffle, dtype=dtype),
                    strict=True,
                )
                assert all(np.array_equal(mine, theirs) for mine, theirs in batches)
    of_rows = next(spec for spec in one.layout.arrays if not spec.site.is_matrix)
    assert_alike(one, other, of_rows.key, layer=of_rows.layers[0] if of_rows.layers else None, batch_size=100)
    for spec in one.layout.arrays:
        if spec.site.is_matrix and spec.key.attention != "cross":
            assert_alike(one, other, spec.key, size=20)
            break


def assert_alike(one: Run, other: Run, key: ArrayKey, **chosen: Any) -> None:
    """As training data."""
    mine, theirs = ([*run.training_data(key, **chosen)] for run in (one, other))
    for pair in zip(mine, theirs, strict=True):
        assert all(np.array_equal(*arrays) for arrays in zip(*pair, strict=True))


def test_a_run_in_a_bucket_gives_what_it_gives_on_disk(local: Run, remote: Run) -> None:
    assert runs.holds_what_was_written(remote)
    same(local, remote)
    assert [remote.encodings(i) for i in range(remote.n)] == [local.encodings(i) for i in range(local.n)]
    assert repr(remote) == repr(local).replace(str(local.folder), "s3://bucket/runs/run")
    assert remote.name == "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"arch": "encdec"}, {"dtype": "bfloat16", "attn_codec": "sqrt8"}, {"codec": "zstd"}, {"codec": "lz4"}, {}],
    ids=str,
)
def test_every_kind_of_array_is_the_same(options: dict[str, str], server: BucketServer, tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(**options))
    same(Run(folder), Run(server.put_folder(folder, f"every/{'-'.join(options.values()) or 'dec'}")), every=True)


@pytest.mark.slow
def test_layers_that_are_another_arrays_are_read_there(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams.patch(monkeypatch)
    folder = runs.write(tmp_path / "run", streams.plan())
    same(Run(folder), Run(server.put_folder(folder, "aliases")))


@pytest.mark.slow
def test_an_unfinished_run_is_read_as_far_as_it_is_committed(server: BucketServer, tmp_path: Path) -> None:
    folder = runs.begin(tmp_path / "run", 2)
    remote = Run(server.put_folder(folder, "unfinished"))
    assert (remote.finished, remote.n) == (False, 8)
    same(Run(folder), remote)
    assert remote.verify().ok


def test_one_matrix_is_three_requests_at_most(server: BucketServer, remote: Run) -> None:
    run = Run(str(remote.folder))
    with server.counted() as first:
        run.attn(5, layer=4, head=2)
    with server.counted() as same_shard:
        run.attn(6, layer=1, head=0)
    with server.counted() as other_shard:
        run.attn(0, layer=1, head=0)
    assert len(first) == 3, first  # the array's metadata, the file's end, the chunk
    assert [bool(asked.range) for asked in first] == [False, True, True]
    assert (len(same_shard), len(other_shard)) == (1, 2)


def test_what_lies_together_is_one_request(server: BucketServer, remote: Run) -> None:
    run = Run(str(remote.folder))
    run.attn(0)  # what is asked for once
    with server.counted() as heads:
        run.attn(1, layer=1)
    with server.counted() as layer:
        run.activations("resid_mid", 4)
    with server.counted() as again:
        run.activations("resid_mid", 4)
    assert len(heads) == 1
    assert len(layer) == 1 + 3 + 3  # metadata, and of three shards the end and all chunks
    assert len(again) <= 3


def test_a_chunk_that_was_just_read_is_not_asked_for_again(server: BucketServer, remote: Run) -> None:
    run = Run(str(remote.folder))
    run.get(0, "resid_mid", 4)
    with server.counted() as asked:
        run.get(0, "resid_mid", 4)
    assert asked == []


@pytest.mark.slow
def test_a_bucket_that_fails_for_a_while_loses_nothing(server: BucketServer, local: Run, remote: Run) -> None:
    faults = itertools.cycle(["500", None, None, "broken", None, None, "503", None, None, "short", None, None])
    with server.failing(lambda asked: next(faults)):
        run = Run(str(remote.folder))
        assert np.array_equal(run.activations("resid_mid", 4), local.activations("resid_mid", 4))
        assert all(np.array_equal(run.attn(i), local.attn(i)) for i in range(3))
        assert run.table.equals(local.table)


@pytest.mark.slow
def test_verify_says_what_is_missing_foreign_or_changed(server: BucketServer, local: Run) -> None:
    place = server.put_folder(local.folder, "damaged")  # pyright: ignore[reportArgumentType]
    assert tf.open_run(str(place)).verify().ok
    files = sorted(place.objects())
    table, array = "tokens/1.parquet", next(name for name in files if name.endswith("c.0.0.0.0.0") or "/c.0.0" in name)
    store = place.store
    store.delete([(place / table).key])
    store.put((place / "notes.txt").key, b"mine")
    changed = bytearray((place / array).read_bytes())
    changed[0] ^= 1
    store.put((place / array).key, bytes(changed))
    found = {str(each.path): each.what for each in Run(place).verify().problems}
    assert found.keys() == {table, "notes.txt", array}
    assert found[table] == "is missing"
    assert found["notes.txt"] == "does not belong to the run"
    assert "content was changed" in found[array]
    with pytest.raises(CorruptRun, match=r"is missing|cannot read"):
        Run(place).text(5)


def test_damage_that_is_read_is_told(server: BucketServer, local: Run) -> None:
    place = server.put_folder(local.folder, "cut")  # pyright: ignore[reportArgumentType]
    array = next(name for name in sorted(place.objects()) if "self_attn.zarr/attn/c.0" in name)
    whole = (place / array).read_bytes()
    run = Run(place)
    run.attn(0)
    place.store.put((place / array).key, whole[:-100])
    with pytest.raises(CorruptRun, match="replaced or removed while it was read"):
        run.attn(1)
    with pytest.raises(CorruptRun, match=f"has {len(whole) - 100} bytes instead of {len(whole)}"):
        Run(place).attn(1)
    place.store.put((place / array).key, whole[:8] + bytes(8) + whole[16:])
    with pytest.raises(CorruptRun, match="crc32c"):
        Run(place).attn(0)
    place.store.delete([(place / array).key])
    with pytest.raises(CorruptRun, match="is missing"):
        Run(place).attn(0)


@pytest.mark.slow
def test_runs_of_a_prefix_are_found_and_listed(server: BucketServer, remote: Run, tmp_path: Path) -> None:
    server.put_folder(runs.begin(tmp_path / "begun", 1), "listed/begun")
    server.put_folder(Path(shutil.copytree(*_copied(remote, tmp_path))), "listed/whole")
    found = list_runs("s3://bucket/listed")
    states = {run.run: (run.n_examples, run.state, run.model) for run in found.runs}
    assert states == {"begun": (4, "unfinished", "tiny"), "whole": (11, "", "tiny")}
    assert len(find_runs("s3://bucket/listed")) == 2
    assert tf.open_run("s3://bucket/listed/latest").name in states
    assert tf.open_run("latest", traces="s3://bucket/listed").name in states
    assert tf.open_run("whole", traces="s3://bucket/listed").n == 11
    with pytest.raises(NotFound, match="folder of 2 runs"):
        TraceStore("s3://bucket/listed")


def _copied(remote: Run, folder: Path) -> tuple[Path, Path]:
    source = tf.sync(remote, folder / "source").folder
    assert isinstance(source, Path)
    return source, folder / "copy"


def test_a_pickled_run_opens_where_it_lies(remote: Run) -> None:
    again = pickle.loads(pickle.dumps(remote))
    assert np.array_equal(again.attn(0), remote.attn(0))


def test_what_is_not_there_is_said(server: BucketServer, remote: Run) -> None:
    with pytest.raises(NotFound, match="no run in s3://bucket/nothing"):
        Run("s3://bucket/nothing")
    with pytest.raises(NotFound, match="no run 's3://bucket/runs/rum'"):
        tf.open_run("s3://bucket/runs/rum")
    with pytest.raises(NotFound, match="no bucket s3://no-such-bucket"):
        Run("s3://no-such-bucket/run")
    with pytest.raises(UsageError, match="no place in a bucket"):
        Run("s3://")


def test_a_refusal_tells_no_credentials(server: BucketServer, remote: Run) -> None:
    with server.failing(lambda asked: "denied"), pytest.raises(Unreachable) as refused:
        Run(str(remote.folder))
    assert SECRET_KEY not in str(refused.value)
    assert ACCESS_KEY not in str(refused.value)
    assert refused.value.exit_code == 3
