"""Which keys a query can see, by the kind of attention and the window of its layer."""

from dataclasses import dataclass

import numpy as np

from traceformer.shapes import Int
from traceformer.sites import ArrayKey
from traceformer.store.meta import AttentionFacts

__all__ = ["Visibility", "visibility_of"]


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which keys a query can see: those before it and itself if `causal`, no further away than `window` allows.

    A causal window of w holds the query and the w - 1 keys before it; one of an encoder holds w keys to either side.
    The last query sees the last key: with fewer queries than keys (a cached step) the first queries are missing.
    """

    causal: bool
    window: int | None = None

    def count(self, queries: int, keys: int) -> Int[np.ndarray, "query"]:
        """Returns how many keys each query sees."""
        position = np.arange(keys - queries, keys) if self.causal else np.arange(queries)
        first = np.zeros(queries, np.int64)
        last = position if self.causal else np.full(queries, keys - 1)
        if self.window is not None:
            reach = self.window - 1 if self.causal else self.window
            first = np.maximum(first, position - reach)
            last = np.minimum(last, position + (0 if self.causal else reach))
        return last - first + 1


def visibility_of(attention: AttentionFacts, key: ArrayKey, layer: int) -> Visibility:
    """Returns which keys a query of this attention and layer can see, by what a run says of its model's attention."""
    if key.attention == "cross":
        return Visibility(causal=False)
    causal = key.stack == "dec"
    if attention.layer_types is not None and attention.layer_types[layer] != "sliding_attention":
        return Visibility(causal)
    if causal:
        return Visibility(causal, attention.sliding_window)
    width = attention.local_attention
    return Visibility(causal, None if width is None else width // 2)
