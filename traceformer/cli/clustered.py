"""Heads of one or several tables in clusters, as text, JSON and CSV."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from traceformer.analysis.choices import ClusterMethod
from traceformer.analysis.clusters import HeadClusters, cluster_shares
from traceformer.analysis.heads import METRICS
from traceformer.cli.terminal import table
from traceformer.formats.head_tables import HeadTable

__all__ = ["ClusteredTables"]

_HEADS_SHOWN = 8  # of a cluster, fewer where their names are long
_LEGEND = (
    "names say on which side of the mean a centroid lies: Focused-Local nearer, with less entropy; Wider-Local nearer, "
    "with more;\nGlobal-Anchor further, with less; Strided further, with more"
)


@dataclass(frozen=True, slots=True)
class ClusteredTables:
    """The rows of all tables, one after the other, in clusters.

    Attributes:
        tables: Where the heads come from.
        labels: What each table is called.
        table_of: Which table each row is of.
        values: The metrics that decided.
        method: How clusters were found.
        found: The clusters.
    """

    tables: tuple[HeadTable, ...]
    labels: tuple[str, ...]
    table_of: Int64[np.ndarray, "row"]
    values: Float64[np.ndarray, "row feature"]
    method: ClusterMethod
    found: HeadClusters

    @property
    def names(self) -> tuple[str, ...]:
        """Every head's name, with its table's before it where there are several."""
        rows = zip(self.labels, self.tables, strict=True)
        return tuple(f"{label} {name}" if len(self.tables) > 1 else name for label, own in rows for name in own.names)

    @property
    def by_metric(self) -> dict[str, dict[str, Float64[np.ndarray, "row"]]]:
        """Each metric that all tables have for all heads: metric -> table -> values."""
        tables = list(zip(self.labels, self.tables, strict=True))
        return {
            name: {label: own.values[name] for label, own in tables}
            for name in dict.fromkeys((*METRICS, *self.found.features))
            if all(own.has_all(name) for own in self.tables)
        }

    def write(self, path: Path) -> None:
        """Writes a row per head: where it is, its cluster at the best k, its silhouette, the metrics that decided."""
        best, several = self.found.best, len(self.tables) > 1
        places = [
            (*([label] if several else []), *place)
            for label, own in zip(self.labels, self.tables, strict=True)
            for place in zip(own.layers, own.heads, own.attention, strict=True)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            where = [*(["table"] if several else []), "layer", "head", "attention"]
            writer.writerow([*where, "cluster", "name", "silhouette", *self.found.features])
            for place, label, silhouette, values in zip(
                places, best.labels.tolist(), best.silhouettes.tolist(), self.values.tolist(), strict=True
            ):
                writer.writerow([*place, label, best.names[label], silhouette, *values])

    def to_json(self) -> dict[str, Any]:
        found, best = self.found, self.found.best
        shown: dict[str, Any] = {
            "method": self.method,
            "features": list(found.features),
            "silhouette": {str(k): each.score for k, each in found.by_k.items()},
            "best_k": found.best_k,
            "heads": list(self.names),
            "labels": best.labels.tolist(),
            "silhouettes": best.silhouettes.tolist(),
            "centroids": [
                {
                    "cluster": number,
                    "name": name,
                    "heads": size,
                    **dict(zip(found.features, centroid, strict=True)),
                    "standardised": dict(zip(found.features, standardised, strict=True)),
                }
                for number, (name, size, centroid, standardised) in enumerate(
                    zip(best.names, best.sizes, best.centroids.tolist(), best.standardised.tolist(), strict=True)
                )
            ],
        }
        if len(self.tables) > 1:
            shares = cluster_shares(best.labels, self.table_of).tolist()
            shown["shares"] = {
                label: dict(zip(best.names, own, strict=True)) for label, own in zip(self.labels, shares, strict=True)
            }
            shown["metrics"] = {
                metric: {label: _distribution(own) for label, own in tables.items()}
                for metric, tables in self.by_metric.items()
            }
        return shown

    def __str__(self) -> str:
        found, best = self.found, self.found.best
        scores = [(str(k), f"{each.score:.4f}", "best" if k == found.best_k else "") for k, each in found.by_k.items()]
        parts = [
            f"{len(self.values)} heads by {', '.join(found.features)}; {self.method}",
            table(("k", "silhouette", ""), scores, numeric=(0, 1)),
            table(
                ("cluster", "name", "heads", *found.features, ""),
                list(self._cluster_rows()),
                numeric=(0, *range(2, 3 + len(found.features))),
            ),
        ]
        if {"entropy", "distance"} <= set(found.features):
            parts.append(_LEGEND)
        if len(self.tables) > 1:
            shares = zip(self.labels, cluster_shares(best.labels, self.table_of), strict=True)
            rows = [(label, *(f"{share:.1%}" for share in own)) for label, own in shares]
            parts.append(table(("share of heads", *best.names), rows, numeric=range(1, len(best.names) + 1)))
            headers = ("metric", "", "mean", "std", "min", "25 %", "50 %", "75 %", "max")
            parts.append(table(headers, list(self._distribution_rows()), numeric=range(2, len(headers))))
        return "\n\n".join(parts)

    def _cluster_rows(self) -> Iterator[tuple[str, ...]]:
        best, most = self.found.best, _HEADS_SHOWN // len(self.tables)
        for number, (name, size, centroid) in enumerate(zip(best.names, best.sizes, best.centroids, strict=True)):
            own = [head for head, label in zip(self.names, best.labels, strict=True) if label == number]
            heads = ", ".join(own[:most]) + (" ..." if size > most else "")
            yield str(number), name, str(size), *(f"{value:.3g}" for value in centroid), heads

    def _distribution_rows(self) -> Iterator[tuple[str, ...]]:
        for metric, tables in self.by_metric.items():
            for number, (label, own) in enumerate(tables.items()):
                yield "" if number else metric, label, *(f"{value:.3g}" for value in _distribution(own).values())


def _distribution(values: Float64[np.ndarray, "row"]) -> dict[str, float]:
    numbers = (values.mean(), values.std(), *np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    return dict(zip(("mean", "std", "min", "q25", "median", "q75", "max"), map(float, numbers), strict=True))
