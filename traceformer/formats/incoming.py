"""A run made of other people's files: what every import does once it knows which arrays they hold."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from traceformer.errors import Unreadable
from traceformer.formats.options import ImportOptions
from traceformer.formats.rows import TokenRow, check_plain, token_table
from traceformer.models.loaded import short_name
from traceformer.shapes import Float, Num, Shaped
from traceformer.sites import ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.layout import RunLayout
from traceformer.store.meta import RunMeta
from traceformer.store.names import Arch, Dtype
from traceformer.store.writer import RunWriter
from traceformer.texts.shown import unnamed

__all__ = ["UNKNOWN", "Fill", "common_dtype", "destination", "encoded", "put", "token_row", "write_run"]

RUNS = Path("traces")
UNKNOWN = "unknown_rows"
"""In `meta.json`: how rows that the files lack are told apart."""

Fill: TypeAlias = Callable[[ShardBuffer, int, int], TokenRow]
"""Puts an example's arrays into a slot of a buffer and returns its row of the token table: (buffer, slot, index)."""


def write_run(
    files: Sequence[Path],
    options: ImportOptions,
    fill: Fill,
    *,
    source: str,
    arch: Arch,
    arrays: Sequence[ArraySpec],
    lengths: Mapping[Stack, Sequence[int]],
    dtype: Dtype,
    stated: Mapping[str, Any],
    partial: bool = False,
    imported: Mapping[str, Any] | None = None,
) -> Path:
    """Returns the folder of the run that the examples make, in their order.

    Args:
        files: What was imported, for the run to say which files it came from.
        options: Where it goes.
        fill: Called once for each example.
        source: The format's name.
        arch: The model's.
        arrays: Those that every example has.
        lengths: Each example's tokens.
        dtype: Of the arrays.
        stated: What the files say of model and settings; `dims` and others are told from the arrays where they do not.
        partial: Whether some rows are unknown: these are NaN.
        imported: What else is to be said of where it comes from.

    Raises:
        RunExists: a run is at the folder asked for.
        Unreadable: what is stated, or a row of the token table, is of no plain values.
    """
    where = str(files[0] if len(files) == 1 else files[0].parent)
    check_plain(dict(stated), where)
    for spec in arrays:
        axes = spec.site.axes
        if bool(spec.layers) != axes[0].endswith("layer") or bool(spec.heads) != any(a.endswith("head") for a in axes):
            raise Unreadable(f"{where} states {spec.key} without its axes", why=f"it has {', '.join(axes)}")
        if not spec.width and not spec.site.is_matrix:
            raise Unreadable(f"{where} states {spec.key} with rows of no numbers")
    layout = RunLayout.plan(
        arch=arch,
        arrays=arrays,
        n_examples=len(next(iter(lengths.values()))),
        longest={stack: max(own) for stack, own in lengths.items()},
        mean={stack: sum(own) / len(own) for stack, own in lengths.items()},
        dtype=dtype,
        attn_codec="small",  # squares, since nobody knows before they are read that half of each is zeros
    )
    meta = _meta(layout, source, stated, {**(imported or {})}, partial=partial)
    digest = {"files": [_sha256(path) for path in files]}
    folder = destination(options, str(meta.run_id))
    with RunWriter.create(folder, layout, meta, digest=digest, overwrite=options.overwrite, resumable=False) as writer:
        for shard in writer.pending:
            buffer, rows = writer.buffer(), layout.shard_range(shard)
            buffer.begin({stack: own[rows.start : rows.stop] for stack, own in lengths.items()})
            table: list[TokenRow] = []
            for slot, index in enumerate(rows):
                table.append(fill(buffer, slot, index))
                options.progress(index + 1, layout.n_examples)
            writer.commit(shard, buffer, token_table(table, where))
        return writer.finish()


def destination(options: ImportOptions, run_id: str) -> Path:
    return options.out_dir or RUNS / run_id


