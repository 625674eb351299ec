"""A padded store as a run, as its own code wrote it or as exported here.

1. `attention_mask` says where each example's tokens lie, with padding on either side; only these are kept.
2. `layers_stored` and `heads_stored` say which of the model's layers and heads the arrays hold, all where they do not.
3. What its code calls `res_embed` is the token embedding alone, or what enters block 0: it is `embed` where it equals
   that, else `token_embed`.
4. That code left arrays that it could not capture full of zeros: patterns with rows of zeros are refused.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts

from traceformer.errors import SelectionError, Unreadable
from traceformer.formats.incoming import UNKNOWN, common_dtype, put, write_run
from traceformer.formats.options import ImportOptions
from traceformer.formats.rows import TokenRow, row_values
from traceformer.plain_json import parse_json
from traceformer.shapes import Num
from traceformer.sites import SITES, ArrayKey, ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.forks import use_tensorstore
from traceformer.store.layout import META, TOKENS
from traceformer.store.names import Arch, array_path, key_at

__all__ = ["PADDED", "PADDED_ZARR_FORMAT", "read_files", "recognises"]

PADDED_ZARR_FORMAT = "traceformer padded-zarr 1"
PADDED: Mapping[str, Any] = {
    **{"input_ids": 0, "attention_mask": 0, "tokens": "", "offset_mapping": [0, 0]},
    **{"token_type_ids": 0, "sequence_ids": None, "word": None},
}
"""The columns of `tokens.parquet` that have T entries, and what fills them up; `dec_input_ids` and so on likewise."""
_FIRST = ("hidden", "resid_pre")  # whose first entry is what enters block 0
_STACKS: Mapping[Arch, tuple[Stack, ...]] = {"enc": ("enc",), "dec": ("dec",), "encdec": ("enc", "dec")}


def recognises(path: Path) -> bool:
    """Returns whether a file is the `meta.json` of such a folder, and not of a run."""
    if path.name != META or not path.with_name(TOKENS).is_file():
        return False
    try:
        meta = parse_json(path.read_bytes())
    except ValueError:
        return False
    return isinstance(meta, dict) and "arch" in meta and "layout" not in meta


def read_files(files: Sequence[Path], options: ImportOptions) -> Path:
    """Returns the folder of the run that the folder of a `meta.json` makes.

    Raises:
        Unreadable: it is no padded store, or holds patterns of zeros.
        RunExists: a run is at the folder asked for.
    """
    if len(files) > 1:
        raise Unreadable("several padded stores", hint="import them apart")
    source = _Folder.of(files[0].parent)
    partial = UNKNOWN in source.run

    def fill(buffer: ShardBuffer, slot: int, index: int) -> TokenRow:
        for spec in source.arrays:
            put(buffer, slot, spec, source.values(spec, index), str(source.path), partial=partial)
        return source.row(index)

    return write_run(
        [source.path / META, source.path / TOKENS],
        options,
        fill,
        source="padded-zarr",
        arch=source.arch,
        arrays=source.arrays,
        lengths={stack: [span.stop - span.start for span in spans] for stack, spans in source.spans.items()},
        dtype=common_dtype(
            {source.opened[spec.key].dtype.numpy_dtype.name for spec in source.arrays if not spec.site.holds_ids}
        ),
        stated=source.run,
        partial=partial,
    )


@dataclass(frozen=True, slots=True)
class _Folder:
    """A padded store, opened.

    Attributes:
        spans: Per stack where the tokens of each example lie among its T.
        opened: Its arrays, by the run's key.
        run: What it says of model, texts and settings.
        is_ours: Whether it was exported here.
    """

    path: Path
    arch: Arch
    arrays: tuple[ArraySpec, ...]
    spans: Mapping[Stack, Sequence[slice]]
    opened: Mapping[ArrayKey, ts.TensorStore]
    table: Sequence[Mapping[str, Any]]
    types: pa.Schema
    run: Mapping[str, Any]
    is_ours: bool

    @classmethod
    def of(cls, path: Path) -> "_Folder":
        try:
            stated = parse_json((path / META).read_bytes())
        except ValueError as error:
            raise Unreadable(f"{path / META} is not JSON", why=str(error)) from error
        if not isinstance(stated, dict):
            raise Unreadable(f"{path / META} is no JSON object")
        arch = cast(Arch, stated.get("arch"))
        if arch not in tuple(_STACKS):  # whatever it is: not all that JSON holds has a hash
            raise Unreadable(f"{path / META} states the arch {arch!r}", why="it is enc, dec or encdec")
        try:
            held = pq.read_table(path / TOKENS)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"{path / TOKENS} is no table", why=str(error).partition("\n")[0]) from error
        table = [row_values(held, row) for row in range(held.num_rows)]
        if not table:
            raise Unreadable(f"{path / TOKENS} lists no examples")
        spans: dict[Stack, list[slice]] = {
            stack: [_span(row, column, path) for row in table]
            for stack in _STACKS[arch]
            if (column := _column_of("attention_mask", stack, arch)) in table[0] or stack == _STACKS[arch][0]
        }
        found = {key: _open(path / place, SITES[key.site].holds_ids) for key, place in _places(path, arch)}
        ours = stated.get("traceformer")
        if ours is not None:
            arrays, run = _told(ours, path)
        else:
            found = _with_true_embedding(found, stated)
            arrays = tuple(_spec(key, array, stated) for key, array in found.items())
            run = {name: value for name, value in stated.items() if name not in ("n_examples", "dtype", "max_seq_len")}
        for spec in arrays:
            has_tokens = spec.site.is_per_example or spec.key.stack in spans
            if spec.key not in found or found[spec.key].shape[0] != len(table) or not has_tokens:
                raise Unreadable(f"{path} has no {spec.key} of its {len(table)} examples")
        if not arrays:
            raise Unreadable(f"{path} holds no arrays")
        return cls(path, arch, arrays, spans, found, table, held.schema, run, ours is not None)

    def values(self, spec: ArraySpec, index: int) -> Num[np.ndarray, "..."]:
        """Returns an example's part of an array, without padding."""
        array = self.opened[spec.key]
        part: tuple[slice, ...] = (slice(None),)
        if spec.site.is_matrix:
            part = (self.spans[spec.key.stack][index], self.spans[spec.key.key_stack][index])
        elif spec.site.is_per_token:
            part = (self.spans[spec.key.token_stack][index], slice(None))
        if any(size < (own.stop or 0) for size, own in zip(array.shape[-len(part) :], part, strict=True)):
            raise Unreadable(f"{self.path}: {spec.key} has shape {list(array.shape)}", why="its examples are longer")
        try:
            values = array[(index, ..., *part)].read().result()
        except ValueError as error:
            raise Unreadable(f"{self.path}: {spec.key} is damaged", why=str(error).partition("\n")[0]) from error
        if spec.key.site == "attn_pattern" and not self.is_ours and not values.any(axis=-1).all():
            raise Unreadable(
                f"{self.path}: {spec.key} holds rows of zeros",
                why="the padded store's code leaves what it could not capture zero",
                hint=f"remove {array_path(spec.key, self.arch)} to import the rest",
            )
        return values

    def row(self, index: int) -> TokenRow:
        """Returns the example's row of the token table, without padding."""
        row = dict(self.table[index])
        for stack, spans in self.spans.items():
            for name in PADDED:
                column = _column_of(name, stack, self.arch)
                if row.get(column) is not None:
                    row[column] = row[column][spans[index]]
            row[_column_of("n_tokens", stack, self.arch)] = spans[index].stop - spans[index].start
        text = str(row.get("text") or "")
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        defaults = {"split": "imported", "index": index, "content_hash": digest}
        return TokenRow(defaults | row, self.types)


