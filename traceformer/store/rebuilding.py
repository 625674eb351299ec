"""Patterns made anew of the q and k that a run holds: defined to the bit, the same on every machine.

A query's weights are float64 numbers, rounded once to what patterns are stored as. All numbers are doubles, and each
step is one operation of IEEE 754, rounded to the nearest, ties to even:

1. A score is the sum of q_c * k_c over c = 0, 1, ..., begun at 0, one product after the other. Of two float32 a product
   is exact. The sum is multiplied by the scaling.
2. With a softcap C it becomes C * T(score / C), where T(x) is (1 - e) / (1 + e) with the sign of x, and e is
   E(-2 |x|). A bias, a float32, is added.
3. m is the largest score of the keys that the query sees, and of its sink. The weight of a key is E(score - m), of one
   that is not seen 0.
4. The weights are added up in eight lanes, key j in lane j % 8, in the order of keys; lane i takes what is in lane
   i + 4, then lane i + 2, then lane 1 goes to lane 0. E(sink - m) is added to that.
5. Each weight is multiplied by 1 / the sum, and rounded to what is stored. It is 0 where nothing is seen. Of a
   bfloat16 below 2^-126, which has fewer digits, the weight's first 24 binary digits, the last of them 1 where more
   follow, are rounded to float32 and that to bfloat16: where it lies next to a tie, that may be the other neighbour.

E(x) of x <= 0, where all below -700 is -700: with n = (x * log2(e) + 1.5 * 2^52) - 1.5 * 2^52, which rounds to a whole
number, r = (x - n * H) - n * L, where H + L is the logarithm of 2 and H has 32 digits; then the sum of r^i / i! up to
i = 13 by Horner's rule, from the last on, times 2^n. No processor's and no library's exponential comes into it.

The compiled core does the same, in the same order. Without it numpy does.
"""

import math

import numpy as np

from traceformer.core import recipes as compiled
from traceformer.core.library import core
from traceformer.core.recipes import Head
from traceformer.errors import CorruptRun
from traceformer.shapes import Float32, Float64, Shaped
from traceformer.sites import ArraySpec
from traceformer.store.aliases import Lead
from traceformer.store.dtypes import ON_DISK, decode
from traceformer.store.names import Stored
from traceformer.store.recipes import Recipe, operands_of
from traceformer.store.source import Source
from traceformer.store.zarr3 import Array, reading

__all__ = ["rebuilt", "rebuilt_of"]

_EVERYWHERE = 1 << 40  # keys: more than there are
_AT_ONCE = 64 << 10  # cells that numpy works on, which stay in the processor's cache
_LANES = 8
_LOWEST = -700.0
_LOG2_E, _LN2_HIGH, _LN2_LOW = (
    float.fromhex(text) for text in ("0x1.71547652b82fep0", "0x1.62e42feep-1", "0x1.a39ef35793c76p-33")
)
_ROUNDS = 1.5 * 2.0**52
_FACTORS = tuple(1 / math.factorial(i) for i in reversed(range(14)))
_LOST, _LAST = (1 << 29) - 1, 1 << 29  # of a double's bits: those that a float has not, and its last one


