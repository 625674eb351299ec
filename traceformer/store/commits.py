"""What a run promises about itself: its head, one record per committed shard, the manifest, and their verification.

1. `meta.json` is written first and never again: format version, layout, configuration, and what the caller adds.
2. A shard exists once `commits/{k}.json` does, which is linked into place after all its other files are durable.
3. `manifest.json` is written last and lists every other file.

Each of the three is sealed with its own SHA-256 and lists the checksums of the files that came before it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traceformer.errors import CorruptRun, NotFound, RunExists, Unreadable
from traceformer.sites import ArraySpec, Stack
from traceformer.store.files import (
    Checksum,
    canonical,
    checksum,
    durable_write,
    is_sealed,
    read_sealed,
    seal,
    sha256,
    unseal,
)
from traceformer.store.hosts import UNKNOWN, Host
from traceformer.store.layout import (
    COMMITS,
    FORMAT_VERSION,
    LEASES,
    MANIFEST,
    META,
    OPEN_ENDED,
    TOKEN_SHARDS,
    UNFINISHED,
    RunLayout,
    as_of,
)
from traceformer.store.meta import RunMeta
from traceformer.store.objects.path import AnyPath, ObjectPath, each_of
from traceformer.store.q8 import Rounding

__all__ = [
    "CommitRecord",
    "Problem",
    "RunHead",
    "committed_examples",
    "committed_shards",
    "configuration_digest",
    "differing_files",
    "files_of",
    "has_lost_manifest",
    "manifest_of",
    "read_commit",
    "read_commits",
    "read_manifest",
    "verify_run",
    "write_manifest",
]

FORMAT = "traceformer-run"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a run that is not as it was written: `path` is relative to the run's folder."""

    path: Path
    what: str


