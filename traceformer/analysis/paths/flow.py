"""From recorded heads to the weights of a graph, and what all paths together carry.

1. A layer's heads become one (query, key) matrix: their mean, the largest of them for each edge, or one head. Weighted
   by what is moved, it is the norm of the sum over heads of pattern * (v W_O), each row as shares of its sum
   (Kobayashi et al. 2020, section 3).
2. Self-attention and sinks may be taken out; what is left of each row is brought back to the row's sum.
3. Across layers the residual stream keeps a share of each position: (1 - share) * matrix + share * identity.
4. The product of these matrices is attention rollout; the largest flow through them as capacities is attention flow
   (Abnar and Zuidema 2020). Both attribute a target to every input position at once.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import NumericError
from traceformer.shapes import Bool, Float, Float32, Int

__all__ = [
    "RESIDUAL_SHARE",
    "Combined",
    "Heads",
    "check_rows",
    "combine_heads",
    "exclude",
    "max_flow",
    "moved_norms",
    "rollout",
    "value_products",
    "with_residual",
]

RESIDUAL_SHARE: Mapping[str, float] = {"attention": 0.0, "rollout": 0.5, "value-norm": 0.5}
"""What the residual stream keeps of each position across layers, by what an edge's weight is."""

Heads: TypeAlias = Literal["mean", "max"] | int
"""How heads become one matrix; a number is the head's place among those given."""

_ROUNDING = 0.02  # rows of float16 patterns sum to 1 within 0.001, of the sqrt8 codec within 0.02
_KEYS_AT_ONCE = 64
_FLOW_UNIT = 1 << 30  # capacities are whole numbers of this fraction of one


class Combined(NamedTuple):
    """Query rows of a layer, heads combined; `chosen` is each weight's head where it was chosen edge by edge."""

    weights: Float32[np.ndarray, "query key"]
    chosen: Int[np.ndarray, "query key"] | None = None


def check_rows(patterns: Float[np.ndarray, "head query key"], *, has_sinks: bool) -> tuple[float, float]:
    """Returns the smallest and the largest sum of a row.

    Args:
        has_sinks: Whether the model's softmax gives a share to no token, so that rows sum to less than one.

    Raises:
        NumericError: a cell is not a number or negative, or a row's sum is not one (not at most one, with sinks).
    """
    if not patterns.size:
        return 1.0, 1.0
    if not patterns.min() >= 0:  # false for nan, too
        raise NumericError("a pattern has cells that are negative or not numbers", why="it is no softmax")
    sums = patterns.sum(axis=-1, dtype=np.float32)
    low, high = float(sums.min()), float(sums.max())
    if high > 1 + _ROUNDING or (low < 1 - _ROUNDING and not has_sinks):
        head, query = np.argwhere((sums > 1 + _ROUNDING) | (sums < 1 - _ROUNDING))[0]
        raise NumericError(
            f"row {query} of a pattern sums to {float(sums[head, query]):.4g}",
            why="a softmax sums to 1",
            hint="trace attention patterns, not scores; padding and cut-off keys must not be part of them",
        )
    return low, high


def combine_heads(
    patterns: Float[np.ndarray, "head query key"],
    heads: Heads,
    products: Float[np.ndarray, "token head head"] | None = None,
) -> Combined:
    """Returns the mean over heads, the largest of them for each edge, or one head; of norms if `products` are given."""
    if products is not None:
        return moved_norms(patterns, products[: patterns.shape[2]], heads)
    if heads == "mean":
        return Combined(patterns.mean(axis=0, dtype=np.float32))
    if heads == "max":
        return Combined(patterns.max(axis=0).astype(np.float32), patterns.argmax(axis=0).astype(np.int16))
    return Combined(patterns[heads].astype(np.float32))


def value_products(
    values: Float[np.ndarray, "head key d_head"], w_o: Float[np.ndarray, "head d_head d_model"]
) -> Float[np.ndarray, "key head head"]:
    """Returns the dot products, head with head, of what each token's values are in the residual stream (v W_O).

    They are all that norms of sums over heads depend on. Where heads share values, each has its own copy here.
    """
    n_heads, n_keys, _ = values.shape
    products = np.empty((n_keys, n_heads, n_heads))
    for start in range(0, n_keys, _KEYS_AT_ONCE):
        moved = values[:, start : start + _KEYS_AT_ONCE].astype(np.float64) @ w_o.astype(np.float64)
        by_key = moved.transpose(1, 0, 2)
        products[start : start + _KEYS_AT_ONCE] = by_key @ by_key.transpose(0, 2, 1)
    return products


