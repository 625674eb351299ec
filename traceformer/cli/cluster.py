"""`traceformer cluster`: heads into clusters by their metrics, and several models side by side."""

import json as json_text
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from traceformer.analysis.choices import ClusterMethod
from traceformer.errors import UsageError

if TYPE_CHECKING:
    from traceformer.cli.clustered import ClusteredTables

__all__ = ["cluster"]

_FEATURES = ("entropy", "sparsity", "distance")
_LARGEST_K = 8
_FIGURE_DPI = 300  # document 4's


def cluster(
    metrics: Annotated[Path | None, Parameter(name="CSV")] = None,
    /,
    *,
    compare: Annotated[
        tuple[Path, ...], Parameter(consume_multiple=(1, None), metavar="CSV...", show_default=False)
    ] = (),
    features: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="METRIC...")] = _FEATURES,
    method: ClusterMethod = "ward",
    k: Annotated[str | None, Parameter(metavar="K|K..K", show_default="2..8")] = None,
    attention: str | None = None,
    output: Path = Path("head_clusters.csv"),
    plot: bool = False,
    json: bool = False,
) -> None:
    """Put attention heads into clusters by their metrics.

    Metrics are standardised, the heads are clustered for every k, and the k with the highest mean silhouette is taken;
    clusters are named by their centroids. With --compare the heads of several models share scale and clusters.

    Example: `traceformer cluster head_metrics.csv --plot`

    Args:
        metrics: A table of `traceformer heads`, or any with the columns layer and head.
        compare: Tables to put side by side, such as dense.csv sparse.csv.
        features: The metrics that decide, or `all`.
        method: How clusters are found.
        k: How many clusters, or a range of which the best is taken.
        attention: Only heads of enc.self, dec.self or dec.cross, where a table has several.
        output: The table of heads with their clusters.
        plot: Save pictures beside the table: the silhouette of every k, that of every head, a map of all heads; with
            --compare also how every metric is distributed.
        json: Print a JSON object.
    """
    paths = ([metrics] if metrics is not None else []) + list(compare)
    if not paths:
        raise UsageError("which table?", hint="traceformer cluster head_metrics.csv")
    if len(set(paths)) < len(paths) or (compare and len(paths) < 2):
        raise UsageError("--compare needs different tables", hint="--compare dense.csv sparse.csv")
    clustered = _cluster(paths, attention, features, method, k)
    clustered.write(output)
    pictures = _save_pictures(clustered, output) if plot else []
    if json:
        made = {"output": str(output), "plot": [str(path) for path in pictures]}
        print(json_text.dumps({**made, **clustered.to_json()}, indent=2))
        return
    print(clustered)
    again = ("--compare " if compare else "") + " ".join(map(str, paths))
    follow = "inspect latest --png heads.png" if plot else f"cluster {again} --plot"
    print(f"wrote {', '.join(map(str, (output, *pictures)))}; next: traceformer {follow}", file=sys.stderr)


def _cluster(
    paths: Sequence[Path], attention: str | None, features: Sequence[str], method: ClusterMethod, k: str | None
) -> "ClusteredTables":
    import numpy as np

    from traceformer.analysis.clusters import cluster_heads
    from traceformer.cli.clustered import ClusteredTables
    from traceformer.formats.head_tables import read_heads

    tables = tuple(read_heads(path, attention) for path in paths)
    stems = tuple(path.stem for path in paths)
    labels = stems if len(set(stems)) == len(stems) else tuple(map(str, paths))
    table_of = np.repeat(np.arange(len(tables)), [len(each.layers) for each in tables])
    chosen = [name for names in features for name in names.split(",") if name]
    if chosen == ["all"]:
        complete = [name for name in tables[0].values if all(each.has_all(name) for each in tables)]
        chosen = complete or chosen
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"--features {' '.join(chosen)} names a metric twice")
    values = np.concatenate([each.features(chosen) for each in tables])
    found = cluster_heads(values, chosen, method=method, ks=_ks(k, len(values)))
    return ClusteredTables(tables, labels, table_of, values, method, found)


def _ks(text: str | None, heads: int) -> range:
    """The numbers of clusters that are meant: all that were asked for, else 2..8 as far as there are heads."""
    if text is None:
        return range(2, max(2, min(_LARGEST_K, heads - 1)) + 1)
    match = re.fullmatch(r"(\d+)(?:(?:\.\.|-)(\d+))?", text)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise UsageError(f"--k {text}", hint="--k 4, or --k 2..8")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _save_pictures(clustered: "ClusteredTables", output: Path) -> list[Path]:
    from traceformer.figures.heads import distributions_figure, map_figure, score_figure, silhouettes_figure
    from traceformer.figures.style import save

    found, of = clustered.found, " and ".join(clustered.labels)
    by = f"by {', '.join(found.features)} ({clustered.method})"
    title = f"{of}: heads in {found.best_k} clusters {by}"
    figures = {
        "silhouette_k": score_figure(found, title=f"{of}: heads {by}"),
        "silhouettes": silhouettes_figure(found.best, title=title),
        "map": map_figure(found, clustered.names, clustered.table_of, clustered.labels, title=title),
    }
    if len(clustered.tables) > 1:
        figures["distributions"] = distributions_figure(clustered.by_metric, title=f"{of}: the metrics of every head")
    made: list[Path] = []
    for name, figure in figures.items():
        made.append(output.with_name(f"{output.stem}_{name}.png"))
        save(figure, made[-1], dpi=_FIGURE_DPI if name == "silhouette_k" else 150)
    return made