def _column_of(name: str, stack: Stack, arch: Arch) -> str:
    return name if stack == _STACKS[arch][0] else f"{stack}_{name}"


def _span(row: Mapping[str, Any], column: str, path: Path) -> slice:
    """Where the example's tokens lie among the T."""
    ones = np.flatnonzero(row.get(column) or ())
    if not len(ones) or ones[-1] - ones[0] + 1 != len(ones):
        raise Unreadable(
            f"{path / TOKENS}: the {column} of {row.get('example_id')!r} is no run of ones",
            why="it says which of the T positions are the example's",
        )
    return slice(int(ones[0]), int(ones[-1]) + 1)


def _places(path: Path, arch: Arch) -> Iterator[tuple[ArrayKey, str]]:
    for folder in sorted(path.glob("*.zarr/*")):
        if not (folder / ".zarray").is_file() and not (folder / "zarr.json").is_file():
            continue
        place = f"{folder.parent.name}/{folder.name}"
        try:
            yield key_at(place, arch), place
        except KeyError:
            raise Unreadable(f"{path} holds {place}", why="the padded store has no such array") from None


def _open(path: Path, holds_ids: bool) -> ts.TensorStore:
    use_tensorstore()
    driver, metadata = ("zarr", ".zarray") if (path / ".zarray").is_file() else ("zarr3", "zarr.json")
    try:
        parse_json((path / metadata).read_bytes())  # too deep a nesting ends the process in tensorstore 0.1.86
        array = ts.open(
            {"driver": driver, "kvstore": {"driver": "file", "path": f"{path.as_posix()}/"}}, read=True
        ).result()
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} is no Zarr array", why=str(error).partition("\n")[0]) from error
    allowed = ("int32",) if holds_ids else ("float16", "float32")
    if array.dtype.numpy_dtype.name not in allowed:
        raise Unreadable(f"{path} holds {array.dtype.name}", why=f"what can be is {' or '.join(allowed)}")
    return array


