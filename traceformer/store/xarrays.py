"""A run as xarray sees it: one data set per zarr group, lazy, without gaps, with the model's own numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core.indexing import ExplicitIndexer, IndexingSupport, LazilyIndexedArray, explicit_indexing_adapter

from traceformer.shapes import Int64, Num
from traceformer.sites import ArraySpec
from traceformer.store.dtypes import ON_DISK, ReadDtype, decode, dtype_read
from traceformer.store.folder import RunFolder
from traceformer.store.index import RunIndex, Spans
from traceformer.store.layout import RunLayout
from traceformer.store.names import Stored
from traceformer.store.zarr3 import as_read, numbers_of, reading

__all__ = ["data_tree"]

AxisIndex: TypeAlias = int | slice | np.ndarray

# More separate stretches than this along one axis are read as one list of places.
_MOST_STRETCHES = 64


@dataclass(frozen=True, slots=True)
class _Source:
    """An array of the run, of which `axis` is seen through `spans`."""

    run: RunFolder
    spec: ArraySpec
    axis: int
    spans: Spans
    dtype: ReadDtype

    @property
    def layout(self) -> RunLayout:
        return self.run.head.layout

    @property
    def stored(self) -> Stored:
        return self.layout.stored(self.spec)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.layout.buffer_shape(self.spec))
        shape[self.axis] = len(self.spans)
        return tuple(shape)

    def read(self, key: tuple[AxisIndex, ...]) -> np.ndarray:
        """Returns `array[key]`, each axis indexed on its own: what is missing on disk is refused, gaps are skipped."""
        if self.spec.site.is_matrix:
            return self._read_matrices(key)
        # One layer is read where it is kept; all of them may be the layers of several arrays.
        lead = (key[0],) if self.axis and self.spec.layers and isinstance(key[0], int) else ()
        array = as_read(self.run.whole(self.spec, lead), self.stored, self.dtype)
        along = key[self.axis]
        wanted = np.arange(len(self.spans))[along]
        stretches = [int(self.spans.places(wanted.reshape(1))[0])] if wanted.ndim == 0 else self._stretches(wanted)
        with reading(self.run.folder):
            ahead = [
                array.oindex[(*key[len(lead) : self.axis], part, *key[self.axis + 1 :])].read() for part in stretches
            ]
            # An axis before this one that an integer takes away moves this one to the left.
            axis = self.axis - sum(isinstance(part, int) for part in key[: self.axis])
            parts = [decode(future.result(), self.stored) for future in ahead]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)

    def _read_matrices(self, key: tuple[AxisIndex, ...]) -> Num[np.ndarray, "..."]:
        chosen = [np.arange(size)[part] for size, part in zip(self.shape, key, strict=True)]
        examples, *lead, queries, keys = (np.atleast_1d(each) for each in chosen)
        lengths, stack, key_stack = self.run.index.lengths, self.spec.key.stack, self.spec.key.key_stack
        read = np.zeros(tuple(map(len, (examples, *lead, queries, keys))), ON_DISK[self.stored])
        for target, row in zip(read, examples.tolist(), strict=True):
            in_query, in_key = queries < lengths[stack][row], keys < lengths[key_stack][row]
            if in_query.any() and in_key.any():
                own = queries[in_query]
                rows = range(int(own.min()), int(own.max()) + 1)
                for at, layer in enumerate(lead[0].tolist()):
                    for beside, head in enumerate(lead[1].tolist()):
                        matrix = self.run.matrix(self.spec, row, (layer, head), rows)
                        part = matrix[np.ix_(own - rows.start, keys[in_key])]
                        target[at, beside][np.ix_(in_query, in_key)] = part
        return numbers_of(read.reshape([size for each in chosen for size in each.shape]), self.stored, self.dtype)

    def _stretches(self, wanted: Int64[np.ndarray, "n"]) -> list[slice | Int64[np.ndarray, "n"]]:
        places = self.spans.places(wanted)
        if not len(places):
            return [slice(0, 0)]
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        if len(breaks) >= _MOST_STRETCHES:
            return [places]
        return [slice(int(part[0]), int(part[-1]) + 1) for part in np.split(places, breaks)]


class _LazyArray(BackendArray):
    """What xarray asks of an array that is read when used."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.shape = source.shape
        self.dtype = dtype_read(source.stored, source.dtype)

    def __deepcopy__(self, _: dict[int, Any]) -> "_LazyArray":
        """Itself: what is on disk does not change, and what opened it is shared."""
        return self

    def __getitem__(self, key: ExplicitIndexer) -> np.ndarray:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        plain = tuple(_plain(part, size) for part, size in zip(key, self.shape, strict=True))
        return self.source.read(plain)


