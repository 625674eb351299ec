"""The Zarr v3 side of a run: metadata that any zarr reader understands, and tensorstore handles on it.

The metadata is a pure function of the layout, so it is written here and not by tensorstore: creating a run twice
gives the same bytes, and finishing one is writing it again with the true number of token slots. So are the coordinate
arrays of layers and heads, which have the model's own numbers: `xarray.open_zarr(group).sel(layer=11)` is layer 11.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from traceformer.errors import CorruptRun, Unreachable
from traceformer.plain_json import parse_json
from traceformer.shapes import Num, Shaped
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.codecs import zarr_codecs
from traceformer.store.dtypes import ON_DISK, ReadDtype, decode, dtype_read
from traceformer.store.forks import use_tensorstore
from traceformer.store.layout import RunLayout
from traceformer.store.names import Stored
from traceformer.store.objects.path import AnyPath
from traceformer.store.placing import Group, ObjectGroup
from traceformer.store.q8 import BLOCK, HALF
from traceformer.store.recipes import operands_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    import tensorstore as ts

    from traceformer.store.lazy import LazyArray

__all__ = [
    "CRC32C",
    "LITTLE_ENDIAN",
    "Array",
    "Reading",
    "along_layers",
    "as_read",
    "check_metadata",
    "coordinate_files",
    "from_zero",
    "group_metadata",
    "massive_arrays",
    "massive_per_file",
    "numbers_of",
    "open_array",
    "position_arrays",
    "read_ahead",
    "read_into",
    "reading",
    "shard_region",
    "write_metadata",
    "zarr_array",
]

Array: TypeAlias = "ts.TensorStore | LazyArray"
"""A view of an array: tensorstore's of what lies in a folder or memory, else one of `lazy`."""
Reading: TypeAlias = "ts.WriteFutures | Future[None]"
JSON: TypeAlias = dict[str, Any]

POSITIONS_PER_FILE = 1 << 20
EMPTY_SLOT = -1
_FEW = 1 << 17  # numbers that numpy widens before tensorstore would be loaded; of more it is ten times as fast
_CELL = "query * (query + 1) / 2 + key, of n tokens n * (n + 1) / 2; those behind are 0"
_OF_PARTS = {
    "scale": "what the codes of each block of 32 values of {0} are multiples of",
    "massive": "values of the massive channels of {0}, in the order of {0}_massive_channel",
}
_VERIFY = "traceformer verify lists the damage"
_MASSIVE_CHANNEL = "_massive_channel"
_SHARDS_PER_FILE = 256

_KNOWN = ("data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value", "dimension_names")
LITTLE_ENDIAN: JSON = {"name": "bytes", "configuration": {"endian": "little"}}
CRC32C: JSON = {"name": "crc32c"}