def _told(ours: Any, path: Path) -> tuple[tuple[ArraySpec, ...], Mapping[str, Any]]:
    """What an export of ours says of its arrays and its run."""
    try:
        if ours["format"] != PADDED_ZARR_FORMAT:
            raise ValueError(f"format {ours['format']!r}")
        return tuple(ArraySpec.from_json(spec) for spec in ours["arrays"]), dict(ours["run"])
    except (KeyError, TypeError, ValueError, SelectionError) as error:
        raise Unreadable(f"{path / META}: its member 'traceformer' is not what an export writes") from error


def _spec(key: ArrayKey, array: ts.TensorStore, stated: Mapping[str, Any]) -> ArraySpec:
    """What an array of the padded store's own code is, by its shape and the layers and heads that `meta.json` names."""
    axes = ArraySpec(key).site.axes
    shape = dict(zip(axes, array.shape[1:], strict=True)) if len(axes) == array.rank - 1 else {}
    if not shape:
        raise Unreadable(f"{key} has shape {list(array.shape)}", why=f"its axes are example, {', '.join(axes)}")
    layers = tuple(range(shape.get("hidden_layer", 0))) or _numbers(stated, "layers", key, shape.get("layer", 0))
    heads = _numbers(stated, "heads", key, shape.get("head", shape.get("kv_head", 0)))
    return ArraySpec(key, layers, heads, 0 if axes[-1] == "key" else shape[axes[-1]])


def _numbers(stated: Mapping[str, Any], what: str, key: ArrayKey, count: int) -> tuple[int, ...]:
    stored = stated.get(f"{what}_stored")
    own = stored.get(key.stack) if isinstance(stored, dict) else stored
    if own is not None and (not isinstance(own, list) or not all(type(number) is int for number in own)):
        raise Unreadable(f"{what}_stored is {own!r}", why="it lists whole numbers")
    numbers = tuple(range(count)) if own is None else tuple(own)
    if count and len(numbers) != count:
        raise Unreadable(f"{key} has {count} {what}", why=f"{what}_stored names {len(numbers)}")
    return numbers if count else ()


def _with_true_embedding(
    found: Mapping[ArrayKey, ts.TensorStore], stated: Mapping[str, Any]
) -> dict[ArrayKey, ts.TensorStore]:
    """Returns the arrays with `res_embed` under the name of what it holds; without it where nothing shows that."""
    arrays = dict(found)
    for key in [key for key in found if key.site == "embed"]:
        embed, hidden, entering = arrays.pop(key), *(found.get(key._replace(site=name)) for name in _FIRST)
        if hidden is None and (entering is None or _numbers(stated, "layers", key, entering.shape[1])[0] != 0):
            warnings.warn("res_embed is left out: nothing shows whether it has the positions in it", stacklevel=2)
            continue
        first = hidden if hidden is not None else entering
        assert first is not None
        is_whole = np.array_equal(embed[0].read().result(), first[0, 0].read().result())
        arrays[key if is_whole else key._replace(site="token_embed")] = embed
    return arrays
