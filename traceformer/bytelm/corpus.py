"""Bytes to train on: memory-mapped, split so that nothing held out occurs in what is trained on.

1. A source gives bytes: one file as it is, or documents (the files of a folder, Python's own documentation).
2. Documents are put in an order that depends on their content alone, those that share a paragraph side by side.
3. They are written one after the other into one file, a separator before, between and after them.
4. The file is mapped into memory and cut into training, validation and test text, between documents if there are any.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from traceformer.bytelm.enwik8 import fetch_enwik8
from traceformer.bytelm.pydoc_texts import VERSION, pydoc_texts
from traceformer.errors import NotFound, Unreadable
from traceformer.shapes import Int64, UInt8
from traceformer.store.beside import cache_folder

__all__ = ["SPLITS", "Corpus", "Span", "Split", "open_corpus", "separate"]

Split: TypeAlias = Literal["standard", "thesis"]

SPLITS: Mapping[Split, tuple[float, float]] = {"standard": (0.90, 0.95), "thesis": (0.90, 1.0)}
"""Where training text ends, and where validation text ends; the rest is for tests."""

SEPARATOR = 256  # the id of <|endoftext|>
_PLACEHOLDER = 0  # the byte that is stored where a separator is; `ends` says which bytes are meant
_SHARED_PARAGRAPH = 64  # a paragraph of so many characters in two documents is a copy, not a coincidence
_FEWEST = 1000  # bytes: less cannot be split into anything that teaches or measures


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text: memory-mapped bytes, and the positions among them that hold separators, in order."""

    data: UInt8[np.ndarray, " position"]
    ends: Int64[np.ndarray, " separator"]

    def __len__(self) -> int:
        return len(self.data)

    @property
    def n_bytes(self) -> int:
        """How many bytes of text there are, without the separators."""
        return len(self.data) - len(self.ends)

    def tokens(self, start: int, stop: int) -> Int64[np.ndarray, " position"]:
        """Returns the ids from `start` to before `stop`: bytes, and 256 for separators."""
        ids = self.data[start:stop].astype(np.int64)
        first, last = np.searchsorted(self.ends, (start, stop))
        ids[self.ends[first:last] - start] = SEPARATOR
        return ids

    def part(self, start: int, stop: int) -> "Span":
        first, last = np.searchsorted(self.ends, (start, stop))
        return Span(self.data[start:stop], self.ends[first:last] - start)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training, validation and test text; `name` has no path, `digest` is the SHA-256 of all bytes with separators."""

    name: str
    train: Span
    validation: Span
    test: Span
    digest: str


def open_corpus(data: str, *, split: Split = "standard") -> Corpus:
    """Returns the corpus named `enwik8` or `pydoc`, or that of a file or of the text files of a folder.

    enwik8 is downloaded once. Folders and pydoc are copied into the cache as one file each.

    Raises:
        NotFound: no such file or folder, or nothing in it; enwik8 cannot be reached.
        Unreadable: too few bytes; enwik8 is not what it should be.
    """
    path = Path(data)
    if data == "enwik8":
        whole = _map_file(fetch_enwik8(cache_folder()))
    elif data == "pydoc":
        place = cache_folder() / f"pydoc-{VERSION}"
        whole = _map_folder(place if place.is_dir() else _write(pydoc_texts(), lambda _: place))
    elif os.path.isdir(path):  # false, too, of what no file can be called
        whole = _map_folder(_write(_files_of(path), lambda digest: cache_folder() / f"folder-{digest[:16]}"))
    elif os.path.isfile(path):
        whole = _map_file(path)
    else:
        raise NotFound(f"no data {data!r}", hint="give enwik8, pydoc, a file, or a folder of text files")
    if whole.n_bytes < _FEWEST:
        raise Unreadable(f"{data} holds {whole.n_bytes} bytes of text", why=f"at least {_FEWEST} are needed")
    train_end, validation_end = (_cut(whole, share) for share in SPLITS[split])
    return Corpus(
        f"pydoc of Python {VERSION}" if data == "pydoc" else data if data == "enwik8" else path.name,
        whole.part(0, train_end),
        whole.part(train_end, validation_end),
        whole.part(validation_end, len(whole)),
        hashlib.sha256(whole.data.data).hexdigest(),
    )


def _cut(whole: Span, share: float) -> int:
    """The position after the next separator, if a document ends near there; else just there."""
    target = int(len(whole) * share)
    following = whole.ends[np.searchsorted(whole.ends, target) :]
    near = len(following) > 0 and following[0] - target < len(whole) // 40
    return int(following[0]) + 1 if near and share < 1 else target


def _map_file(path: Path) -> Span:
    if path.stat().st_size == 0:
        raise Unreadable(f"{path} is empty")
    return Span(np.memmap(path, np.uint8, "r"), np.empty(0, np.int64))


def _map_folder(place: Path) -> Span:
    return Span(np.memmap(place / "text.bin", np.uint8, "r"), np.load(place / "ends.npy"))


def _files_of(folder: Path) -> Iterator[bytes]:
    """The contents of all files that are text, hidden ones passed over."""
    found = False
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        content = path.read_bytes()
        if content and b"\0" not in content[:8192]:
            found = True
            yield content
    if not found:
        raise NotFound(f"no text files in the folder {folder}")


def _write(documents: Iterable[bytes], place_of: Callable[[str], Path]) -> Path:
    """Writes the documents into a folder of the cache, whose name may depend on the digest of what it holds."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=cache_folder()))
    try:
        digest, ends, position = hashlib.sha256(), [0], 1
        with (building / "text.bin").open("wb") as out:
            pieces = [bytes((_PLACEHOLDER,)), *(d + bytes((_PLACEHOLDER,)) for d in separate(list(documents)))]
            for piece in pieces:
                out.write(piece)
                digest.update(piece)
            for piece in pieces[1:]:
                position += len(piece)
                ends.append(position - 1)
        np.save(building / "ends.npy", np.array(ends, np.int64))
        place = place_of(digest.hexdigest())
        if not place.is_dir():
            try:
                building.rename(place)
            except OSError:  # another process was faster; it wrote the same
                if not place.is_dir():
                    raise
        return place
    finally:
        shutil.rmtree(building, ignore_errors=True)


def separate(documents: Sequence[bytes]) -> list[bytes]:
    """Returns the documents, each once, in an order given by their content, those with a paragraph in common together.

    So a cut between two of them seldom leaves a copy on either side, and the same documents in another order
    give the same corpus.
    """
    unique = {hashlib.sha256(document).digest(): document for document in documents}
    group_of: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while group_of.setdefault(key, key) != key:
            key = group_of[key]
        return key

    first_with: dict[bytes, bytes] = {}
    for key in sorted(unique):
        for paragraph in unique[key].split(b"\n\n"):
            words = b" ".join(paragraph.split())
            if len(words) >= _SHARED_PARAGRAPH:
                other = root(first_with.setdefault(words, key))
                group_of[root(key)] = other
    return [unique[key] for key in sorted(unique, key=lambda key: (root(key), key))]
