"""Figures of what verbs return: one value in, one figure out."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.analysis.test_head_metrics import BOTH, table
from traceformer import figures
from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.run_statistics import AttentionStatistics, RunStatistics
from traceformer.analysis.statistics import AttentionTally
from traceformer.analysis.visibility import Visibility
from traceformer.errors import SelectionError
from traceformer.figures.cluster_charts import ClusterChart
from traceformer.questions.clusters import cluster
from traceformer.sites import ArrayKey

THESIS = Path(__file__).parents[1] / "data" / "thesis_head_metrics.csv"


def test_figures_are_loaded_when_they_are_used() -> None:
    loaded = "'matplotlib' in sys.modules"
    code = f"import sys, traceformer.figures as f; print({loaded}, callable(f.heads), {loaded})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "True", "True"]


def test_no_module_hides_a_function_of_its_name() -> None:
    # Importing a submodule sets an attribute of its package, in front of what is loaded when used.
    modules = {path.stem for path in Path(figures.__file__).parent.glob("*.py")}
    assert not modules & set(figures.__all__)
    assert all(callable(getattr(figures, name)) for name in figures.__all__)


def test_heads_are_maps_of_layers_and_heads() -> None:
    figure = figures.heads(BOTH, "dec.self")
    maps = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(maps) == ["entropy", "sparsity (< 0.01)"]  # a distance that no head has is not drawn
    shown = np.ma.filled(maps["entropy"].images[0].get_array(), np.nan)
    assert np.array_equal(shown, [[3, 4], [5, np.nan]], equal_nan=True)
    assert [label.get_text() for label in maps["entropy"].get_yticklabels()] == ["L1", "L4"]
    assert figure.get_suptitle() == "byte  dec.self, 10 queries, exact convention"
    assert len(figures.heads(table("enc.self")).axes) == len(figure.axes)
    with pytest.raises(SelectionError, match="which attention"):
        figures.heads(BOTH)


@pytest.mark.parametrize("chart", get_args(ClusterChart))
def test_clusters_have_four_charts(chart: ClusterChart) -> None:
    clusters = cluster({"one": THESIS, "two": THESIS}, k=range(3, 6))
    figure = figures.clusters(clusters, chart)
    assert figure.get_suptitle() or figure.axes[0].get_title()
    if chart == "scores":
        ks, scores = figure.axes[0].lines[0].get_data()
        assert list(ks) == [3, 4, 5]
        assert scores == pytest.approx([clusters.clusterings.by_k[k].score for k in (3, 4, 5)])
    if chart == "map":
        assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 192
    if chart == "distributions":
        assert [axes.get_title() for axes in figure.axes] == ["entropy", "sparsity", "distance"]


def test_clusters_are_shown_as_a_map() -> None:
    assert cluster(THESIS, k=4)._repr_html_().startswith('<img alt="HeadClusters(')


def test_entropy_is_a_map_of_heads() -> None:
    tally = AttentionTally(2, CONVENTIONS["exact"], Visibility(causal=True))
    tally.add(np.stack([np.eye(3), np.tri(3) / np.arange(1, 4)[:, None]]).astype(np.float32))
    own = AttentionStatistics(ArrayKey.parse("dec.self.attn_pattern"), (5,), (0, 3), (tally.result(),))
    figure = figures.entropy(RunStatistics("traces/x", "exact", ("a",), (own,), (), ()))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.00", f"{(np.log(2) + np.log(3)) / 3:.2f}"]
    assert figure.get_suptitle().startswith("traces/x: mean entropy")


def test_maps_of_one_unit_share_their_colours() -> None:
    metrics = table("dec.self")
    figure = figures.heads(metrics)
    tops = {axes.get_title(): axes.images[0].norm.vmax for axes in figure.axes if axes.get_title()}
    assert tops["sparsity (< 0.01)"] == 1
    assert tops["entropy"] == np.nanmax(metrics.grid("entropy"))
