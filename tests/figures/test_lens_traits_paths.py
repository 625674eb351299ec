"""The functions of `figures`: each takes what its verb returns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from matplotlib.colors import to_hex

from tests.viewer import traces
from traceformer import figures
from traceformer.analysis.directions import Direction
from traceformer.analysis.lens import Lens, Translated
from traceformer.analysis.projection import ProjectedRows, Projections, TextCurves
from traceformer.errors import UsageError
from traceformer.figures.cards.lens_table import lens_table
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
        known,
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


def test_a_long_lens_goes_on_below() -> None:
    figure = figures.lens(lens_of(85))
    rows = figure.axes[:3]
    assert [len(axes.texts) for axes in rows] == [80, 80, 10]
    assert rows[2].get_xlabel() == "token at positions 80 to 84"
    assert not figures.lens(lens_of(481)).axes[0].texts  # no room
    with pytest.raises(UsageError, match="85 positions for one ax"):
        figures.lens(lens_of(85), ax=rows[0])
    assert figures.lens(lens_of(3), ax=rows[0]) is figure


def test_the_colour_says_what_is_asked_for() -> None:
    value = replace(
        lens_of(3),
        target_rank=np.array([[100, 10, 0], [1, 2, 0]]),
        kl=np.array([[1, 2, 4], [0, 0, 0]], np.float32),
        entropy=np.array([[3, 2, 1], [0, np.nan, 0]], np.float32),
    )
    shown: dict[str, Any] = {}
    for mark in ("probability", "rank", "kl", "entropy"):
        axes, bar = figures.lens(value, mark=mark).axes
        image: Any = axes.images[0]
        shown[mark] = image.norm(image.get_array()).filled(np.nan).tolist(), bar.get_ylabel()
        assert len(axes.texts) == 6
    assert shown["probability"] == ([[0.5] * 3] * 2, "its probability")
    assert shown["kl"] == ([[0.25, 0.5, 1], [0, 0, 0]], "KL(last layer || this layer), nats")
    ranks, label = shown["rank"]
    assert label == "rank of the token that came"
    assert ranks[0][:2] == pytest.approx([1, 0.5])  # logarithms, of one to a hundred
    assert ranks[1][:2] == pytest.approx([0, np.log10(2) / 2])
    assert np.isnan([ranks[0][2], ranks[1][2]]).all()  # nothing came
    assert np.isnan(shown["entropy"][0][1][1])


def test_what_is_not_known_is_not_marked() -> None:
    nothing = np.full((2, 3), np.nan, np.float32)
    value = replace(lens_of(3), kl=nothing, entropy=nothing, target_rank=np.zeros((2, 3), np.int64))
    for mark in ("rank", "kl", "entropy"):
        with pytest.raises(UsageError, match=f"`mark='{mark}'`, of which nothing is known"):
            figures.lens(value, mark=mark)
    with pytest.raises((UsageError, TypeCheckError), match="loudness"):
        figures.lens(value, mark="loudness")  # pyright: ignore[reportArgumentType]


def test_a_lens_says_what_it_was_translated_by() -> None:
    value = replace(lens_of(3), translated=Translated("tuned", "lenses/byte.safetensors", (0,), "digest"))
    heading = figures.lens(value).get_suptitle()
    assert heading.endswith("after each layer, tuned lens of byte.safetensors, framed where it came")
    assert "dec.resid_post through the tuned lens of byte.safetensors: the likeliest" in lens_table(value)


def test_a_theme_lasts_as_long_as_it_is_asked_for() -> None:
    with figures.theme("dark"):
        dark = figures.lens(lens_of(3))
    light = figures.lens(lens_of(3))
    assert (to_hex(dark.get_facecolor()), to_hex(light.get_facecolor())) == ("#15171a", "#ffffff")
    with pytest.raises((UsageError, TypeCheckError), match="blue"):
        figures.theme("blue")  # pyright: ignore


def test_a_curve_is_smoothed_over_the_tokens_that_there_are() -> None:
    rows = ProjectedRows(np.array([[1], [2], [6], [3]], np.float32), np.ones(4, np.float32))
    curves = TextCurves("ex0", list("abcd"), None, ("joy",), {4: rows})
    vector = {"name": "joy", "thresholds": {4: 2.5}}
    value = Projections("traces/run", RESIDUAL, "dec.resid_post", ("joy",), (4,), (curves,), (vector,))
    itself, smooth, threshold, _ = figures.traits(value, smooth=3).axes[0].lines
    assert itself.get_ydata().tolist() == [1, 2, 6, 3]  # pyright: ignore
    assert smooth.get_ydata() == pytest.approx([1.5, 3, 11 / 3, 4.5])
    assert threshold.get_ydata() == pytest.approx([2.5, 2.5])
    text = figures.traits(value, chart="text").axes[0]
    assert [written.get_text() for written in text.texts] == [*"abcd"]
    assert text.get_title("left") == "joy, red above the threshold 2.50"
    with pytest.raises(UsageError, match="mean over 0 tokens"):
        figures.traits(value, smooth=0)


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
