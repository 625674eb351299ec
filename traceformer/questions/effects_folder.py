"""Effects in a folder: Zarr arrays of one chunk per pair, written while they are measured, and opened again.

    effects.json             what was done, on which axes and pairs; sealed, and written again when all is there
    zarr.json                a group of zarr v3, with the same in its attributes
    effect/ metric/          (pair, *cell) float64: the effect, and the metric that it comes of
    clean/ corrupt/          (pair) float64: the metric of the untouched texts

1. `effects.json` is written first. Who finds another one there, or a finished one, does not touch it.
2. The files of a pair appear whole and together: killed in between, that pair is measured anew.
3. A pair whose files are all there is done.
4. What is refused while it is begun, or measured to no use, leaves nothing.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from traceformer.analysis.effects import Axis, Effects, Swept
from traceformer.errors import ConfigurationChanged, CorruptRun, NotFound, RunExists, UsageError
from traceformer.shapes import Float64
from traceformer.store.durable import WriteGroup
from traceformer.store.files import FileLock, canonical, free_space, read_sealed, seal
from traceformer.store.objects.path import disk_path
from traceformer.store.zarr3 import CRC32C, LITTLE_ENDIAN, zarr_array

__all__ = ["EFFECTS", "EffectsFolder", "open_effects"]

EFFECTS = "effects.json"
_PER_PAIR = ("clean", "corrupt")
_MEANINGS = {
    "effect": "the effect of each cell: of patches a share, of ablations a difference",
    "estimate": "the effect of each cell, as its gradient has it",
    "exact": "the measured effect of the cells that were measured beside the estimate",
    "metric": "the metric of each touched pass",
    "clean": "the metric of each clean text, or of each untouched text",
    "corrupt": "the metric of each corrupt text",
}


class EffectsFolder:
    """A folder of effects that is being written by this process, and no other, as long as a `with` block lasts."""

    def __init__(self, folder: Path, stated: Mapping[str, Any], arrays: Sequence[str], lock: FileLock) -> None:
        self._folder, self._stated, self._arrays, self._lock = folder, dict(stated), tuple(arrays), lock
        self._cells = tuple(len(axis["numbers"]) for axis in stated["axes"])
        self._is_new = self._is_new_folder = False

    @classmethod
    def create(
        cls,
        folder: Path,
        about: Swept,
        axes: Sequence[Axis],
        pairs: Sequence[str],
        settings: Mapping[str, Any],
        *,
        resume: bool,
        arrays: Sequence[str] = ("metric", "effect"),
    ) -> "EffectsFolder":
        """Returns the folder, made, or found as an interrupted sweep of the same settings left it.

        Args:
            folder: Where.
            about: What will be done.
            axes: What the cells run over.
            pairs: The pairs' names.
            settings: What else must be the same to go on: digests of texts, say.
            resume: Whether to go on with one that is there.
            arrays: Which arrays of cells are written.

        Raises:
            RunExists: effects are there, or something else is, or another process writes them.
            ConfigurationChanged: what is there was begun with other settings.
        """
        # As it comes back from a file: lists for tuples.
        stated = json.loads(
            canonical(
                {
                    "about": asdict(about),
                    "axes": [asdict(axis) for axis in axes],
                    "pairs": list(pairs),
                    "settings": dict(settings),
                    "arrays": list(arrays),
                    "finished": False,
                }
            )
        )
        disk_path(folder)
        if folder.exists() and any(folder.iterdir()):
            _check_begun(folder, stated, resume=resume)
        is_new_folder = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
        made = cls(folder, stated, arrays, lock)
        made._is_new_folder = is_new_folder
        if not (folder / EFFECTS).exists():
            made._is_new = True
            made._write_metadata()
        return made

    @classmethod
    def joined(cls, folder: Path) -> "EffectsFolder":
        """Returns a folder that another process has begun, and holds, to write pairs into that no one else writes."""
        stated = read_sealed(folder / EFFECTS)
        return cls(folder, stated, stated["arrays"], FileLock(folder / ".lock"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_of_use = kind is None or (bool(self.done()) and not issubclass(kind, UsageError))
        self._lock.release(remove=True)
        if self._is_new and not is_of_use:
            self._remove()

    def done(self) -> list[int]:
        """Returns the numbers of the pairs that are there."""
        names = (*self._arrays, *_PER_PAIR)
        return [n for n in range(len(self._stated["pairs"])) if all(self._path(name, n).exists() for name in names)]

    def write(self, number: int, values: Mapping[str, Float64[np.ndarray, "..."]]) -> None:
        """Writes all arrays of one pair, durably."""
        from traceformer.store.shards import framed

        hint = "free some space, then the same again with `resume=True`"
        with free_space(self._folder, hint=hint), WriteGroup() as group:
            for name in (*_PER_PAIR, *self._arrays):
                raw = np.ascontiguousarray(values[name], "<f8").reshape(-1).view(np.uint8)
                group.write(self._path(name, number), b"".join(framed(raw)))

    def read(self, number: int) -> dict[str, Float64[np.ndarray, "..."]]:
        """Returns all arrays of one pair.

        Raises:
            CorruptRun: a file is not as it was written.
        """
        return {name: self._read(name, number) for name in (*self._arrays, *_PER_PAIR)}

    def finish(self, about: Swept) -> None:
        """Says that all is there."""
        self._stated |= {"about": json.loads(canonical(asdict(about))), "finished": True}
        self._write_metadata()

    def _remove(self) -> None:
        for name in (*self._arrays, *_PER_PAIR):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for name in (EFFECTS, "zarr.json"):
            (self._folder / name).unlink(missing_ok=True)
        if self._is_new_folder:
            with suppress(OSError):  # someone put something else there
                self._folder.rmdir()

    def _path(self, name: str, number: int) -> Path:
        zeros = () if name in _PER_PAIR else ("0",) * len(self._cells)
        return self._folder / name / ".".join(("c", str(number), *zeros))

    def _read(self, name: str, number: int) -> Float64[np.ndarray, "..."]:
        from traceformer.store.shards import framed

        path, shape = self._path(name, number), () if name in _PER_PAIR else self._cells
        try:
            data = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise CorruptRun(f"cannot read {path}", why=error.strerror or str(error)) from error
        size = 8 * math.prod(shape)
        if len(data) != size + 4 or bytes(framed(data[:size].copy())[1]) != data[size:].tobytes():
            raise CorruptRun(f"{path} is not as it was written", why="its checksum does not fit")
        return data[:size].view("<f8").astype(np.float64).reshape(shape)

    def _write_metadata(self) -> None:
        arrays = {name: self._array(name) for name in (*self._arrays, *_PER_PAIR)}
        group_of_zarr = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": self._stated,
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
        }
        files = {"": group_of_zarr, **{f"{name}/": entry for name, entry in arrays.items()}}
        with WriteGroup() as group:
            for name, entry in files.items():
                path = self._folder / f"{name}zarr.json"
                group.make_folder(path.parent)
                group.write(path, (json.dumps(entry, indent=2) + "\n").encode())
            group.write(self._folder / EFFECTS, seal(self._stated))

    def _array(self, name: str) -> dict[str, Any]:
        cells = () if name in _PER_PAIR else self._cells
        axes = () if name in _PER_PAIR else tuple(axis["name"] for axis in self._stated["axes"])
        return zarr_array(
            shape=(len(self._stated["pairs"]), *cells),
            chunk=(1, *cells),
            dtype="float64",
            fill="NaN",
            codecs=[LITTLE_ENDIAN, CRC32C],
            axes=("pair", *axes),
            attributes={"meaning": _MEANINGS[name]},
        )


def _check_begun(folder: Path, stated: Mapping[str, Any], *, resume: bool) -> None:
    if not (folder / EFFECTS).exists():
        if all(path.name.startswith(".") or path.name in (*_MEANINGS, "zarr.json") for path in folder.iterdir()):
            return  # killed before it was begun
        raise RunExists(f"{folder} holds something else", hint="choose another `out`")
    found = read_sealed(folder / EFFECTS)
    if found.get("finished") or not resume:
        is_done = "holds finished effects" if found.get("finished") else "holds effects that were begun"
        hint = "choose another `out`" if found.get("finished") else "`resume=True` goes on, or choose another `out`"
        raise RunExists(f"{folder} {is_done}", hint=hint)
    changed = [name for name in stated if found.get(name) != stated[name]]
    if changed:
        raise ConfigurationChanged(
            f"{folder} was begun differently",
            why=f"not the same: {', '.join(changed)}",
            hint="the same call as before, or another `out`",
        )


def open_effects(path: str | Path) -> Effects:
    """Returns effects that `patch` or `ablate` wrote into a folder.

        open_effects("effects/names").to_frame()

    Raises:
        NotFound: no effects are there.
        CorruptRun: a file is not as it was written, or the sweep was interrupted.
    """
    folder = Path(path).expanduser()
    if not (folder / EFFECTS).is_file():
        raise NotFound(f"no effects in {folder}", hint="a folder that `out` of patch or ablate named")
    stated = read_sealed(folder / EFFECTS)
    try:
        known = {each.name for each in fields(Swept)}
        told: dict[str, Any] = {name: value for name, value in stated["about"].items() if name in known}
        told["sites"] = tuple(told["sites"])
        swept = Swept(**told)
        axes = tuple(Axis(axis["name"], tuple(axis["numbers"]), tuple(axis["labels"])) for axis in stated["axes"])
        arrays, pairs, is_finished = tuple(stated["arrays"]), tuple(stated["pairs"]), bool(stated["finished"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptRun(
            f"{folder / EFFECTS} is not what was written", why=f"{type(error).__name__}: {error}"
        ) from error
    if not is_finished:
        raise CorruptRun(f"the effects in {folder} are not finished", hint="the same call with `resume=True` goes on")
    reader = EffectsFolder(folder, stated, arrays, FileLock(folder / ".lock"))
    rows = [reader.read(number) for number in range(len(pairs))]
    found = {name: np.stack([row[name] for row in rows]) for name in (*arrays, *_PER_PAIR)}
    by_pair = {name: found[name] for name in arrays if name != "metric"}
    return Effects(axes, by_pair, found["clean"], found["corrupt"], pairs, swept)
