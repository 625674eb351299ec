"""The arrays of a run: which one a site means, which of its layers and heads, and reading what these need."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import NotRecorded, SelectionError
from traceformer.shapes import Num, Shaped
from traceformer.sites import SITES, ArrayKey, ArraySpec, Stack, expand_sites, parse_indices
from traceformer.store.aliases import Lead
from traceformer.store.columns import Column
from traceformer.store.dtypes import ReadDtype, decode, dtype_read
from traceformer.store.index import Spans
from traceformer.store.layout import RunLayout
from traceformer.store.meta import RunMeta
from traceformer.store.objects.path import ObjectPath
from traceformer.store.room import check_matrices
from traceformer.store.source import Source
from traceformer.store.zarr3 import as_read, numbers_of, read_ahead, reading

if TYPE_CHECKING:
    from traceformer.store.zarr3 import Reading

__all__ = ["ColumnPlace", "Numbers", "RunArrays", "Shape", "find_array", "find_numbers", "one_number", "shortened"]

_AHEAD, _FEWEST_AHEAD = 32, 4  # matrices that are asked for together, of a bucket
_AHEAD_BYTES = 64 << 20  # that these take at most, if one does not take more

Shape: TypeAlias = Literal["any", "rows", "matrix"]
Numbers: TypeAlias = str | int | Iterable[int] | None
"""Which layers or heads: a number, several, a text such as `0,3-5`, or all."""

_INSTEAD: Mapping[str, str] = {
    "attn_topk": "run.attn_topk(example) has each query's largest keys",
    "head_metrics": "tf.heads(run) has the metrics of its heads",
}
"""What a run may hold in place of patterns."""


def find_array(
    layout: RunLayout,
    site: str | ArrayKey,
    side: str | None = None,
    kind: str | None = None,
    *,
    prefer: Stack | None = None,
    shape: Shape = "any",
) -> ArraySpec:
    """Returns the array that a site (`resid_mid`), a group of one site (`attn`) or a key (`dec.cross.q`) means.

    `kind` is `self` unless only cross-attention is recorded; `prefer` decides between two stacks. `shape` says what is
    wanted of it: `rows` for one row per token that is an activation, `matrix` for (query, key).

    Raises:
        SelectionError: there is no such site; or two stacks have it, and neither `side` nor `prefer` says which; or it
            has another shape.
        NotRecorded: this run does not hold it.
    """
    if isinstance(site, str) and "." in site:
        site = ArrayKey.parse(site)
    if isinstance(site, ArrayKey):
        side, kind, site = site.stack, site.attention, site.site
    elif site not in SITES:
        site, *others = expand_sites((site,))
        if others:
            raise SelectionError("several sites are meant", hint=f"name one of {site} {' '.join(others)}")
    found = [spec for spec in layout.arrays if spec.key.site == site and side in (None, spec.key.stack)]
    if SITES[site].of_attention:
        kinds = {spec.key.attention for spec in found}
        wanted = kind or ("cross" if kinds == {"cross"} else "self")
        found = [spec for spec in found if spec.key.attention == wanted]
    if not found:
        what = " ".join(filter(None, (side, kind, site)))
        names = " ".join(str(spec.key) for spec in layout.arrays)
        instead = [hint for name, hint in _INSTEAD.items() if any(spec.key.site == name for spec in layout.arrays)]
        hint = " or ".join(instead) if site == "attn_pattern" else ""
        raise NotRecorded(f"{what} was not recorded", why=f"this run holds {names}", hint=hint)
    preferred = found if len(found) == 1 else [spec for spec in found if spec.key.stack == prefer]
    if not preferred:
        keys = " or ".join(str(spec.key) for spec in layout.arrays if spec.key.site == site)
        raise SelectionError(f"both stacks have {site}", hint=f"say side='enc' or side='dec', or name one of {keys}")
    _check_shape(preferred[0], shape)
    return preferred[0]


def _check_shape(spec: ArraySpec, shape: Shape) -> None:
    if shape == "matrix" and not spec.site.is_matrix:
        raise SelectionError(f"{spec.key} is no (query, key) matrix", hint="attn_pattern is one")
    if shape == "rows" and (spec.site.is_derived or spec.site.holds_ids):
        raise SelectionError(f"{spec.key} is no activation", why=spec.site.meaning, hint="resid_post is one")
    if shape == "rows" and (not spec.site.is_per_token or spec.heads):
        raise SelectionError(f"{spec.key} has no single row per token", hint="resid_post has one")


def find_numbers(what: str, wanted: Numbers, stored: Sequence[int], *, of: str) -> tuple[int, ...]:
    """Returns which layers, heads or positions are meant, in the order asked for.

        find_numbers("layer", "0,3-5", spec.layers, of=str(spec.key))

    Args:
        what: `layer`, `head` or `position`, for messages.
        wanted: None or `all` for all that are stored; a number; numbers; or a text such as `0,3-5`.
        stored: Those that there are.
        of: Of what, for messages.

    Raises:
        SelectionError: one is not stored, or none is asked for; the message names what is stored.
    """
    if wanted is None or wanted == "all":
        chosen = tuple(stored)
    elif isinstance(wanted, str):
        chosen = parse_indices(wanted)
    else:
        chosen = (int(wanted),) if isinstance(wanted, int | Integral) else tuple(wanted)
    missing = [number for number in chosen if number not in stored]
    if missing or not chosen:
        asked = ", ".join(map(str, missing)) or "nothing"
        there = f"{what}s {shortened(stored)}" if stored else f"no {what}s"
        raise SelectionError(f"{what} {asked} requested", why=f"there are {there} of {of}")
    return chosen


def one_number(what: str, number: Numbers) -> int | None:
    """Returns the one layer or head that is meant; None if none is said.

    Raises:
        SelectionError: it is several.
    """
    if number is None:
        return None
    if isinstance(number, int | Integral):
        return int(number)
    raise SelectionError(f"{what}s {number!r} requested", why="rows are of one", hint=f"one {what}, by its number")


def shortened(numbers: Sequence[int]) -> str:
    """Returns numbers in the form that `parse_indices` reads: 0-3,7."""
    starts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1] + 1]
    parts = [(numbers[i], numbers[j - 1]) for i, j in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


class ColumnPlace(NamedTuple):
    """Where a column's rows lie: the index of layer and head, the slots, how many are read together, and the width."""

    lead: Lead
    spans: Spans
    chunk: int
    width: int


