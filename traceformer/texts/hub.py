"""Data sets that the `datasets` library holds: on the Hugging Face Hub, in its cache, or saved by `save_to_disk`.

A folder of downloaded repositories can stand in for the Hub: with `TRACEFORMER_DATASETS=/data`, the repository
`tau/commonsense_qa` is read from `/data/tau/commonsense_qa` if that exists. The library's cache knows such a folder by
its name and README only; so each state of its files gets a cache of its own, and what is read is what lies there.
"""

import errno
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, OutOfSpace, Unreadable, UsageError
from traceformer.network import hub_answers
from traceformer.texts.examples import Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["DatasetRows", "is_saved_dataset", "load_hub", "load_saved", "stream_hub", "without_media"]

_MIRROR = "TRACEFORMER_DATASETS"
_BLOCK = 1 << 22
_ROWS = 1024


class DatasetRows:
    """The rows of a memory-mapped `datasets.Dataset`; columns of pictures, sound and the like are left out."""

    has_every_field = True

    def __init__(self, dataset: "Dataset", label: str) -> None:
        media = [name for name, feature in dataset.features.items() if _is_media(feature)]
        # A saved data set may come back formatted as tensors.
        self._dataset = dataset.with_format(None).remove_columns(media)
        self._arrow = self._dataset.with_format("arrow")
        self.label = label
        self.columns = tuple(self._dataset.column_names)

    def __iter__(self) -> Iterator[Row]:
        return self.rows_from(0)

    def rows_from(self, first: int) -> Iterator[Row]:
        """Yields the rows from a number on."""
        for start in range(first, len(self._dataset), _ROWS):
            batch = self._checked(slice(start, start + _ROWS))
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def __getitem__(self, number: int) -> Row:
        return self._checked(number)

    def _checked(self, rows: int | slice) -> Row:
        """Returns a row, or the columns of rows, valid: Arrow itself would follow wrong offsets to other memory.

        Raises:
            Unreadable: they are not valid.
        """
        import pyarrow as pa

        table: Any = self._arrow[rows]
        try:
            table.validate(full=True)
        except pa.ArrowInvalid as error:
            raise Unreadable(f"{self.label} is damaged", why=_first_line(error)) from error
        return self._dataset[rows]

    def where(self, number: int) -> str:
        return f"{self.label}, row {number}"

    def class_names(self, column: str) -> list[str] | None:
        """Returns the names behind a column of class numbers, or of lists of them; None if it holds none."""
        feature: Any = self._dataset.features[column]
        return getattr(getattr(feature, "feature", feature), "names", None)


def _is_media(feature: object) -> bool:
    return hasattr(feature, "decode_example") and type(feature).__name__ != "Json"


_MISREAD = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What `datasets` 5.2 raises of a saved data set whose JSON is not as it wrote it."""


def is_saved_dataset(folder: Path) -> bool:
    """Returns whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_saved(folder: Path) -> Mapping[str, "Dataset"]:
    """Returns the splits in a folder that `save_to_disk` wrote; a lone Dataset is the split `all`.

    Raises:
        Unreadable: something in the folder is missing or damaged.
    """
    import datasets
    import pyarrow as pa

    try:
        saved = datasets.load_from_disk(str(folder))
    except (*_MISREAD, pa.ArrowException) as error:
        raise Unreadable(f"{folder} is not a data set that save_to_disk wrote", why=_first_line(error)) from error
    return _by_name(saved) if isinstance(saved, datasets.DatasetDict) else {"all": saved}


def load_hub(repository: str, config: str | None) -> Mapping[str, "Dataset"]:
    """Returns the splits of a data set on the Hub, downloaded where they are not in the cache yet.

    Raises:
        NotFound: no such data set or configuration, or no way to the Hub.
        OutOfSpace: the cache's disk is full.
        Unreadable: it holds no data that can be loaded without running its code.
        UsageError: not a repository's name.
    """
    import datasets
    import datasets.config

    def load(place: Path | None) -> Any:
        if place is None:
            return datasets.load_dataset(repository, config)
        cache = Path(datasets.config.HF_DATASETS_CACHE) / "traceformer" / _fingerprint(place, config)
        return datasets.load_dataset(str(place), config, cache_dir=str(cache))

    return _by_name(_loaded(repository, config, load))