@dataclass(frozen=True, slots=True)
class RunHead:
    """What `meta.json` holds: the caller's metadata, the layout, and the configuration that a resumed run shares.

    `version` is that of the format. Runs of format 1 lack what format 2 added: coordinates of layers and heads, and
    marks in the records. Those of format 2 have no aliases: every array is stored whole. Readers take what is there,
    and a run stays of the format that it was begun in when it is resumed.
    """

    meta: Mapping[str, Any]
    layout: RunLayout
    configuration: Mapping[str, Any]
    version: int = FORMAT_VERSION

    @classmethod
    def of(cls, meta: RunMeta | Mapping[str, Any], layout: RunLayout, configuration: Mapping[str, Any]) -> "RunHead":
        """Returns a new run's head, as its file will give it back: tuples are lists there."""
        stated = meta.to_json() if isinstance(meta, RunMeta) else meta
        return cls.from_json(json.loads(json.dumps(cls(stated, layout, configuration).to_json())))

    @property
    def is_of_stream(self) -> bool:
        """Whether the run is over texts that were read as they came: also once their number is known."""
        return self.configuration.get("n_examples") == OPEN_ENDED

    @property
    def about(self) -> RunMeta:
        return RunMeta.from_json(self.to_json())

    @classmethod
    def read(cls, folder: AnyPath) -> "RunHead":
        """Returns the head of the run in `folder`.

        Raises:
            NotFound: there is no run.
            Unreadable: it is not a run of this package, or a later version of it wrote the run.
            CorruptRun: `meta.json` was changed after it was written.
        """
        path = folder / META
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            why = f"it has no {META}" if folder.is_dir() else "no such folder"
            raise NotFound(f"no run in {folder}", why=why, hint="traceformer extract makes one") from None
        if not is_sealed(text) and FORMAT.encode() not in text:
            raise Unreadable(f"{path} is not the head of a run", hint="traceformer import reads other formats")
        data = unseal(text, path)
        version = data.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise Unreadable(
                f"{folder} has format version {version}",
                why=f"this version of traceformer reads up to {FORMAT_VERSION}",
                hint="pip install --upgrade traceformer",
            )
        try:
            return cls.from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreadable(f"{path} is not the head of a run", why=_what_is_wrong(error)) from error

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunHead":
        """Returns the head that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        if type(data["format_version"]) is not int or not isinstance(data["configuration"], dict):
            raise TypeError("format version or configuration")
        return cls(
            meta={name: value for name, value in data.items() if name not in ("layout", "configuration")},
            layout=RunLayout.from_json(data["layout"]),
            configuration=data["configuration"],
            version=data["format_version"],
        )

    def to_json(self) -> dict[str, Any]:
        """Returns all of `meta.json`."""
        meta = {name: value for name, value in self.meta.items() if name not in ("format", "format_version")}
        head = {"format": FORMAT, "format_version": self.version, **meta}
        layout = as_of(self.version, self.layout.to_json())
        return {**head, "layout": layout, "configuration": dict(self.configuration)}

    def write(self, folder: AnyPath, *, exclusive: bool = False) -> None:
        """Writes `meta.json`.

        Raises:
            FileExistsError: `exclusive`, and there is one.
        """
        durable_write(folder / META, seal(self.to_json()), exclusive=exclusive)


def configuration_digest(configuration: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a configuration, whatever order its entries have."""
    return sha256(canonical(dict(configuration)).encode())


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One committed shard: its examples in the data set's order, their lengths per stack, its files' checksums.

    `host` is what computed it, where that is known; `source` is where a stream stood when the shard was begun, and what
    was read; see `capture.streaming`. `rounded` is what is known of each array whose rows were rounded, by its key.
    """

    shard: int
    writer: tuple[int, int]
    configuration: str
    examples: tuple[str, ...]
    lengths: Mapping[Stack, tuple[int, ...]]
    files: Mapping[str, Checksum]
    host: Host = UNKNOWN
    source: Mapping[str, Any] | None = None
    rounded: Mapping[str, Rounding] = field(default_factory=dict[str, Rounding])

    def to_bytes(self) -> bytes:
        """Returns what the record's file holds."""
        data = {
            "shard": self.shard,
            "writer": list(self.writer),
            "configuration": self.configuration,
            "examples": list(self.examples),
            "lengths": {stack: list(lengths) for stack, lengths in self.lengths.items()},
            "files": {path: found.to_json() for path, found in self.files.items()},
            **({"host": host} if (host := self.host.to_json()) else {}),
            **({} if self.source is None else {"source": dict(self.source)}),
            **({"rounded": {key: own.to_json() for key, own in self.rounded.items()}} if self.rounded else {}),
        }
        return seal(data)

    def write(self, folder: AnyPath) -> None:
        """Commits the shard.

        Raises:
            RunExists: it is committed already.
        """
        try:
            durable_write(record_path(folder, self.shard), self.to_bytes(), exclusive=True)
        except FileExistsError:
            raise RunExists(f"shard {self.shard} of {folder} is committed already", why="by another writer") from None

    @classmethod
    def read(cls, folder: AnyPath, shard: int) -> "CommitRecord":
        """Returns the record of a shard.

        Raises:
            NotFound: the shard is not committed.
            CorruptRun: the record is not as it was written.
        """
        path = record_path(folder, shard)
        data = read_sealed(path)
        try:
            record = cls.from_json(data)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CorruptRun(f"{path} is no record of a shard", why=_what_is_wrong(error)) from error
        if record.shard != shard:
            raise CorruptRun(f"{path} is the record of another shard", why=f"it says shard {record.shard}")
        return record

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CommitRecord":
        """Returns the record that `write` wrote.

        Raises:
            KeyError, TypeError, ValueError, IndexError, AttributeError: it is none.
        """
        if not all(isinstance(example, str) for example in data["examples"]):
            raise TypeError("examples have ids that are no text")
        return cls(
            shard=data["shard"],
            writer=(data["writer"][0], data["writer"][1]),
            configuration=data["configuration"],
            examples=tuple(data["examples"]),
            lengths={stack: tuple(lengths) for stack, lengths in data["lengths"].items()},
            files={path: Checksum.from_json(found) for path, found in data["files"].items()},
            host=Host.from_json(data.get("host", {})),
            source=_source(data.get("source")),
            rounded={key: Rounding.from_json(own) for key, own in data.get("rounded", {}).items()},
        )

    def belongs_to(self, head: RunHead) -> bool:
        """Returns whether the record is of a shard of this run: its configuration, examples, lengths and files."""
        layout = head.layout
        if self.configuration != configuration_digest(head.configuration) or self.shard >= layout.n_shards:
            return False
        known = all(
            len(self.lengths.get(stack, ())) == len(self.examples)
            and all(type(length) is int and 0 <= length <= most for length in self.lengths[stack])
            for stack, most in layout.max_tokens.items()
        )
        arrays = self.arrays_of(layout)
        if arrays is None:
            return False
        files = {path for spec in arrays for path in layout.shard_files(spec, self.shard)}
        return known and self._has_all_examples(layout) and set(self.files) == files | {token_path(self.shard)}

    def arrays_of(self, layout: RunLayout) -> list[ArraySpec] | None:
        """Returns the arrays that have a file of the shard; None if what it says was rounded cannot be of this layout.

        Where no channel is massive, there is no file for them.
        """
        found: list[ArraySpec] = []
        of_codes = {str(spec.key): spec for spec in layout.kept if layout.stored(spec) == "q8"}
        if self.rounded.keys() != of_codes.keys():
            return None
        for spec in layout.kept:
            if str(spec.key) not in of_codes:
                found.append(spec)
                continue
            rounding = self.rounded[str(spec.key)]
            if not rounding.fits(max(1, len(spec.layers)) * max(1, len(spec.heads)), spec.width):
                return None
            found += [part for part in layout.parts(spec) if part.part != "massive" or any(rounding.massive)]
        return found

    def _has_all_examples(self, layout: RunLayout) -> bool:
        """Whether there are as many as the shard holds; where nobody knows how many will come, the last holds fewer."""
        most = len(layout.shard_range(self.shard))
        return 0 < len(self.examples) <= most if layout.is_open else len(self.examples) == most


