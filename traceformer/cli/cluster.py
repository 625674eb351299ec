"""`traceformer cluster`: heads into clusters by their metrics, and several models side by side."""

import json as json_text
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from traceformer.analysis.methods import ClusterMethod
from traceformer.cli.arguments import FILE_ON_DISK
from traceformer.errors import UsageError

if TYPE_CHECKING:
    from traceformer.analysis.head_clusters import HeadClusters
    from traceformer.figures.cluster_charts import ClusterChart

__all__ = ["cluster"]

_FEATURES = ("entropy", "sparsity", "distance")
_FIGURE_DPI = 300  # the thesis's


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
    output: Annotated[Path, FILE_ON_DISK] = Path("head_clusters.csv"),
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
    from traceformer.cli.clustered import as_text
    from traceformer.questions import clusters as questions

    paths = ([metrics] if metrics is not None else []) + list(compare)
    if not paths:
        raise UsageError("which table?", hint="traceformer cluster head_metrics.csv")
    if len(set(paths)) < len(paths) or (compare and len(paths) < 2):
        raise UsageError("--compare needs different tables", hint="--compare dense.csv sparse.csv")
    chosen = [name for names in features for name in names.split(",") if name]
    found = questions.cluster(paths, features=chosen, method=method, k=_ks(k), attention=attention)
    found.write(output)
    pictures = _save_pictures(found, output) if plot else []
    if json:
        made = {"output": str(output), "plot": [str(path) for path in pictures]}
        print(json_text.dumps({**made, **found.to_json()}, indent=2))
        return
    print(as_text(found))
    again = ("--compare " if compare else "") + " ".join(map(str, paths))
    follow = "inspect latest --png heads.png" if plot else f"cluster {again} --plot"
    print(f"wrote {', '.join(map(str, (output, *pictures)))}; next: traceformer {follow}", file=sys.stderr)


def _ks(text: str | None) -> range | None:
    """The numbers of clusters that were asked for."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:(?:\.\.|-)(\d+))?", text)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise UsageError(f"--k {text}", hint="--k 4, or --k 2..8")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _save_pictures(found: "HeadClusters", output: Path) -> list[Path]:
    from traceformer import figures
    from traceformer.figures.style import save

    charts: dict[ClusterChart, str] = {"scores": "silhouette_k", "silhouettes": "silhouettes", "map": "map"}
    if len(found.tables) > 1:
        charts["distributions"] = "distributions"
    made: list[Path] = []
    for chart, name in charts.items():
        made.append(output.with_name(f"{output.stem}_{name}.png"))
        save(figures.clusters(found, chart), made[-1], dpi=_FIGURE_DPI if chart == "scores" else 150)
    return made
