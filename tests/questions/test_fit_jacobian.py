"""A Jacobian lens fitted: of which texts and positions it is the mean, what is said of it, and what has none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.capture.edits.test_jacobians import every_derivative, mean_of
from traceformer.errors import NotFound, SelectionError, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import readout_of
from traceformer.models.tiny import tiny_model
from traceformer.questions.fitting_rows import FittingRows
from traceformer.questions.lens import residual_of
from traceformer.store.run import Run

LENGTHS = (7, 2, 6, 2, 5, 4, 7, 6, 5, 2, 4, 3)


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return tf.load_model(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def run(tiny: LoadedModel) -> Run:
    random = np.random.default_rng(0)
    texts = [random.integers(0, 90, size=length).tolist() for length in LENGTHS]
    return tf.record(tiny, texts, "resid_post", dtype="float32", keep_duplicates=True)


@pytest.fixture(scope="module")
def fitted(run: Run, tiny: LoadedModel) -> tf.Translators:
    return tf.fit_lens(run, kind="jacobian", skip=1, max_tokens=5, batch_size=7, seed=3, model=tiny)


def test_it_is_the_mean_over_texts_that_are_not_held_out(fitted: tf.Translators, run: Run, tiny: LoadedModel) -> None:
    rows = FittingRows(run, residual_of(run), readout_of(tiny), seed=3)
    held_out = 2
    used = [number for number, part in enumerate(rows.part_of) if part != held_out and LENGTHS[number] >= 3]
    assert 5 < len(used) < len(LENGTHS) - 2  # some are held out, some too short
    found: list[torch.Tensor] = []
    for number in used:
        ids = [int(token) for token in run.encodings(number)["input_ids"]][:5]
        found.append(mean_of(every_derivative(tiny.model, 1, ids), range(1, len(ids) - 1)))
    expected = torch.stack(found).mean(0).detach().numpy()
    np.testing.assert_allclose(fitted.weights[fitted.layers.index(1)], expected, rtol=1e-4, atol=1e-6)
    assert (fitted.about["n_prompts"], fitted.about["skip"], fitted.about["max_tokens"]) == (len(used), 1, 5)


def test_it_is_of_all_layers_but_the_last_and_says_how_well_it_does(fitted: tf.Translators, run: Run) -> None:
    assert (fitted.kind, fitted.layers) == ("jacobian", (0, 1))
    assert fitted.model_weights == run.about.model_weights
    assert not fitted.biases.any()
    own = fitted.held_out
    assert own is not None
    assert own.chosen == ("jacobian", "jacobian")
    assert (own.kl > 0).all()
    assert own.kl.shape == own.logit_kl.shape == (2,)


def test_it_is_the_same_each_time_and_leaves_the_model_as_it_was(run: Run, tiny: LoadedModel) -> None:
    before = [weight.requires_grad for weight in tiny.model.parameters()]
    steps: list[tuple[int, int]] = []
    one = tf.fit_lens(run, kind="jacobian", skip=1, layers=[0], model=tiny, progress=lambda *step: steps.append(step))
    two = tf.fit_lens(run, kind="jacobian", skip=1, layers=[0], model=tiny)
    assert np.array_equal(one.weights, two.weights)
    assert [weight.requires_grad for weight in tiny.model.parameters()] == before
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps)


def test_a_model_that_reads_texts_needs_no_run(load: Callable[..., LoadedModel], tmp_path: Path) -> None:
    model, texts = load("gpt2"), [f"Seven ships, number {number}" for number in range(10)]
    found = tf.fit_lens(model, texts, kind="jacobian", layers=[1], skip=1, batch_size=32)
    for name, known_by in (("lens.safetensors", "digest"), ("lens.pt", "width")):
        found.save(tmp_path / name)
        lens = tf.lens(model, texts[0], translators=tmp_path / name)
        assert lens.layers == (1, 2)
        assert lens.translated is not None
        assert lens.translated.known_by == known_by


def test_what_has_no_jacobian_lens_is_refused(run: Run, tiny: LoadedModel, load: Callable[..., LoadedModel]) -> None:
    with pytest.raises(UsageError, match=r"no text has the 18 tokens that a Jacobian takes.*smaller `skip`"):
        tf.fit_lens(run, kind="jacobian", model=tiny)
    with pytest.raises(SelectionError, match="layer 2 requested"):
        tf.fit_lens(run, kind="jacobian", layers=[2], skip=1, model=tiny)
    with pytest.raises(UsageError, match="skip=-1"):
        tf.fit_lens(run, kind="jacobian", skip=-1, model=tiny)
    with pytest.raises(NotFound):
        tf.fit_lens(run, kind="jacobian", skip=1, model="nowhere")
    t5, texts = load("t5"), [f"text {number}" for number in range(10)]
    both = tf.record(t5, texts, "resid_post", targets=texts, dtype="float32")
    with pytest.raises(Unsupported, match="does not look ahead"):
        tf.fit_lens(both, kind="jacobian", skip=1, model=t5)
