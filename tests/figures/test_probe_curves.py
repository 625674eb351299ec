"""Figures of probes: every number is drawn where it belongs."""

import numpy as np
from matplotlib.figure import Figure

from tests.probed import probes_of
from traceformer import figures


def lines(figure: Figure, axes: int) -> dict[str, list[float]]:
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in figure.axes[axes].lines}


def test_curves_are_of_the_probe_and_its_controls_and_lines_of_baselines() -> None:
    probes = probes_of(layers=(1, 3))
    figure = figures.probes(probes)
    drawn = lines(figure, 0)
    assert drawn["probe"] == [0.8, 0.9]
    assert drawn["control task"] == [0.6, 0.6]
    assert drawn["shuffled labels"] == [0.5, 0.5]
    assert (drawn["random rows"][0], drawn["most frequent class"][0]) == (0.65, 0.7)
    assert drawn["most frequent class of its token"][0] == 0.75
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.2, 0.3]  # pyright: ignore
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 3]  # pyright: ignore
    assert "upos, 2 classes of tokens, at dec.resid_post" in figure.get_suptitle()
    figure.draw_without_rendering()


def test_labels_of_texts_have_no_control_task() -> None:
    figure = figures.probes(probes_of(of="text", layers=(None,)), title="genre")
    assert {"control task", "most frequent class of its token"}.isdisjoint(lines(figure, 0))
    assert figure.get_suptitle() == "genre"
    assert "shuffled" in figure.axes[1].get_title()
    figure.draw_without_rendering()


def test_heads_are_maps() -> None:
    figure = figures.probes(probes_of(layers=(1, 3), heads=(0, 2)))
    accuracy, selectivity = (axes.images[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_allclose(np.asarray(accuracy), [[0.8, 0.9], [1, 1]])
    np.testing.assert_allclose(np.asarray(selectivity), [[0.2, 0.3], [0.4, 0.4]])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["L1", "L3"]
    figure.draw_without_rendering()
