"""Head metrics: what a head's attention looks like, in a dozen numbers.

1. `block_sums` takes some query rows of an example's patterns and cuts them into tiles that stay in the processor's
   cache. A row is divided by its sum, so that the rounding of stored numbers leaves it a distribution (in the nanochat
   convention it is left as it is).
2. What depends on the distance between query and key only (mean distance, mass nearby, the query itself, the token
   before it) comes from one array, the mass at each distance. Read in rows that are one cell longer than they were
   written, a tile has its diagonals as columns, and a sum over rows gives that array.
3. `example_means` turns an example's sums into metrics; `head_tally.py` adds up examples, layers and blocks.

What a row is divided by, what its entropy is and which of its cells are sparse, `conventions.py` says.

A block is a numpy array or a torch tensor: only functions are used that both have under the same name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, SPARSITY, Convention
from traceformer.analysis.repeats import count_repeats
from traceformer.analysis.rows import NOTHING, TINY, namespace, no_attention, row_divisors, row_entropies, sparse_cells
from traceformer.analysis.visibility import Visibility
from traceformer.core import kernels
from traceformer.core.library import Core, core
from traceformer.errors import Unsupported
from traceformer.shapes import Bool, Float, Float32, Float64, Int, Int64

__all__ = [
    "METRICS",
    "BlockSums",
    "Geometry",
    "Means",
    "block_sums",
    "effective_span",
    "example_means",
    "example_metrics",
    "example_weights",
]

METRICS: Mapping[str, str] = {
    "entropy": "entropy of where a query looks, in nats",
    SPARSITY: "share of sparse cells; its name in a table says below what a cell is sparse",
    "distance": "mean distance between query and key, in tokens",
    "max_weight": "largest weight of a query",
    "previous_token": "attention to the token before",
    "first_token": "attention to the first token, the usual sink",
    "self": "attention to the query's own token",
    "duplicate_token": "attention to other places of the query's token, of queries that can see any",
    "induction": "attention to what follows other places of the query's token, of queries that can see any",
    "retrieval": "attention to other places of the token that comes next, of queries that can see any",
    "local_mass": "attention within a window of 8 tokens (or `window`) on either side",
    "effective_span": "within how many tokens 90 % of the attention lies",
}
"""Every metric and its meaning. Each is a mean over queries, but sparsity (over cells) and the span (over all mass)."""

_SPAN_SHARE = 0.9
_TILE_CELLS = 1 << 17
_TILE_ROWS = 32
_KEPT_BYTES = 16 << 20  # of an example's masks
_DIRECT = ("entropy", "sparse", "max_weight", "first_token", "duplicate_token", "induction", "retrieval")
_MEANS = tuple(name for name in METRICS if name != "effective_span")


class _Masks(NamedTuple):
    """What is counted in a tile, by what its queries look at.

    Attributes:
        cells: 1 for each key, for duplicates of the query, for what follows them, for the token that comes next; zeros
            behind as in `_written`.
        repeating: How many of the queries can see duplicates, what follows one, and the token that comes next.
    """

    cells: Float32[np.ndarray, "query 4 pitch"]
    repeating: Int64[np.ndarray, "3"]


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """What is known of an example's pattern besides its numbers; one object serves all layers that see the same.

    Attributes:
        queries: Number of queries.
        keys: Number of keys.
        sight: Which of them a query can see.
        aligned: Whether query i and key i are the same token, as they are not in cross-attention.
        tokens: The ids of these tokens, if they are known.
    """

    queries: int
    keys: int
    sight: Visibility
    aligned: bool = True
    tokens: Int[np.ndarray, "position"] | None = None
    _masks: dict[tuple[int, int], _Masks] = field(default_factory=dict[tuple[int, int], _Masks], repr=False)
    _places: list[Any] = field(default_factory=list[Any], repr=False)

    @property
    def offsets(self) -> int:
        """How many values key - query takes; number `queries` - 1 of them is 0."""
        return self.queries + self.keys - 1 if self.aligned else 0

    def hidden(self) -> int:
        """Returns how many cells no query can see."""
        return self.queries * self.keys - int(self.sight.count(self.queries, self.keys).sum())

    def places(self) -> tuple[Int[np.ndarray, "position"], Int[np.ndarray, "position"]] | None:
        """Returns for each token where the same one is before it and behind it, worked out once; None without any."""
        if self.tokens is None:
            return None
        if not self._places:
            self._places.append(kernels.same_tokens_beside(self.tokens))
        return self._places[0]

    def masks(self, start: int, stop: int, seen: int, pitch: int) -> _Masks:
        """Returns the masks of the queries start .. stop-1 and the first `seen` keys, made once."""
        if (start, stop) in self._masks:
            return self._masks[start, stop]
        n_queries = stop - start
        cells = np.zeros((n_queries, 4, pitch), np.float32)
        cells[:, 0, :seen] = 1
        found = np.zeros((n_queries, 3, seen), np.bool_)
        if self.tokens is not None:
            self._repeats(start, stop, found)
            cells[:, 1:, :seen] = found
        masks = _Masks(cells, found.any(axis=2).sum(axis=0))
        if cells.nbytes * self.queries <= _KEPT_BYTES * n_queries:
            self._masks[start, stop] = masks
        return masks

    def _repeats(self, start: int, stop: int, found: Bool[np.ndarray, "query 3 key"]) -> None:
        """Marks for each query the duplicates that it can see, what follows one, and the token that comes next."""
        assert self.tokens is not None
        seen = found.shape[2]
        duplicates = self.tokens[start:stop, None] == self.tokens[:seen]
        np.fill_diagonal(duplicates[:, start:], False)
        found[:, 0] = duplicates
        found[:, 1, 1:] = duplicates[:, :-1]
        following = self.tokens[start + 1 : stop + 1, None] == self.tokens[:seen]
        np.fill_diagonal(following[:, start + 1 :], False)
        found[: len(following), 2] = following
        if self.sight.causal:
            found[:, :, start:] &= np.tri(stop - start, seen - start, dtype=np.bool_)[:, None]
        if self.sight.window is not None:
            reach = self.sight.window - (1 if self.sight.causal else 0)
            found &= np.abs(np.arange(seen) - np.arange(start, stop)[:, None, None]) <= reach


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Sums over some queries of one example, head by head.

    Attributes:
        direct: Of entropy, sparse cells, largest weight, attention to the first token, to duplicates, to what follows
            one, and to the token that comes next.
        repeating: How many of the queries can see duplicates, what follows one, and the token that comes next; of each
            head where several examples' stand together.
        profile: Attention at each value of key - query.
    """

    direct: Float64[np.ndarray, "head sum"]
    repeating: Int64[np.ndarray, "*head 3"]
    profile: Float64[np.ndarray, "head offset"]

    def __add__(self, other: "BlockSums") -> "BlockSums":
        return BlockSums(self.direct + other.direct, self.repeating + other.repeating, self.profile + other.profile)