class RunArrays:
    """The arrays of a run, opened. `layer` and `head` are the model's numbers, None for all; a row is an example's.

    `dtype` is what numbers are read as, in all methods.
    """

    def __init__(self, source: Source, about: RunMeta) -> None:
        self._source = source
        self._layout = source.head.layout
        self._index = source.index
        self._about = about

    def example(
        self,
        spec: ArraySpec,
        row: int,
        layer: int | None,
        head: int | None,
        dtype: ReadDtype,
        queries: slice | None = None,
    ) -> Num[np.ndarray, "..."]:
        """Returns one example's part: ([layer,] [head,] query, key) or ([layer,] [head,] token, d).

        Of an array with one row per example it is ([layer,] [head,] d). `queries` are the rows of a matrix to read.
        """
        stored, lead = self._layout.stored(spec), self._lead(spec, layer, head)
        if spec.site.is_matrix:
            return self._matrix(spec, row, lead, dtype, queries)
        if queries is not None:
            _check_shape(spec, "matrix")
        view = as_read(self._source.part(spec, range(row, row + 1), lead), stored, dtype)
        with self._reading(spec):
            values = decode(view.read().result(), stored)
        return values if spec.site.is_per_token else values[0]

    def column(
        self, spec: ArraySpec, layer: int | None, head: int | None, dtype: ReadDtype, *, once: bool = True
    ) -> Column:
        """Returns one layer of a token array, or of an array with one row per example, over all examples.

        Unless each of its chunks is read `once`, they are kept for who reads other rows of them.

        Raises:
            SelectionError: it is a matrix, or has layers and none is named.
        """
        place = self.place(spec, layer, head)
        stored = self._layout.stored(spec)
        widened = stored == "float16" and dtype_read(stored, dtype) == np.float32
        view = as_read(self._source.whole(spec, place.lead, once=once and not widened), stored, dtype)
        if spec.site.is_per_example and view.rank > 2:
            view = view.transpose([1, 0, 2])
        return Column(view=view, stored=stored, dtype=dtype_read(stored, dtype), spans=place.spans, chunk=place.chunk)

    def place(self, spec: ArraySpec, layer: int | None, head: int | None) -> ColumnPlace:
        """Returns where the rows of a `column` lie; no array is opened.

        Raises:
            SelectionError: as `column` does.
        """
        if spec.site.is_matrix:
            raise SelectionError(
                f"{spec.key} is a matrix",
                hint="head() goes through all examples' matrices, and with a size stream() gives squares of it",
            )
        if spec.layers and layer is None:
            raise SelectionError(f"which layer of {spec.key}?", hint=f"stored: {' '.join(map(str, spec.layers))}")
        lead, chunk = self._lead(spec, layer, head), self._layout.chunk_shape(spec)
        heads = len(spec.heads) if spec.heads and head is None else 1
        if spec.site.is_per_example:
            return ColumnPlace(lead, self._index.example_spans, chunk[0], spec.width * heads)
        return ColumnPlace(lead, self._index.token_spans(spec.key.token_stack), chunk[-2], spec.width * heads)

    def squares(
        self, spec: ArraySpec, row: int, layer: int, heads: Sequence[int], queries: range
    ) -> Shaped[np.ndarray, "head query key"]:
        """Returns rows of an example's matrices of some heads of a layer, as they are stored."""
        places = [_head_index(spec, head) for head in heads]
        least = min(places)
        lead = (self._layer_index(spec, layer), slice(least, max(places) + 1))
        return self._source.matrix(spec, row, lead, queries)[[place - least for place in places]]

    def rows(
        self, spec: ArraySpec, row: int, positions: Sequence[int], layer: int | None, dtype: ReadDtype
    ) -> Num[np.ndarray, "position d"]:
        """Returns some rows of one example's part of a token array, and reads no more than the chunks they lie in."""
        column = self.column(spec, layer, None, dtype, once=False)
        first = self._index.slot(row, spec.key.token_stack)
        with self._reading(spec):
            read = list(column.read((first + position, first + position + 1) for position in positions))
        return np.concatenate(read) if read else np.empty((0, column.width), column.dtype)

    def by_example(
        self, spec: ArraySpec, layer: int | None, head: int | None, dtype: ReadDtype
    ) -> Iterator[tuple[int, Num[np.ndarray, "..."]]]:
        """Yields each row and its part: matrices one by one, others as views of a step's block, read a step ahead."""
        lead, stored = self._lead(spec, layer, head), self._layout.stored(spec)
        if spec.site.is_matrix:
            rows = [row for step in self._source.steps(spec) for row in step]
            yield from zip(rows, self._matrices(spec, rows, lead, dtype), strict=True)
            return
        ahead: deque[tuple[range, np.ndarray, Reading]] = deque()
        for rows in self._source.steps(spec):
            ahead.append((rows, *read_ahead(as_read(self._source.part(spec, rows, lead), stored, dtype))))
            if len(ahead) > 1:
                yield from self._rows_of(spec, *ahead.popleft())
        while ahead:
            yield from self._rows_of(spec, *ahead.popleft())

    def _matrices(
        self, spec: ArraySpec, rows: Sequence[int], lead: Lead, dtype: ReadDtype
    ) -> Iterator[Num[np.ndarray, "*lead query key"]]:
        """Yields the matrices of several examples; of a bucket some are asked for ahead."""

        def read(row: int) -> Num[np.ndarray, "*lead query key"]:
            return self._matrix(spec, row, lead, dtype)

        most = _AHEAD_BYTES // (4 * self._count(spec, lead) * math.prod(self._layout.buffer_shape(spec)[-2:]))
        if not isinstance(self._source.folder, ObjectPath) or most < _FEWEST_AHEAD:  # which is many requests by itself
            yield from map(read, rows)
            return
        from traceformer.store.objects.at_once import at_once

        yield from at_once(read, rows, most=min(most, _AHEAD))

    def _count(self, spec: ArraySpec, lead: Lead) -> int:
        """How many matrices of an example are meant."""
        axes = (len(spec.layers), len(spec.heads))
        return math.prod(
            len(range(size)[part]) for size, part in zip(axes, lead, strict=True) if isinstance(part, slice)
        )

    def _matrix(
        self, spec: ArraySpec, row: int, lead: Lead, dtype: ReadDtype, queries: slice | None = None
    ) -> Num[np.ndarray, "*lead query key"]:
        """Returns an example's matrices, or some rows of them.

        Raises:
            OutOfSpace: there is not as much memory as they take.
            SelectionError: the rows are not one behind the other.
        """
        index, stored = self._index, self._layout.stored(spec)
        try:
            rows = range(index.length(row, spec.key.stack))[slice(None) if queries is None else queries]
        except (TypeError, ValueError):  # no slice, or one of words, or that does not move
            rows = None
        if not isinstance(rows, range):
            raise SelectionError(f"queries {queries!r} are no slice", hint="a slice, such as slice(0, 10)")
        if rows.step != 1:
            raise SelectionError(f"every {rows.step}th query", hint="queries that follow each other")
        keys = index.length(row, spec.key.key_stack)
        check_matrices(str(spec.key), self._count(spec, lead), len(rows), keys, dtype_read(stored, dtype))
        return numbers_of(self._source.matrix(spec, row, lead, rows), stored, dtype)

    def _rows_of(
        self, spec: ArraySpec, rows: range, block: np.ndarray, read: "Reading"
    ) -> Iterator[tuple[int, Num[np.ndarray, "..."]]]:
        with self._reading(spec):
            read.result()
        values, first = decode(block, self._layout.stored(spec)), 0
        for row in rows:
            if spec.site.is_per_example:
                yield row, values[row - rows.start]
            else:
                length = self._index.length(row, spec.key.token_stack)
                yield row, values[..., first : first + length, :]
                first += length

    def _reading(self, spec: ArraySpec) -> AbstractContextManager[None]:
        return reading(f"{self._source.name}/{self._layout.array_path(spec.key)}")

    def _lead(self, spec: ArraySpec, layer: int | None, head: int | None) -> Lead:
        """Returns the index of the axes before queries or tokens, without the example's."""
        lead: list[int | slice] = []
        if spec.layers or layer is not None:
            lead.append(slice(None) if layer is None else self._layer_index(spec, layer))
        if spec.heads or head is not None:
            lead.append(slice(None) if head is None else _head_index(spec, self._stored_head(spec, head)))
        return tuple(lead)

    def _layer_index(self, spec: ArraySpec, layer: int) -> int:
        """Returns where the model's layer lies on the array's layer axis.

        Raises:
            SelectionError: the run does not hold that layer, or the array has no layers.
        """
        dims = self._about.dims_of(spec.key.stack)
        if spec.site.of_attention and layer in dims.without_attention:
            raise SelectionError(
                f"layer {layer} of {spec.key} requested",
                why=f"layer {layer} has no attention",
                hint=f"layers with attention: {', '.join(map(str, dims.attending or ())) or 'none'}",
            )
        return _index(spec, spec.layers, layer, "layer")

    def _stored_head(self, spec: ArraySpec, head: int) -> int:
        """Returns the kv_head that an attention head reads, for keys and values."""
        dims = self._about.dims_of(spec.key.stack).at(spec.layers)
        n_heads, n_kv_heads = dims.n_heads or 0, dims.n_kv_heads
        if "kv_head" not in spec.site.axes or not n_kv_heads:
            return head
        if not 0 <= head < n_heads:
            raise SelectionError(f"head {head} requested", why=f"the model has heads 0-{n_heads - 1}")
        group = n_heads // n_kv_heads
        if head // group not in spec.heads:
            served = ", ".join(str(kv * group + i) for kv in spec.heads for i in range(group))
            raise SelectionError(
                f"head {head} requested, which reads kv_head {head // group} of {spec.key}",
                why=f"this run holds what heads {served} read",
            )
        return head // group


def _head_index(spec: ArraySpec, head: int) -> int:
    """Returns where the model's head (kv_head for keys and values) lies on the array's head axis.

    Raises:
        SelectionError: the run does not hold that head, or the array has no heads.
    """
    return _index(spec, spec.heads, head, "head")


def _index(spec: ArraySpec, stored: tuple[int, ...], wanted: int, what: str) -> int:
    if not stored:
        raise SelectionError(f"{what} {wanted} requested", why=f"{spec.key} has no {what}s")
    if wanted not in stored:
        listed = ", ".join(map(str, stored))
        raise SelectionError(f"{what} {wanted} requested", why=f"this run holds {what}s {listed} of {spec.key}")
    return stored.index(wanted)