def _plain(part: Any, size: int) -> AxisIndex:
    """Returns an axis's index as an int, a slice of step 1, or places: negative ones and other steps spelled out."""
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    if isinstance(part, (int, np.integer)):
        return int(part) % size
    return np.asarray(part) % size


def data_tree(run: RunFolder, dtype: ReadDtype = "float32") -> xr.DataTree:
    """Returns the run as a tree of data sets, one per zarr group: `tree["dec_res_post_mlp"]["x"]`.

    Numbers are float32, or as they are stored, when they are read.
    """
    layout, index = run.head.layout, run.index
    groups: dict[str, dict[str, xr.Variable]] = {}
    coordinates: dict[str, dict[str, xr.Variable]] = {}
    for spec in layout.arrays:
        group, leaf = layout.array_path(spec.key).split("/")
        name = group.removesuffix(".zarr")
        tokens = spec.site.is_per_token
        spans = index.token_spans(spec.key.token_stack) if tokens else index.example_spans
        axis = len(layout.buffer_shape(spec)) - 2 if tokens else 0
        source = _Source(run, spec, axis, spans, dtype)
        attributes = {"key": str(spec.key), "meaning": spec.site.meaning, "stored_dtype": layout.stored(spec)}
        axes = layout.axes(spec)
        groups.setdefault(name, {})[leaf] = xr.Variable(axes, LazilyIndexedArray(_LazyArray(source)), attributes)
        numbers = {axis: xr.Variable(axis, np.asarray(own)) for axis, own in layout.coordinates(spec).items()}
        coordinates.setdefault(name, {}).update({**numbers, **_coordinates(spec, axes, index)})
        labels = run.head.about.labels
        if spec.site.axes[-1] == "metric":
            labels = tuple((run.head.about.head_metrics or {}).get("names", ()))
        if axes[-1] in ("label", "metric") and labels is not None and len(labels) == spec.width:
            coordinates[name][axes[-1]] = xr.Variable(axes[-1], np.asarray(labels, object))
    return xr.DataTree.from_dict({name: xr.Dataset(groups[name], coordinates[name]) for name in groups})


def _coordinates(spec: ArraySpec, axes: tuple[str, ...], index: RunIndex) -> Mapping[str, xr.Variable]:
    found: dict[str, xr.Variable] = {}
    for axis in axes:
        if axis == "example":
            found["example_id"] = xr.Variable(axis, np.asarray(index.ids, object))
            if spec.site.is_matrix:
                found["n_query"] = xr.Variable(axis, index.lengths[spec.key.stack])
                found["n_key"] = xr.Variable(axis, index.lengths[spec.key.key_stack])
        elif axis.endswith("token"):
            stack = spec.key.token_stack
            lengths = index.lengths[stack]
            prefix = "" if stack == spec.key.stack else f"{stack}_"
            examples = np.repeat(np.arange(len(lengths)), lengths)
            first = np.repeat(np.cumsum(lengths) - lengths, lengths)
            found[f"{prefix}token_example"] = xr.Variable(axis, examples.astype(np.int32))
            found[f"{prefix}token_position"] = xr.Variable(axis, (np.arange(len(first)) - first).astype(np.int32))
    return found
