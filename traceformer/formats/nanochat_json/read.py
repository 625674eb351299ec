"""Nanochat traces as a run: those of their documentation, those the engine wrote, and those exported here.

1. A tensor has fewer rows than the sequence has tokens where less was captured: the last step only, each step, the
   response's logits. Attention tells where they belong, since its keys end at its last query; logits of as many rows
   as the response has tokens are those that predicted it.
2. Every tensor is put at its place, those of the steps first, then the final ones.
3. Rows that no tensor has are NaN in the run, and its `meta.json` says `"unknown_rows": "NaN"`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from traceformer.errors import Unreadable
from traceformer.formats.incoming import UNKNOWN, common_dtype, encoded, token_row, write_run
from traceformer.formats.nanochat_json.traces import SIDE_FILE, Captures, Tensor, Trace, read_head, read_trace
from traceformer.formats.nanochat_json.write import ACTIVATION_SITES
from traceformer.formats.options import ImportOptions
from traceformer.formats.outgoing import key_of
from traceformer.formats.rows import TokenRow, check_plain, read_types
from traceformer.shapes import Shaped
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.dtypes import ON_DISK, nan_of

__all__ = ["read_files", "recognises"]

_OURS_ALONE = ("input_ids", "attention_mask", "tokens", "n_tokens", "shard", "slot", "dec_slot")


def recognises(path: Path) -> bool:
    """Returns whether a file is a nanochat trace, by its beginning; the original's second files are none."""
    beside = path.name.endswith(SIDE_FILE) and path.with_name(path.name.replace(SIDE_FILE, ".json")).is_file()
    if path.suffix != ".json" or beside:
        return False
    try:
        read_head(path)
    except Unreadable:
        return False
    return True


def read_files(files: Sequence[Path], options: ImportOptions) -> Path:
    """Returns the folder of the run that the traces make, one example each, in their order.

    Raises:
        NotFound, Unreadable: a file is not there, is no trace, holds nothing of a model, or not the first's arrays.
        RunExists: a run is at the folder asked for.
    """
    outlines = [_Outline.of(read_trace(path), path) for path in files]
    first = outlines[0]
    for path, outline in zip(files, outlines, strict=True):
        if outline.arrays != first.arrays or outline.stack != first.stack:
            raise Unreadable(
                f"{path} holds other arrays than {files[0]}",
                why=f"{outline.in_words()}; {first.in_words()}",
                hint="import them apart",
            )

    def fill(buffer: ShardBuffer, slot: int, index: int) -> TokenRow:
        trace = read_trace(files[index])
        _fill(buffer, slot, trace, outlines[index], files[index])
        return _row(trace, _Ours.of(trace, files[index]), index)

    return write_run(
        files,
        options,
        fill,
        source="json",
        arch="enc" if first.stack == "enc" else "dec",
        arrays=first.arrays,
        lengths={first.stack: [outline.length for outline in outlines]},
        dtype=common_dtype({dtype for outline in outlines for dtype in outline.dtypes}),
        stated=first.meta,
        partial=not all(outline.is_whole for outline in outlines),
    )


@dataclass(frozen=True, slots=True)
class _Outline:
    """What a trace holds, before its numbers are read."""

    stack: Stack
    arrays: tuple[ArraySpec, ...]
    length: int
    dtypes: frozenset[str]
    is_whole: bool
    meta: Mapping[str, Any]

    @classmethod
    def of(cls, trace: Trace, path: Path) -> "_Outline":
        length = len(trace.input_tokens) + len(trace.output_tokens)
        if not length:
            raise Unreadable(f"{path} has no tokens", why="an example of a run is its tokens")
        ours = _Ours.of(trace, path)
        listed = ours.arrays
        stack: Stack = "enc" if listed and listed[0].key.stack == "enc" else "dec"
        pieces = list(_pieces(trace, stack, path))
        found = dict[ArrayKey, dict[int | None, Tensor]]()
        for piece in pieces:
            found.setdefault(piece.key, {})[piece.layer] = piece.tensor
        arrays = listed or tuple(_spec(key, layers) for key, layers in found.items())
        if not arrays:
            raise Unreadable(f"{path} holds no model data", hint="it tells a prompt and a response only")
        known = _known_rows(pieces, arrays, length)
        whole = all(rows.all() for rows in known) and UNKNOWN not in ours.run
        return cls(
            stack,
            arrays,
            length,
            frozenset(piece.tensor.dtype.removeprefix("torch.") for piece in pieces),
            whole,
            ours.run,
        )

    def in_words(self) -> str:
        return ", ".join(f"{spec.key} x {len(spec.layers) or 1} layers" for spec in self.arrays)


