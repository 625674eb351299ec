"""Statistics as text, as JSON, and as rows of a Parquet file."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from traceformer.analysis.statistics import HeadStatistics, ValueStatistics
from traceformer.cli.terminal import table
from traceformer.questions.statistics import (
    AttentionStatistics,
    ExampleLogits,
    LayerStatistics,
    LogitSummary,
    RunStatistics,
)
from traceformer.texts.shown import printable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["StatisticsFile", "as_json", "as_text", "plain", "positions_as_json", "positions_as_text"]

_OF_HEADS = ("mean", "max", "entropy", "sparsity")
_OF_VALUES = ("mean", "std", "min", "max", "sparsity")
_OF_LOGITS = ("positions", "entropy", "came", "came_probability", "came_first", "perplexity")


def as_text(found: RunStatistics, layer: int | None = None) -> str:
    """Returns tables: a line per layer, or, for one layer, a line per head."""
    parts = [_attention_text(each, layer) for each in found.attention]
    parts += [_activations_text(found.activations, layer)] if found.activations else []
    parts += [_logits_text(each) for each in found.logits]
    return "\n\n".join(parts)


def _attention_text(found: AttentionStatistics, layer: int | None) -> str:
    queries = max((each.queries for each in found.by_layer), default=0)
    if layer is not None:
        rows = [
            (f"L{layer}H{head}", *(_number(getattr(own, name)[i]) for name in _OF_HEADS))
            for number, own in zip(found.layers, found.by_layer, strict=True)
            if number == layer
            for i, head in enumerate(found.heads)
        ]
        return f"{found.key}  {queries} queries\n" + table(("head", *_OF_HEADS), rows, numeric=range(1, 5))
    rows = [
        (
            f"L{number}",
            *(_number(getattr(own, name).mean() if name != "max" else own.max.max()) for name in _OF_HEADS),
            _extreme(own, found.heads, np.argmin),
            _extreme(own, found.heads, np.argmax),
        )
        for number, own in zip(found.layers, found.by_layer, strict=True)
    ]
    headers = ("layer", *_OF_HEADS, "least entropy", "most entropy")
    title = f"{found.key}  {queries} queries; means over {len(found.heads)} heads, the largest of all for max"
    return f"{title}\n" + table(headers, rows, numeric=range(1, 5))


def _extreme(own: HeadStatistics, heads: Sequence[int], which: Callable[..., Any]) -> str:
    i = int(which(own.entropy))
    return f"H{heads[i]} {_number(own.entropy[i])}"


def _activations_text(found: Sequence[LayerStatistics], layer: int | None) -> str:
    rows = [
        (str(each.key), "" if number is None else f"L{number}", *(_number(getattr(own, name)) for name in _OF_VALUES))
        for each in found
        for number, own in zip(each.layers or (None,), each.by_layer, strict=True)
        if layer is None or number in (None, layer)
    ]
    return table(("activations", "layer", *_OF_VALUES), rows, numeric=range(2, 7))


def _logits_text(found: LogitSummary) -> str:
    values = "  ".join(f"{name} {_number(getattr(found.values, name))}" for name in _OF_VALUES[:4])
    lines = [f"{found.key}  {found.positions} positions: entropy {_number(found.entropy)}; logits {values}"]
    if found.came:
        lines.append(
            f"the token that came ({found.came} positions): probability {_number(found.came_probability)} on average, "
            f"the most likely one in {found.came_first:.1%}, perplexity {_number(found.perplexity)}"
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
            printable(name(int(found.came[position]))) if found.came[position] >= 0 else "",
            _number(own.came_probability[position]),
            str(own.came_rank[position] or ""),
            "  ".join(
                f"{printable(name(int(token_id)))} {_number(probability)}"
                for token_id, probability in zip(own.top_ids[position], own.top_probabilities[position], strict=True)
                if token_id >= 0
            ),
        )
        for position, token in enumerate(tokens)
    ]
    headers = ("position", "token", "entropy", "came", "probability", "rank", "most likely")
    return f"{found.key}  example {found.example_id}\n" + table(headers, rows, numeric=(0, 2, 4, 5))


def _number(value: float) -> str:
    """Three digits: 0.0417, 12.3, 4.1e-05; nothing where there is none."""
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def as_json(found: RunStatistics) -> dict[str, Any]:
    return {
        "convention": found.convention,
        "examples": len(found.example_ids),
        "attention": [
            {
                "array": str(each.key),
                "heads": list(each.heads),
                "layers": [
                    {"layer": number, "queries": own.queries, **_fields(own, _OF_HEADS)}
                    for number, own in zip(each.layers, each.by_layer, strict=True)
                ],
            }
            for each in found.attention
        ],
        "activations": [
            {
                "array": str(each.key),
                "layers": [
                    {"layer": number, **_values(own)}
                    for number, own in zip(each.layers or (None,), each.by_layer, strict=True)
                ],
            }
            for each in found.activations
        ],
        "logits": [
            {
                "array": str(each.key),
                **_fields(each, _OF_LOGITS),
                "values": _values(each.values),
            }
            for each in found.logits
        ],
    }


def positions_as_json(found: ExampleLogits, tokens: Sequence[str]) -> dict[str, Any]:
    """Returns what is said about each position of an example; lists run over positions."""
    own = found.statistics
    return {
        "array": str(found.key),
        "example_id": found.example_id,
        "tokens": list(tokens),
        "came": [token if token >= 0 else None for token in found.came.tolist()],
        **_fields(own, ("entropy", "came_probability", "top_ids", "top_probabilities")),
        "came_rank": [rank or None for rank in own.came_rank.tolist()],
    }


def _values(own: ValueStatistics) -> dict[str, Any]:
    return _fields(own, ("count", *_OF_VALUES))


def _fields(own: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: plain(getattr(own, name)) for name in names}


def plain(value: Any) -> Any:
    """Numbers and arrays as JSON has them, which knows no NaN."""
    if isinstance(value, np.ndarray):
        return [plain(each) for each in value.tolist()]
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StatisticsFile:
    """A Parquet file with one row per head, per layer of an array, and per position of an example's logits.

    Columns that a row has no use for are null. Written under another name, and renamed when the block ends well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.part")

    def __enter__(self) -> Self:
        import pyarrow.parquet as pq

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, _schema(), compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink()

    def add_positions(self, found: ExampleLogits) -> None:
        """Adds an example's positions."""
        own = found.statistics
        self._add(
            {
                "array": str(found.key),
                "example_id": found.example_id,
                "position": position,
                "entropy": own.entropy[position],
                "came_id": came if came >= 0 else None,
                "came_probability": own.came_probability[position],
                "came_rank": own.came_rank[position] or None,
                "top_ids": own.top_ids[position].tolist(),
                "top_probabilities": own.top_probabilities[position].tolist(),
            }
            for position, came in enumerate(found.came.tolist())
        )

    def add(self, found: RunStatistics) -> None:
        """Adds the heads and layers of all arrays."""
        self._add(
            {"array": str(each.key), "layer": layer, "head": head, "count": own.queries}
            | {name: getattr(own, name)[i] for name in _OF_HEADS}
            for each in found.attention
            for layer, own in zip(each.layers, each.by_layer, strict=True)
            for i, head in enumerate(each.heads)
        )
        self._add(
            {"array": str(each.key), "layer": layer, **_values(own)}
            for each in found.activations
            for layer, own in zip(each.layers or (None,), each.by_layer, strict=True)
        )
        self._add({"array": str(each.key), "entropy": each.entropy, **_values(each.values)} for each in found.logits)

    def _add(self, rows: Iterator[dict[str, Any]]) -> None:
        import pyarrow as pa

        told = [{name: plain(value) for name, value in row.items()} for row in rows]
        self._writer.write_table(pa.Table.from_pylist(told, schema=self._writer.schema))


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("array", pa.string()),
            ("layer", pa.int32()),
            ("head", pa.int32()),
            ("example_id", pa.string()),
            ("position", pa.int32()),
            ("count", pa.int64()),
            *((name, pa.float64()) for name in ("mean", "std", "min", "max", "entropy", "sparsity")),
            ("came_id", pa.int32()),
            ("came_probability", pa.float64()),
            ("came_rank", pa.int32()),
            ("top_ids", pa.list_(pa.int32())),
            ("top_probabilities", pa.list_(pa.float64())),
        ]
    )
