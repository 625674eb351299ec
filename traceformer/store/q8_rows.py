"""Arrays that are stored as codes, scales and massive channels (`q8`), read as the numbers that these stand for.

1. Their three arrays are opened as planes, (layer[, head], slot, ...), whatever arrays the layers lie in.
2. What is asked for is read of codes and scales at once, and multiplied.
3. Which channels are massive differs from shard to shard: where some are, their values are put in their places.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from traceformer.shapes import Int64, Shaped
from traceformer.sites import ArraySpec
from traceformer.store.aliases import Piece, Plane, planes_of
from traceformer.store.dtypes import decode
from traceformer.store.index import RunIndex
from traceformer.store.layout import RunLayout
from traceformer.store.lazy import LazyArray, Places
from traceformer.store.q8 import Channels, Rounded, decode_rows
from traceformer.store.system import processors
from traceformer.store.zarr3 import Array, reading

__all__ = ["rounded_rows", "rows_of_shard"]

_MOST_CORES = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Codes:
    """The numbers of some planes: `codes`, `scales` and `massive` are (plane[, head], slot, ...)."""

    codes: Array
    scales: Array
    massive: Array
    planes: Sequence[Plane]
    layout: RunLayout
    index: RunIndex

    @property
    def pool(self) -> ThreadPoolExecutor:
        return _pool()

    def fill(self, target: Shaped[np.ndarray, "..."], places: tuple[Places, ...]) -> None:
        *lead, features = places
        if not all(map(len, lead)):
            return
        at = tuple(map(_as_index, lead))
        reading_both = [array.oindex[(*at, slice(None))].read() for array in (self.codes, self.scales)]
        reading_massive = [(where, channels, view.read()) for where, channels, view in self._massive_in(lead)]
        codes, scales = (future.result() for future in reading_both)
        is_all = isinstance(features, range) and features == range(codes.shape[-1])
        is_whole = is_all and target.dtype == np.float32
        rows = target if is_whole else np.empty(codes.shape, np.float32)
        decode_rows(codes, scales, rows)
        for where, channels, future in reading_massive:
            rows[where][:, channels] = decode(future.result(), self.layout.dtype)
        if not is_whole:
            target[...] = rows[..., _as_index(features)]

    def _massive_in(self, lead: Sequence[Places]) -> Iterator[tuple[tuple[Any, ...], list[int], Array]]:
        """Yields where in what is read there are massive channels, which they are, and a view of their values."""
        *of_plane, slots = (np.asarray(own) for own in lead)
        shards = self.index.shards_at(slots, self.planes[0].spec.key.token_stack)
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(slots)]
        for start, stop in pairwise(cuts):
            for at in np.ndindex(*map(len, of_plane)):
                place = tuple(int(own[i]) for own, i in zip(of_plane, at, strict=True))
                plane, head = self.planes[place[0]], place[1] if len(place) > 1 else 0
                number = (plane.layer or 0) * max(1, len(plane.spec.heads)) + head
                channels = self._channels(plane.spec, int(shards[start]))[number]
                if channels:
                    view = self.massive.oindex[(*place, _as_index(slots[start:stop]), slice(len(channels)))]
                    yield (*at, slice(start, stop)), list(channels), view

    def _channels(self, spec: ArraySpec, shard: int) -> Channels:
        return self.index.rounding(spec, shard).massive


def rounded_rows(
    layout: RunLayout,
    index: RunIndex,
    pieces: Sequence[Piece],
    slots: tuple[slice, ...],
    joined: Callable[[Sequence[Piece]], Array],
) -> LazyArray:
    """Returns the token array ([layer,][head,] slot, d) that parts of kept arrays make up, which are stored as codes.

    Args:
        layout: The run's.
        index: Likewise.
        pieces: The parts, in order along the layers.
        slots: Which slots, if not all.
        joined: Opens parts of kept arrays, or of what lies beside them, as one array from place 0 on.
    """
    planes, lead = planes_of(pieces)
    whole = [_whole(piece) for piece in pieces]
    of_parts = [layout.parts(piece.spec) for piece in whole]
    codes, scales, massive = (
        joined([Piece(part, piece.lead) for part, piece in zip(own, whole, strict=True)])
        for own in zip(*of_parts, strict=True)
    )
    filling = _Codes(codes, scales, massive, planes, layout, index)
    return LazyArray.of(filling, codes.shape, np.dtype(np.float32))[(*lead, *slots)]


def rows_of_shard(
    layout: RunLayout, index: RunIndex, spec: ArraySpec, shard: int, opened: Callable[[ArraySpec], Array]
) -> Rounded:
    """Returns a kept array's rows of a shard as they are stored; `opened` opens it, and what lies beside it."""
    stack, channels = spec.key.token_stack, index.rounding(spec, shard).massive
    rows = index.rows_of(shard)
    first = index.slot(rows.start, stack)
    slots = slice(first, first + index.tokens(rows, stack))
    codes, scales, massive = layout.parts(spec)
    with reading(layout.array_path(spec.key)):
        ahead = [opened(part)[..., slots, :].read() for part in (codes, scales)]
        of_codes, of_scales = (future.result() for future in ahead)
        kept: list[Shaped[np.ndarray, "slot _"]] = []
        for at, own in zip(np.ndindex(of_codes.shape[:-2]), channels, strict=True):
            if own:
                kept.append(opened(massive)[(*at, slots, slice(len(own)))].read().result())
            else:
                kept.append(np.empty((of_codes.shape[-2], 0), of_codes.dtype))
    return Rounded(of_codes, of_scales, kept, channels)


def _whole(piece: Piece) -> Piece:
    """Returns the piece with all of its axes, of which a single layer is one too."""
    layers = piece.lead[:1] if piece.spec.layers else (None,)
    first = layers[0] if layers else slice(None)
    own = slice(first, first + 1) if isinstance(first, int) else first
    return piece._replace(lead=(own, *(slice(None),) * bool(piece.spec.heads)))


def _as_index(places: Places) -> slice | Int64[np.ndarray, "place"]:
    if isinstance(places, range) and places.step == 1:
        return slice(places.start, places.stop)
    own = np.asarray(places)
    if len(own) and own[-1] - own[0] == len(own) - 1 and (np.diff(own) == 1).all():
        return slice(int(own[0]), int(own[-1]) + 1)
    return own


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that wait for tensorstore's or for those of `ranged`, and for none of their own."""
    return ThreadPoolExecutor(min(processors(), _MOST_CORES), thread_name_prefix="decode")
