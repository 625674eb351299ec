"""Objects in a bucket, through faults: what was written is there, and nobody overwrites by chance."""

import itertools
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.store import bucket_server
from tests.store.bucket_server import Bucket, Fault, Request
from traceformer.errors import NotFound, Unreachable, UsageError
from traceformer.store.folders import open_run
from traceformer.store.objects import client
from traceformer.store.objects.path import ObjectPath, as_path, disk_path, is_bucket

ONCE_EACH: tuple[Fault, ...] = ("500", "503", "broken", "lost")


def test_an_address_is_a_place_in_a_bucket() -> None:
    place = ObjectPath.parse("s3://bucket/runs/first/")
    assert (place.scheme, place.bucket, place.key) == ("s3", "bucket", "runs/first")
    assert str(place / "meta.json") == "s3://bucket/runs/first/meta.json"
    assert (place.name, str(place.parent), str(place.with_name("b"))) == (
        "first",
        "s3://bucket/runs",
        "s3://bucket/runs/b",
    )
    assert (place / "commits/3.json").relative_to(place).as_posix() == "commits/3.json"
    assert (place / "commits/3.json").stem == "3"


def test_a_path_that_has_lost_a_slash_is_still_one() -> None:
    assert as_path(Path("s3://bucket/runs/first")) == ObjectPath("s3", "bucket", "runs/first")
    assert as_path("gs://bucket/run") == ObjectPath("gs", "bucket", "run")
    assert as_path("traces/s3") == Path("traces/s3")
    assert not is_bucket("C:/runs")


@pytest.mark.parametrize("address", ["s3://", "s3:///run", "s3://bucket/../run", "s3://buck et/run"])
def test_what_is_no_place_in_a_bucket_is_said(address: str) -> None:
    with pytest.raises(UsageError, match="no place in a bucket"):
        ObjectPath.parse(address)


OTHERS = ["gcs://bucket/run", "https://example.org/run", "file:///traces/run", "az://box/run", Path("gcs://bucket/run")]


