"""Charts in a figure of one's own: they are drawn where they are asked to be, and nowhere else."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure, SubFigure

from tests.analysis.test_effects import EACH, effects
from tests.analysis.test_head_metrics import table
from tests.analysis.test_translators import translators
from tests.figures.test_cards import curves_of, projections_of, statistics_of
from tests.figures.test_effect_maps import baselines
from tests.figures.test_lens_traits_paths import lens_of
from tests.figures.test_logit_parts import attribution
from tests.probed import probes_of
from tests.questions.two_runs import drawn, run_of
from tests.viewer import traces
from traceformer import figures
from traceformer.analysis.comparison import Comparison
from traceformer.analysis.directions import Direction
from traceformer.analysis.effects import Axis, Effects
from traceformer.errors import NotRecorded, UsageError
from traceformer.figures.attention import atlas_figure, head_figure
from traceformer.figures.style import save, theme
from traceformer.questions.clusters import cluster
from traceformer.questions.compare import compare

THESIS = Path(__file__).parents[1] / "data" / "thesis_head_metrics.csv"
TILES = np.ones((1, 2, 4, 4), np.float32)
TOKENS = ["$x$", "猫\n", "\u0627", "🏳️‍🌈", "\x00", " the"]
QUALITY = {1: {"held_out_accuracy": 0.9, "effect_size": 2.0, "shuffled_highest": 0.6}}
DIRECTION = Direction("joy", {1: np.ones(2, np.float32)}, {"method": "probe"}, QUALITY)
CURVE = Effects((Axis("layer", (0, 1), ("L0", "L1")),), {"effect": EACH[:, :, 0]}, *baselines(), effects().about)

CHARTS: Mapping[str, Callable[[Any], Figure]] = {
    "lens": lambda ax: figures.lens(lens_of(3), ax=ax),
    "traits": lambda ax: figures.traits(projections_of(curves_of(1, 2, 3)), ax=ax),
    "traits, smoothed": lambda ax: figures.traits(projections_of(curves_of(1, 2, 3)), smooth=3, ax=ax),
    "traits on the text": lambda ax: figures.traits(projections_of(curves_of(1, 2, 3)), chart="text", ax=ax),
    "effects": lambda ax: figures.effects(effects(), ax=ax),
    "effects by layer": lambda ax: figures.effects(CURVE, ax=ax),
    "entropy": lambda ax: figures.entropy(statistics_of("run"), ax=ax),
    "paths": lambda ax: figures.paths(traces.all_layers(), ax=ax),
    "a head": lambda ax: head_figure(np.eye(6, dtype=np.float32), TOKENS, TOKENS, title="head", ax=ax),
    "an atlas": lambda ax: atlas_figure(TILES, layers=[0], heads=[0, 1], title="atlas", ax=ax),
}
CLUSTERS: Mapping[str, Callable[[Any], Figure]] = {
    "map": lambda ax: figures.clusters(cluster(THESIS, k=4), ax=ax),
    "scores": lambda ax: figures.clusters(cluster(THESIS, k=4), "scores", ax=ax),
    "silhouettes": lambda ax: figures.clusters(cluster(THESIS, k=4), "silhouettes", ax=ax),
}


@cache
def compared() -> Comparison:
    """Two runs of numpy's drawing, in every part."""
    sites = ("resid_post", "attn_pattern", "logits")
    first, second = (run_of({site: drawn(seed, site) for site in sites}) for seed in (1, 2))
    return compare(first, second)