def stream_hub(repository: str, config: str | None) -> Mapping[str, "IterableDataset"]:
    """Returns the splits of a data set on the Hub, which is read as it comes: nothing is downloaded beforehand.

    Raises:
        NotFound, OutOfSpace, Unreadable, UsageError: as of `load_hub`.
    """
    import datasets

    def load(place: Path | None) -> Any:
        return datasets.load_dataset(repository if place is None else str(place), config, streaming=True)

    return {str(name): split for name, split in _loaded(repository, config, load).items()}


def without_media(dataset: "IterableDataset") -> "IterableDataset":
    """Returns a streamed data set without its columns of pictures, sound and the like."""
    known = dataset if dataset.features is not None else dataset._resolve_features()  # pyright: ignore[reportPrivateUsage]
    return known.remove_columns([name for name, feature in (known.features or {}).items() if _is_media(feature)])


def _loaded(repository: str, config: str | None, load: Callable[[Path | None], Any]) -> Any:
    """Returns what `load` gives of a repository's copy here, or of the Hub for None; errors in words."""
    from datasets.exceptions import DatasetsError

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository):
        raise UsageError(f"{repository!r} is no data set's name on the Hub", hint="write hf:OWNER/NAME[:CONFIG]")
    place = _mirrored(repository)
    try:
        if place:
            return load(place)
        with _no_retries():
            return load(None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise _explained(error, repository, config, place) from error


def _by_name(splits: Mapping[Any, "Dataset"]) -> dict[str, "Dataset"]:
    return {str(name): split for name, split in splits.items()}


def _mirrored(repository: str) -> Path | None:
    mirror = os.environ.get(_MIRROR)
    if not mirror:
        return None
    place = Path(mirror) / repository
    return place if place.is_dir() else None


def _fingerprint(place: Path, config: str | None) -> str:
    """Returns a hash of what a configuration of a repository is made of: its data files, and what describes them."""
    import datasets
    import datasets.config
    import xxhash

    files = datasets.load_dataset_builder(str(place), config).config.data_files
    assert isinstance(files, dict)
    described = (datasets.config.REPOCARD_FILENAME, datasets.config.REPOYAML_FILENAME, "dataset_infos.json")
    parts = [("", str(path)) for name in described if (path := place / name).is_file()]
    digest = xxhash.xxh3_128()
    for split, path in (*parts, *((str(split), str(path)) for split, paths in files.items() for path in paths)):
        digest.update(f"{split}\0{Path(os.path.relpath(path, place)).as_posix()}\0{os.path.getsize(path)}\0".encode())
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _no_retries() -> Generator[None]:
    """Has the library look into its cache alone where the Hub cannot be reached: it would try for half a minute."""
    import datasets
    import datasets.config

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not hub_answers()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _explained(error: Exception, repository: str, config: str | None, place: Path | None) -> Exception:
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    name = f"{repository}:{config}" if config else repository
    why = _first_line(error)
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "Not enough disk space" in why):
        return OutOfSpace(
            f"no room to keep the data set {name}", why=why, hint="make room, or set HF_HOME to a larger disk"
        )
    if isinstance(error, ConnectionError):
        return NotFound(
            f"the data set {name} is not on this machine, and the Hub cannot be reached",
            why=why,
            hint=f"where there is a network, run `hf download {repository} --repo-type dataset --local-dir "
            f"DIR/{repository}`, bring DIR here and set {_MIRROR}=DIR",
        )
    if isinstance(error, DataFilesNotFoundError):
        return Unreadable(f"the data set {name} holds no data files that can be loaded", why=why)
    if isinstance(error, DatasetNotFoundError):
        return NotFound(f"no data set {repository!r} on the Hub that you may read", why=why)
    if isinstance(error, ValueError) and ("BuilderConfig" in why or "Config name is missing" in why):
        asked = f"no configuration {config!r}" if config else "several configurations, and none was named"
        return NotFound(f"the data set {repository} has {asked}", hint=_config_names(error))
    if "scripts are no longer supported" in why:
        return Unreadable(
            f"the data set {repository} is a script, which is not run",
            why=why,
            hint="look for a Parquet copy of it on the Hub, or download its files and give their folder",
        )
    return Unreadable(f"the data set {name} could not be loaded from {place or 'the Hub'}", why=why)


def _config_names(error: Exception) -> str:
    names = re.search(r"\[.*?\]", str(error))
    return f"it has: {names[0].strip('[]').replace(chr(39), '')}" if names else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
