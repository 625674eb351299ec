"""Massive activations: the few entries of the residual stream that are hundreds of times as large as most.

An entry is counted whose size is over 100, or over 1,000, times the median size of all entries of the same layer and
example. Sun et al., "Massive Activations in Large Language Models" (2024), whose definition asks for about 1,000 times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.errors import NumericError
from traceformer.presentation import plain
from traceformer.shapes import Float, Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TIMES_MEDIAN", "MassiveActivations", "MassiveTally"]

TIMES_MEDIAN = (100, 1000)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MassiveActivations:
    """How many entries of the stream are massive, by layer and by token.

    Attributes:
        layers: The model's numbers of the layers.
        entries: How many entries of each layer were looked at.
        over: How many of them are over 100 and 1,000 times the median.
        largest: The largest entry of each layer, in medians of its own example.
        tokens: Text, whether it begins its example, entries, and how many are over 100 and 1,000 times the median, in
            all layers; those with any, the most first.
    """

    layers: tuple[int, ...]
    entries: Int64[np.ndarray, "layer"]
    over: Int64[np.ndarray, "layer threshold"]
    largest: Float64[np.ndarray, "layer"]
    tokens: tuple[tuple[str, bool, int, tuple[int, ...]], ...]

    @property
    def shares(self) -> Float64[np.ndarray, "layer threshold"]:
        """The share of entries that are over 100 and 1,000 times the median."""
        return self.over / np.maximum(self.entries, 1)[:, None]

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per layer: the share of entries over each threshold, and the largest entry in medians."""
        import pandas as pd

        shares = {f"over_{times}": self.shares[:, number] for number, times in enumerate(TIMES_MEDIAN)}
        return pd.DataFrame({"layer": self.layers, **shares, "largest": self.largest})

    def tokens_frame(self) -> "pd.DataFrame":
        """Returns a row per token with massive entries: its text, whether it begins a text, and the share of each."""
        import pandas as pd

        rows = [
            (text, first, *(count / entries for count in over), entries) for text, first, entries, over in self.tokens
        ]
        return pd.DataFrame(rows, columns=["token", "first", *(f"over_{times}" for times in TIMES_MEDIAN), "entries"])

    def to_json(self) -> dict[str, Any]:
        """Returns the shares by layer and by token."""
        return {
            "times_median": list(TIMES_MEDIAN),
            "layers": list(self.layers),
            "shares": plain(self.shares),
            "largest": plain(self.largest),
            "tokens": self.tokens_frame().to_dict("records"),
        }

    def __repr__(self) -> str:
        return (
            f"MassiveActivations({len(self.layers)} layers, up to {self.largest.max(initial=0):.0f} times the median)"
        )


@dataclass(slots=True)
class MassiveTally:
    """Counts massive entries, example by example and layer by layer."""

    layers: tuple[int, ...]
    _entries: dict[int, int] = field(default_factory=dict[int, int])
    _over: dict[int, Int64[np.ndarray, "threshold"]] = field(default_factory=dict[int, Any])
    _largest: dict[int, float] = field(default_factory=dict[int, float])
    _tokens: dict[tuple[str, bool], Int64[np.ndarray, "count"]] = field(default_factory=dict[tuple[str, bool], Any])

    def add(self, layer: int, rows: Float[np.ndarray, "position d_model"], tokens: Sequence[str]) -> None:
        """Takes what a layer left in the stream for one example; positions that are NaN throughout are passed over.

        Raises:
            NumericError: half of it is zero or more, or something is no number.
        """
        known = ~np.isnan(rows).all(axis=1)
        if not known.any():
            return
        sizes = np.abs(rows.astype(np.float64))
        median = float(np.median(sizes[known]))
        if not 0 < median < np.inf:
            raise NumericError(
                f"the median of the stream after layer {layer} is {median}", why="nothing is its multiple"
            )
        over = np.stack([np.count_nonzero(sizes > times * median, axis=1) for times in TIMES_MEDIAN], axis=1)
        self._entries[layer] = self._entries.get(layer, 0) + int(known.sum()) * rows.shape[1]
        self._over[layer] = self._over.get(layer, 0) + over.sum(axis=0)
        self._largest[layer] = max(self._largest.get(layer, 0.0), float(sizes[known].max()) / median)
        for position in np.flatnonzero(known).tolist():
            place = (tokens[position], position == 0)
            self._tokens[place] = self._tokens.get(place, 0) + np.array([rows.shape[1], *over[position]])

    def result(self) -> MassiveActivations:
        """Returns the counts of all that was added."""
        found: list[tuple[str, bool, int, tuple[int, ...]]] = []
        for (text, first), (entries, *over) in ((place, counts.tolist()) for place, counts in self._tokens.items()):
            if over[0]:
                found.append((text, first, entries, tuple(over)))
        found.sort(key=lambda row: row[3][::-1], reverse=True)
        none = np.zeros(len(TIMES_MEDIAN), np.int64)
        return MassiveActivations(
            self.layers,
            np.array([self._entries.get(layer, 0) for layer in self.layers], np.int64),
            np.array([self._over.get(layer, none) for layer in self.layers], np.int64).reshape(-1, len(TIMES_MEDIAN)),
            np.array([self._largest.get(layer, np.nan) for layer in self.layers], np.float64),
            tuple(found),
        )