def token_row(
    example_id: str,
    index: int,
    prompt: str,
    response: str,
    ids: Sequence[int],
    n_prompt: int,
    tokens: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns an example's row of the token table, as every run has it."""
    text = prompt + response
    return {
        "example_id": example_id,
        "split": "imported",
        "index": index,
        "text": text,
        "input_ids": list(ids),
        "attention_mask": [1] * len(ids),
        "tokens": list(tokens or map(unnamed, ids)),
        "n_tokens": len(ids),
        "content_hash": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "n_prompt": n_prompt,
        "prompt": prompt,
        "response": response,
    }


def put(
    buffer: ShardBuffer, slot: int, spec: ArraySpec, values: Num[np.ndarray, "..."], where: str, *, partial: bool
) -> None:
    """Puts all of an array of an example into its slot.

    Raises:
        Unreadable: the values are of another shape, infinite, NaN where not `partial`, or too precise for the run.
    """
    shape = buffer.shape(spec, slot)
    partial = partial or (spec.site.is_per_example and buffer.is_empty(slot))
    if values.shape != shape:
        raise Unreadable(
            f"{where} has {spec.key} of shape {list(values.shape)}", why=f"its tokens make it {list(shape)}"
        )
    if not (np.isfinite(values) | (np.isnan(values) if partial else False)).all():
        raise Unreadable(f"{where} has values of {spec.key} that are NaN or infinite", why="a run holds none")
    buffer.put(spec, slot, values if spec.site.holds_ids else encoded(values, buffer.layout.dtype, where))


def encoded(values: Float[np.ndarray, "*axes"], dtype: Dtype, where: Path | str) -> Shaped[np.ndarray, "*axes"]:
    """Returns the values as the run stores them.

    Raises:
        Unreadable: the dtype that the file states does not hold them.
    """
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        stored = (bits >> 16).astype(np.uint16)
        exact = not (bits & 0xFFFF).any()
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(dtype)
        exact = np.array_equal(stored.astype(values.dtype), values, equal_nan=True)
    if not exact:
        raise Unreadable(
            f"{where} has numbers that {dtype} cannot hold",
            why="it says that they are of this dtype" if dtype != "float32" else "a run holds at most float32",
        )
    return stored


def common_dtype(dtypes: set[str]) -> Dtype:
    """Returns the one dtype of all arrays, or float32, which holds all that a run can be made of."""
    [dtype] = dtypes if len(dtypes) == 1 else {"float32"}
    known: Mapping[str, Dtype] = {"float16": "float16", "bfloat16": "bfloat16"}
    return known.get(dtype, "float32")


def _meta(
    layout: RunLayout, source: str, stated: Mapping[str, Any], imported: Mapping[str, Any], *, partial: bool
) -> RunMeta:
    """Returns what `meta.json` states: what the files said, or else what the arrays show."""
    now, model = time.strftime("%Y%m%d-%H%M%S"), str(stated.get("model_name", "unknown"))
    what = "traces" if source == "json" else source
    shown = {
        "model": "unknown",
        "dataset": what,
        "split": "imported",
        "dims": {stack: _dims(layout.arrays, stack) for stack in layout.stacks},
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return replace(
        RunMeta.from_json(shown | {name: value for name, value in stated.items() if value is not None}),
        run_id=f"{now}_{short_name(model)}_{what}_imported_n{layout.n_examples}",
        arch=layout.arch,
        n_examples=layout.n_examples,
        dtype=layout.dtype,
        imported={"format": source, "from_run": stated.get("run_id"), **imported},
        unknown_rows="NaN" if partial else None,
    )


def _dims(arrays: Sequence[ArraySpec], stack: Stack) -> dict[str, int]:
    """The model's sizes, as far as arrays show them: at least so many layers and heads."""
    dims: dict[str, int] = {"n_layers": 1, "n_heads": 1}
    for spec in arrays:
        if spec.key.stack != stack:
            continue
        axes, heads = spec.site.axes, max((*spec.heads, 0)) + 1
        if spec.layers:
            dims["n_layers"] = max(dims["n_layers"], max(spec.layers) + (axes[0] == "layer"))
        if "head" in axes:
            dims["n_heads"] = max(dims["n_heads"], heads)
        if "kv_head" in axes and spec.key.attention == "self":
            dims["n_kv_heads"] = max(dims.get("n_kv_heads", 1), heads)
        if axes[-1].startswith("d_"):
            dims[axes[-1]] = spec.width
    dims.setdefault("n_kv_heads", dims["n_heads"])
    return dims


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