def group_metadata(
    layout: RunLayout, n_slots: Mapping[Stack, int] | None = None, errors: Mapping[ArrayKey, float] | None = None
) -> dict[str, JSON]:
    """Returns the content of every `zarr.json` of a run by its path inside the run's folder.

    With `n_slots`, the used token slots per stack, and `errors`, the most that a value of each array of codes is off,
    it is that of a finished run: token axes end there, each token group has its coordinates `token_example` and
    `token_position`, and beside codes stands which channels are massive. Groups carry their arrays' metadata inline,
    without which xarray warns, and say in `alias_of` where the layers are that they do not hold themselves, and
    in `by_recipe` what patterns are made of.
    """
    groups: dict[str, dict[str, JSON]] = {layout.array_path(spec.key).split("/")[0]: {} for spec in layout.arrays}
    coordinates: dict[str, list[str]] = {}
    aliases, recipes = _aliases(layout), _recipes(layout)
    for spec in layout.kept:
        group, leaf = layout.array_path(spec.key).split("/")
        slots = n_slots[spec.key.token_stack] if n_slots is not None and spec.site.is_per_token else None
        for part in layout.parts(spec):
            groups[group][f"{leaf}_{part.part}" if part.part else leaf] = _array_metadata(layout, part, slots)
    for path, numbers in _coordinates(layout).items():
        group, leaf = path.split("/")
        groups[group][leaf] = _coordinate_metadata(leaf, len(numbers))
    for key, error in (errors or {}).items():
        group, leaf = layout.array_path(key).split("/")
        groups[group][leaf]["attributes"]["largest_error"] = error
    for path, spec in massive_arrays(layout) if errors else ():
        group, leaf = path.split("/")
        groups[group][leaf] = _massive_metadata(layout, spec)
    for path, stack in position_arrays(layout):
        if n_slots is None:
            break
        group, leaf = path.split("/")
        groups[group][leaf] = _position_metadata(stack, n_slots[stack])
        coordinates.setdefault(group, []).append(leaf)
    found: dict[str, JSON] = {}
    for group, arrays in groups.items():
        found[f"{group}/zarr.json"] = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {
                **({"coordinates": " ".join(coordinates[group])} if group in coordinates else {}),
                **({"alias_of": aliases[group]} if group in aliases else {}),
                **({"by_recipe": recipes[group]} if group in recipes else {}),
            },
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
        }
        found |= {f"{group}/{leaf}/zarr.json": metadata for leaf, metadata in arrays.items()}
    return found


def _aliases(layout: RunLayout) -> dict[str, JSON]:
    """Returns for each group what its arrays have elsewhere: array -> layer -> the array and its layer.

    Of an array without layers, and where the other one has none, these are left out.
    """
    found: dict[str, JSON] = {}
    for rows, one in layout.aliases.items():
        group, leaf = layout.array_path(rows.key).split("/")
        there = {"array": layout.array_path(one.key), **({} if one.layer is None else {"layer": one.layer})}
        if rows.layer is None:
            found.setdefault(group, {})[leaf] = there
        else:
            found.setdefault(group, {}).setdefault(leaf, {})[str(rows.layer)] = there
    return found


def _recipes(layout: RunLayout) -> dict[str, JSON]:
    """Returns for each group the patterns that are made anew: array -> where q and k are, and the recipe."""
    found: dict[str, JSON] = {}
    for key, recipe in layout.recipes.items():
        group, leaf = layout.array_path(key).split("/")
        operands = (layout.array_path(own) for own in operands_of(key))
        found.setdefault(group, {})[leaf] = {**dict(zip("qk", operands, strict=True)), "recipe": recipe.to_json()}
    return found


def coordinate_files(layout: RunLayout) -> dict[str, bytes]:
    """Returns the files with the model's numbers of layers and heads, by their paths inside the run's folder."""
    from traceformer.store.shards import framed  # which loads pyarrow; a reader of arrays does not wait for that

    return {
        f"{path}/c.0": b"".join(framed(np.array(numbers, "<i8").view(np.uint8)))
        for path, numbers in _coordinates(layout).items()
    }


def _coordinates(layout: RunLayout) -> dict[str, tuple[int, ...]]:
    """Returns the numbers of all coordinates by path. Arrays of a group share an axis only with the same numbers."""
    return {
        f"{layout.array_path(spec.key).split('/')[0]}/{name}": numbers
        for spec in layout.kept
        for name, numbers in layout.coordinates(spec).items()
    }


def position_arrays(layout: RunLayout) -> list[tuple[str, Stack]]:
    """Returns the paths of all coordinate arrays of token axes, each with the stack whose tokens it describes.

    In a group with the tokens of two stacks (a decoder's cross-attention), the encoder's are `enc_token_example`.
    """
    found: dict[str, Stack] = {}
    for spec in layout.kept:
        if spec.site.is_per_token:
            group, stack = layout.array_path(spec.key).split("/")[0], spec.key.token_stack
            prefix = "" if stack == spec.key.stack else f"{stack}_"
            found |= {f"{group}/{prefix}token_{what}": stack for what in ("example", "position")}
    return list(found.items())


