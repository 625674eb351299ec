"""Durable files: written whole or not at all, sealed JSON, checksums, and locks that die with their process."""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from traceformer.errors import CorruptRun, NotFound, OutOfSpace, RunExists, UsageError
from traceformer.store import system
from traceformer.store.objects.path import AnyPath, ObjectPath

__all__ = [
    "Checksum",
    "FileLock",
    "canonical",
    "checksum",
    "checksum_of",
    "durable_write",
    "free_space",
    "is_full",
    "is_intact",
    "is_sealed",
    "read_sealed",
    "seal",
    "sha256",
    "unseal",
]

Algorithm: TypeAlias = Literal["sha256", "xxh3_128"]

TEMPORARY = ".part"
_OWN = uuid.uuid4().hex[:8]  # beside the process's number, which processes of other machines may have, too
_FULL = (errno.ENOSPC, errno.EDQUOT)
# How tensorstore, safetensors and pyarrow write the operating system's number into their messages.
_NUMBER_IS = ("os_error_code='", "os error ", "[errno ", "[Errno ")
_NUMBERS = (*_FULL, 112)  # the last is Windows's own, which Python turns into ENOSPC
_TORCH_CANNOT_WRITE = ("failed writing", "unexpected pos", "write failed", "iostream error")
_NO_ROOM = 1 << 20
_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_SEAL_BYTES = len(b',\n  "sha256": ""\n}\n') + 64


class Checksum(NamedTuple):
    """Size and hash of a file. Array files, which are most of a run, have xxh3_128 and a mark, all others SHA-256.

    SHA-256 is hardly faster than the disk (1.6 GB/s on one core against 1.7 GB/s of durable writing); xxh3_128
    runs at memory speed. `mark` is what readers compare; see `marks`.
    """

    bytes: int
    algorithm: Algorithm
    digest: str
    mark: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, self.algorithm: self.digest, **({"mark": self.mark} if self.mark else {})}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Checksum":
        algorithm: Algorithm = "sha256" if "sha256" in data else "xxh3_128"
        return cls(data["bytes"], algorithm, data[algorithm], data.get("mark", ""))


def is_intact(data: bytes, written: Checksum) -> bool:
    """Returns whether `data` is what a file with a SHA-256 held when it was written."""
    return written == Checksum(len(data), "sha256", sha256(data))


def checksum(path: AnyPath, algorithm: Algorithm) -> Checksum:
    """Returns size and hash of a file."""
    if isinstance(path, ObjectPath):
        return _checksum_of_blocks(path.blocks(), algorithm)
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if algorithm == "sha256" else _xxh3(file)
        return Checksum(os.fstat(file.fileno()).st_size, algorithm, digest)


def checksum_of(data: bytes, algorithm: Algorithm) -> Checksum:
    """Returns size and hash of a file that holds these bytes."""
    return _checksum_of_blocks((data,), algorithm)


def _checksum_of_blocks(blocks: Iterable[bytes], algorithm: Algorithm) -> Checksum:
    """Returns size and hash of bytes that come block by block."""
    state: Any = hashlib.sha256()
    if algorithm != "sha256":
        import xxhash

        state = xxhash.xxh3_128()
    size = 0
    for block in blocks:
        state.update(block)
        size += len(block)
    return Checksum(size, algorithm, state.hexdigest())


