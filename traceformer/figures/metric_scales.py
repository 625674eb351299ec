"""How metrics of heads are written, and how far colours and bars of each reach."""

from collections.abc import Mapping

import numpy as np

from traceformer.shapes import Float64

__all__ = ["in_words", "short", "tops"]

_TOKENS, _NATS = ("distance", "effective_span"), ("entropy",)
"""The metrics in tokens and in nats; all others are shares."""


def tops(numbers: Mapping[str, Float64[np.ndarray, "..."]]) -> dict[str, float]:
    """Returns the value at which each metric's brightest colour, or longest bar, is: that of all metrics of its unit.

    Shares reach from 0 to 1, distances in tokens to the largest of all.
    """
    largest = {name: float(np.nanmax(each)) for name, each in numbers.items()}
    tokens = [name for name in numbers if name in _TOKENS]
    shared = max((largest[name] for name in tokens), default=0.0)
    own = {name: shared if name in _TOKENS else largest[name] if name in _NATS else 1.0 for name in numbers}
    return {name: max(top, largest[name]) or 1.0 for name, top in own.items()}


def short(value: float) -> str:
    """Returns two digits that count, without the zero before the point."""
    return f"{value:.2f}".removeprefix("0") if value < 9.995 else f"{value:.0f}"


def in_words(metric: str) -> str:
    """Returns what a metric is called: `sparsity_0.01` is the sparsity below 0.01."""
    name, _, threshold = metric.rpartition("_")
    return f"{name} (< {threshold})" if threshold[:1].isdigit() else metric.replace("_", " ")
