"""The functions of `figures`: each takes what its verb returns."""

import numpy as np
import pytest

from tests.viewer import traces
from traceformer import figures
from traceformer.analysis.directions import Direction
from traceformer.analysis.lens import Lens
from traceformer.analysis.projection import ProjectedRows, Projections, TextCurves
from traceformer.errors import UsageError
from traceformer.sites import ArrayKey

RESIDUAL = ArrayKey("dec", None, "resid_post")


def lens_of(positions: int) -> Lens:
    """Two layers; the first says `$`, the second what comes next."""
    ids = np.stack([np.zeros((positions, 1), np.int64), np.ones((positions, 1), np.int64)])
    known, targets = np.ones((2, positions), np.float32), np.ones(positions, np.int64)
    return Lens(
        "ex0",
        RESIDUAL,
        (0, 5),
        tuple(range(positions)),
        ("a",) * positions,
        targets,
        {0: "$", 1: "a"},
        ids,
        np.full(ids.shape, 0.5, np.float32),
        known,
        known,
        known.astype(np.int64),
    )


def projections_of(examples: int) -> Projections:
    rows = ProjectedRows(np.ones((3, 1), np.float32), np.ones(3, np.float32))
    curves = tuple(TextCurves(f"ex{i}", list("abc"), 1, ("joy",), {4: rows}) for i in range(examples))
    return Projections("traces/run", RESIDUAL, "dec.resid_post", ("joy",), (4,), curves, ({"name": "joy"},))


def test_no_module_is_called_as_a_function_is() -> None:
    for function in figures.__all__:
        getattr(figures, function)  # loads its module
        assert callable(getattr(figures, function))


def test_a_lens_frames_what_came_and_names_every_cell() -> None:
    axes = figures.lens(lens_of(3)).axes[0]
    assert [text.get_text() for text in axes.texts] == [r"\$", "a"][:1] * 3 + ["a"] * 3
    assert len(axes.patches) == 3
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["L0", "L5"]
    assert not figures.lens(lens_of(41)).axes[0].texts  # no room


def test_curves_have_a_panel_per_direction_or_per_example() -> None:
    [panel] = figures.traits(projections_of(1)).axes
    assert panel.get_title() == "joy"
    assert len(figures.traits(projections_of(13)).axes) == 12


def test_a_direction_shows_each_layers_quality_if_that_is_known() -> None:
    vector, numbers = np.ones(2, np.float32), {"held_out_accuracy": 0.9, "effect_size": 2.0, "shuffled_highest": 0.6}
    value = Direction("joy", {1: vector, 2: vector}, {"method": "probe"}, {1: numbers, 2: numbers})
    accuracy, effect = figures.direction(value, value).axes
    assert accuracy.lines[0].get_ydata().tolist() == [0.9, 0.9]  # pyright: ignore
    assert len(effect.lines) == 3  # one each, and zero
    with pytest.raises(UsageError, match="not known"):
        figures.direction(Direction("joy", {1: vector}))


def test_paths_are_drawn_for_every_kind_of_search() -> None:
    for make in (traces.one_layer, traces.all_layers, traces.each_head, traces.encoder, traces.into_source):
        assert figures.paths(make()).axes[0].patches