def _xxh3(file: IO[bytes]) -> str:
    import xxhash

    state, block = xxhash.xxh3_128(), bytearray(1 << 20)
    view = memoryview(block)
    while size := file.readinto(block):  # pyright: ignore[reportAttributeAccessIssue]
        state.update(view[:size])
    return state.hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(data: object) -> str:
    """Returns the one JSON text of a value, whatever order its keys were put in."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def seal(data: dict[str, Any]) -> bytes:
    """Returns `data` as JSON text that ends with the SHA-256 of itself without that field.

    Raises:
        UsageError: a value in it nests deeper than can be written.
    """
    try:
        body = _readable(data).encode()[: -len(b"\n}")]
    except RecursionError as error:
        raise UsageError("a value that nests too deep for a file of JSON", hint="leave it out") from error
    return body + b',\n  "sha256": "' + sha256(body).encode() + b'"\n}\n'


def _readable(value: object, margin: str = "") -> str:
    """Returns JSON text with one line per entry, but lists of plain values on one line."""
    inner = f"{margin}  "
    if isinstance(value, dict) and value:
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {_readable(each, inner)}" for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        entries = [_readable(each, inner) for each in value]
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{inner}" + f",\n{inner}".join(entries) + f"\n{margin}{last}"


def is_sealed(text: bytes) -> bool:
    """Returns whether the text ends as sealed text does."""
    return _SEAL.search(text, max(0, len(text) - _SEAL_BYTES)) is not None


def unseal(text: bytes, path: AnyPath) -> dict[str, Any]:
    """Returns what was sealed.

    Raises:
        CorruptRun: any byte differs from what was sealed, or what was sealed is not what this package seals.
    """
    match = _SEAL.search(text, max(0, len(text) - _SEAL_BYTES))
    if not match or sha256(text[: match.start()]) != match[1].decode():
        raise CorruptRun(
            f"{path} was changed after it was written", why="its SHA-256 does not fit", hint="restore it from a copy"
        )
    try:
        data = json.loads(text, parse_constant=_refuse)
        if b"\\u" in text:  # half a surrogate pair could not be written again
            canonical(data).encode()
    except (ValueError, RecursionError) as error:
        raise CorruptRun(f"{path} is not what was written", why=f"its JSON cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CorruptRun(f"{path} is not what was written", why="it holds no JSON object")
    sealed: dict[str, Any] = data
    del sealed["sha256"]
    return sealed


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def read_sealed(path: AnyPath) -> dict[str, Any]:
    """Returns what was sealed in a file.

    Raises:
        NotFound: there is no such file.
        CorruptRun: it is not as it was written.
    """
    try:
        return unseal(path.read_bytes(), path)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None


def durable_write(path: AnyPath, data: bytes, *, exclusive: bool = False) -> None:
    """Writes a file so that after a crash it is there whole or not at all; returns once it would survive one.

    Raises:
        FileExistsError: `exclusive`, and the file exists.
    """
    if isinstance(path, ObjectPath):
        if not exclusive:
            path.write_bytes(data)
        elif not path.store.put_if_absent(path.key, data):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_OWN}-{threading.get_ident()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            system.sync(file.fileno())
        if exclusive:
            system.link(temporary, path)
        else:
            system.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    system.sync_folder(path.parent)


@contextmanager
def free_space(
    folder: Path,
    undo: Callable[[], None] = lambda: None,
    *,
    kept: str = "what was written whole is kept",
    hint: str = "free some space, then the same again",
) -> Generator[None]:
    """Turns a full disk inside the block into OutOfSpace, after `undo` has given back what was begun.

    `kept` and `hint` say what is there afterwards, and what would work.

    Raises:
        OutOfSpace: the operating system refused to write more.
    """
    try:
        yield
    except Exception as error:  # every library has a class of its own for it
        if isinstance(error, OutOfSpace) or not is_full(error, folder):
            raise
        undo()
        raise OutOfSpace(f"the disk of {folder} is full", why=kept, hint=hint) from error


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Returns whether an error says that a disk has no room left.

    Where torch's says nothing but that a file could not be written, the disk of `folder` is looked at.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)
    if any(f"{number_is}{code}" in text for code in _NUMBERS for number_is in _NUMBER_IS):
        return True
    if folder is not None and isinstance(error, RuntimeError) and any(told in text for told in _TORCH_CANNOT_WRITE):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        return shutil.disk_usage(there).free < _NO_ROOM
    return False


class FileLock:
    """An exclusive lock on a file, which the operating system drops when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def acquire(self, *, wait: bool = False) -> None:
        """Takes the lock, at once or, with `wait`, when its holder lets go.

        Raises:
            RunExists: another process holds it.
        """
        while self._file is None:
            file = system.patiently(lambda: self.path.open("ab"))
            try:
                if not system.lock(file.fileno(), wait=wait):
                    raise RunExists(
                        f"another process is writing {self.path.parent}", hint="wait for it, or choose another `out`"
                    )
                # The holder may have removed the file while this process waited for it.
                if _is_at(file, self.path):
                    self._file = file
            finally:
                if self._file is None:
                    file.close()

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock back; does nothing if it is not held."""
        if self._file is None:
            return
        if remove and not system.KEEPS_OPEN_FILES:
            self.path.unlink(missing_ok=True)
        system.unlock(self._file.fileno())
        self._file.close()
        self._file = None
        if remove and system.KEEPS_OPEN_FILES:
            with suppress(PermissionError):  # another process has taken it, and will remove it
                self.path.unlink(missing_ok=True)

    def make_way(self) -> None:
        """Gives the lock back if the folder that it lies in could not be renamed or removed around it."""
        if system.KEEPS_OPEN_FILES:
            self.release()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