@dataclass(frozen=True, slots=True)
class _Ours:
    """What an export of ours says of its run, in `metadata["traceformer"]`."""

    arrays: tuple[ArraySpec, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: Sequence[str] | None = None
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])
    types: pa.Schema | None = None

    @classmethod
    def of(cls, trace: Trace, path: Path) -> "_Ours":
        data = trace.head.metadata.get("traceformer")
        if data is None:
            return cls()
        check_plain(data, f"{path}: metadata.traceformer")
        try:
            arrays = tuple(ArraySpec.from_json(spec) for spec in data["arrays"])
            row = {name: value for name, value in data["row"].items() if name not in _OURS_ALONE}
            tokens = None if data["tokens"] is None else [str(token) for token in data["tokens"]]
            run = dict(data["run"])
            types = read_types(data["types"], str(path)) if "types" in data else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreadable(f"{path}: metadata.traceformer is not what an export writes", why=str(error)) from error
        if tokens is not None and len(tokens) != len(trace.input_tokens) + len(trace.output_tokens):
            raise Unreadable(f"{path}: metadata.traceformer names {len(tokens)} tokens", why="there are others")
        return cls(arrays, row, tokens, run, types)


class _Piece(NamedTuple):
    """Some rows of one layer of an array; `layer` None also stands for a whole array, as the run has it."""

    key: ArrayKey
    layer: int | None
    start: int
    tensor: Tensor
    is_whole: bool = False

    @property
    def n_rows(self) -> int:
        return self.tensor.shape[-2]


def _pieces(trace: Trace, stack: Stack, path: Path) -> Iterator[_Piece]:
    """Yields all tensors with their places; of two that have a row, the later one is right."""
    n_prompt, n_response = len(trace.input_tokens), len(trace.output_tokens)
    total = n_prompt + n_response
    for step, captures in enumerate(trace.steps or ()):
        end = n_prompt + step
        yield from _placed(captures, stack, path, total, end, of_logits=end)
    rows = _rows_of(trace.model_data)
    whole = rows if rows in (n_prompt, total) else total if rows == 0 else None
    predicting = total - 1 if n_response and _rows_of_logits(trace.model_data) == n_response else None
    yield from _placed(trace.model_data, stack, path, total, whole, predicting)
    for name, tensor in trace.further.items():
        yield _Piece(ArrayKey.parse(name), None, 0, tensor, is_whole=True)


def _rows_of(captures: Captures) -> int:
    own = [tensor for layer in captures.activations.values() for tensor in layer.values()]
    return next((tensor.shape[1] for tensor in (captures.token_embeddings, *own) if tensor is not None), 0)


def _rows_of_logits(captures: Captures) -> int:
    return 0 if captures.output_logits is None else captures.output_logits.shape[1]


def _placed(
    captures: Captures, stack: Stack, path: Path, total: int, end: int | None, of_logits: int | None
) -> Iterator[_Piece]:
    """Yields the tensors of one moment: attention says where its rows end, or else `end` and `of_logits` do."""
    keys = {tensor.shape[-1] for tensor in captures.attention.values()}
    if len(keys) == 1:
        [end] = keys

    def piece(site: str, layer: int | None, tensor: Tensor, end: int | None) -> _Piece:
        key, rows = key_of(site, stack), tensor.shape[-2]
        if end is None or not rows <= end <= total:
            raise Unreadable(
                f"{path} has {rows} rows of {key} for {total} tokens", why="nothing says which tokens they belong to"
            )
        return _Piece(key, layer, end - rows, tensor)

    if captures.token_embeddings is not None:
        yield piece("token_embed", None, captures.token_embeddings, end)
    for layer, tensor in captures.attention.items():
        yield piece("attn_pattern", layer, tensor, end)
    for layer, tensors in captures.activations.items():
        for name, tensor in tensors.items():
            if name not in ACTIVATION_SITES:
                raise Unreadable(f"{path} has an activation {name!r}", hint=f"known: {', '.join(ACTIVATION_SITES)}")
            yield piece(ACTIVATION_SITES[name], layer, tensor, end)
    if captures.output_logits is not None:
        rows = captures.output_logits.shape[1]
        yield piece("logits", None, captures.output_logits, total if rows == total else of_logits or end)


