"""A place in a bucket, with as much of `pathlib.Path` as the store uses: a run's files are read by the same code.

Folders are what keys have in common up to a slash: one is there while it holds something, and none need be made.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from traceformer.errors import NotFound, UsageError
from traceformer.store.objects.client import ObjectStore, State
from traceformer.store.objects.opening import SCHEMES, open_bucket

if TYPE_CHECKING:
    from traceformer.store.objects.hub import HubBucket

__all__ = ["AnyPath", "ObjectPath", "as_path", "disk_path", "each_of", "is_bucket", "sizes_in", "states_of"]

# A `Path` makes one slash of two.
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}(?!/)(.*)", re.DOTALL)
_OTHER = re.compile(rf"(?!({'|'.join(SCHEMES)}):)([A-Za-z][A-Za-z0-9+.-]+:)/.*", re.DOTALL)  # not a drive, `C:/`
T = TypeVar("T")
U = TypeVar("U")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB = ("buckets", "OWNER", "NAME")  # what names a bucket of the Hugging Face Hub: its other addresses are repositories
_EXAMPLES = ("s3://bucket/name-of-the-run", "gs://bucket/name-of-the-run", "hf://buckets/OWNER/NAME/name-of-the-run")


class _Size(NamedTuple):
    st_size: int
    st_mtime: float
    st_mtime_ns: int


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """A key of a bucket, or what several begin with.

        ObjectPath.parse("s3://bucket/runs/first") / "meta.json"

    Attributes:
        scheme: `s3`, `gs` or `hf`.
        bucket: The bucket's name; of the Hub `buckets/OWNER/NAME`.
        key: Without slashes at its ends; empty for the bucket itself.
    """

    scheme: str
    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, address: str) -> "ObjectPath":
        """Returns the place of an address such as `s3://bucket/prefix`.

        Raises:
            UsageError: it is none.
        """
        found = _ADDRESS.fullmatch(address)
        parts = [part for part in (found[2] if found else "").split("/") if part]
        n = len(_HUB) if found and found[1] == "hf" else 1
        bucket, key = parts[:n], parts[n:]
        known = len(bucket) == n and all(map(_BUCKET.fullmatch, bucket)) and (n == 1 or bucket[0] == _HUB[0])
        if found is None or not known or any(part in (".", "..") for part in key):
            raise UsageError(f"no place in a bucket: {address!r}", hint=" or ".join(_EXAMPLES))
        return cls(found[1], "/".join(bucket), "/".join(key))

    @property
    def store(self) -> "ObjectStore | HubBucket":
        """The bucket."""
        return open_bucket(self.scheme, self.bucket)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __truediv__(self, name: str | PurePosixPath) -> "ObjectPath":
        added = [part for part in str(name).split("/") if part not in ("", ".")]
        return ObjectPath(self.scheme, self.bucket, "/".join([*([self.key] if self.key else []), *added]))

    def as_posix(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "ObjectPath":
        return self.parent / name

    def absolute(self) -> "ObjectPath":
        return self

    def resolve(self) -> "ObjectPath":
        return self

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            raise ValueError(f"{self} is not in {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    # What is there

    def read_bytes(self) -> bytes:
        """Returns the object's bytes.

        Raises:
            NotFound: there is no such object.
        """
        return self.store.get(self.key)

    def blocks(self, size: int = 8 << 20) -> Iterator[bytes]:
        """Yields the object's bytes, some at a time; all are of the same object.

        Raises:
            NotFound: there is no such object, or it was replaced meanwhile.
        """
        state = self.state()
        if state is None:
            raise NotFound(f"no object {self}")
        for start in range(0, state.size, size):
            yield self.store.get_range(self.key, start, min(size, state.size - start), seen=state)

    def state(self) -> State | None:
        """Returns the object's state, or None if there is no such object."""
        return self.store.head(self.key) if self.key else None

    def stat(self) -> _Size:
        """Returns the object's size and when it was written, by the names that files have for it.

        Raises:
            NotFound: there is no such object.
        """
        state = self.state()
        if state is None:
            raise NotFound(f"no object {self}")
        return _Size(state.size, state.modified, int(state.modified * 1e9))

    def is_file(self) -> bool:
        return self.state() is not None

    def is_dir(self) -> bool:
        folders, objects = self.store.list_folder(self.key)
        return bool(folders or objects)

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yields what lies directly in it."""
        folders, objects = self.store.list_folder(self.key)
        yield from (ObjectPath(self.scheme, self.bucket, key.rstrip("/")) for key in sorted([*folders, *objects]))

    def folders(self) -> list["ObjectPath"]:
        """Returns the folders that lie directly in it."""
        return [ObjectPath(self.scheme, self.bucket, key.rstrip("/")) for key in self.store.list_folder(self.key)[0]]

    def objects(self) -> dict[str, State]:
        """Returns all objects under it, by their names from here on, and their states."""
        start = len(self.key) + 1 if self.key else 0
        return {key[start:]: state for key, state in self.store.listing(self.key)}

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yields the objects under it whose names match."""
        yield from (self / name for name in self.objects() if fnmatchcase(name.rpartition("/")[2], pattern))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yields the objects whose names match, part by part; of parts without a star none are listed."""
        first, _, rest = pattern.partition("/")
        if "*" not in first:
            found = [self / first] if rest or (self / first).is_file() else []
        else:
            folders, objects = self.store.list_folder(self.key)
            keys = [key.rstrip("/") for key in folders] if rest else [*objects]
            found = [ObjectPath(self.scheme, self.bucket, key) for key in sorted(keys)]
            found = [path for path in found if fnmatchcase(path.name, first)]
        for path in found:
            if rest:
                yield from path.glob(rest)
            else:
                yield path

    # What is written

    def write_bytes(self, data: bytes) -> None:
        """Writes the object, whole, in place of what may be there."""
        self.store.put(self.key, data)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object, if it is there; whether it was is not asked."""
        self.store.delete([self.key])