def _array_metadata(layout: RunLayout, spec: ArraySpec, n_slots: int | None) -> JSON:
    stored = layout.stored(spec)
    dtype = ON_DISK[stored]
    inner = [LITTLE_ENDIAN, *zarr_codecs(layout.codec_of(spec), dtype.itemsize), CRC32C]
    heads = "kv_heads" if "kv_head" in spec.site.axes else "heads"
    leaf = layout.array_path(spec.key).split("/")[1]
    sharding: JSON = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(layout.chunk_shape(spec)),
            "codecs": inner,
            "index_codecs": [LITTLE_ENDIAN, CRC32C],
            "index_location": "end",
        },
    }
    return zarr_array(
        shape=layout.array_shape(spec, n_slots),
        chunk=layout.shard_shape(spec),
        dtype=dtype.name,
        fill=0.0 if dtype.kind == "f" else 0,
        codecs=[sharding],
        axes=layout.stored_axes(spec),
        attributes={
            **({} if spec.part else {"key": str(spec.key)}),
            "meaning": spec.site.meaning if not spec.part else _OF_PARTS[spec.part].format(leaf),
            "stored_dtype": stored,
            **({"cell": _CELL} if layout.is_triangle(spec) else {}),
            **(_of_codes(leaf) if stored == "q8" else {}),
            **({"layers": list(spec.layers)} if spec.layers else {}),
            **({heads: list(spec.heads)} if spec.heads else {}),
        },
    )


def _of_codes(leaf: str) -> JSON:
    """What a plain reader is told of codes."""
    return {
        "scale": f"{leaf}_scale",
        "value": f"{leaf} * {leaf}_scale of its block, channel // {BLOCK}; of massive channels what {leaf}_massive has",
        "error": f"at most {HALF} of that scale: 0.4 % of the largest of the {BLOCK} values",
    }


def massive_arrays(layout: RunLayout) -> list[tuple[str, ArraySpec]]:
    """Returns the paths of the arrays that name the massive channels of each shard, and of which array they are."""
    codes = [spec for spec in layout.kept if layout.stored(spec) == "q8"]
    return [(f"{layout.path_of(spec)}{_MASSIVE_CHANNEL}", spec) for spec in codes]


def _massive_metadata(layout: RunLayout, spec: ArraySpec) -> JSON:
    massive = layout.parts(spec)[-1]
    rest = (*layout.buffer_shape(spec)[:-2], massive.width)
    return zarr_array(
        shape=(layout.n_shards, *rest),
        chunk=(massive_per_file(layout), *rest),
        dtype="int32",
        fill=EMPTY_SLOT,
        codecs=[LITTLE_ENDIAN, *zarr_codecs("zstd", 4), CRC32C],
        axes=("shard", *layout.axes(spec)[:-2], layout.stored_axes(massive)[-1]),
        attributes={"meaning": f"massive channels of a shard of {layout.shard_examples} examples; -1 for none"},
    )


def massive_per_file(layout: RunLayout) -> int:
    """Returns how many shards' massive channels a file names."""
    return min(layout.n_shards, _SHARDS_PER_FILE)


def _position_metadata(stack: Stack, n_slots: int) -> JSON:
    return zarr_array(
        shape=(n_slots,),
        chunk=(POSITIONS_PER_FILE,),
        dtype="int32",
        fill=EMPTY_SLOT,
        codecs=[LITTLE_ENDIAN, *zarr_codecs("zstd", 4), CRC32C],
        axes=(f"{stack}_token",),
        attributes={"meaning": "the row of tokens.parquet, or the position in it; -1 where no token lies"},
    )


def _coordinate_metadata(axis: str, count: int) -> JSON:
    return zarr_array(
        shape=(count,),
        chunk=(count,),
        dtype="int64",
        fill=0,
        codecs=[LITTLE_ENDIAN, CRC32C],
        axes=(axis,),
        attributes={"meaning": "the model's own numbers of these layers or heads"},
    )


