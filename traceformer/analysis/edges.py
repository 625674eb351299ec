"""Edges of a model's residual stream, from a part that adds to it to one that reads it, and their effects as a value.

A sender adds to the stream: the embedding, a head, an MLP. A receiver reads it: the queries, keys or values of a head,
an MLP, or the logits. An edge's effect is what becomes of the metric if the receiver, and nothing else, reads the
stream with the sender's contribution to another text in the place of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from traceformer.analysis.agreement import Agreement, agreement
from traceformer.analysis.effects import mean_over_pairs
from traceformer.errors import SelectionError
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Bool, Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EdgeEffects", "Edged", "Part", "is_edge", "parts_of"]

Kind = Literal["embed", "head", "q", "k", "v", "mlp", "logits"]


class Part(NamedTuple):
    """A part of a model that adds to the residual stream, or reads it; `str` writes `L3H2`, `L3H2.q`, `L3.mlp`."""

    kind: Kind
    layer: int | None = None
    head: int | None = None
    shares: bool = False
    """Whether its head is one of keys and values that several heads of queries share."""

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        if self.head is None:
            return f"L{self.layer}.{self.kind}"
        named = f"L{self.layer}{'KV' if self.shares else 'H'}{self.head}"
        return named if self.kind == "head" else f"{named}.{self.kind}"


def parts_of(n_layers: int, n_heads: int, n_kv_heads: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Returns the senders and the receivers of a stack of blocks, in the order in which they come in a pass."""
    senders, receivers = [Part("embed")], list[Part]()
    shares = n_kv_heads != n_heads
    for layer in range(n_layers):
        senders += [Part("head", layer, head) for head in range(n_heads)]
        receivers += [Part("q", layer, head) for head in range(n_heads)]
        receivers += [Part(kind, layer, head, shares) for kind in ("k", "v") for head in range(n_kv_heads)]
        senders.append(Part("mlp", layer))
        receivers.append(Part("mlp", layer))
    return tuple(senders), (*receivers, Part("logits"))


def is_edge(sender: Part, receiver: Part, *, parallel: bool) -> bool:
    """Whether a receiver reads what a sender adds; in `parallel` blocks an MLP reads what the heads read."""
    if sender.kind == "embed" or receiver.kind == "logits":
        return True
    assert sender.layer is not None
    assert receiver.layer is not None
    if sender.layer == receiver.layer:
        return sender.kind == "head" and receiver.kind == "mlp" and not parallel
    return sender.layer < receiver.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Edged:
    """What was looked at, in which model.

    Attributes:
        model: The model's name.
        digest: That of its weights.
        metric: The name of the number that was looked at.
        position: Where the metric looks; None for all positions.
        how: `denoise` runs the corrupt text with what is sent in the clean one, `noise` the other way round.
        steps: At how many points of the way to the other text slopes were taken.
    """

    model: str
    digest: str
    metric: str
    position: int | None
    how: str = "denoise"
    steps: int = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EdgeEffects:
    """The effect of every edge: an estimate for each, and a measurement for those that were measured.

        effects.to_frame().sort_values("estimate").tail(5)
        effects.agreement                               # of estimates and measurements

    One text is run, with what the sender adds to the other one. An effect is a share of the difference: 0 leaves the
    metric where the text that is run has it (the corrupt one, of `denoise`), 1 brings it to where the other one has it.
    NaN stands for pairs of parts that are no edge, for pairs of texts of which both have the same metric, and in
    `exact` for edges that were not measured.

    Attributes:
        senders: What adds to the stream.
        receivers: What reads it.
        estimates: To first order, for each pair of texts.
        exact: Measured.
        clean: The metric of each pair's clean text.
        corrupt: The metric of each pair's corrupt text.
        pairs: The pairs' names.
        about: What was looked at.
    """

    senders: tuple[Part, ...]
    receivers: tuple[Part, ...]
    estimates: Float64[np.ndarray, "pair sender receiver"]
    exact: Float64[np.ndarray, "pair sender receiver"]
    clean: Float64[np.ndarray, "pair"]
    corrupt: Float64[np.ndarray, "pair"]
    pairs: tuple[str, ...]
    about: Edged

    @property
    def values(self) -> Float64[np.ndarray, "sender receiver"]:
        """The mean estimate over pairs."""
        return mean_over_pairs(self.estimates)

    @property
    def agreement(self) -> Agreement:
        """How far mean estimates agree with mean measurements, where there are both."""
        return agreement(self.values, mean_over_pairs(self.exact))

    @property
    def is_edge(self) -> Bool[np.ndarray, "sender receiver"]:
        return np.asarray(np.isfinite(self.estimates).any(axis=0))

    def pair(self, number: int) -> "EdgeEffects":
        """Returns the effects in one pair.

        Raises:
            SelectionError: there are fewer pairs.
        """
        if not -len(self.pairs) <= number < len(self.pairs):
            raise SelectionError(f"pair {number} requested", why=f"there are pairs 0-{len(self.pairs) - 1}")
        one = slice(number, number + 1 or None)
        return replace(
            self,
            estimates=self.estimates[one],
            exact=self.exact[one],
            clean=self.clean[one],
            corrupt=self.corrupt[one],
            pairs=self.pairs[one],
        )

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per edge: sender, receiver, the mean estimate and measurement, the spread of the estimates."""
        import pandas as pd

        edges = np.argwhere(self.is_edge)
        rows, columns = edges[:, 0], edges[:, 1]
        senders, receivers = (list(map(str, parts)) for parts in (self.senders, self.receivers))
        return pd.DataFrame(
            {
                "sender": [senders[i] for i in rows],
                "receiver": [receivers[i] for i in columns],
                "estimate": self.values[rows, columns],
                "exact": mean_over_pairs(self.exact)[rows, columns],
                "spread": _spread(self.estimates)[rows, columns],
                "pairs": _count(self.estimates)[rows, columns],
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything, edge by edge; None stands for NaN."""
        return {
            **asdict(self.about),
            "agreement": plain(asdict(self.agreement)),
            "pairs": [
                {"id": name, "clean": plain(float(clean)), "corrupt": plain(float(corrupt))}
                for name, clean, corrupt in zip(self.pairs, self.clean, self.corrupt, strict=True)
            ],
            "edges": plain(_records(self.to_frame().to_dict("list"))),
        }

    def __repr__(self) -> str:
        measured = f", {self.agreement}" if self.agreement.measured else ""
        pairs = f"{len(self.pairs)} pair{'s' * (len(self.pairs) != 1)}"
        return f"EdgeEffects({self.about.model}: {self.about.metric}; {self.is_edge.sum()} edges, {pairs}{measured})"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def _records(columns: Mapping[Any, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _count(values: Float64[np.ndarray, "pair *cell"]) -> Int64[np.ndarray, "*cell"]:
    return np.isfinite(values).sum(axis=0).astype(np.int64)


def _spread(values: Float64[np.ndarray, "pair *cell"]) -> Float64[np.ndarray, "*cell"]:
    count = _count(values)
    squares = np.nansum((values - mean_over_pairs(values)) ** 2, axis=0)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
