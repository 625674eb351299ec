"""Heads of one or several tables in clusters, as one value: which head is where, and what each cluster is like."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.clusters import Clusterings, cluster_shares
from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.analysis.methods import ClusterMethod
from traceformer.arguments import checked
from traceformer.presentation import in_notebook, present
from traceformer.shapes import Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HeadClusters", "distribution"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeadClusters:
    """The heads of all tables, one after the other, in clusters that share one scale.

    Attributes:
        tables: What each table is called -> its heads.
        clusterings: The heads in each number of clusters that was tried.
        method: How clusters were found.
    """

    tables: Mapping[str, HeadMetrics]
    clusterings: Clusterings
    method: ClusterMethod

    @property
    def features(self) -> tuple[str, ...]:
        """The metrics that decided."""
        return self.clusterings.features

    @property
    def values(self) -> Float64[np.ndarray, "row feature"]:
        return np.concatenate([table.features(self.features) for table in self.tables.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """Every head's name, with its table's before it where there are several."""
        several = len(self.tables) > 1
        return tuple(
            f"{label} {name}" if several else name for label, table in self.tables.items() for name in table.names
        )

    @property
    def table_of(self) -> Int64[np.ndarray, "row"]:
        """Which table each head is of, by number."""
        return np.repeat(np.arange(len(self.tables)), [len(table.rows) for table in self.tables.values()])

    @property
    def shares(self) -> Float64[np.ndarray, "table cluster"]:
        """What share of each table's heads is in each cluster."""
        return cluster_shares(self.clusterings.best.labels, self.table_of)

    @property
    def unstated(self) -> tuple[str, ...]:
        """What not all of several tables say, so that they may differ in it: convention, model, texts."""
        asked = ("convention", "model", "texts") if len(self.tables) > 1 else ()
        return tuple(name for name in asked if any(getattr(own.about, name) is None for own in self.tables.values()))

    @property
    def by_metric(self) -> dict[str, dict[str, Float64[np.ndarray, "row"]]]:
        """Each metric that all tables have for all heads: metric -> table -> values."""
        first = next(iter(self.tables.values()))
        return {
            name: {label: table.values[name] for label, table in self.tables.items()}
            for name in first.values
            if all(table.has_all(name) for table in self.tables.values())
        }

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per head: where it is, its cluster at the best k, its silhouette, the metrics that decided."""
        import pandas as pd

        best = self.clusterings.best
        where: dict[str, Any] = {}
        if len(self.tables) > 1:
            where["table"] = [list(self.tables)[number] for number in self.table_of]
        heads = [row for table in self.tables.values() for row in table.rows]
        where |= {name: [getattr(head, name) for head in heads] for name in ("layer", "head", "attention")}
        clusters = {
            "cluster": best.labels,
            "name": [best.names[label] for label in best.labels],
            "silhouette": best.silhouettes,
        }
        return pd.DataFrame({**where, **clusters, **dict(zip(self.features, self.values.T, strict=True))})

    def to_json(self) -> dict[str, Any]:
        """Returns labels and silhouettes over heads, scores over k, centroids over clusters."""
        found, best = self.clusterings, self.clusterings.best
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
            shares = zip(self.tables, self.shares.tolist(), strict=True)
            shown["shares"] = {label: dict(zip(best.names, own, strict=True)) for label, own in shares}
            shown["unstated"] = list(self.unstated)
            shown["metrics"] = {
                metric: {label: distribution(own) for label, own in tables.items()}
                for metric, tables in self.by_metric.items()
            }
        return shown

    @checked
    def write(self, path: str | Path) -> None:
        """Writes the rows of `to_frame` as CSV."""
        present(self, "csv", path)

    def __repr__(self) -> str:
        found = self.clusterings
        clusters = ", ".join(f"{name} {size}" for name, size in zip(found.best.names, found.best.sizes, strict=True))
        return f"HeadClusters({' and '.join(self.tables)}: {clusters}; silhouette {found.best.score:.3f})"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def distribution(values: Float64[np.ndarray, "row"]) -> dict[str, float]:
    """Returns mean, std and quartiles of a metric over heads."""
    numbers = (values.mean(), values.std(), *np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    return dict(zip(("mean", "std", "min", "q25", "median", "q75", "max"), map(float, numbers), strict=True))