def block_sums(
    block: Float[Any, "head query key"],
    geometry: Geometry,
    first: int = 0,
    *,
    convention: Convention = CONVENTIONS["exact"],
) -> BlockSums:
    """Returns the sums of the query rows `first`, `first` + 1, ...; keys that come after all of these may be left out.

    Raises:
        NumericError: a query's attention adds up to nothing, or is no number.
        Unsupported: a query looks at a later token though it cannot see it.
    """
    there = core()
    if there is not None and isinstance(block, np.ndarray) and block.dtype == np.float16 and block.strides[2] == 2:
        return _compiled_sums(there, block, geometry, first, convention)
    n_heads, n_queries, n_keys = block.shape
    in_cache = isinstance(block, np.ndarray)  # an accelerator takes the block in one piece
    direct = np.zeros((n_heads, len(_DIRECT)))
    repeating = np.zeros(3, np.int64)
    profile = np.zeros((n_heads, geometry.offsets))
    for rows in _parts(n_queries, _TILE_ROWS if in_cache else n_queries):
        start, stop = first + rows.start, first + rows.stop
        seen = min(n_keys, stop) if geometry.sight.causal else n_keys
        # Diagonals that leave a row must come upon zeros: those above the diagonal, or as many written behind it.
        pitch = seen if geometry.sight.causal and seen == stop else seen + stop - start - 1
        masks = geometry.masks(start, stop, seen, pitch)
        repeating += masks.repeating
        for heads in _parts(n_heads, max(1, _TILE_CELLS // ((stop - start) * seen)) if in_cache else n_heads):
            tile = block[heads, rows, :seen]
            sums, mass = _tile_sums(tile, geometry.keys - seen, pitch, masks.cells, convention)
            direct[heads] += sums
            if geometry.aligned:
                longest = geometry.queries - stop
                profile[heads, longest : longest + mass.shape[1]] += mass[:, : profile.shape[1] - longest]
    direct[np.abs(direct) < NOTHING] = profile[profile < NOTHING] = 0
    if geometry.sight.causal and profile[:, geometry.queries :].any():
        raise _looks_ahead()
    return BlockSums(direct, repeating, profile)


def _compiled_sums(
    there: Core, block: Float[np.ndarray, "head query key"], geometry: Geometry, first: int, convention: Convention
) -> BlockSums:
    """The same by the compiled core, which reads every cell once."""
    sight, keys = geometry.sight, block.shape[2]
    seen = min(keys, first + block.shape[1]) if sight.causal else keys
    sums = kernels.head_sums(
        there,
        block[:, :, :seen],
        queries=geometry.queries,
        keys=geometry.keys,
        first=first,
        causal=sight.causal,
        reach=None if sight.window is None else sight.window - sight.causal,
        offsets=geometry.offsets,
        places=geometry.places(),
        rules=(convention.beside_sum, convention.in_logarithm, convention.sparse_weight),
        divides=convention.divides_rows,
    )
    if sums.problem == kernels.NO_NUMBER:
        raise no_attention()
    if sums.problem:
        raise _looks_ahead()
    sums.direct[np.abs(sums.direct) < NOTHING] = sums.profile[sums.profile < NOTHING] = 0
    return BlockSums(sums.direct, sums.repeating, sums.profile)


def _looks_ahead() -> Unsupported:
    return Unsupported("a decoder's query looks at a later token", why="which cells it can see is then not known")


def _parts(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _tile_sums(
    tile: Float[Any, "head query key"],
    unseen: int,
    pitch: int,
    masks: Float32[np.ndarray, "query 4 pitch"],
    convention: Convention,
) -> tuple[Float64[np.ndarray, "head sum"], Float64[np.ndarray, "head offset"]]:
    """The sums of one tile, and its mass at each offset, from that of the last query and the first key on.

    `unseen` keys are left out of the tile, since none of its queries can see them.
    """
    xp = namespace(tile)
    n_heads, n_queries, n_keys = tile.shape
    largest = _largest(tile)  # first, while the tile is in the cache
    cells = _decoded(_written(tile, pitch))
    weights = _rows(cells, n_queries, pitch)
    masks = xp.asarray(masks, dtype=cells.dtype, device=cells.device)
    totals, duplicates, follow, retrieved = (weights.swapaxes(0, 1) @ masks.swapaxes(1, 2)).swapaxes(0, 2)
    divisors = row_divisors(totals, convention)
    columns = (
        _over_queries(row_entropies(weights, divisors, convention)),
        # All of what is left out is sparse, the zeros between rows are no cells.
        _count(sparse_cells(weights, divisors, convention)) + n_queries * (unseen - (pitch - n_keys)),
        _over_queries(largest / divisors),
        _over_queries(weights[..., 0] / divisors),
        _over_queries(duplicates / divisors),
        _over_queries(follow / divisors),
        _over_queries(retrieved / divisors),
    )
    diagonals = cells.reshape(n_heads, n_queries, pitch + 1)
    return np.stack(columns, axis=1), _on_host(((1 / divisors)[:, None] @ diagonals)[:, 0])


def _written(tile: Float[Any, "head query key"], pitch: int) -> Any:
    """The tile's rows at a distance of `pitch` cells, behind as many zeros as it has further queries.

    Read in rows of pitch + 1 cells, each begins one cell further to the right: cells of one diagonal stand below
    each other.
    """
    n_heads, n_queries, n_keys = tile.shape
    cells = namespace(tile).zeros((n_heads, n_queries * (pitch + 1)), dtype=tile.dtype, device=tile.device)
    _rows(cells, n_queries, pitch)[..., :n_keys] = tile
    return cells


def _rows(cells: Any, n_queries: int, pitch: int) -> Any:
    """The rows as they were written, as a view."""
    written = cells[:, n_queries - 1 : n_queries - 1 + n_queries * pitch]
    return written.reshape(cells.shape[0], n_queries, pitch)


# numpy converts float16 one number at a time, and numbers below 6e-5, of which patterns are full, ten times slower.
_OF_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).clip(TINY)


def _decoded(cells: Any) -> Any:
    """The cells in float32, or float64 where they come in it, and `TINY` in place of 0."""
    if cells.dtype == np.float16:
        return np.take(_OF_HALF, cells.view(np.uint16), mode="wrap")
    return (cells.float() if cells.itemsize < 4 else cells).clip(TINY)


def _largest(part: Any) -> Any:
    """The largest weight of each query."""
    if part.dtype == np.float16:  # in the order of their bits, but for -0.0, whose bits are a negative number
        return _OF_HALF[part.view(np.int16).max(axis=-1).view(np.uint16)]
    return namespace(part).amax(part, axis=-1)


def _on_host(array: Any) -> Float64[np.ndarray, "..."]:
    return np.asarray(array if isinstance(array, np.ndarray) else array.cpu(), np.float64)


def _over_queries(array: Any) -> Float64[np.ndarray, "head"]:
    return _on_host(array).sum(axis=1)


def _count(mask: Any) -> Float64[np.ndarray, "head"]:
    if isinstance(mask, np.ndarray):  # without an axis it counts ten times faster
        return np.array([np.count_nonzero(each) for each in mask], np.float64)
    return _on_host(mask.sum((1, 2)))


@dataclass(frozen=True, slots=True)
class Means:
    """Every metric but the span, in the order of `METRICS`: what is divided, and what by."""

    sums: Float64[np.ndarray, "head metric"]
    counts: Float64[np.ndarray, "head metric"]


def example_means(
    sums: BlockSums, geometry: Geometry, *, convention: Convention = CONVENTIONS["exact"], window: int = 8
) -> Means:
    """Returns an example's metrics from the sums over all its queries; counts are 0 where a metric has no meaning."""
    profile, centre = sums.profile, geometry.queries - 1
    cells = geometry.queries * geometry.keys
    hidden = 0 if convention.hidden_cells else geometry.hidden()
    direct = dict(zip(_DIRECT, sums.direct.T, strict=True))
    every = np.full(len(profile), geometry.queries, np.float64)
    found: dict[str, tuple[Any, Any]] = {
        "entropy": (direct["entropy"], every),
        SPARSITY: (direct["sparse"] - hidden, every / geometry.queries * (cells - hidden)),
        "max_weight": (direct["max_weight"], every),
        "first_token": (direct["first_token"], every),
    }
    if geometry.aligned:
        distance = np.abs(np.arange(geometry.offsets) - centre)
        near = slice(max(0, centre - window), centre + window + 1)
        found |= {
            "distance": (
                profile @ distance,
                profile.sum(axis=1),
            ),  # the number of queries, but for rounding and sinks
            "self": (profile[:, centre], every),
            "previous_token": (profile[:, centre - 1] if centre else 0 * every, every - 1),
            "local_mass": (profile[:, near].sum(axis=1), every),
            "duplicate_token": (direct["duplicate_token"], 0 * every + sums.repeating[..., 0]),
            "induction": (direct["induction"], 0 * every + sums.repeating[..., 1]),
            "retrieval": (direct["retrieval"], 0 * every + sums.repeating[..., 2]),
        }
    columns = [found.get(name, (0 * every, 0 * every)) for name in _MEANS]
    return Means(np.stack([own for own, _ in columns], axis=1), np.stack([count for _, count in columns], axis=1))


def example_metrics(
    sums: Sequence[BlockSums],
    geometry: Geometry,
    *,
    convention: Convention = CONVENTIONS["exact"],
    window: int = 8,
) -> Float64[np.ndarray, "example head metric"]:
    """Returns the metrics of examples, in the order of `METRICS`, from the sums over all queries of each.

    NaN where one has no meaning. All have as many queries and keys as `geometry` says; its tokens are not asked for.
    """
    n_heads = len(sums[0].direct)
    together = BlockSums(
        np.concatenate([own.direct for own in sums]),
        np.repeat([own.repeating for own in sums], n_heads, axis=0),
        np.concatenate([own.profile for own in sums]),
    )
    means = example_means(together, geometry, convention=convention, window=window)
    found = np.divide(means.sums, means.counts, out=np.full_like(means.sums, np.nan), where=means.counts > 0)
    span = np.full(len(found), np.nan)
    if geometry.aligned:
        there = together.profile.any(axis=1)
        span[there] = effective_span(together.profile[there], geometry.queries - 1)
    return np.column_stack([found, span]).reshape(len(sums), n_heads, -1)


def example_weights(geometry: Geometry) -> Float64[np.ndarray, "metric"]:
    """Returns what an example's metrics count where examples are averaged, but the span, which has no mean.

    In the exact convention, where a row is a distribution: what `example_means` divides by.
    """
    queries = geometry.queries
    weights = {"entropy": queries, "max_weight": queries, "first_token": queries}
    weights[SPARSITY] = queries * geometry.keys - geometry.hidden()
    if geometry.aligned:
        weights |= {"distance": queries, "self": queries, "local_mass": queries}
        weights["previous_token"] = queries - 1
        if geometry.tokens is not None:
            repeats = count_repeats(geometry.tokens, geometry.sight)
            weights.update(zip(("duplicate_token", "induction", "retrieval"), repeats.tolist(), strict=True))
    return np.array([weights.get(name, 0) for name in _MEANS], np.float64)


def effective_span(profile: Float64[np.ndarray, "head offset"], centre: int) -> Float64[np.ndarray, "head"]:
    """Returns the smallest distance within which 90 % of each head's mass lies; `centre` is where key - query is 0."""
    reach = max(centre, profile.shape[1] - 1 - centre)
    within = np.zeros((len(profile), reach + 1))
    within[:, : centre + 1] += profile[:, centre::-1]
    within[:, 1 : profile.shape[1] - centre] += profile[:, centre + 1 :]
    within = within.cumsum(axis=1)
    return np.argmax(within >= _SPAN_SHARE * within[:, -1:], axis=1).astype(np.float64)
