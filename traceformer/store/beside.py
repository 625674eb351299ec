"""What was worked out of a run and would take long again, kept beside its folder and never in it.

1. It lies in `.traceformer/CONTENT/NAME` of the folder that holds the run, or, where nothing can be written there, and
   where it lies in a bucket, in the user's cache. CONTENT is a digest of the run's manifest, which names the checksum
   of every file: a run that replaces another one never meets what was kept of that. `FORM`, which is in it, too,
   changes with the arithmetic.
2. A file begins with the SHA-256 of the rest of it. One that is damaged is made again.
3. What was used longest ago goes when all of it takes more than 1 GiB. It can be removed at any time.

Runs that are not finished, and those in memory, have nothing kept.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from weakref import WeakKeyDictionary

from traceformer.store.layout import MANIFEST
from traceformer.store.run import Run

__all__ = ["MOST_BYTES", "cache_folder", "content_of", "kept"]

KEPT = ".traceformer"
FORM = 1
"""To be raised whenever anything that is kept comes to be worked out, or written, in another way."""
MOST_BYTES = 1 << 30
_LEFT = 3 / 4  # of them, once some was removed
_DIGEST_BYTES = 32
_sizes: dict[Path, int] = {}  # of all that is kept in a folder, as far as this process knows
_contents: WeakKeyDictionary[Run, str] = WeakKeyDictionary()  # of runs in buckets


def cache_folder() -> Path:
    """Returns the user's cache: `$XDG_CACHE_HOME/traceformer`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "traceformer"


def content_of(run: Run) -> str | None:
    """Returns a digest of all that a run holds; None of one that is not finished, or in memory."""
    if run.folder is None or not run.finished:
        return None
    if isinstance(run.folder, Path):
        return _digest((run.folder / MANIFEST).read_bytes())
    if run not in _contents:  # asked for once: what is read of a run in a bucket that was replaced is an error
        _contents[run] = _digest((run.folder / MANIFEST).read_bytes())
    return _contents[run]


def _digest(manifest: bytes) -> str:
    return sha256(b"%d\n" % FORM + manifest).hexdigest()[:32]


def kept(run: Run, name: str, make: Callable[[], bytes]) -> bytes:
    """Returns what was made of a run under a name before, or makes it now and keeps it.

    Args:
        run: The run.
        name: A name that a file can have, and that says all that the bytes depend on besides the run.
        make: Makes the bytes.
    """
    content = content_of(run)
    if run.folder is None or content is None:
        return make()
    beside = (run.folder.absolute().parent / KEPT,) if isinstance(run.folder, Path) else ()
    roots = (*beside, cache_folder() / "runs")
    for root in roots:
        found = _read(root / content / name)
        if found is not None:
            return found
    made = make()
    if content_of(run) == content:
        for root in roots:
            if _write(root, content, name, made):
                break
    return made


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # somebody else's can be read only
        os.utime(path)  # the time of its last use
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return body if sha256(body).digest() == digest else None


def _write(root: Path, content: str, name: str, body: bytes) -> bool:
    """Whether it could be written: whole, or not at all."""
    folder = root / content
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".part-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(sha256(body).digest() + body)
            Path(temporary).replace(folder / name)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        return False
    _make_room(root, _DIGEST_BYTES + len(body))
    return True


def _make_room(root: Path, added: int) -> None:
    """Removes what was used longest ago, if there is more than may be."""
    _sizes[root] = _sizes[root] + added if root in _sizes else sum(size for _, size, _ in _files(root))
    if _sizes[root] <= MOST_BYTES:
        return
    files = sorted(_files(root))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= _LEFT * MOST_BYTES:
            break
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):  # it is not empty
            path.parent.rmdir()
        total -= size
    _sizes[root] = total


def _files(root: Path) -> list[tuple[int, int, Path]]:
    """Time of the last use, size and path of everything that is kept."""
    found: list[tuple[int, int, Path]] = []
    for path in root.glob("*/*"):
        with suppress(OSError):
            state = path.stat()
            found.append((state.st_mtime_ns, state.st_size, path))
    return found
