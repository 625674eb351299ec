"""Projections against the formula, token by token; dynamics against loops."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store import runs
from traceformer.analysis.projection import dynamics, project
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.questions.trait_rows import project_run
from traceformer.sites import ArrayKey
from traceformer.store.run import TraceStore

RANDOM = np.random.default_rng(0)


def by_the_formula(a: np.ndarray, v: np.ndarray) -> float:
    """(a @ v) / |v|, one pair at a time, in float64."""
    a, v = a.astype(np.float64), v.astype(np.float64)
    return float(sum(x * y for x, y in zip(a, v, strict=True)) / np.sqrt((v * v).sum()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 300), (1400, 384)])  # the last one is more than one block
def test_a_projection_is_the_dot_product_over_the_vectors_norm(dtype: type, shape: tuple[int, int]) -> None:
    activations = (RANDOM.normal(size=shape) * 30).astype(dtype)
    directions = RANDOM.normal(size=(3, shape[1])) * [[0.01], [1], [100]]
    found = project(activations, directions)
    assert found.values.dtype == np.float32
    for token in {0, shape[0] // 2, shape[0] - 1}:
        for i, v in enumerate(directions):
            expected = by_the_formula(activations[token], v)
            # Sums of up to 384 products in float32, relative to the size of the row.
            bound = 2e-6 * np.linalg.norm(activations[token].astype(np.float64))
            assert abs(found.values[token, i] - expected) <= bound
            cosine = expected / np.linalg.norm(activations[token].astype(np.float64))
            assert found.cosines[token, i] == pytest.approx(cosine, abs=4e-6)


def test_float16_rows_do_not_overflow() -> None:
    activations = np.full((2, 4096), 60000, np.float16)
    assert project(activations, np.ones((1, 4096))).values[0, 0] == pytest.approx(
        float(activations[0, 0]) * 64, rel=1e-6
    )


def test_a_row_of_zeros_has_no_cosine() -> None:
    found = project(np.zeros((1, 3), np.float32), np.ones((1, 3)))
    assert found.values[0, 0] == 0
    assert np.isnan(found.cosines[0, 0])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_that_is_no_direction_is_refused(bad: float) -> None:
    directions = np.ones((2, 3))
    directions[1] = [bad, 0, 0]
    with pytest.raises(UsageError, match="direction 1 is no direction"):
        project(np.ones((1, 3), np.float32), directions)


@pytest.fixture
def run(tmp_path: Path) -> TraceStore:
    layout = runs.plan(arrays=[runs.spec("dec.resid_mid"), runs.spec("dec.embed"), runs.spec("dec.self.q")])
    return TraceStore(runs.write(tmp_path / "run", layout))


@pytest.mark.parametrize(("site", "layer"), [("resid_mid", 4), ("embed", None)])
def test_a_run_is_projected_in_the_order_of_its_tokens(run: TraceStore, site: str, layer: int | None) -> None:
    directions = RANDOM.normal(size=(10, 24))
    told: list[tuple[int, int]] = []
    found = project_run(run, site, layer, directions, progress=lambda done, of: told.append((done, of)))
    examples = run.token_examples()
    assert found.values.shape == (len(examples), 10)
    assert told[-1] == (len(examples), len(examples))
    for row in (0, 3, 10):
        array = runs.spec(f"dec.{site}")
        own = runs.expected(run.layout, array, row)
        rows = own if layer is None else own[array.layers.index(layer)]
        expected = [[by_the_formula(a, v) for v in directions] for a in rows]
        np.testing.assert_allclose(found.values[examples == row], expected, atol=1e-5)


def test_heads_are_projected_side_by_side(run: TraceStore) -> None:
    width = run.activations("q", 1).shape[1]
    found = project_run(run, "q", 1, np.eye(width)[:2])
    assert np.array_equal(found.values, run.activations("q", 1)[:, :2].astype(np.float32))


def test_what_does_not_fit_the_run_is_refused(run: TraceStore) -> None:
    with pytest.raises(UsageError, match=r"dec\.resid_mid is 24 wide"):
        project_run(run, "resid_mid", 4, np.ones((1, 25)))
    with pytest.raises(SelectionError, match="layers 1, 4"):
        project_run(run, "resid_mid", 2, np.ones((1, 24)))
    with pytest.raises(NotRecorded, match="resid_post"):
        project_run(run, ArrayKey("dec", None, "resid_post"), 1, np.ones((1, 24)))


CURVES = st.lists(st.floats(-100, 100, width=16), max_size=20)


@settings(deadline=None)
@given(CURVES)
def test_dynamics_are_the_gemma_captures(scores: list[float]) -> None:
    found = dynamics(np.array(scores, np.float32))
    velocity = [after - before for before, after in itertools.pairwise(scores)]
    acceleration = [after - before for before, after in itertools.pairwise(velocity)]
    assert found.velocity.tolist() == velocity
    assert found.acceleration.tolist() == acceleration
    settled = [i for i, each in enumerate(acceleration) if abs(each) < 0.1]
    assert found.commitment_point == (settled[0] if settled else None)
    assert found.peak_velocity == max((abs(each) for each in velocity), default=0)
    mean = sum(abs(each) for each in velocity) / len(velocity) if velocity else 0
    assert found.average_velocity == pytest.approx(mean)
    if not scores:
        assert (found.peak, found.persistence) == (None, 0)
        return
    peak = max(range(len(scores)), key=lambda i: (abs(scores[i]), -i))
    assert found.peak == peak
    assert found.persistence == sum(abs(each) > abs(scores[peak]) / 2 for each in scores[peak + 1 :])


def test_a_curve_that_settles() -> None:
    found = dynamics(np.array([0, 1, 3, 6, 6.05, 6.1, 2.9], np.float64))
    assert found.commitment_point == 3  # 6, 6.05, 6.1: its velocity changes by nothing
    assert (found.peak, found.persistence) == (5, 0)
    assert found.peak_velocity == pytest.approx(3.2)
