"""A finished run is copied to a bucket and back, to the same bytes, interrupted or not; what is another's stays."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

import traceformer as tf
from tests.store import runs
from tests.store.bucket_server import Proxy
from tests.store.buckets import BucketServer, shared_bucket
from tests.store.hub_server import FakeApi, HubServer, hub_server
from traceformer.errors import CorruptRun, NotFound, RunExists, Unreachable, Unsupported, UsageError
from traceformer.store import syncing
from traceformer.store.objects import opening
from traceformer.store.objects.hub import HubBucket
from traceformer.store.objects.path import ObjectPath
from traceformer.store.run import Run


@pytest.fixture(scope="module")
def server(s3_server: Proxy) -> Generator[BucketServer]:
    with shared_bucket(s3_server, "synced") as made:
        yield made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[HubServer]:
    """The Hub, as `hf://buckets/me/runs` reaches it."""
    with hub_server() as made:
        made.buckets["me/runs"] = {}
        opening.open_bucket.cache_clear()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it is on this machine
        monkeypatch.setattr(
            "traceformer.store.objects.hub.open_hub_bucket", lambda name: HubBucket(name, FakeApi(made))
        )
        yield made
    opening.open_bucket.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write(tmp_path_factory.mktemp("runs") / "run", runs.plan(arrays=runs.FEW))


def objects(place: ObjectPath) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in place.objects()}


@pytest.mark.slow
def test_there_and_back_is_the_same_run(server: BucketServer, folder: Path, tmp_path: Path) -> None:
    there = tf.sync(folder, "s3://synced/there")
    assert isinstance(there.folder, ObjectPath)
    assert objects(there.folder) == runs.contents(folder)
    assert runs.holds_what_was_written(there)
    back = tf.sync("s3://synced/there", tmp_path / "back")
    assert isinstance(back.folder, Path)
    assert runs.contents(back.folder) == runs.contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


@pytest.mark.slow
def test_the_manifest_comes_last_and_shards_before_their_records(server: BucketServer, folder: Path) -> None:
    with server.counted() as asked:
        tf.sync(folder, "s3://synced/ordered")
    written = [each.path.split("/ordered/")[1] for each in asked if each.method == "PUT"]
    assert written[0] == "meta.json"
    assert written[-2:] == ["tokens.parquet", "manifest.json"]
    last_array = max(i for i, name in enumerate(written) if "zarr" in name or name.startswith("tokens/"))
    assert last_array < min(i for i, name in enumerate(written) if name.startswith("commits/"))


@pytest.mark.slow
def test_an_interrupted_copy_goes_on_where_it_stopped(
    server: BucketServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "_FILES", 4)
    with monkeypatch.context() as patched:
        write, calls = syncing._write_all, []

        def killed(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) == 4:
                raise KeyboardInterrupt
            write(*arguments)  # pyright: ignore[reportArgumentType]

        patched.setattr(syncing, "_write_all", killed)
        with pytest.raises(KeyboardInterrupt):
            tf.sync(folder, "s3://synced/interrupted")
    assert not Run("s3://synced/interrupted").finished
    with server.counted() as asked:
        again = tf.sync(folder, "s3://synced/interrupted")
    assert len([each for each in asked if each.method == "PUT"]) == len(runs.contents(folder)) - (1 + 4 + 4)
    assert objects(server.place("interrupted")) == runs.contents(folder)
    assert again.verify().ok
    with server.counted() as asked:
        tf.sync(folder, "s3://synced/interrupted")
    assert not [each for each in asked if each.method == "PUT"]


def test_a_small_run_goes_to_a_bucket_and_back(server: BucketServer, tmp_path: Path) -> None:
    one = runs.write(tmp_path / "one", runs.plan(arrays=runs.FEW[3:4], n_examples=4))
    back = tf.sync(tf.sync(one, "s3://synced/small"), tmp_path / "back")
    assert isinstance(back.folder, Path)
    assert runs.contents(back.folder) == runs.contents(one)
    with pytest.raises(RunExists, match="another run is in s3://synced/small"):
        tf.sync(runs.write(tmp_path / "two", runs.plan(arrays=runs.FEW[3:4], n_examples=3)), "s3://synced/small")


@pytest.mark.slow
def test_a_file_that_was_changed_meanwhile_is_copied_anew(server: BucketServer, folder: Path) -> None:
    place = server.put_folder(folder, "changed")
    place.store.delete([(place / "manifest.json").key])
    place.store.put((place / "tokens.parquet").key, b"something else")
    assert tf.sync(folder, place).verify().ok


@pytest.mark.slow
def test_a_bucket_that_fails_for_a_while_gets_all(server: BucketServer, folder: Path) -> None:
    answers = iter(["500", "broken", "503", None, "short"] * 2)
    with server.failing(lambda asked: next(answers, None)):
        tf.sync(folder, "s3://synced/failing")
    assert objects(server.place("failing")) == runs.contents(folder)


@pytest.mark.slow
def test_what_is_not_finished_or_not_whole_is_not_copied(server: BucketServer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not finished"):
        tf.sync(runs.begin(tmp_path / "begun", 1), "s3://synced/begun")
    damaged = runs.write(tmp_path / "damaged", runs.plan(arrays=runs.FEW))
    array = next(path for path in damaged.rglob("c.0*") if "attn" in str(path))
    array.write_bytes(array.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptRun, match="was changed after it was written"):
        tf.sync(damaged, "s3://synced/damaged")
    assert not (server.place("damaged") / "manifest.json").is_file()


@pytest.mark.slow
def test_another_run_or_files_of_somebody_are_left_alone(server: BucketServer, folder: Path, tmp_path: Path) -> None:
    other = runs.write(tmp_path / "other", runs.plan(arrays=runs.FEW, n_examples=5))
    tf.sync(other, "s3://synced/other")
    with pytest.raises(RunExists, match="another run is in s3://synced/other"):
        tf.sync(folder, "s3://synced/other")
    server.place("begun/meta.json").write_bytes((other / "meta.json").read_bytes())
    with pytest.raises(RunExists, match="another run was begun"):
        tf.sync(folder, "s3://synced/begun")
    server.place("mine/notes.txt").write_bytes(b"mine")
    with pytest.raises(RunExists, match="not this run's: notes"):
        tf.sync(folder, "s3://synced/mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunExists, match="is not this run"):
        tf.sync(folder, tmp_path / "full")


@pytest.mark.slow
def test_a_run_is_kept_in_a_bucket_of_the_hub_and_read_there(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    there = tf.sync(folder, "hf://buckets/me/runs/first")
    held = hub.buckets["me/runs"]
    assert {key.removeprefix("first/"): data for key, data in held.items()} == runs.contents(folder)
    assert runs.holds_what_was_written(there)
    assert there.verify().ok
    assert tf.open_run("hf://buckets/me/runs/latest").ids == there.ids
    assert np.array_equal(there.activations("resid_mid", 4), Run(folder).activations("resid_mid", 4))
    run, before = Run("hf://buckets/me/runs/first"), len(hub.paths)
    run.attn(5, layer=4, head=2)
    assert len(hub.paths) - before == 3
    back = tf.sync("hf://buckets/me/runs/first", tmp_path / "back")
    assert runs.contents(tmp_path / "back") == runs.contents(folder)
    assert back.finished


def test_the_hubs_refusals_are_told_without_its_token(hub: HubServer) -> None:
    with pytest.raises(NotFound, match="no bucket hf://buckets/me/other"):
        Run("hf://buckets/me/other/run")
    with pytest.raises(NotFound, match="no run in hf://buckets/me/runs/nothing"):
        Run("hf://buckets/me/runs/nothing")
    with pytest.raises(UsageError, match="no place in a bucket"):
        Run("hf://datasets/me/runs")
    hub.failing = [401]
    with pytest.raises(Unreachable, match="refused") as refused:
        Run("hf://buckets/me/runs/first")
    assert "hf_secret" not in str(refused.value)
    with pytest.raises(Unsupported, match="cannot be written"):
        HubBucket("me/runs", FakeApi(hub)).put_if_absent("key", b"")
