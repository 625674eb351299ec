"""Traits: directions that a run was recorded with or that lie beside it, and how far tokens lie along one.

Directions that lie beside a run are files of `Direction.save` and `vectors fit` in the folder of runs, or in a folder
of that which is no run.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.analysis.directions import Direction
from traceformer.errors import NotFound, NotRecorded, TraceformerError
from traceformer.formats.results.directions import read_direction, written_direction
from traceformer.questions.traits import project
from traceformer.sites import ArrayKey
from traceformer.store.layout import META
from traceformer.store.run import Run
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["directions", "projection"]

Json = dict[str, Any]
_WARNED_OF = ("site", "model_weights")


def directions(library: Library, query: Query) -> Json:
    """Returns which directions there are for a run, each with its key, or with what is wrong with it."""
    run = library.run(query.text("run"))
    names = [] if run.about.projection is None else run.about.projection["names"]
    recorded = [{"key": f"recorded {name}", "name": name, "problem": ""} for name in names]
    return {"directions": [*recorded, *(_listed(run, name, path) for name, path in _beside(library, run).items())]}


def _listed(run: Run, name: str, path: Path) -> Json:
    try:
        own = read_direction(path)
        site = _site_of(run, own)
    except TraceformerError as error:
        return {"key": f"file {name}", "name": name, "problem": str(error)}
    width = run.spec(site).width
    problem = "" if own.width == width else f"it is {own.width} wide, the run's {site} is {width} wide"
    return {"key": f"file {name}", "name": name, "problem": problem}


def projection(library: Library, query: Query) -> Packet:
    """Returns `values` (layer, token): how far each token lies along the direction of a key, (a @ v) / |v|.

    Raises:
        NotFound: there is no such direction.
        NotRecorded, SelectionError, UsageError: as `project` raises them.
    """
    run, row = example_asked(library, query)
    key = query.text("direction")
    kind, _, name = key.partition(" ")
    files = _beside(library, run)
    if kind == "file" and name in files:
        return _projected(run, row, read_direction(files[name]), files[name])
    found = project(run, example=row) if kind == "recorded" else None
    if found is None or name not in found.names:
        raise NotFound(f"no direction {key!r}", hint="one of those on the page")
    [curves] = found.examples
    place = found.names.index(name)
    values = np.stack([rows.values[:, place] for rows in curves.by_layer.values()])
    return _packet(values, found.layers, {"name": name, "site": found.array, "file": None})


def _projected(run: Run, row: int, own: Direction, path: Path) -> Packet:
    site = _site_of(run, own)
    # What it was found in is told on the page, not warned of here.
    silent = replace(
        own, about={what: told for what, told in own.about.items() if what not in ("site", "model_weights")}
    )
    found = project(run, silent, site=site, example=row)
    [curves] = found.examples
    values = np.stack([rows.values[:, 0] for rows in curves.by_layer.values()])
    weights = own.about.get("model_weights")
    notes = []
    if own.about.get("site") not in (None, ArrayKey.parse(site).site):
        notes.append(f"found at {own.about['site']}, and used at {site}")
    if None not in (weights, run.about.model_weights) and weights != run.about.model_weights:
        notes.append("found in another model")
    thresholds = [own.quality.get(layer, {}).get("threshold") for layer in found.layers]
    told = {
        "name": own.name,
        "site": site,
        "file": str(path),
        "method": own.about.get("method"),
        "position": own.about.get("position"),
        "best_layer": own.best_layer,
        "notes": notes,
    }
    return _packet(values, found.layers, told, thresholds)


def _packet(values: Any, layers: tuple[int | None, ...], told: Mapping[str, Any], thresholds: Any = None) -> Packet:
    defaults = {"method": None, "position": None, "best_layer": None, "notes": []}
    about = {**defaults, **told, "layers": layers, "thresholds": thresholds or [None] * len(layers)}
    return Packet({"values": values}, about)


def _site_of(run: Run, own: Direction) -> str:
    """The array to project: that of the site at which the direction was found, or the residual stream behind blocks."""
    stacks = ("dec", "enc") if "dec" in run.layout.stacks else ("enc",)
    for site in (str(own.about.get("site")), "resid_post"):
        for stack in stacks:
            for spec in run.layout.arrays:
                if (spec.key.stack, spec.key.site) == (stack, site) and not spec.heads:
                    return str(spec.key)
    raise NotRecorded("this run holds no residual stream", hint='`capture="resid_post"` when it is recorded')


def _beside(library: Library, run: Run) -> dict[str, Path]:
    """The files of directions beside a run, by what they are called there."""
    folder = library.folder or (None if run.folder is None else run.folder.parent)
    if not isinstance(folder, Path):  # files of directions lie on a disk
        return {}
    folders = [folder, *(own for own in sorted(folder.iterdir()) if own.is_dir() and not (own / META).is_file())]
    inside = folder.resolve()
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for own in folders
        for path in sorted(own.glob("*.safetensors"))
        if path.resolve().is_relative_to(inside) and written_direction(path)
    }