def rebuilt(
    source: Source, spec: ArraySpec, row: int, lead: Lead, queries: range
) -> Shaped[np.ndarray, "*lead query key"]:
    """Returns an example's patterns by recipe, or some rows of them, as they are stored elsewhere.

    Raises:
        CorruptRun: q or k are not as they were written.
    """
    layout, index = source.head.layout, source.index
    recipe, stored = layout.recipes[spec.key], layout.stored(spec)
    query_spec, key_spec = (layout.spec(key) for key in operands_of(spec.key))
    assert query_spec is not None
    assert key_spec is not None
    of_layers, of_heads = lead
    layers, heads = range(len(spec.layers))[of_layers], range(len(spec.heads))[of_heads]
    shape = tuple(len(own) for own in (layers, heads) if isinstance(own, range))
    several = [layers] if isinstance(layers, int) else [*layers]
    chosen = [heads] if isinstance(heads, int) else [*heads]
    keys = index.length(row, spec.key.key_stack)
    made = np.zeros((len(several), len(chosen), len(queries), keys), ON_DISK[stored])
    if not all(bias.covers(index.length(row, spec.key.stack), keys) for bias in recipe.biases):
        raise CorruptRun(f"{source.name}: a bias of the recipe of {spec.key} ends before an example does")
    if not made.size:
        return made.reshape(*shape, len(queries), keys)
    shared = [key_spec.heads.index(spec.heads[head] // recipe.group) for head in chosen]
    of_keys = slice(min(shared), max(shared) + 1)
    of_queries = slice(min(chosen), max(chosen) + 1)
    for layer, own in zip(several, made, strict=True):
        query = _rows(source, query_spec, row, (layer, of_queries), queries)
        key = _rows(source, key_spec, row, (layer, of_keys), range(keys))
        for target, head, kv_head in zip(own, chosen, shared, strict=True):
            part = query[head - of_queries.start], key[kv_head - of_keys.start]
            rebuilt_of(recipe, layer, head, *part, first=queries.start, stored=stored, out=target)
    return made.reshape(*shape, len(queries), keys)


def _rows(source: Source, spec: ArraySpec, row: int, lead: Lead, tokens: range) -> Float32[np.ndarray, "head token d"]:
    view = source.part(spec, range(row, row + 1), lead)
    length = source.index.length(row, spec.key.token_stack)
    stored = source.head.layout.stored(spec)
    with reading(f"{source.name}/{source.head.layout.array_path(spec.key)}"):
        values = (view if len(tokens) == length else _some(view, tokens)).read().result()
    return np.ascontiguousarray(decode(values, stored), np.float32)


def _some(view: Array, tokens: range) -> Array:
    """Returns a view of some tokens; those of tensorstore keep the places that they have in the whole array."""
    from traceformer.store.lazy import LazyArray

    first = 0 if isinstance(view, LazyArray) else view.domain.origin[1]
    return view[:, first + tokens.start : first + tokens.stop]


def rebuilt_of(
    recipe: Recipe,
    layer: int,
    head: int,
    query: Float32[np.ndarray, "query d"],
    key: Float32[np.ndarray, "key d"],
    *,
    first: int = 0,
    stored: Stored = "float32",
    out: Shaped[np.ndarray, "query key"] | None = None,
) -> Shaped[np.ndarray, "query key"]:
    """Returns a head's patterns of its queries and keys, as they are stored.

    Args:
        recipe: How they follow.
        layer: Which of the recipe's layers.
        head: The head's number among those that are recorded.
        query: Its queries.
        key: The keys that it reads, from the text's beginning on.
        first: The first query's place in the text.
        stored: What they are rounded to.
        out: What is filled; a new array for None.
    """
    made = np.empty((len(query), len(key)), ON_DISK[stored]) if out is None else out
    asked = _head(recipe, layer, head, range(first, first + len(query)), len(key))
    there = core()
    if there is None or not compiled.rebuilt(there, asked, query, key, made, stored):
        _rebuilt(asked, query, key, made, stored)
    return made


def _head(recipe: Recipe, layer: int, head: int, queries: range, keys: int) -> Head:
    own = recipe.layers[layer]
    seen, bias = own.seen_by(head), None if own.bias is None else recipe.biases[own.bias]
    at, step = (0, 0) if bias is None or bias.by == "key" else (-queries.start - bias.first, -1)
    return Head(
        first=queries.start,
        before=_EVERYWHERE if seen.before is None or not seen.is_band else seen.before,
        behind=_EVERYWHERE if seen.behind is None else seen.behind,
        scale=own.scaling,
        softcap=own.softcap or 0.0,
        sink=None if own.sinks is None else own.sinks[head],
        bias=None if bias is None else bias.table[head],
        bias_at=at,
        bias_step=step,
        allowed=None if seen.is_band else seen.allowed(queries, keys),
    )


def _rebuilt(
    head: Head,
    query: Float32[np.ndarray, "query d"],
    key: Float32[np.ndarray, "key d"],
    out: Shaped[np.ndarray, "query key"],
    stored: Stored,
) -> None:
    """The definition in numpy, some rows at a time."""
    keys = len(key)
    wide, across = query.astype(np.float64), np.ascontiguousarray(key.T, np.float64)
    at_once = max(1, _AT_ONCE // max(1, keys))
    for above in range(0, len(query), at_once):
        rows = range(above, min(above + at_once, len(query)))
        places = range(head.first + rows.start, head.first + rows.stop)
        seen = min(keys, places.stop + head.behind)
        scores = _scores(wide[rows.start : rows.stop], across[:, :seen], head.scale)
        if head.softcap:
            scores = head.softcap * _tanh(scores / head.softcap)
        if head.bias is not None:
            first = head.bias_at + head.bias_step * np.arange(rows.start, rows.stop)
            columns = np.clip(first[:, None] + np.arange(seen), 0, len(head.bias) - 1)
            scores += head.bias[columns].astype(np.float64)
        distance = np.asarray(places)[:, None] - np.arange(seen)
        allowed = (distance <= head.before) & (-distance <= head.behind)
        if head.allowed is not None:
            allowed &= head.allowed[rows.start : rows.stop, :seen]
        target = out[rows.start : rows.stop]
        target[:, :seen] = _rounded(_softmax(scores, allowed, head.sink), stored)
        target[:, seen:] = 0


def _scores(
    query: Float64[np.ndarray, "query d"], across: Float64[np.ndarray, "d key"], scale: float
) -> Float64[np.ndarray, "query key"]:
    sums = np.zeros((len(query), across.shape[1]))
    product = np.empty_like(sums)
    for column, keys in zip(query.T, across, strict=True):
        np.multiply(column[:, None], keys, out=product)
        sums += product
    sums *= scale
    return sums


def _softmax(
    scores: Float64[np.ndarray, "query key"], allowed: Shaped[np.ndarray, "query key"], sink: float | None
) -> Float64[np.ndarray, "query key"]:
    scores[~allowed] = -np.inf
    peak = scores.max(axis=1, keepdims=True, initial=-np.inf if sink is None else sink)
    peak[np.isneginf(peak)] = 0
    weights = _exp(scores - peak)
    weights[~allowed] = 0
    total = _sums(weights)
    if sink is not None:
        total = total + _exp(sink - peak)
    nothing = total == 0
    total[nothing] = 1
    weights *= 1 / total
    return weights


def _sums(weights: Float64[np.ndarray, "query key"]) -> Float64[np.ndarray, "query 1"]:
    lanes = np.zeros((len(weights), _LANES))
    for start in range(0, weights.shape[1], _LANES):
        part = weights[:, start : start + _LANES]
        lanes[:, : part.shape[1]] += part
    half = _LANES // 2
    while half:
        lanes[:, :half] += lanes[:, half : 2 * half]
        half //= 2
    return lanes[:, :1]


def _exp(x: Float64[np.ndarray, "*axes"]) -> Float64[np.ndarray, "*axes"]:
    x = np.maximum(x, _LOWEST)
    shifted = x * _LOG2_E
    shifted += _ROUNDS
    n = shifted - _ROUNDS
    r = x - n * _LN2_HIGH
    r -= n * _LN2_LOW
    p = np.full_like(r, _FACTORS[0])
    for factor in _FACTORS[1:]:
        p *= r
        p += factor
    p *= ((shifted.view(np.int64) + 1023) << 52).view(np.float64)
    return p


def _tanh(x: Float64[np.ndarray, "*axes"]) -> Float64[np.ndarray, "*axes"]:
    small = _exp(-2 * np.abs(x))
    return np.copysign((1 - small) / (1 + small), x)


def _rounded(numbers: Float64[np.ndarray, "*axes"], stored: Stored) -> Shaped[np.ndarray, "*axes"]:
    """Returns doubles as they are stored, rounded once: by way of floats whose last bit says if they are exact."""
    if stored == "float32":
        return numbers.astype(np.float32)
    bits = numbers.view(np.int64)
    kept = bits & ~_LOST
    kept |= np.where(kept != bits, _LAST, 0)
    odd = kept.view(np.float64).astype(np.float32)
    if stored == "float16":
        return odd.astype(np.float16)
    whole = odd.view(np.uint32)
    return ((whole + 0x7FFF + (whole >> 16 & 1)) >> 16).astype(np.uint16)