def _spec(key: ArrayKey, layers: Mapping[int | None, Tensor]) -> ArraySpec:
    tensor = next(iter(layers.values()))
    numbers = tuple(sorted(layer for layer in layers if layer is not None))
    if key.site == "attn_pattern":
        return ArraySpec(key, numbers, tuple(range(tensor.shape[1])))
    return ArraySpec(key, numbers, width=tensor.shape[-1])


def _known_rows(
    pieces: Sequence[_Piece], arrays: Sequence[ArraySpec], length: int
) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Returns for each layer of each array which rows some tensor has."""
    known = {(spec.key, layer): np.zeros(length, np.bool_) for spec in arrays for layer in spec.layers or (None,)}
    for piece in pieces:
        for key, rows in known.items():
            if key == (piece.key, piece.layer) or (piece.is_whole and key[0] == piece.key):
                rows[piece.start : piece.start + piece.n_rows] = True
    return list(known.values())


def _fill(buffer: ShardBuffer, slot: int, trace: Trace, outline: _Outline, path: Path) -> None:
    filled = {spec.key: _unknown(buffer, spec, slot) for spec in outline.arrays}
    for piece in _pieces(trace, outline.stack, path):
        spec = next((spec for spec in outline.arrays if spec.key == piece.key), None)
        if spec is None or (piece.layer is not None and piece.layer not in spec.layers):
            raise Unreadable(f"{path} holds {piece.key} beside the arrays that its metadata lists")
        target = filled[spec.key]
        values = piece.tensor.array()[0]
        lacking = np.isnan(values) if piece.is_whole and UNKNOWN in outline.meta else False
        if not (np.isfinite(values) | lacking).all():
            raise Unreadable(f"{path} has values that are NaN or infinite", why="a run holds none")
        if piece.layer is not None:
            target = target[spec.layers.index(piece.layer)]
        if spec.site.is_matrix and not piece.is_whole:
            values = np.pad(values, ((0, 0), (0, 0), (0, target.shape[-1] - values.shape[-1])))
        if values.shape != (*target.shape[:-2], piece.n_rows, target.shape[-1]):
            raise Unreadable(
                f"{path} has {piece.key} of shape {list(piece.tensor.shape)}", why="that does not fit its other layers"
            )
        target[..., piece.start : piece.start + piece.n_rows, :] = encoded(values, buffer.layout.dtype, path)
    for spec in outline.arrays:
        buffer.put(spec, slot, filled[spec.key])


def _unknown(buffer: ShardBuffer, spec: ArraySpec, slot: int) -> Shaped[np.ndarray, "..."]:
    """Returns what an example must fill of an array, with nothing known of it."""
    stored = buffer.layout.stored(spec)
    return np.full(buffer.shape(spec, slot), nan_of(stored), ON_DISK[stored])


def _row(trace: Trace, ours: _Ours, index: int) -> TokenRow:
    """Returns the example's row of the token table; metadata that is not ours is kept as JSON."""
    head = trace.head
    metadata = {name: value for name, value in head.metadata.items() if name != "traceformer"}
    ids = [*trace.input_tokens, *trace.output_tokens]
    row = token_row(head.trace_id, index, head.prompt, head.response, ids, len(trace.input_tokens), ours.tokens)
    row |= {
        "category": head.category,
        "timestamp": head.timestamp,
        "metadata": json.dumps(metadata, ensure_ascii=False),
    }
    return TokenRow(row | dict(ours.row), ours.types)
