"""The places that a run can be written to, each with the writer that goes there, and what a killed one leaves behind.

`shared` worlds are those in which a shard is claimed by a lease.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.store import runs, steps
from tests.store.bucket_server import Bucket, Request
from traceformer.errors import NotFound
from traceformer.store import leases
from traceformer.store.commits import verify_run
from traceformer.store.layout import LEASES, MANIFEST, RunLayout
from traceformer.store.leased import LeasedWriter
from traceformer.store.objects.path import AnyPath, ObjectPath
from traceformer.store.writer import RunWriter


@dataclass
class World:
    """Where runs are written.

    Attributes:
        name: What the tests call it.
        kind: The writer.
        root: A folder, for places on disk.
        bucket: For the others.
    """

    name: str
    kind: Any
    root: Path
    bucket: Bucket | None = None
    left: list[dict[str, bytes]] = field(default_factory=list[dict[str, bytes]])

    @property
    def shared(self) -> bool:
        return self.kind is LeasedWriter

    def place(self, name: str = "run") -> AnyPath:
        return self.root / "runs" / name if self.bucket is None else self.bucket.place(f"runs/{name}")

    def begin(self, place: AnyPath, layout: RunLayout, **options: Any) -> Any:
        return self.kind.create(place, layout, runs.META, **{"digest": runs.DIGEST, **options})

    def resume(self, place: AnyPath, layout: RunLayout, **options: Any) -> Any:
        return self.kind.resume(place, layout, runs.META, **{"digest": runs.DIGEST, **options})

    def write_or_resume(self, place: AnyPath, layout: RunLayout) -> None:
        """Does what is left to do of a run."""
        if self.is_finished(place):
            return
        try:
            writer = self.resume(place, layout)
        except NotFound:
            writer = self.begin(place, layout)
        with writer:
            write_shards(writer)
            assert writer.finish() == place

    def is_finished(self, place: AnyPath) -> bool:
        return (place / MANIFEST).is_file()

    def contents(self, place: AnyPath) -> dict[str, bytes]:
        """Returns every file of a run by its name."""
        if isinstance(place, ObjectPath):
            assert self.bucket is not None
            return self.bucket.contents(place)
        return runs.contents(place)

    def problems(self, place: AnyPath) -> list[str]:
        return [f"{each.path} {each.what}" for each in verify_run(place)]

    @contextmanager
    def watching(self, patch: pytest.MonkeyPatch, place: AnyPath) -> Iterator[None]:
        """Keeps what is there after each change of a file or object, in `left`."""
        if isinstance(place, ObjectPath):
            bucket = self.bucket
            assert bucket is not None

            def keep(request: Request) -> None:
                found = bucket.contents(place)
                if request.writes and (not self.left or found != self.left[-1]):
                    self.left.append(found)

            bucket.proxy.done = keep
            try:
                yield
            finally:
                bucket.proxy.reset()
            return
        snapshots = steps.Snapshots(place.parent, self.root / "left")
        place.parent.mkdir(parents=True)
        with patch.context() as watched:
            steps.watch_changes(watched, snapshots.take)
            yield
        self.left = [runs.contents(folder) for folder in snapshots.taken]
        shutil.rmtree(self.root / "left")

    def put_back(self, left: dict[str, bytes], name: str) -> AnyPath:
        """Returns the place of a run in whose stead lies what was kept."""
        place = self.place(name)
        root = place if isinstance(place, ObjectPath) else place.parent
        for path, data in left.items():
            if isinstance(root, Path):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return place


def write_shards(writer: Any, most: int | None = None) -> None:
    for number, shard in enumerate(writer.claims()):
        if number == most:
            return
        buffer = writer.buffer()
        writer.commit(shard, buffer, runs.fill(writer.layout, shard, buffer))


def whoever_had_a_lease_is_dead(patch: pytest.MonkeyPatch) -> None:
    """Has leases of before be those of processes that are no more."""
    patch.setattr(leases, "is_running", lambda process: False)


def without_leases(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in contents.items() if f"{LEASES}/" not in name}


def worlds_of(name: str, root: Path, bucket: Bucket | None) -> World:
    kind = RunWriter if name == "folder" else LeasedWriter
    return World(name, kind, root, bucket)
