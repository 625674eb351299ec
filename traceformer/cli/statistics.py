"""Statistics as text."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.run_statistics import (
    AttentionStatistics,
    ExampleLogits,
    LayerStatistics,
    LogitSummary,
    RunStatistics,
)
from traceformer.analysis.statistics import HeadStatistics
from traceformer.cli.terminal import table
from traceformer.texts.shown import printable

__all__ = ["as_text", "positions_as_text"]

_OF_HEADS = ("mean", "max", "entropy", "sparsity")
_OF_VALUES = ("mean", "std", "min", "max", "sparsity")


def as_text(found: RunStatistics, layer: int | None = None) -> str:
    """Returns tables: a line per layer, or, for one layer, a line per head."""
    rules = CONVENTIONS[found.convention]
    parts = [_attention_text(each, layer, rules.sparsity) for each in found.attention]
    if found.activations:
        parts.append(_activations_text(found.activations, layer, rules.value_sparsity))
    parts += [_logits_text(each) for each in found.logits]
    return "\n\n".join(parts)


def _attention_text(found: AttentionStatistics, layer: int | None, sparsity: str) -> str:
    columns = (*_OF_HEADS[:3], sparsity)
    queries = max((each.queries for each in found.by_layer), default=0)
    if layer is not None:
        rows = [
            (f"L{layer}H{head}", *(_number(getattr(own, name)[i]) for name in _OF_HEADS))
            for number, own in zip(found.layers, found.by_layer, strict=True)
            if number == layer
            for i, head in enumerate(found.heads)
        ]
        return f"{found.key}  {queries} queries\n" + table(("head", *columns), rows, numeric=range(1, 5))
    rows = [
        (
            f"L{number}",
            *(_number(getattr(own, name).mean() if name != "max" else own.max.max()) for name in _OF_HEADS),
            _extreme(own, found.heads, np.argmin),
            _extreme(own, found.heads, np.argmax),
        )
        for number, own in zip(found.layers, found.by_layer, strict=True)
    ]
    headers = ("layer", *columns, "least entropy", "most entropy")
    title = f"{found.key}  {queries} queries; means over {len(found.heads)} heads, the largest of all for max"
    return f"{title}\n" + table(headers, rows, numeric=range(1, 5))


def _extreme(own: HeadStatistics, heads: Sequence[int], which: Callable[..., Any]) -> str:
    i = int(which(own.entropy))
    return f"H{heads[i]} {_number(own.entropy[i])}"


def _activations_text(found: Sequence[LayerStatistics], layer: int | None, sparsity: str) -> str:
    rows = [
        (str(each.key), "" if number is None else f"L{number}", *(_number(getattr(own, name)) for name in _OF_VALUES))
        for each in found
        for number, own in zip(each.layers or (None,), each.by_layer, strict=True)
        if layer is None or number in (None, layer)
    ]
    return table(("activations", "layer", *_OF_VALUES[:4], sparsity), rows, numeric=range(2, 7))


def _logits_text(found: LogitSummary) -> str:
    values = "  ".join(f"{name} {_number(getattr(found.values, name))}" for name in _OF_VALUES[:4])
    lines = [f"{found.key}  {found.positions} positions: entropy {_number(found.entropy)}; logits {values}"]
    if found.targets:
        lines.append(
            f"the token that came ({found.targets} positions): "
            f"probability {_number(found.target_probability)} on average, "
            f"the most likely one in {found.target_first:.1%}, perplexity {_number(found.perplexity)}"
        )
    return "\n".join(lines)


def positions_as_text(found: ExampleLogits, tokens: Sequence[str], name: Callable[[int], str]) -> str:
    """Returns a line per position: how sure the model was, what came, and what it took for most likely."""
    own = found.statistics
    rows = [
        (
            str(position),
            printable(token),
            _number(own.entropy[position]),
            printable(name(int(found.targets[position]))) if found.targets[position] >= 0 else "",
            _number(own.target_probability[position]),
            str(own.target_rank[position] or ""),
            "  ".join(
                f"{printable(name(int(token_id)))} {_number(probability)}"
                for token_id, probability in zip(own.top_ids[position], own.top_probabilities[position], strict=True)
                if token_id >= 0
            ),
        )
        for position, token in enumerate(tokens)
    ]
    headers = ("position", "token", "entropy", "came", "probability", "rank", "most likely")
    return f"{found.key}  example {printable(found.example_id)}\n" + table(headers, rows, numeric=(0, 2, 4, 5))


def _number(value: float) -> str:
    """Three digits: 0.0417, 12.3, 4.1e-05; nothing where there is none."""
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"