def zarr_array(
    *,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    fill: float | str,
    codecs: list[JSON],
    axes: tuple[str, ...],
    attributes: JSON,
) -> JSON:
    """Returns the content of an array's `zarr.json`."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        # A dot keeps all files of an array in one folder, whose entries one fsync makes durable.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "dimension_names": list(axes),
        "attributes": attributes,
    }


def open_array(folder: Path, layout: RunLayout, spec: ArraySpec, context: "ts.Context") -> Array:
    """Returns a handle on a kept array inside a run's folder, whose metadata must say what the layout does.

    An unwritten chunk reads as zeros: so a damaged name of the files (`.` is one bit from `/`) would be zeros, too.

    Chunks of zeros are stored like all others, so every file of a committed shard exists, and one that does not is
    a loss and not zeros. What is cached is never looked at again: a committed file does not change.
    """
    import tensorstore as ts

    use_tensorstore()
    path = layout.path_of(spec)
    stated = _array_metadata(layout, spec, None)
    known = {name: stated[name] for name in _KNOWN}
    kvstore = {"driver": "file", "path": f"{(folder / path).as_posix()}/"}
    options = {"store_data_equal_to_fill_value": True, "recheck_cached_data": False}
    refuse_deep_metadata(folder / path / "zarr.json")
    with reading(folder / path):
        asked = {"driver": "zarr3", "kvstore": kvstore, "metadata": known, **options}
        array = ts.open(asked, open=True, context=context).result()
    sizes, expected = list(array.shape), list(layout.array_shape(spec, None))
    growing = (
        -2 if spec.site.is_per_token else 0
    )  # is as long as was declared, or was trimmed when the run was finished
    sizes[growing] = expected[growing]
    if sizes != expected:
        raise CorruptRun(f"{folder / path}/zarr.json states the shape {array.shape}", why=f"{spec.key} is {expected}")
    return array


def along_layers(views: Sequence[Array]) -> Array:
    """Returns one view of several, joined along their first axis, the layers; nothing is read."""
    if len(views) == 1:
        return views[0]
    import tensorstore as ts

    layers = ts.d[0].label[""].translate_to[0]  # arrays have names of their own for it, and slices keep their origins
    last = ts.d[-1].label[""]  # so they have for blocks of 32 values
    return ts.concat([view[layers][last] for view in views], axis=0)  # pyright: ignore[reportArgumentType]


def from_zero(view: Array) -> Array:
    """Returns a view of several layers whose first is layer 0 of it; a part of a tensorstore keeps its numbers."""
    from traceformer.store.lazy import LazyArray

    if isinstance(view, LazyArray):
        return view
    import tensorstore as ts

    return view[ts.d[0].translate_to[0]]


def check_metadata(folder: AnyPath, layout: RunLayout, spec: ArraySpec) -> None:
    """Makes sure that the metadata of an array says what the layout does, for who reads its files without it.

    Raises:
        CorruptRun: it does not, or is not there.
    """
    path, expected = folder / layout.path_of(spec) / "zarr.json", _array_metadata(layout, spec, None)
    try:
        stated = parse_json(path.read_bytes())
        if spec.site.is_per_token:  # is as long as was declared, or was trimmed when the run was finished
            expected["shape"][-2] = stated["shape"][-2]
        changed = [name for name in (*_KNOWN, "shape") if stated[name] != expected[name]]
    except Unreachable:
        raise
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CorruptRun(f"{path} cannot be read", why=str(error), hint=_VERIFY) from error
    if changed:
        name = changed[-1]
        why = f"{spec.key} has {expected[name]}"
        raise CorruptRun(f"{path} states the {name} {stated[name]}", why=why, hint=_VERIFY)


def refuse_deep_metadata(path: Path) -> None:
    """Refuses an array's metadata that no reader of JSON takes: tensorstore 0.1.86 would end the process.

    Raises:
        CorruptRun: it is no JSON, or nests too deep.
    """
    try:
        parse_json(path.read_bytes())
    except FileNotFoundError:
        pass  # which tensorstore says
    except (OSError, ValueError) as error:
        raise CorruptRun(f"{path} cannot be read", why=str(error)) from error


def as_read(view: Array, stored: Stored, dtype: ReadDtype) -> Array:
    """Returns the view with float16 as float32 unless `dtype` is `stored`; `decode` makes numbers of what it reads.

    tensorstore widens while it copies out of a decoded chunk: no second array, and three times as fast as numpy.

    Raises:
        SelectionError: `dtype` is neither `float32` nor `stored`.
    """
    widened = dtype_read(stored, dtype) == np.float32 and stored == "float16"
    return view.astype(np.float32) if widened else view


def numbers_of(array: Shaped[np.ndarray, "*axes"], stored: Stored, dtype: ReadDtype) -> Num[np.ndarray, "*axes"]:
    """Returns the numbers that stored values stand for, as `as_read` and `decode` give them of a view.

    Raises:
        SelectionError: `dtype` is neither `float32` nor `stored`.
    """
    wide = dtype_read(stored, dtype)
    if stored != "float16" or wide == array.dtype:
        return decode(array, stored)
    if array.size < _FEW:
        return array.astype(wide)
    import tensorstore as ts

    use_tensorstore()
    return ts.cast(ts.array(array, copy=False), ts.float32).read().result()


def read_ahead(view: Array) -> "tuple[np.ndarray, Reading]":
    """Returns an array that will hold what `view` shows, and the future that says when.

    It is numpy's own memory, which comes in huge pages: a quarter faster than what tensorstore would return.
    """
    target = np.empty(view.shape, view.dtype.numpy_dtype)
    return target, read_into(view, target)


def read_into(view: Array, target: Shaped[np.ndarray, "..."]) -> "Reading":
    """Returns the future that says when an array holds what `view` shows."""
    from traceformer.store.lazy import LazyArray

    if isinstance(view, LazyArray):
        return view.read_into(target)
    import tensorstore as ts

    return ts.array(target, write=True, copy=False).write(view)


@contextmanager
def reading(path: AnyPath | str) -> Generator[None]:
    """Turns what tensorstore and pyarrow say of damaged files into CorruptRun.

    Raises:
        CorruptRun: a file under `path` cannot be decoded.
    """
    try:
        yield
    except (PermissionError, Unreachable, CorruptRun):
        raise
    except (ValueError, OSError) as error:
        raise CorruptRun(
            f"cannot read {path}",
            why=str(error).split(" [source locations")[0],
            hint=_VERIFY,
        ) from error


def shard_region(layout: RunLayout, spec: ArraySpec, shard: int, used: int) -> tuple[slice, ...]:
    """Returns the part of the array on disk that a shard with `used` tokens writes."""
    if not spec.site.is_per_token:
        examples = layout.shard_range(shard)
        return (slice(examples.start, examples.stop),)
    start = shard * layout.shard_slots(spec.key.token_stack)
    lead = (slice(None),) * (len(layout.buffer_shape(spec)) - 2)
    return (*lead, slice(start, start + layout.written_slots(spec, used)))


def write_metadata(
    group: Group,
    folder: AnyPath,
    layout: RunLayout,
    n_slots: Mapping[Stack, int] | None = None,
    errors: Mapping[ArrayKey, float] | None = None,
) -> None:
    """Writes every `zarr.json` of a run, and its coordinates of layers and heads, where they are not there."""
    metadata = group_metadata(layout, n_slots, errors).items()
    files = {name: (json.dumps(entry, indent=2) + "\n").encode() for name, entry in metadata} | coordinate_files(layout)
    for name, data in files.items():
        path = folder / name
        if not isinstance(group, ObjectGroup) and _holds(path, data):  # which looks by itself
            continue
        group.make_folder(path.parent)
        group.write(path, data)


def _holds(path: AnyPath, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False
