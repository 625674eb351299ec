"""Heads into clusters by their metrics: of one table, or of several side by side."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np

from traceformer.analysis.clusters import cluster_heads
from traceformer.analysis.head_clusters import HeadClusters
from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.analysis.methods import ClusterMethod
from traceformer.errors import UsageError, check_choice, check_whole
from traceformer.formats.results.head_tables import read_heads

__all__ = ["cluster"]

Table: TypeAlias = HeadMetrics | str | Path

_FEATURES = ("entropy", "sparsity", "distance")
_LARGEST_K = 8


def cluster(
    tables: Table | Sequence[Table] | Mapping[str, Table],
    *,
    features: Sequence[str] = _FEATURES,
    method: ClusterMethod = "ward",
    k: int | Iterable[int] | None = None,
    attention: str | None = None,
) -> HeadClusters:
    """Returns the heads in clusters: standardised, clustered for every k, and the k with the highest silhouette best.

        cluster(heads(run)).to_frame()
        cluster({"dense": heads(dense, "demo"), "sparse": "sparse.csv"}, k=4)

    Args:
        tables: Metrics of heads, or CSV files that hold them; several share one scale and the same clusters.
        features: The metrics that decide, or `["all"]` that every head has; `sparsity` is the only one that there is.
        method: How clusters are found.
        k: How many clusters, or several numbers of which the best is taken; 2 to 8 by default.
        attention: Only heads of this attention, where a table has several.

    Raises:
        NotFound, Unreadable: a file is not there, or it is no table of heads.
        NotRecorded: a table lacks a metric, or some head lacks it.
        UsageError: too few heads for some k; or tables whose numbers mean different things, or may, since only some of
            them say in which convention they are; or which differ in model and texts, so that either may be why.
    """
    check_choice("method", method, get_args(ClusterMethod))
    named = {label: _read(table, attention) for label, table in _labelled(tables).items()}
    _check_alike(named)
    names = _features([features] if isinstance(features, str) else features, named)
    values = np.concatenate([each.features(names) for each in named.values()])
    ks = range(2, max(2, min(_LARGEST_K, len(values) - 1)) + 1) if k is None else _numbers(k)
    return HeadClusters(named, cluster_heads(values, names, method=method, ks=ks), method)


def _numbers(k: Any) -> list[int]:
    """Returns the numbers of clusters that are meant.

    Raises:
        UsageError: there is none, or one is no whole number.
    """
    numbers = [*k] if isinstance(k, Iterable) else [k]
    if not numbers:
        raise UsageError("`k=[]`", hint="a whole number, or several")
    for number in numbers:
        check_whole("k", number)
    return [int(number) for number in numbers]


def _labelled(tables: Any) -> Mapping[str, Table]:
    """What each table is called: as it is said, or as its file is called without its ending, where these differ."""
    several = _several(tables)
    if isinstance(tables, Mapping):
        named: Mapping[Any, Table] = tables
        if unnamed := [name for name in named if not isinstance(name, str)]:
            raise UsageError(f"a table is called {unnamed[0]!r}", hint='names are text: {"dense": ..., "sparse": ...}')
        return named
    long = [table.about.source if isinstance(table, HeadMetrics) else str(table) for table in several]
    short = [Path(name).stem for name in long]
    labels = short if len(set(short)) == len(short) else long
    if len(set(labels)) < len(labels):
        raise UsageError("several tables have the same name", hint='name them: {"dense": ..., "sparse": ...}')
    return dict(zip(labels, several, strict=True))


def _several(tables: Any) -> list[Table]:
    """Returns the tables themselves.

    Raises:
        UsageError: there is none, or one is something else, such as a run.
    """
    several: list[Any] = [tables]
    if isinstance(tables, Mapping):
        several = [*tables.values()]
    elif isinstance(tables, Iterable) and not isinstance(tables, str) and not hasattr(tables, "keys"):
        several = [*tables]  # but of a frame of pandas, which has keys: it would give its columns' names
    others = [type(table).__name__ for table in several if not isinstance(table, HeadMetrics | str | Path)]
    if others or not several:
        what = others[0] if others else "nothing"
        raise UsageError(f"{what} where metrics of heads are wanted", hint="what heads gave, or the CSV file of it")
    return several


def _read(table: Table, attention: str | None) -> HeadMetrics:
    if not isinstance(table, HeadMetrics):
        return read_heads(table, attention)
    return table if attention is None else table.part(attention)


def _check_alike(tables: Mapping[str, HeadMetrics]) -> None:
    conventions = {each.about.convention for each in tables.values()}
    if len(conventions - {None}) > 1:
        raise UsageError(
            f"tables of the conventions {' and '.join(sorted(map(str, conventions - {None})))}",
            why="their numbers mean different things",
            hint="measure all of them in one",
        )
    if len(conventions) > 1:
        silent = [label for label, each in tables.items() if each.about.convention is None]
        raise UsageError(
            f"{' and '.join(silent)} do not say in which convention they were measured, and others do",
            why="their numbers may mean different things",
            hint="measure all of them in one",
        )
    for name, what in (("window", "windows"), ("sparse_below", "thresholds of sparse cells")):
        stated = {getattr(each.about, name) for each in tables.values()} - {None}
        if len(stated) > 1:
            raise UsageError(
                f"tables with the {what} {' and '.join(map(str, sorted(stated)))}",
                why="their numbers mean different things",
                hint="measure all of them with one",
            )
    for (one, first), (other, second) in combinations(tables.items(), 2):
        abouts = first.about, second.about
        models, texts = {each.model for each in abouts} - {None}, {each.texts for each in abouts} - {None}
        if len(models) > 1 and len(texts) > 1:
            raise UsageError(
                f"{one} and {other} differ in model and in texts",
                why=f"either may be why their heads do: {' and '.join(sorted(map(str, texts)))}",
                hint="measure both models on the same texts",
            )


def _features(features: Sequence[str], tables: Mapping[str, HeadMetrics]) -> list[str]:
    """The full names of the metrics that decide, which are those of every table."""
    first, *others = tables.values()
    if list(features) == ["all"]:
        complete = [name for name in first.values if all(table.has_all(name) for table in tables.values())]
        features = complete or features
    names = [first.column(name) for name in features]
    for other in others:
        for name, feature in zip(names, features, strict=True):
            if other.column(feature) != name:
                raise UsageError(
                    f"{first.about.source} has {name}, and {other.about.source} has {other.column(feature)}",
                    why="their numbers mean different things",
                    hint="measure both in one convention",
                )
    if len(set(names)) < len(names):
        raise UsageError(f"{' '.join(features)} names a metric twice")
    return names
