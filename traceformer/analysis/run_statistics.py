"""The statistics of a run as values: of heads, of layers, of logits, and all of them as rows and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, Convention, ConventionName
from traceformer.analysis.statistics import HeadStatistics, LogitStatistics, ValueStatistics
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Int
from traceformer.sites import ArrayKey

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AttentionStatistics", "ExampleLogits", "LayerStatistics", "LogitSummary", "RunStatistics"]

_OF_HEADS = ("mean", "max", "entropy")
_OF_VALUES = ("count", "mean", "std", "min", "max")
_OF_LOGITS = ("positions", "entropy", "targets", "target_probability", "target_first", "perplexity")


@dataclass(frozen=True, slots=True)
class AttentionStatistics:
    """One array of patterns: each layer's heads, in the order of `layers` and `heads`."""

    key: ArrayKey
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    by_layer: tuple[HeadStatistics, ...]

    @property
    def entropy(self) -> Float[np.ndarray, "layer head"]:
        return np.stack([each.entropy for each in self.by_layer])


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One array of activations: each layer's numbers, or a single entry where the site has no layers."""

    key: ArrayKey
    layers: tuple[int, ...]
    by_layer: tuple[ValueStatistics, ...]


@dataclass(frozen=True, slots=True)
class ExampleLogits:
    """What the model expected at each position of an example; `targets` is what came there, -1 where nothing did."""

    key: ArrayKey
    example_id: str
    targets: Int[np.ndarray, "position"]
    statistics: LogitStatistics

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row per position."""
        own = self.statistics
        for position, target in enumerate(self.targets.tolist()):
            yield {
                "array": str(self.key),
                "example_id": self.example_id,
                "position": position,
                "entropy": float(own.entropy[position]),
                "target_id": target if target >= 0 else None,
                "target_probability": float(own.target_probability[position]),
                "target_rank": int(own.target_rank[position]) or None,
                "top_ids": own.top_ids[position].tolist(),
                "top_probabilities": own.top_probabilities[position].tolist(),
            }

    def to_json(self) -> dict[str, Any]:
        """Returns what is said about each position; lists run over positions."""
        own = self.statistics
        names = ("entropy", "target_probability", "top_ids", "top_probabilities")
        return plain(
            {
                "array": str(self.key),
                "example_id": self.example_id,
                "targets": [token if token >= 0 else None for token in self.targets.tolist()],
                **{name: getattr(own, name) for name in names},
                "target_rank": [rank or None for rank in own.target_rank.tolist()],
            }
        )


@dataclass(frozen=True, slots=True)
class LogitSummary:
    """The logits of all examples: means over positions, and over those after which a token came.

    Attributes:
        values: Distribution of the logits themselves.
        entropy: Mean over `positions`.
        targets: How many positions speak about a token that came; the rest of the fields is about these.
        target_probability: Mean probability of the token that came.
        target_first: Share of positions where it was the most likely one.
        perplexity: exp of the mean negative log probability of the token that came.
    """

    key: ArrayKey
    positions: int
    values: ValueStatistics
    entropy: float
    targets: int
    target_probability: float
    target_first: float
    perplexity: float


@dataclass(frozen=True, slots=True, repr=False)
class RunStatistics:
    """All statistics of the examples that were looked at.

    Attributes:
        source: The run.
        convention: What entropy, sparsity and std mean; columns of sparsity have its thresholds in their names.
        example_ids: The examples.
        left_out: Arrays that the convention says nothing about.
    """

    source: str
    convention: ConventionName
    example_ids: tuple[str, ...]
    attention: tuple[AttentionStatistics, ...]
    activations: tuple[LayerStatistics, ...]
    logits: tuple[LogitSummary, ...]
    left_out: tuple[str, ...] = ()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row per head, per layer of an array and per array of logits, with what is known of it."""
        rules = CONVENTIONS[self.convention]
        for each in self.attention:
            for layer, own in zip(each.layers, each.by_layer, strict=True):
                for i, head in enumerate(each.heads):
                    numbers = {name: float(getattr(own, name)[i]) for name in _OF_HEADS}
                    numbers[rules.sparsity] = float(own.sparsity[i])
                    yield {"array": str(each.key), "layer": layer, "head": head, "count": own.queries, **numbers}
        for each in self.activations:
            for layer, own in zip(each.layers or (None,), each.by_layer, strict=True):
                yield {"array": str(each.key), "layer": layer, **_values(own, rules)}
        for each in self.logits:
            yield {"array": str(each.key), "entropy": each.entropy, **_values(each.values, rules)}

    def to_frame(self) -> "pd.DataFrame":
        """Returns these rows as a table; cells that a row has no use for are empty."""
        import pandas as pd

        table = pd.DataFrame(list(self.rows()))
        return table.astype({name: "Int64" for name in ("layer", "head") if name in table})

    def to_json(self) -> dict[str, Any]:
        """Returns lists over heads for each layer of patterns, numbers for all else, with None for NaN."""
        rules = CONVENTIONS[self.convention]
        attention = [
            {
                "array": str(each.key),
                "heads": each.heads,
                "layers": [
                    {
                        "layer": number,
                        "queries": own.queries,
                        **{name: getattr(own, name) for name in _OF_HEADS},
                        rules.sparsity: own.sparsity,
                    }
                    for number, own in zip(each.layers, each.by_layer, strict=True)
                ],
            }
            for each in self.attention
        ]
        activations = [
            {
                "array": str(each.key),
                "layers": [
                    {"layer": number, **_values(own, rules)}
                    for number, own in zip(each.layers or (None,), each.by_layer, strict=True)
                ],
            }
            for each in self.activations
        ]
        logits = [
            {
                "array": str(each.key),
                **{name: getattr(each, name) for name in _OF_LOGITS},
                "values": _values(each.values, rules),
            }
            for each in self.logits
        ]
        return plain(
            {
                "convention": self.convention,
                "examples": len(self.example_ids),
                "attention": attention,
                "activations": activations,
                "logits": logits,
                "left_out": self.left_out,
            }
        )

    def __repr__(self) -> str:
        arrays = [str(each.key) for each in (*self.attention, *self.activations, *self.logits)]
        examples = f"{len(self.example_ids)} example{'' if len(self.example_ids) == 1 else 's'}"
        return f"RunStatistics({self.source}: {examples}, {self.convention} convention, {len(arrays)} arrays)"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def _values(own: ValueStatistics, rules: Convention) -> dict[str, Any]:
    return {name: getattr(own, name) for name in _OF_VALUES} | {rules.value_sparsity: own.sparsity}
