"""Trait vectors: a planted one is found, and what is said of their quality is true."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from traceformer.analysis.directions import METHODS, fit, quality
from traceformer.analysis.methods import Method
from traceformer.errors import NotRecorded, UsageError
from traceformer.models.tiny import tiny_model
from traceformer.questions.trait_rows import example_rows
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter

PLANTED_AT, STRENGTH, TEXTS = 1, 8.0, 40


def activations(planted: torch.Tensor | None, seed: int) -> np.ndarray:
    """Each layer's mean over tokens of random texts (layer, text, d), with a vector added behind one block."""
    model = tiny_model("gpt2")
    if planted is not None:
        block = model.base_model.get_submodule("h")[PLANTED_AT]
        block.register_forward_hook(
            lambda _, __, output: (output[0] + planted, *output[1:]) if isinstance(output, tuple) else output + planted
        )
    ids = torch.randint(3, 99, (TEXTS, 12), generator=torch.Generator().manual_seed(seed))
    seen: list[torch.Tensor] = []
    for block in model.base_model.get_submodule("h"):
        block.register_forward_hook(
            lambda *given: seen.append(given[2][0] if isinstance(given[2], tuple) else given[2])
        )
    with torch.inference_mode():
        model(ids)
    return np.stack([each.mean(dim=1).numpy() for each in seen])


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The vector, and the activations of texts with it and of other texts without it."""
    vector = torch.randn(32, generator=torch.Generator().manual_seed(5))
    vector *= STRENGTH / vector.norm()
    return (vector / vector.norm()).numpy(), activations(vector, seed=1), activations(None, seed=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_direction_is_found(method: Method, planted: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    vector, positive, negative = planted
    before = fit(positive[PLANTED_AT - 1], negative[PLANTED_AT - 1], method)
    found = fit(positive[PLANTED_AT], negative[PLANTED_AT], method)
    assert np.linalg.norm(found.direction) == pytest.approx(1, abs=1e-6)
    assert found.held_out.accuracy >= 0.95
    assert found.held_out.effect_size > 3
    assert found.direction @ vector > 0.8
    assert found.separation == pytest.approx(STRENGTH, rel=0.4)
    # Before it was planted there is nothing to find, and shuffled labels have nothing either.
    assert 0.3 <= before.held_out.accuracy <= 0.7
    assert 0.4 <= found.shuffled <= 0.6
    assert found.shuffled_highest < 0.8


ROWS = np.random.default_rng(3)
POSITIVE, NEGATIVE = ROWS.normal(0.4, 1, (9, 30)), ROWS.normal(0, 1, (9, 30))


def scaled(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    return centred / np.sqrt((centred**2).mean())


def test_mean_diff_is_the_difference_of_the_means() -> None:
    expected = POSITIVE.mean(axis=0) - NEGATIVE.mean(axis=0)
    found = fit(POSITIVE, NEGATIVE, "mean_diff")
    np.testing.assert_allclose(found.direction, expected / np.linalg.norm(expected), atol=1e-6)
    assert found.separation == pytest.approx(np.linalg.norm(expected))
    middle = (POSITIVE.mean(axis=0) + NEGATIVE.mean(axis=0)) / 2
    assert found.threshold == pytest.approx(middle @ expected / np.linalg.norm(expected))


@pytest.mark.parametrize("width", [5, 30])  # fewer and more coordinates than rows
def test_probe_is_a_logistic_regression_in_all_coordinates(width: int) -> None:
    positive, negative = POSITIVE[:, :width], NEGATIVE[:, :width]
    rows = scaled(np.concatenate([positive, negative]))
    expected = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(rows, [1] * 9 + [0] * 9).coef_[0]
    found = fit(positive, negative, "probe").direction
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=2e-3)


def test_pca_is_the_first_component_of_the_differences_of_pairs() -> None:
    differences = POSITIVE - NEGATIVE
    both_signs = np.concatenate([differences, -differences])  # their mean is zero
    values, vectors = np.linalg.eigh(np.cov(both_signs.T))
    expected = vectors[:, values.argmax()]
    found = fit(POSITIVE, NEGATIVE, "pca").direction
    assert abs(found @ expected) == pytest.approx(1, abs=1e-6)
    assert found @ (POSITIVE.mean(axis=0) - NEGATIVE.mean(axis=0)) > 0


def test_held_out_accuracy_is_that_of_rows_left_out() -> None:
    """Five of each class and five folds: each pair is told apart by what the other four say."""
    positive, negative = POSITIVE[:5], NEGATIVE[:5]
    right = 0
    for i in range(5):
        others = np.arange(5) != i
        means = positive[others].mean(axis=0), negative[others].mean(axis=0)
        direction, middle = means[0] - means[1], (means[0] + means[1]) / 2
        right += int((positive[i] - middle) @ direction > 0) + int((negative[i] - middle) @ direction <= 0)
    assert fit(positive, negative, "mean_diff").held_out.accuracy == pytest.approx(right / 10)


def test_the_accuracy_of_unequal_classes_is_the_mean_of_both() -> None:
    found = quality(np.array([1.0, 1, 1, -1, 1, 1]), np.array([-1.0, 1]), 0.0)
    assert found.accuracy == pytest.approx((5 / 6 + 1 / 2) / 2)


def test_the_effect_size_is_cohens() -> None:
    positive, negative = np.array([2.0, 4, 6]), np.array([1.0, 2, 3, 2])
    pooled = np.sqrt((2 * 4 + 3 * (2 / 3)) / 5)
    assert quality(positive, negative, 0.0).effect_size == pytest.approx((4 - 2) / pooled)
    assert quality(np.ones(3), np.zeros(3), 0.5).effect_size == np.inf
    assert quality(np.zeros(3), np.zeros(3), 0.5).effect_size == 0


def test_the_same_seed_gives_the_same_baseline() -> None:
    one, two = (fit(POSITIVE, NEGATIVE, "mean_diff", seed=4) for _ in range(2))
    assert (one.shuffled, one.shuffled_highest) == (two.shuffled, two.shuffled_highest)
    assert np.isnan(fit(POSITIVE, NEGATIVE, "mean_diff", shuffles=0).shuffled)


@pytest.mark.parametrize(
    ("positive", "negative", "method", "message"),
    [
        (POSITIVE[:1], NEGATIVE, "mean_diff", "1 positive and 9 negative"),
        (POSITIVE[:8], NEGATIVE, "pca", "there are 8 and 9"),
        (POSITIVE, POSITIVE, "probe", "same mean"),
        (POSITIVE * np.nan, NEGATIVE, "probe", "NaN"),
        (POSITIVE, NEGATIVE, "ica", "no method 'ica'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    positive: np.ndarray, negative: np.ndarray, method: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit.__wrapped__(positive, negative, method)  # pyright: ignore[reportFunctionMemberAccess]


SPEC = ArraySpec(ArrayKey("dec", None, "resid_post"), (2,), width=4)


def run_of(folder: Path, lengths: list[int], **columns: list[int]) -> TraceStore:
    """A run whose rows count up: token t of example e holds e + t in every coordinate."""
    layout = RunLayout.plan(arch="dec", arrays=[SPEC], n_examples=len(lengths), longest={"dec": max(lengths)})
    with RunWriter.create(folder, layout, {}, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": lengths})
        for example, length in enumerate(lengths):
            buffer.rows(SPEC.key, example)[...] = (example + np.arange(length))[:, None]
        writer.commit(0, buffer, pa.table({"example_id": [f"e{i}" for i in range(len(lengths))], **columns}))
        return TraceStore(writer.finish())


def test_an_example_is_the_mean_of_its_tokens_its_last_one_or_the_mean_of_its_response(tmp_path: Path) -> None:
    store = run_of(tmp_path / "run", [3, 5], n_prompt=[1, 3])
    assert example_rows(store, SPEC, 2, "mean")[:, 0].tolist() == [1, 3]
    assert example_rows(store, SPEC, 2, "last")[:, 1].tolist() == [2, 5]
    assert example_rows(store, SPEC, 2, "response")[:, 3].tolist() == [1.5, 4.5]


def test_an_example_without_tokens_there_is_refused(tmp_path: Path) -> None:
    store = run_of(tmp_path / "run", [3, 5], n_prompt=[3, 3])
    with pytest.raises(UsageError, match="example e0 has no tokens"):
        example_rows(store, SPEC, 2, "response")


def test_a_run_without_responses_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(NotRecorded, match="no responses"):
        example_rows(run_of(tmp_path / "run", [3]), SPEC, 2, "response")
