"""Metrics of heads along a training, against their definitions."""

import numpy as np
import pytest

import traceformer as tf
from traceformer.analysis.head_curves import HeadCurves, along_steps
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.errors import NotRecorded, SelectionError, UsageError

ROWS = tuple(HeadName("dec.self", layer, head) for layer in (0, 3) for head in (0, 1, 2))
STEPS = (0, 1, 4, 100)


@pytest.fixture
def curves() -> HeadCurves:
    random = np.random.default_rng(0)
    tables = {
        step: HeadMetrics(
            ROWS,
            {"induction": random.random(6), "entropy": random.random(6) * 3, "retrieval": np.full(6, np.nan)},
            Measured("a run", examples={"dec.self": 5}, texts="5 texts"),
        )
        for step in reversed(STEPS)
    }
    return along_steps(tables, "traces/steps")


def test_curves_are_the_tables_of_all_steps(curves: HeadCurves) -> None:
    assert curves.steps == STEPS
    frame = curves.to_frame()
    assert list(frame.columns[:4]) == ["step", "attention", "layer", "head"]
    for number, step in enumerate(STEPS):
        assert np.array_equal(frame[frame.step == step].induction, curves.values["induction"][number])
        assert curves.at(step).about.source == "traces/steps"
    assert np.array_equal(curves.curve("induction", layer=3, head=1), curves.values["induction"][:, 4])
    told = curves.to_json()
    assert told["steps"] == [0, 1, 4, 100]
    assert np.array_equal(
        told["attention"]["dec.self"]["metrics"]["induction"], curves.values["induction"].reshape(4, 2, 3)
    )
    assert told["attention"]["dec.self"]["metrics"]["retrieval"][0] == [[None] * 3] * 2


def test_the_first_step_is_the_first_at_which_the_metric_is_reached(curves: HeadCurves) -> None:
    for least in (0.0, 0.5, 0.9, 2.0):
        found = curves.first_step("induction", least)
        for row in range(6):
            reached = [
                step for step, value in zip(STEPS, curves.values["induction"][:, row], strict=True) if value >= least
            ]
            assert found[row] == reached[0] if reached else np.isnan(found[row])
    assert np.isnan(curves.first_step("retrieval", 0.1)).all()


def test_the_strongest_rise_highest_at_any_step(curves: HeadCurves) -> None:
    highest = [max(column) for column in curves.values["induction"].T]
    assert curves.strongest("induction", 3) == tuple(sorted(range(6), key=lambda row: -highest[row])[:3])


def test_what_is_not_there_is_refused(curves: HeadCurves) -> None:
    with pytest.raises(SelectionError, match="there are steps 0, 1, 4, 100"):
        curves.at(3)
    with pytest.raises(SelectionError, match="L1H0 requested"):
        curves.curve("induction", layer=1, head=0)
    with pytest.raises(NotRecorded, match="no column sharpness"):
        curves.first_step("sharpness", 1)
    tables = {step: curves.at(step) for step in STEPS}
    tables[4] = HeadMetrics(ROWS[:2], {"induction": np.zeros(2)}, tables[4].about)
    with pytest.raises(UsageError, match="steps 0 and 4 cannot be compared"):
        along_steps(tables, "x")


def test_its_figure_has_a_panel_per_metric_on_a_logarithmic_axis_that_begins_at_0(curves: HeadCurves) -> None:
    figure = tf.figures.training(curves, metrics=("induction", "entropy"), heads=("L3H1", "L0H2"))
    above, below = figure.axes
    assert [line.get_label() for line in above.get_lines()[-2:]] == ["L3H1", "L0H2"]
    assert np.array_equal(above.get_lines()[-2].get_ydata(), curves.values["induction"][:, 4])
    assert len(below.get_lines()) == 6
    assert (below.get_xscale(), below.get_xlabel(), below.get_ylabel()) == ("symlog", "training step", "entropy, nats")
    assert below.get_xlim()[0] < 0
    with pytest.raises(SelectionError, match="no head L9H9"):
        tf.figures.training(curves, metrics=["induction"], heads=["L9H9"])
    with pytest.raises(UsageError, match="a figure of no metrics"):
        tf.figures.training(curves, metrics=())
    assert "src=" in curves._repr_html_()
