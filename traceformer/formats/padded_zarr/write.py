"""The padded store: `meta.json`, `tokens.parquet` and Zarr groups in which every example has T tokens.

Arrays are Zarr v2, zstd level 3, one chunk per example, layer and head: `dec_self_attn.zarr/attn` is (N, L, H, T, T),
`dec_self_qkv.zarr/q` (N, L, H, T, d_head), `dec_hidden.zarr/h` (N, L+1, T, d_model), `dec_res_embed.zarr/x` (N, T, d),
`dec_class_logits.zarr/class_logits` (N, label). T is the longest example, `attention_mask` says which positions are its
own, and the others are zero. Groups that the original does not have (MLP, norms, logits ...) follow the same pattern.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorstore as ts

from traceformer.errors import RunExists
from traceformer.formats.incoming import common_dtype
from traceformer.formats.options import ExportOptions
from traceformer.formats.outgoing import described_run, plain_row, row_types
from traceformer.formats.padded_zarr.read import PADDED, PADDED_ZARR_FORMAT, recognises
from traceformer.formats.rows import TokenRow, read_types, token_table
from traceformer.formats.whole import appearing_whole, refuse_to_replace
from traceformer.shapes import Num
from traceformer.sites import ArraySpec, Stack
from traceformer.store.dtypes import dtype_read
from traceformer.store.forks import use_tensorstore
from traceformer.store.layout import META, TOKENS
from traceformer.store.names import array_path
from traceformer.store.replacing import check_place
from traceformer.store.run import Run

__all__ = ["OPTIONS", "write_files"]

OPTIONS: frozenset[str] = frozenset()
_DOCUMENTED = (
    *("run_id", "model", "dataset", "split", "num_layers", "num_heads", "head_dim"),
    *("layers_stored", "heads_stored", "capture", "has_targets", "time"),
)


def write_files(store: Run, folder: Path, options: ExportOptions) -> Iterator[Path]:
    """Yields the folder, once all of it is there.

    Raises:
        RunExists: something is there already.
    """
    ids = store.ids if options.example_ids is None else options.example_ids
    _refuse_existing(folder, options)
    with appearing_whole(folder) as part:
        _write(store, ids, part, options)
    yield folder


def _refuse_existing(folder: Path, options: ExportOptions) -> None:
    check_place(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    others = [path.name for path in folder.iterdir() if path.name not in (META, TOKENS) and path.suffix != ".zarr"]
    if others and recognises(folder / META):
        raise RunExists(f"{folder} holds what is not its own: {', '.join(sorted(others)[:3])}", hint="move that away")
    if not recognises(folder / META):
        raise RunExists(f"{folder} is there already, and is something else", hint="`folder` names another folder")
    refuse_to_replace(folder, overwrite=options.overwrite)


def _write(store: Run, ids: Sequence[str], folder: Path, options: ExportOptions) -> None:
    longest: dict[Stack, int] = {
        stack: max(store.length(example_id, stack) for example_id in ids) for stack in store.layout.stacks
    }
    arrays = {spec: _create(store, spec, folder, len(ids), longest) for spec in store.layout.arrays}
    for row, example_id in enumerate(ids):
        for spec, array in arrays.items():
            _put(array[row], store.get(example_id, spec.key, dtype="stored"), 1 if spec.site.is_per_example else 2)
        options.progress(row + 1, len(ids))
    types = read_types(row_types(store), str(folder))
    rows = [TokenRow(_padded(store, example_id, longest), types) for example_id in ids]
    pq.write_table(token_table(rows, str(folder)), folder / TOKENS, compression="zstd")
    meta = {name: store.meta[name] for name in _DOCUMENTED if name in store.meta} | {
        "arch": store.arch,
        "n_examples": len(ids),
        "max_seq_len": longest if store.arch == "encdec" else next(iter(longest.values())),
        "dtype": common_dtype({_dtype(store, spec).name for spec in store.layout.arrays if not spec.site.holds_ids}),
        "traceformer": {
            "format": PADDED_ZARR_FORMAT,
            "arrays": [spec.to_json() for spec in store.layout.arrays],
            "run": described_run(store),
        },
    }
    (folder / META).write_text(json.dumps(meta, indent=2), encoding="utf-8", newline="\n")


def _put(array: ts.TensorStore, values: Num[np.ndarray, "..."], chunk_axes: int) -> None:
    """Writes an example's values, chunk by chunk, and returns once none is on its way, also where one fails.

    A chunk has the last `chunk_axes` axes.
    """
    region = tuple(slice(size) for size in values.shape[-chunk_axes:])
    writes = [array[index][region].write(values[index]) for index in np.ndindex(values.shape[:-chunk_axes])]
    failed = [error for write in writes if (error := write.exception()) is not None]
    if failed:
        raise failed[0]


def _create(store: Run, spec: ArraySpec, folder: Path, n: int, longest: Mapping[Stack, int]) -> ts.TensorStore:
    lead = (len(spec.layers),) * bool(spec.layers) + (len(spec.heads),) * bool(spec.heads)
    last = longest[spec.key.key_stack] if spec.site.is_matrix else spec.width
    rows = () if spec.site.is_per_example else (longest[spec.key.token_stack],)
    shape = (n, *lead, *rows, last)
    path = folder / array_path(spec.key, store.arch)
    path.mkdir(parents=True)
    (path.parent / ".zgroup").write_text('{"zarr_format": 2}', encoding="utf-8", newline="\n")
    named = {"layers": list(spec.layers), "heads": list(spec.heads)}
    attributes = {"key": str(spec.key), "_ARRAY_DIMENSIONS": ["example", *spec.site.axes], **named}
    (path / ".zattrs").write_text(json.dumps(attributes), encoding="utf-8", newline="\n")
    use_tensorstore()
    dtype = _dtype(store, spec).newbyteorder("<").str
    return ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{path.as_posix()}/"},
            "store_data_equal_to_fill_value": True,
            "metadata": {
                "shape": list(shape),
                "chunks": [*(1,) * (len(shape) - len(rows) - 1), *rows, last],
                "dtype": dtype,
                # None: what a Zarr v2 array states to be its fill value is missing data to xarray, zeros would be NaN.
                "fill_value": None,
                "order": "C",
                "compressor": {"id": "zstd", "level": 3},
                "filters": None,
            },
        },
        create=True,
        open=True,
    ).result()


def _dtype(store: Run, spec: ArraySpec) -> np.dtype[Any]:
    return dtype_read(store.layout.stored(spec), "stored")


def _padded(store: Run, example_id: str, longest: Mapping[Stack, int]) -> dict[str, Any]:
    """Returns the example's row with T entries in each column of tokens."""
    row = plain_row(store, example_id)
    for stack in store.layout.stacks:
        prefix = "" if stack == store.layout.stacks[0] else f"{stack}_"
        row.setdefault(f"{prefix}attention_mask", [1] * store.length(example_id, stack))
        for name, filler in PADDED.items():
            own = row.get(prefix + name)
            if own is not None:
                row[prefix + name] = [*own, *[filler] * (longest[stack] - len(own))]
    return row
