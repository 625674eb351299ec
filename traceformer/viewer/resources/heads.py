"""The metrics of all heads, of one example or of the first ones, and the heads in clusters."""

import json
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.head_clusters import HeadClusters
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.analysis.heads import METRICS
from traceformer.analysis.methods import ClusterMethod
from traceformer.presentation import plain
from traceformer.progress import OnStep
from traceformer.questions.clusters import cluster
from traceformer.questions.heads import heads as measure
from traceformer.questions.thumbnails import pattern_arrays
from traceformer.store.beside import kept
from traceformer.store.run import Run
from traceformer.viewer.arrays import number_asked
from traceformer.viewer.kept import Pending
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["clusters", "heads"]

_CELLS = 1 << 31  # of patterns that are read unless more is asked for
_UNITS = {"entropy": "nats", "distance": "tokens", "effective_span": "tokens"}


def heads(library: Library, query: Query) -> Packet:
    """Returns every metric of every head: of the example `ex`, or of the first `n` examples.

    Without either it is of as many examples as are read in seconds. Each metric is an array over heads, NaN where it
    has no meaning; `about` says what it means, and how many examples of how many were read.
    """
    found = _measured(library, query)
    if isinstance(found, Pending):
        return Packet({}, found.to_json())
    run, about = library.run(query.text("run")), found.about
    places = {
        "attention": [found.attentions.index(head.attention) for head in found.rows],
        "layer": [head.layer for head in found.rows],
        "head": [head.head for head in found.rows],
    }
    return Packet(
        {
            **{name: np.array(numbers, np.int32) for name, numbers in places.items()},
            **{name: values.astype(np.float32) for name, values in found.values.items()},
        },
        {
            "attentions": found.attentions,
            "metrics": [_metric(name) for name in found.values],
            "read": max(about.examples.values()),
            "of": run.n,
            "convention": about.convention,
            "window": about.window,
        },
    )


def clusters(library: Library, query: Query) -> Packet:
    """Returns the heads of the attention `attn` in clusters, in the order of `heads`, by `method` and `features`.

    There are `k` clusters, or as many as have the highest silhouette.
    """
    measured = _measured(library, query)
    if isinstance(measured, Pending):
        return Packet({}, measured.to_json())
    attention, features = query.text("attn"), query.text("features", "entropy,sparsity,distance").split(",")
    method: Any = query.choice("method", get_args(ClusterMethod), "ward")
    k = query.number("k", 0) or None
    key = ("clusters", *_key(library, query), attention, *features, method, k)
    found: HeadClusters | Pending = library.later(
        key, lambda told: cluster(measured, features=features, method=method, k=k, attention=attention)
    )
    if isinstance(found, Pending):
        return Packet({}, found.to_json())
    best = found.clusterings.best
    return Packet(
        {"cluster": best.labels.astype(np.int32), "silhouette": best.silhouettes.astype(np.float32)},
        {
            "names": best.names,
            "sizes": best.sizes,
            "score": best.score,
            "k": found.clusterings.best_k,
            "features": found.features,
        },
    )


def _metric(column: str) -> dict[str, str]:
    name, _, threshold = column.partition("_0.")
    meaning = f"share of the cells that a query can see below 0.{threshold}" if threshold else METRICS.get(name, "")
    return {"name": column, "meaning": meaning, "unit": _UNITS.get(name, "")}


def _key(library: Library, query: Query) -> tuple[Any, ...]:
    name = query.text("run")
    examples = query.text("ex", "") or f"first {_first(library.run(name), query)}"
    return name, library.state(name), examples, query.choice("convention", CONVENTIONS, "exact")


def _measured(library: Library, query: Query) -> HeadMetrics | Pending:
    run = library.run(query.text("run"))
    convention: Any = query.choice("convention", CONVENTIONS, "exact")
    example = query.text("ex", "")
    rows = [number_asked(run, example)] if example else range(_first(run, query))
    which = f"of-{rows[0]}" if example else f"first-{len(rows)}"

    def work(told: OnStep) -> HeadMetrics:
        def made() -> bytes:
            return _written(measure(run, convention=convention, examples=rows, progress=told))

        return _read(kept(run, f"heads-{convention}-{which}", made))

    return library.later(("heads", *_key(library, query)), work)


def _first(run: Run, query: Query) -> int:
    """How many examples are read: as many as are asked for, or as many as there is time for."""
    asked = query.number("n", 0)
    if asked > 0:
        return min(asked, run.n)
    cells = 0
    for row in range(run.n):
        for spec in pattern_arrays(run):
            queries, keys = (run.length(row, stack) for stack in (spec.key.stack, spec.key.key_stack))
            cells += len(spec.layers) * len(spec.heads) * queries * keys
        if cells > _CELLS and row:
            return row
    return run.n


def _written(metrics: HeadMetrics) -> bytes:
    """As JSON, which has every digit of every number."""
    values = {name: plain(column) for name, column in metrics.values.items()}
    return json.dumps({"rows": metrics.rows, "values": values, "about": asdict(metrics.about)}).encode()


def _read(text: bytes) -> HeadMetrics:
    told = json.loads(text)
    values = {name: np.array(column, np.float64) for name, column in told["values"].items()}
    return HeadMetrics(tuple(HeadName(*row) for row in told["rows"]), values, Measured(**told["about"]))
