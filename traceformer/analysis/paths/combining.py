"""The heads of the traced layers, combined as they arrive: the same for a live model and for a recorded run."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from traceformer.analysis.paths.flow import Heads, check_rows, combine_heads
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions
from traceformer.analysis.visibility import looks_ahead
from traceformer.shapes import Float, Int
from traceformer.sites import Attention

__all__ = ["HeadCombiner"]


class _Matrices(NamedTuple):
    """One attention, layer by layer, once for each way of combining its heads; the head of each weight, if chosen."""

    weights: Float[np.ndarray, "way layer query key"]
    chosen: Int[np.ndarray, "layer query key"] | None


class HeadCombiner:
    """Takes patterns, whole or in blocks of queries, and keeps one matrix per layer (one per head with `none`).

    Args:
        options: How heads are combined.
        heads: The numbers of the heads that come.
        layers: How many layers come.
        queries: How many tokens the traced stack has.
        keys: How many tokens each attention looks at.
        passed: The layers without attention, of which nothing comes: a token stays where it is there, with weight 1.
        has_sinks: Whether the model's softmax gives a share to no token.
    """

    def __init__(
        self,
        options: PathOptions,
        heads: tuple[int, ...],
        *,
        layers: int,
        queries: int,
        keys: Mapping[Attention, int],
        has_sinks: bool,
        passed: tuple[int, ...] = (),
    ) -> None:
        how = options.agg_heads
        self._by_head = how == "none"
        self._ways: tuple[Heads, ...] = (
            tuple(range(len(heads)))
            if how == "none"
            else ("max",)
            if how == "max"
            else ("mean",)
            if how == "mean"
            else (0,)
        )
        self._heads = heads
        self._has_sinks = has_sinks
        self._passed = passed
        self._sums: list[tuple[float, float]] = []
        self._matrices: dict[Attention, _Matrices] = {}
        for attention, n_keys in keys.items():
            shape = (layers, queries, n_keys)
            chosen = np.zeros(shape, np.int16) if how == "max" else None
            weights = np.zeros((len(self._ways), *shape), np.float32)
            for layer in passed:
                weights[:, layer] = np.eye(queries, n_keys, dtype=np.float32)
                if chosen is not None:
                    chosen[layer] = -1
            self._matrices[attention] = _Matrices(weights, chosen)

    def add(
        self,
        attention: Attention,
        layer: int,
        queries: slice,
        keys: slice,
        patterns: Float[np.ndarray, "head query key"],
        products: Float[np.ndarray, "token head head"] | None = None,
    ) -> None:
        """Takes the patterns of some queries in the layer of this index.

        Raises:
            NumericError: they are no softmax.
        """
        self._sums.append(check_rows(patterns, has_sinks=self._has_sinks))
        matrices = self._matrices[attention]
        for way, heads in enumerate(self._ways):
            combined = combine_heads(patterns, heads, products)
            matrices.weights[way, layer, queries, keys] = combined.weights
            if matrices.chosen is not None and combined.chosen is not None:
                matrices.chosen[layer, queries, keys] = np.array(self._heads, np.int16)[combined.chosen]

    def edge_weights(self, layer: int | Literal["all"]) -> list[EdgeWeights]:
        """Returns what came: one set of weights, or one per head if each is traced by itself.

        Whether a token looks at later ones is seen in the weights: a decoder's may, too.
        """
        own, cross = self._matrices["self"], self._matrices.get("cross")
        ahead = any(looks_ahead(of_way) for of_way in own.weights)
        return [
            EdgeWeights(
                own.weights[way],
                layer,
                heads=(self._heads[way],) if self._by_head else self._heads,
                looks_ahead=ahead,
                row_sums=(min(low for low, _ in self._sums), max(high for _, high in self._sums)),
                chosen=own.chosen,
                source=None if cross is None else cross.weights[way, 0],
                source_chosen=None if cross is None or cross.chosen is None else cross.chosen[0],
                passed=self._passed,
            )
            for way in range(len(self._ways))
        ]