GRIDS: Mapping[str, Callable[[Any], Figure]] = {
    "heads": lambda figure: figures.heads(table("dec.self"), figure=figure),
    "direction": lambda figure: figures.direction(DIRECTION, figure=figure),
    "probes": lambda figure: figures.probes(probes_of(), figure=figure),
    "attribution": lambda figure: figures.attribution(attribution(split=True), figure=figure),
    "comparison": lambda figure: figures.comparison(compared(), figure=figure),
    "translators": lambda figure: figures.translators(translators(), figure=figure),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_drawn_in_the_axes_that_it_is_given(name: str) -> None:
    drawn_in_axes(CHARTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_are_drawn_in_the_axes_that_they_are_given(name: str) -> None:
    drawn_in_axes(CLUSTERS[name])
    with pytest.raises(UsageError, match="3 charts for one ax"):
        figures.clusters(cluster(THESIS, k=4), "distributions", ax=Figure().subplots())


def drawn_in_axes(draw: Callable[[Any], Figure]) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    untouched = len(left.get_children())
    assert draw(right) is figure
    assert right.has_data() or right.patches or right.texts
    assert right.get_title() or right.get_title("left")
    assert len(left.get_children()) == untouched
    assert left.get_title() == ""
    # No title, no text and no legend of the whole; beside both axes at most the colours of one.
    assert (figure.get_suptitle(), figure.texts, figure.legends) == ("", [], [])
    assert len(figure.axes) <= 3


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_drawn_in_the_part_of_a_figure_that_it_is_given(name: str) -> None:
    drawn_in_part(GRIDS[name])


def drawn_in_part(draw: Callable[[SubFigure], Figure]) -> None:
    figure = Figure(figsize=(16, 6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert draw(right) is figure
    assert len(figure.axes) > 1
    assert right.get_suptitle()
    assert (left.axes, figure.get_suptitle(), figure.texts) == ([], "", [])
    figure.draw_without_rendering()
    assert len(draw(None).axes) == len(figure.axes)  # pyright: ignore[reportArgumentType]


def test_several_charts_for_one_axes_are_refused() -> None:
    ax = Figure().subplots()
    several = projections_of(curves_of(1, 2), curves_of(1, 2))
    with pytest.raises(UsageError, match="2 charts for one ax"):
        figures.traits(several, ax=ax)
    nothing = statistics_of("run")
    with pytest.raises(NotRecorded, match="run has no attention patterns"):
        figures.entropy(type(nothing)("run", "exact", ("a",), (), (), ()))


@pytest.fixture(scope="module")
def of_models(byte: Any) -> Mapping[str, Callable[[Any], Figure]]:
    """The figures of what only a model gives."""
    import traceformer as tf
    from traceformer.models.tiny import tiny_model

    vector = np.random.default_rng(1).normal(size=256).astype(np.float32)
    dose = tf.dose(byte, ["Returns"], Direction("trait", {1: vector}, {"site": "resid_post"}), [0, 5], max_tokens=3)
    circuits, roles = tf.circuits(byte), tf.roles(byte, ["abcdefg abcdefg"])
    model = tf.load_model(tiny_model("gpt2"))
    edges = tf.edges(model, [5, 6, 7, 8, 9], [5, 6, 11, 8, 9], answer=3, wrong=4, exact_top=5, batch_size=2)
    return {
        "dose": lambda figure: figures.dose(dose, figure=figure),
        "circuits": lambda figure: figures.circuits(circuits, figure=figure),
        "edges": lambda figure: figures.edges(edges, figure=figure),
        "roles": lambda _: figures.roles(roles),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dose", "circuits", "edges"])
def test_grids_of_models_are_drawn_in_a_part_of_a_figure(name: str, of_models: Mapping[str, Any]) -> None:
    drawn_in_part(of_models[name])


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "look"), [("png", "light"), ("svg", "dark"), ("pdf", "light")])
def test_every_figure_is_saved_in_every_format_without_a_word(
    ending: str, look: Any, of_models: Mapping[str, Any], tmp_path: Path
) -> None:
    odd = {
        "lens of odd tokens": lambda _: figures.lens(replace(lens_of(6), tokens=tuple(TOKENS))),
        "traits of odd tokens": lambda _: figures.traits(projections_of(curves_of(*range(6), tokens=TOKENS))),
        "odd text": lambda _: figures.traits(projections_of(curves_of(*range(6), tokens=TOKENS)), chart="text"),
        "distributions": lambda _: figures.clusters(cluster(THESIS, k=4), "distributions"),
    }
    start = {"png": b"\x89PNG\r", "svg": b"<?xml", "pdf": b"%PDF-"}[ending]
    for name, draw in {**CHARTS, **CLUSTERS, **GRIDS, **of_models, **odd}.items():
        with theme(look):
            figure = draw(None)
        save(figure, tmp_path / f"picture.{ending}")
        written = (tmp_path / f"picture.{ending}").read_bytes()
        assert written[:5] == start, name
        assert len(written) > 3000, name
    plain = figures.lens(lens_of(3))
    plain.savefig(tmp_path / f"plain.{ending}")
    assert (tmp_path / f"plain.{ending}").read_bytes()[:5] == start
