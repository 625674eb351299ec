"""A run as safetensors: `{id}.safetensors` for each example, with every array, and `manifest.json` beside them.

A tensor is named as its array is (`dec.self.q`) and has the example's own axes: (layer, head, token, d_head), or
(layer, head, query, key). The manifest says which layers and heads these are, which model and texts, and the SHA-256
of every file, and has each example's row of the token table, as `formats.rows` writes it. bfloat16 stays bfloat16,
token ids are int32.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from traceformer.filenames import file_name
from traceformer.formats.options import ExportOptions
from traceformer.formats.outgoing import described_run, plain_row, row_types
from traceformer.formats.tensor_files import write_tensor_file
from traceformer.formats.whole import appearing_whole, refuse_to_replace
from traceformer.shapes import Shaped
from traceformer.store.files import checksum, durable_write
from traceformer.store.run import Run

__all__ = ["MANIFEST", "OPTIONS", "SAFETENSORS_FORMAT", "write_files"]

OPTIONS: frozenset[str] = frozenset()
MANIFEST = "manifest.json"
SAFETENSORS_FORMAT = "traceformer safetensors 1"


def write_files(store: Run, folder: Path, options: ExportOptions) -> Iterator[Path]:
    """Yields each example's file, once it is written, and at the end the manifest.

    Raises:
        RunExists: a file is in the way.
    """
    ids = store.ids if options.example_ids is None else options.example_ids
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    refuse_to_replace(manifest, overwrite=options.overwrite)
    examples: list[dict[str, Any]] = []
    for done, example_id in enumerate(ids, start=1):
        path = options.claimed(folder / f"{file_name(example_id)}.safetensors")
        _write(path, store, example_id)
        lengths = {stack: store.length(example_id, stack) for stack in store.layout.stacks}
        found = checksum(path, "sha256")
        told = {"file": path.name, "bytes": found.bytes, "sha256": found.digest, "lengths": lengths}
        examples.append({**told, "row": plain_row(store, example_id)})
        options.progress(done, len(ids))
        yield path
    described = {
        "format": SAFETENSORS_FORMAT,
        "arch": store.arch,
        "arrays": [spec.to_json() for spec in store.layout.arrays],
        "run": described_run(store),
        "types": row_types(store),
        "examples": examples,
    }
    durable_write(manifest, json.dumps(described, indent=2).encode())
    yield manifest


def _write(path: Path, store: Run, example_id: str) -> None:
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
    for spec in store.layout.arrays:
        values = store.get(example_id, spec.key, dtype="stored")
        if store.layout.stored(spec) == "bfloat16":
            values = values.astype(ts.bfloat16.numpy_dtype)
        arrays[str(spec.key)] = np.ascontiguousarray(values)
    with appearing_whole(path) as part:
        # One entry: several are written in another order each time by safetensors 0.8.0.
        write_tensor_file(part, arrays, {"example_id": example_id})