def _source(stated: Any) -> Mapping[str, Any] | None:
    if stated is not None and not isinstance(stated, dict):
        raise TypeError("where its texts came from is no object")
    return stated


def _what_is_wrong(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def record_path(folder: AnyPath, shard: int) -> AnyPath:
    return folder / COMMITS / f"{shard}.json"


def token_path(shard: int) -> str:
    return f"{TOKEN_SHARDS}/{shard}.parquet"


def committed_shards(folder: AnyPath) -> list[int]:
    """Returns the numbers of the shards that have a record, in order."""
    try:
        return sorted(int(path.stem) for path in (folder / COMMITS).glob("*.json") if path.stem.isdecimal())
    except FileNotFoundError:
        if isinstance(folder, ObjectPath):
            raise
        return []  # the folder got another name while it was looked at


def committed_examples(folder: AnyPath, head: RunHead) -> int:
    """Returns how many examples the committed shards hold; of a stream the last may hold fewer than the others."""
    shards = committed_shards(folder)
    if not shards or not head.layout.is_open:
        return sum(len(head.layout.shard_range(shard)) for shard in shards)
    return (len(shards) - 1) * head.layout.shard_examples + len(CommitRecord.read(folder, shards[-1]).examples)


def read_commits(folder: AnyPath, head: RunHead) -> Iterator[CommitRecord]:
    """Yields the records of all committed shards in order.

    Raises:
        CorruptRun: a record is not as it was written, or belongs to another configuration.
    """
    yield from each_of(folder, lambda shard: read_commit(folder, head, shard), committed_shards(folder))


def read_commit(folder: AnyPath, head: RunHead, shard: int) -> CommitRecord:
    """Returns the record of a committed shard of the run with this head.

    Raises:
        NotFound: the shard is not committed.
        CorruptRun: as `read_commits` raises it.
    """
    record = CommitRecord.read(folder, shard)
    if not record.belongs_to(head):
        raise CorruptRun(f"{record_path(folder, shard)} belongs to another run")
    return record


def manifest_of(folder: AnyPath, head: RunHead) -> bytes:
    """Returns the manifest: the checksums of all files of a run, of which those of shards come from their records."""
    known = {path: found for record in read_commits(folder, head) for path, found in record.files.items()}
    names = [path for path in files_of(folder) if path != MANIFEST]
    found = each_of(folder, lambda path: known.get(path) or checksum(folder / path, "sha256"), names)
    files = dict(zip(names, found, strict=True))
    return seal({"files": {path: found.to_json() for path, found in files.items()}})


def write_manifest(folder: AnyPath, head: RunHead) -> None:
    """Writes the manifest of a run."""
    durable_write(folder / MANIFEST, manifest_of(folder, head))


def read_manifest(folder: AnyPath) -> dict[str, Checksum]:
    """Returns the checksums of all files of a finished run, but the manifest's own.

    Raises:
        NotFound: there is no manifest.
        CorruptRun: it is not as it was written.
    """
    listed = read_sealed(folder / MANIFEST)
    try:
        return {path: Checksum.from_json(file) for path, file in listed["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptRun(f"{folder / MANIFEST} states no checksums of files", why=repr(error)) from error


def has_lost_manifest(folder: AnyPath) -> bool:
    """Returns whether a run has no manifest though it was finished: until then its folder is `_tmp_<name>`.

    In a bucket a run has its name from the start, and is not finished while it has no manifest.
    """
    if isinstance(folder, ObjectPath):
        return False
    names = (folder.absolute().name, folder.resolve().name)
    return not (folder / MANIFEST).exists() and not any(name.startswith(UNFINISHED) for name in names)


def files_of(folder: AnyPath) -> list[str]:
    """Returns the names of all files of a run; a lease that its owner forgot is none of them."""
    if isinstance(folder, ObjectPath):
        names = [*folder.objects()]
    else:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if not name.startswith(f"{LEASES}/"))


def verify_run(folder: AnyPath, seen: Callable[[CommitRecord], object] = lambda record: None) -> list[Problem]:
    """Returns everything about a run that is not as it was written; an empty list for an intact run.

    Reads every byte. A finished run is held against its manifest: each file, and that nothing is missing or foreign.
    An unfinished one is held against its head, and its committed shards against their records. `seen` is given each
    record that can be read.

    Raises:
        NotFound: there is no run.
        Unreadable: it is not a run of this package, or a later version of it wrote the run.
    """
    try:
        head = RunHead.read(folder)
    except CorruptRun as error:
        return [Problem(Path(META), error.why or error.message)]
    found: dict[str, str] = {}
    expected: dict[str, Checksum] = {}
    shards = committed_shards(folder)
    for shard, record in zip(
        shards, each_of(folder, lambda shard: _record_or_damage(folder, shard), shards), strict=True
    ):
        path = f"{COMMITS}/{shard}.json"
        if isinstance(record, CorruptRun):
            found[path] = record.why
            continue
        seen(record)
        if not record.belongs_to(head):
            found[path] = "belongs to a run with another configuration, or with other shards"
        expected |= record.files
    if (folder / MANIFEST).exists():
        try:
            expected |= read_manifest(folder)
        except CorruptRun as error:
            found[MANIFEST] = error.why
        else:
            foreign = set(files_of(folder)) - expected.keys() - {MANIFEST}
            found |= dict.fromkeys(foreign, "does not belong to the run")
    elif has_lost_manifest(folder):
        found[MANIFEST] = "is missing, so what no commit record lists was not checked"
    if head.version > 1:
        found |= dict.fromkeys(_changed_coordinates(folder, head.layout), "does not say what the run's head does")
    for path, what in differing_files(folder, {path: file for path, file in expected.items() if path not in found}):
        if what:
            found[path] = what
    return [Problem(Path(path), what) for path, what in sorted(found.items())]


def _record_or_damage(folder: AnyPath, shard: int) -> CommitRecord | CorruptRun:
    try:
        return CommitRecord.read(folder, shard)
    except CorruptRun as error:
        return error


def _changed_coordinates(folder: AnyPath, layout: RunLayout) -> Iterator[str]:
    """Yields the coordinates that do not say what the head does; a run without a shard may have none yet."""
    from traceformer.store.zarr3 import coordinate_files

    for name, data in coordinate_files(layout).items():
        path = folder / name
        if (path.exists() or committed_shards(folder)) and not (path.is_file() and path.read_bytes() == data):
            yield name


def differing_files(folder: AnyPath, expected: Mapping[str, Checksum]) -> Iterator[tuple[str, str]]:
    """Yields each file and how it differs from what was written, or an empty text; reads all of them."""
    there = folder.objects() if isinstance(folder, ObjectPath) else {}

    def difference(name: str) -> str:
        path = folder / name
        if isinstance(path, ObjectPath):
            size = there[name].size if name in there else None
        else:
            size = path.stat().st_size if path.is_file() else None
        if size is None:
            return "is missing"
        if size != expected[name].bytes:
            return f"has {size} bytes instead of {expected[name].bytes}"
        found = checksum(path, expected[name].algorithm)
        return "" if found.digest == expected[name].digest else f"its content was changed ({found.algorithm} differs)"

    yield from zip(expected, each_of(folder, difference, expected), strict=True)
