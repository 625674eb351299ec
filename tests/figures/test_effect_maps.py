"""Maps of effects: what is drawn is what is there, with tokens on the axes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.analysis.test_effects import ABOUT, EACH, effects
from traceformer.analysis.effects import Axis, Effects
from traceformer.errors import SelectionError
from traceformer.figures.effect_maps import effects_figure, effects_html


def test_a_map_has_layers_upwards_and_tokens_to_the_right() -> None:
    figure = effects_figure(effects())
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), effects().values)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L0", "L5"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "·b", "2"]
    low, high = axes.images[0].get_clim()
    assert -low == high == pytest.approx(np.nanmax(np.abs(effects().values)))
    assert axes.get_ylim()[0] < axes.get_ylim()[1]


def test_one_axis_is_a_curve_and_three_are_maps() -> None:
    layers = Effects((Axis("layer", (0, 1), ("L0", "L1")),), {"effect": EACH[:, :, 0]}, *baselines(), ABOUT)
    (line, *_) = [line for line in effects_figure(layers).axes[0].lines if len(line.get_ydata()) == 2][-1:]
    np.testing.assert_allclose(line.get_ydata(), EACH[:, :, 0].mean(0))
    heads = (Axis("layer", (0, 1), ("L0", "L1")), Axis("head", (0, 1), ("H0", "H1")), Axis("position", (0,), ("$x$",)))
    three = Effects(heads, {"effect": np.ones((3, 2, 2, 1))}, *baselines(), ABOUT)
    assert [axes.get_title() for axes in effects_figure(three).axes[:2]] == ["L0", "L1"]
    assert effects_html(three).startswith("<img")


def test_more_axes_than_a_picture_has_are_refused_but_told_in_a_notebook() -> None:
    axes = tuple(Axis(name, (0,), ("",)) for name in ("layer", "head", "query", "key"))
    four = Effects(axes, {"effect": np.ones((3, 1, 1, 1, 1))}, *baselines(), replace(ABOUT, model="<m>"))
    with pytest.raises(SelectionError, match="1 x 1 x 1 x 1"):
        effects_figure(four)
    assert effects_html(four).startswith("<pre>Effects(&lt;m&gt;")


def baselines() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    return np.zeros(3), np.ones(3), ("one", "two", "three")
