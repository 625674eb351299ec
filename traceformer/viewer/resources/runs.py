"""Which runs there are, and what one holds."""

from datetime import datetime
from typing import Any

from traceformer.analysis.head_tally import attention_name
from traceformer.analysis.heads import METRICS
from traceformer.store.commits import RunHead, committed_examples, has_lost_manifest
from traceformer.store.folders import folder_bytes
from traceformer.store.layout import MANIFEST, META
from traceformer.store.names import public_name
from traceformer.store.objects.path import AnyPath
from traceformer.store.run import Run
from traceformer.units import amount_of_bytes
from traceformer.viewer.library import Library
from traceformer.viewer.notices import notices_of
from traceformer.viewer.query import Query

__all__ = ["run", "runs"]

Json = dict[str, Any]


def runs(library: Library, query: Query) -> Json:
    """Returns what each run says of itself, the newest first, and the names of folders of effects."""
    return {
        "folder": "" if library.folder is None else str(library.folder),
        "runs": [_row(library, name) for name in library.names()],
        "effects": library.effects(),
    }


def run(library: Library, query: Query) -> Json:
    """Returns what the run of a name holds.

    `version` changes when there is more of it; `features` are the metrics of heads that can be asked for.
    """
    name = query.text("run")
    version = library.state(name)
    opened = library.run(name)
    about, layout = opened.about, opened.layout
    return {
        "name": name,
        "version": version,
        "finished": opened.finished,
        "model": about.model_and_adapter,
        "data_set": about.dataset,
        "kind": about.kind,
        "arch": opened.arch,
        "n_examples": opened.n,
        "n_expected": None if layout.is_open else layout.n_examples,
        "notices": notices_of(opened),
        "features": dict(METRICS),
        "stacks": {stack: about.dims_of(stack).to_json() for stack in layout.stacks},
        "arrays": [
            {**spec.to_json(), "name": public_name(spec.key), "meaning": spec.site.meaning} for spec in layout.arrays
        ],
        "attentions": [
            {
                "name": attention_name(spec.key),
                "stack": spec.key.stack,
                "key_stack": spec.key.key_stack,
                "layers": list(spec.layers),
                "heads": list(spec.heads),
                "n_layers": about.dims_of(spec.key.stack).n_layers,
                "without": list(about.dims_of(spec.key.stack).without_attention),
                "triangle": layout.is_triangle(spec),
            }
            for spec in layout.arrays
            if spec.key.site == "attn_pattern"
        ],
        "settings": {
            name: value
            for name, value in {
                "model": about.model_and_adapter,
                "data set": about.dataset,
                "recorded": about.time,
                "numbers": opened.dtype,
                "edits": None if about.edits is None else len(about.edits),
            }.items()
            if value is not None
        },
    }


def _row(library: Library, name: str) -> Json:
    try:
        folder = library.place(name)
        key = ("row", folder or name, library.state(name))
        return library.once(key, lambda: _in_memory(name, library.run(name)) if folder is None else _in(folder, name))
    except (ValueError, OSError) as error:  # CorruptRun and Unreadable, NotFound if it went meanwhile
        place = library.folder / name if library.folder else ""
        return {"name": name, "problem": str(error).replace(f"{place}/", "")}


def _in_memory(name: str, opened: Run) -> Json:
    return {**_told(name, opened), "begun": opened.about.time, "n_examples": opened.n}


def _in(folder: AnyPath, name: str) -> Json:
    """Reads the head and the names of files only: a list is there before any run is opened."""
    head = RunHead.read(folder)
    begun = datetime.fromtimestamp((folder / META).stat().st_mtime).isoformat(sep=" ", timespec="minutes")
    size = folder_bytes(folder)
    problem = f"damaged: it has lost its {MANIFEST}" if has_lost_manifest(folder) else ""
    return {
        **_told(name, head),
        "problem": problem,
        "n_examples": committed_examples(folder, head),
        "finished": (folder / MANIFEST).is_file(),
        "bytes": size,
        "size": amount_of_bytes(size),
        "begun": begun,
    }


def _told(name: str, of: Run | RunHead) -> Json:
    about = of.about
    return {
        "name": name,
        "problem": "",
        "model": about.model_and_adapter,
        "data_set": about.dataset,
        "kind": about.kind,
        "arch": of.layout.arch,
        "n_expected": None if of.layout.is_open else of.layout.n_examples,
        "finished": True,
    }