def moved_norms(
    patterns: Float[np.ndarray, "head query key"], products: Float[np.ndarray, "key head head"], heads: Heads
) -> Combined:
    """Returns how much each key moves into each query's residual stream, as shares of the query's row.

    The norm of sum over heads of pattern * (v W_O); for `max` the head that moves most, for a number that head alone.
    """
    chosen = None
    if heads == "mean":
        by_key = patterns.transpose(2, 1, 0).astype(np.float64)
        squares = np.einsum("kqh,kqh->qk", by_key @ products, by_key)
        norms = np.sqrt(np.maximum(squares, 0))
    else:
        each = patterns * np.sqrt(np.einsum("khh->hk", products))[:, None, :]
        norms = each.max(axis=0) if heads == "max" else each[heads]
        chosen = each.argmax(axis=0).astype(np.int16) if heads == "max" else None
    return Combined(_scaled(norms, 1.0), chosen)


def exclude(
    weights: Float32[np.ndarray, "query key"], *, itself: bool, keys: Bool[np.ndarray, "key"] | None = None
) -> Float32[np.ndarray, "query key"]:
    """Returns the rows without each position's attention to itself, and without these keys, brought back to their sum.

    The rows of a maximum over heads, which sum to more than one, are brought back to one. A row of which nothing is
    left is zero.
    """
    if not itself and keys is None:
        return weights
    sums = np.minimum(weights.sum(axis=1, keepdims=True, dtype=np.float64), 1.0)
    left = weights.copy()
    if itself:
        np.fill_diagonal(left, 0)
    if keys is not None:
        left[:, keys] = 0
    return _scaled(left, sums)


def _scaled(
    rows: Float[np.ndarray, "query key"], sums: Float[np.ndarray, "query 1"] | float
) -> Float32[np.ndarray, "query key"]:
    """The rows in proportion, so that they sum to `sums`; a row of zeros stays one."""
    total = rows.sum(axis=1, keepdims=True, dtype=np.float64)
    return (rows * (sums / np.where(total > 0, total, np.inf))).astype(np.float32)


def with_residual(weights: Float32[np.ndarray, "query key"], share: float) -> Float32[np.ndarray, "query key"]:
    """Returns the edges of a block whose residual stream keeps `share` of each position: it stays where it is."""
    return ((1 - share) * weights + share * np.eye(len(weights))).astype(np.float32)


def rollout(weights: Float32[np.ndarray, "layer query key"], target: int) -> Float[np.ndarray, "key"]:
    """Returns what share of a target each input position has: the target's row of the product of all layers.

    The rows of each layer are brought to one first (Abnar and Zuidema 2020, section 3).
    """
    shares = np.zeros(weights.shape[2])
    shares[target] = 1.0
    for layer in weights[::-1]:
        shares = shares @ _scaled(layer, 1.0)
    return shares


def max_flow(weights: Float32[np.ndarray, "layer query key"], target: int) -> Float[np.ndarray, "key"]:
    """Returns the largest flow from a target to each input position alone, with weights as capacities.

    Capacities are rounded to 2^-30 of the largest row's sum, so that a value is off by at most as much per edge of
    its cut. Takes one flow computation per position: seconds for a sentence, minutes for a page.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    n_layers, n, _ = weights.shape
    unit = _FLOW_UNIT / max(1.0, float(weights.sum(axis=2).max()))  # so that no sum of a row exceeds an int32
    layer, query, key = np.nonzero(np.rint(weights * unit))
    capacity = np.rint(weights[layer, query, key].astype(np.float64) * unit).astype(np.int32)
    size = (n_layers + 1) * n
    graph = csr_array((capacity, ((layer + 1) * n + query, layer * n + key)), shape=(size, size))
    source = n_layers * n + target
    return np.array([maximum_flow(graph, source, sink).flow_value for sink in range(n)]) / unit