AnyPath: TypeAlias = Path | ObjectPath
"""Where a run's files can lie."""


def is_bucket(name: str | AnyPath) -> bool:
    """Returns whether this names a place in a bucket."""
    return isinstance(name, ObjectPath) or _ADDRESS.fullmatch(str(name)) is not None


def as_path(name: str | AnyPath) -> AnyPath:
    """Returns the place that a name means: in a bucket if it begins with `s3://`, `gs://` or `hf://`, or else on disk.

    Raises:
        UsageError: such an address is none, or of another scheme.
    """
    if isinstance(name, ObjectPath):
        return name
    return ObjectPath.parse(str(name)) if is_bucket(name) else _on_disk(name)


def disk_path(name: str | Path) -> Path:
    """Returns the path of what is written to a disk alone.

    Raises:
        UsageError: it is a place in a bucket, of which a path would make a folder `s3:`; or of another scheme.
    """
    if is_bucket(name):
        raise UsageError(
            f"{as_path(name)} is a place in a bucket", why="runs alone are written there", hint="a path on disk"
        )
    return _on_disk(name, "a path on disk")


def _on_disk(name: Any, hint: str = f"a path on disk, or {' or '.join(_EXAMPLES)}") -> Path:
    """Returns the path of a name, unless that is an address of which it would make a folder such as `https:`."""
    if not isinstance(name, str | PathLike):
        raise UsageError(f"{type(name).__name__} names no place", hint="text or a path")
    other = _OTHER.fullmatch(str(name))
    if other and not Path(other[2]).is_dir():
        raise UsageError(
            f"no place {str(name)!r}", why=f"{other[2]} is neither a bucket's scheme nor a folder", hint=hint
        )
    return Path(name)


def each_of(folder: AnyPath, call: Callable[[T], U], things: Iterable[T]) -> Iterator[U]:
    """Yields what a call gives for each of several things of a folder, in order; of a bucket, many at a time."""
    if isinstance(folder, Path):
        yield from map(call, things)
        return
    from traceformer.store.objects.at_once import at_once  # of no use to who reads from a disk

    yield from at_once(call, things)


def states_of(paths: Iterable[ObjectPath]) -> dict[ObjectPath, State]:
    """Returns the states of those objects that are there; several are asked for at once."""
    from traceformer.store.objects.at_once import at_once

    asked = [*paths]
    states = zip(asked, at_once(ObjectPath.state, asked), strict=True)
    return {path: state for path, state in states if state is not None}


def sizes_in(folder: AnyPath) -> dict[str, int]:
    """Returns the sizes of all files in a folder, by their names from here on."""
    if isinstance(folder, ObjectPath):
        return {name: state.size for name, state in folder.objects().items()}
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
