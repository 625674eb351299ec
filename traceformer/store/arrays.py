"""The arrays of a run on disk: which one a site means, and reading the parts that a layer, a head, an example need."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num

from traceformer.errors import CorruptRun, NotRecorded, SelectionError
from traceformer.sites import SITES, ArrayKey, ArraySpec, Stack, expand_sites
from traceformer.store.columns import Column
from traceformer.store.dtypes import decode
from traceformer.store.index import RunIndex
from traceformer.store.layout import RunLayout, head_index, layer_index
from traceformer.store.zarr3 import Array, open_array, read_ahead, reading

if TYPE_CHECKING:
    import tensorstore as ts

__all__ = ["RunArrays", "find_spec"]

_CACHE_BYTES = 32 << 20


def find_spec(
    layout: RunLayout, site: str | ArrayKey, side: str | None, kind: str | None, prefer: Stack | None = None
) -> ArraySpec:
    """Returns the array that a site (`resid_mid`), a group of one site (`attn`) or a key (`dec.cross.q`) means.

    `kind` is `self` unless only cross-attention is recorded; `prefer` decides between two stacks.

    Raises:
        SelectionError: there is no such site, or two stacks have it, and neither `side` nor `prefer` says which.
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
        raise NotRecorded(f"{what} was not recorded", why=f"this run holds {names}")
    if len(found) > 1:
        found = [spec for spec in found if spec.key.stack == prefer]
    if not found:
        raise SelectionError(f"both stacks have {site}", hint="say side='enc' or side='dec'")
    return found[0]


class RunArrays:
    """The open arrays of a run. `layer` and `head` are the model's numbers, None for all; a row is an example's."""

    def __init__(self, folder: Path, layout: RunLayout, index: RunIndex, dims: Mapping[str, Any]) -> None:
        import tensorstore as ts

        self._folder = folder
        self._layout = layout
        self._index = index
        self._dims = dims
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._open: dict[ArrayKey, Array] = {}
        self._seen: set[tuple[ArrayKey, int]] = set()

    def array(self, spec: ArraySpec, shards: Sequence[int]) -> Array:
        """Returns the array on disk, once the files of the shards to be read are known to be there.

        A file that is not there would read as zeros.

        Raises:
            CorruptRun: one is missing.
        """
        for shard in shards:
            if (spec.key, shard) not in self._seen:
                for path in self._layout.shard_files(spec, shard):
                    if not (self._folder / path).exists():
                        raise CorruptRun(
                            f"{self._folder / path} is missing", hint="traceformer verify lists the damage"
                        )
                self._seen.add((spec.key, shard))
        if spec.key not in self._open:
            self._open[spec.key] = open_array(self._folder, self._layout.array_path(spec.key), self._context)
        return self._open[spec.key]

    def example(self, spec: ArraySpec, row: int, layer: int | None, head: int | None) -> Num[np.ndarray, "..."]:
        """Returns one example's part: ([layer,] [head,] query, key) or ([layer,] [head,] token, d)."""
        index, lead = self._index, self._lead(spec, layer, head)
        if spec.site.is_matrix:
            queries, keys = index.lengths[spec.key.stack][row], index.lengths[spec.key.key_stack][row]
            region = (int(index.examples[row]), *lead, slice(0, int(queries)), slice(0, int(keys)))
        else:
            first = int(index.slots[spec.key.token_stack][row])
            region = (*lead, slice(first, first + int(index.lengths[spec.key.token_stack][row])))
        array = self.array(spec, (int(index.shard_of[row]),))
        with reading(self._folder / self._layout.array_path(spec.key)):
            return decode(array[region].read().result(), self._layout.stored(spec))

    def column(self, spec: ArraySpec, layer: int | None, head: int | None) -> Column:
        """Returns one layer of a token array over all examples.

        Raises:
            SelectionError: it is a matrix, or has layers and none is named.
        """
        if spec.site.is_matrix:
            raise SelectionError(f"{spec.key} is a matrix", hint="head() goes through all examples' matrices")
        if spec.layers and layer is None:
            raise SelectionError(f"which layer of {spec.key}?", hint=f"stored: {' '.join(map(str, spec.layers))}")
        array, lead = self.array(spec, self._index.shards), self._lead(spec, layer, head)
        return Column(
            view=array[lead] if lead else array,
            stored=self._layout.stored(spec),
            spans=self._index.token_spans(spec.key.token_stack),
            chunk=self._layout.chunk_shape(spec)[-2],
        )

    def by_example(
        self, spec: ArraySpec, layer: int | None, head: int | None
    ) -> Iterator[tuple[int, Num[np.ndarray, "..."]]]:
        """Yields each row and its part, as views of one block per shard, reading one shard ahead."""
        lead = self._lead(spec, layer, head)
        array = self.array(spec, self._index.shards)
        ahead: deque[tuple[int, np.ndarray, ts.WriteFutures]] = deque()
        for shard in self._index.shards:
            ahead.append((shard, *read_ahead(array[self._shard_region(spec, shard, lead)])))
            if len(ahead) > 1:
                yield from self._rows_of(spec, *ahead.popleft())
        while ahead:
            yield from self._rows_of(spec, *ahead.popleft())

    def _shard_region(self, spec: ArraySpec, shard: int, lead: tuple[int | slice, ...]) -> tuple[int | slice, ...]:
        rows, index = self._index.rows_of(shard), self._index
        own = slice(rows.start, rows.stop)
        if spec.site.is_matrix:
            first = int(index.examples[rows.start])
            queries, keys = index.lengths[spec.key.stack][own].max(), index.lengths[spec.key.key_stack][own].max()
            return (slice(first, first + len(rows)), *lead, slice(0, int(queries)), slice(0, int(keys)))
        first = int(index.slots[spec.key.token_stack][rows.start])
        return (*lead, slice(first, first + int(index.lengths[spec.key.token_stack][own].sum())))

    def _rows_of(
        self, spec: ArraySpec, shard: int, block: np.ndarray, read: "ts.WriteFutures"
    ) -> Iterator[tuple[int, Num[np.ndarray, "..."]]]:
        index, rows = self._index, self._index.rows_of(shard)
        with reading(self._folder / self._layout.array_path(spec.key)):
            read.result()
        values = decode(block, self._layout.stored(spec))
        for row in rows:
            if spec.site.is_matrix:
                queries, keys = index.lengths[spec.key.stack][row], index.lengths[spec.key.key_stack][row]
                yield row, values[row - rows.start, ..., :queries, :keys]
            else:
                stack = spec.key.token_stack
                first = index.slots[stack][row] - index.slots[stack][rows.start]
                yield row, values[..., first : first + index.lengths[stack][row], :]

    def _lead(self, spec: ArraySpec, layer: int | None, head: int | None) -> tuple[int | slice, ...]:
        """Returns the index of the axes before queries or tokens, without the example's."""
        lead: list[int | slice] = []
        if spec.layers or layer is not None:
            lead.append(slice(None) if layer is None else layer_index(spec, layer))
        if spec.heads or head is not None:
            lead.append(slice(None) if head is None else head_index(spec, self._stored_head(spec, head)))
        return tuple(lead)

    def _stored_head(self, spec: ArraySpec, head: int) -> int:
        """Returns the kv_head that an attention head reads, for keys and values."""
        dims: Mapping[str, int] = self._dims.get(spec.key.stack, {})
        n_heads, n_kv_heads = dims.get("n_heads", 0), dims.get("n_kv_heads", 0)
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
