"""Which keys a query can see, by the kind of attention and the window of its layer."""

from dataclasses import dataclass

import numpy as np

from traceformer.shapes import Int, Num
from traceformer.sites import ArrayKey
from traceformer.store.meta import AttentionFacts

__all__ = ["Visibility", "looks_ahead", "visibility_of"]


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which keys a query can see: those before it and itself if `causal`, no further away than `window` allows.

    A causal window of w holds the query and the w - 1 keys before it; another one holds w keys to either side.
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


def looks_ahead(pattern: Num[np.ndarray, "head query key"], first: int = 0) -> bool:
    """Returns whether some query has weight on a later key; the first row is that of query `first`."""
    return any(bool((np.triu(head, k=first + 1) > 0).any()) for head in pattern)


def visibility_of(attention: AttentionFacts, key: ArrayKey, layer: int, *, ahead: bool) -> Visibility:
    """Returns which keys a query of this attention and layer can see.

    Args:
        attention: What a run says of its model's attention: the windows.
        key: The patterns.
        layer: Which layer's.
        ahead: Whether a query of it looks at later keys, as `looks_ahead` measures it: a decoder's may, too.
    """
    if key.attention == "cross":
        return Visibility(causal=False)
    if attention.layer_types is not None and attention.layer_types[layer] != "sliding_attention":
        return Visibility(not ahead)
    window, width = attention.sliding_window, attention.local_attention
    width = width[layer] if isinstance(width, tuple) else width
    if not ahead:
        return Visibility(causal=True, window=window)
    if window is not None:  # a decoder's window counts the query itself, to either side
        return Visibility(causal=False, window=window - 1)
    return Visibility(causal=False, window=None if width is None else width // 2)