@pytest.mark.parametrize("address", OTHERS)
def test_an_address_of_another_scheme_makes_no_folder_of_that_name(
    address: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (as_path, disk_path, open_run):
        with pytest.raises(UsageError, match="is neither a bucket's scheme nor a folder; a path on disk") as refused:
            call(address)
        assert ("s3://bucket" in str(refused.value)) == (call is not disk_path)
    for scheme in ("s3", "gs"):
        assert is_bucket(f"{scheme}://bucket/run")


def test_a_folder_that_is_called_like_a_scheme_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first:").mkdir()
    assert as_path("first:/run") == Path("first:/run")
    assert as_path("C:/runs/first") == Path("C:/runs/first")
    assert as_path(str(tmp_path / "gcs:/run")) == tmp_path / "gcs:/run"


def test_without_the_extra_a_bucket_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(NotFound, match=r"buckets need obstore.*traceformer\[buckets\]"):
        ObjectPath("s3", "never-opened", "run").read_bytes()


@pytest.mark.slow
class TestBucketOfS3:
    def test_objects_are_written_read_listed_and_removed(self, bucket: Bucket) -> None:
        place = bucket.place("folder")
        data = bytes(range(256)) * 40
        for name in ("a", "b/c", "b/d", "e f+ü"):
            (place / name).write_bytes(data)
        (bucket.place("folder2") / "a").write_bytes(b"another's")
        store = place.store
        assert (place / "b/c").read_bytes() == data
        assert store.get_range("folder/a", 300, 7) == data[300:307]
        ranges = [(0, 5), (9, 0), (5000, 3), (10_000, 240)]
        assert store.get_ranges("folder/a", ranges) == [data[start : start + size] for start, size in ranges]
        assert sorted(place.objects()) == ["a", "b/c", "b/d", "e f+ü"]
        assert {state.size for state in place.objects().values()} == {len(data)}
        assert [path.name for path in place.iterdir()] == ["a", "b", "e f+ü"]
        assert [str(path.relative_to(place)) for path in place.glob("*/c")] == ["b/c"]
        assert [path.name for path in (place / "b").glob("*")] == ["c", "d"]
        assert ((place / "a").is_file(), (place / "b").is_file(), (place / "b").is_dir(), (place / "x").exists()) == (
            True,
            False,
            True,
            False,
        )
        store.delete(["folder/a", "folder/not there", "folder/b/c"])
        assert sorted(place.objects()) == ["b/d", "e f+ü"]
        with pytest.raises(NotFound, match=r"no object s3://.*/folder/a"):
            (place / "a").read_bytes()

    def test_more_objects_than_one_answer_lists_are_listed(self, bucket: Bucket) -> None:
        place = bucket.place("many")
        store = place.store
        for number in range(1100):
            store.put(f"many/{number:05}", b"")
        assert [int(name) for name in place.objects()] == [*range(1100)]
        store.delete(f"many/{number:05}" for number in range(1100))
        assert place.objects() == {}

    def test_of_many_who_write_what_is_absent_one_does(self, bucket: Bucket) -> None:
        path = bucket.place("run/commits/0.json")
        barrier, made = threading.Barrier(6), list[tuple[bool, bytes]]()

        def put(w: int) -> None:
            data = f"by {w}".encode()
            barrier.wait()
            made.append((path.store.put_if_absent(path.key, data), data))

        threads = [threading.Thread(target=put, args=(w,)) for w in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [data for done, data in made if done] == [path.read_bytes()]

    def test_what_changed_since_it_was_seen_is_not_replaced(self, bucket: Bucket) -> None:
        path = bucket.place("a")
        path.write_bytes(b"first")
        seen = path.state()
        assert seen is not None
        assert path.store.replace("a", b"second", seen)
        assert not path.store.replace("a", b"third", seen)
        assert path.read_bytes() == b"second"
        path.unlink()
        assert not path.store.replace("a", b"fourth", seen)
        assert not path.exists()

    @pytest.mark.parametrize("fault", ONCE_EACH)
    def test_a_request_that_fails_is_made_again(self, bucket: Bucket, fault: Fault) -> None:
        path = bucket.place("folder/a")
        calls: list[Any] = [
            lambda: path.write_bytes(b"content"),
            lambda: path.read_bytes() == b"content",
            lambda: path.store.get_range(path.key, 2, 3) == b"nte",
            lambda: path.state().size == 7,  # pyright: ignore[reportOptionalMemberAccess]
            lambda: [*path.parent.objects()] == ["a"],
            lambda: path.unlink(),
        ]
        for call in calls:
            failing = itertools.chain([fault], itertools.repeat(None))
            bucket.proxy.fault = lambda request, failing=failing: next(failing)  # pyright: ignore[reportUnknownLambdaType]
            assert call() in (None, True)
        bucket.proxy.reset()
        assert path.parent.objects() == {}

    @pytest.mark.parametrize("fault", ONCE_EACH)
    def test_a_conditional_write_whose_answer_is_lost_is_understood(self, bucket: Bucket, fault: Fault) -> None:
        path = bucket.place("run/commits/0.json")

        twice = itertools.chain([fault, fault], itertools.repeat(None))

        def only_writes(request: Request) -> Any:
            return next(twice) if request.method == "PUT" else None

        bucket.proxy.fault = only_writes
        assert path.store.put_if_absent(path.key, b"mine")
        bucket.proxy.reset()
        assert not path.store.put_if_absent(path.key, b"mine")  # it is, but not by this call
        failing = itertools.chain([fault], itertools.repeat(None))
        bucket.proxy.fault = lambda request: next(failing) if request.method == "PUT" else None
        assert not path.store.put_if_absent(path.key, b"another's")
        seen = path.state()
        assert seen is not None
        failing = itertools.chain([fault], itertools.repeat(None))
        assert path.store.replace(path.key, b"newer", seen)
        assert path.read_bytes() == b"newer"

    def test_a_bucket_that_stays_away_is_given_up_in_the_end(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "_PATIENCE", 0.5)
        bucket.proxy.fault = lambda request: "503"
        with pytest.raises(Unreachable, match="cannot be reached; tried again"):
            bucket.place("a").write_bytes(b"")
        assert len(bucket.proxy.requests) > 1

    def test_a_bucket_that_is_not_there_is_said_at_once(self, bucket: Bucket) -> None:
        there = ObjectPath.parse("s3://no-such-bucket/run")
        with pytest.raises(NotFound, match="no bucket s3://no-such-bucket"):
            there.write_bytes(b"")
        assert len(bucket.proxy.requests) == 1

    def test_large_objects_are_whole(self, bucket: Bucket) -> None:
        path, data = bucket.place("large"), bytes(range(256)) * (20 << 12)  # 20 MiB
        assert path.store.put_if_absent(path.key, data)
        assert path.read_bytes() == data
        assert bucket.proxy.objects[f"{bucket.name}/large"] == data

    def test_a_profile_is_read_where_the_environment_has_no_keys(
        self, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "credentials").write_text(
            f"[work]\naws_access_key_id = {bucket_server.ACCESS_KEY}\n"
            f"aws_secret_access_key = {bucket_server.SECRET_KEY}\n"
        )
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_PROFILE", "work")
        bucket.place("a").write_bytes(b"content")
        assert bucket.place("a").read_bytes() == b"content"
