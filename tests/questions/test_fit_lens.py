"""A lens fitted from a run: which rows it sees, what its figures are, and what cannot be fitted."""

import inspect
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import traceformer as tf
from traceformer.analysis.lens import normed
from traceformer.errors import (
    ConfigurationChanged,
    NotRecorded,
    NumericError,
    SelectionError,
    Unsupported,
    UsageError,
)
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import readout_of
from traceformer.models.tiny import tiny_model
from traceformer.questions import fitting_rows
from traceformer.questions.fitting_rows import PARTS, FittingRows
from traceformer.questions.lens import residual_of
from traceformer.store.run import Run

EXAMPLES = 30


def token_lists(n: int = EXAMPLES, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 90, size=random.integers(5, 20)).tolist() for _ in range(n)]


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return tf.load_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def read(tiny: LoadedModel) -> Run:
    return tf.record(tiny, token_lists(), "resid_post hidden logits", dtype="float32", keep_duplicates=True)


@pytest.fixture(scope="module")
def fitted(tiny: LoadedModel, read: Run) -> tf.Translators:
    return tf.fit_lens(read, model=tiny, steps=40)


def parts_of(run: Run, model: LoadedModel, **asked: Any) -> FittingRows:
    return FittingRows(run, residual_of(run), readout_of(model), **asked)


def test_no_example_is_in_two_parts_and_all_are_in_one(read: Run, tiny: LoadedModel) -> None:
    own = parts_of(read, tiny)
    assert sum(own.examples.values()) == EXAMPLES
    assert sum(own.rows.values()) == read.lengths().sum()
    assert own.drawn == own.rows
    of_row = read.token_examples()
    seen = [set(of_row[own.numbers[part]].tolist()) for part in PARTS]
    assert [len(each) for each in seen] == [own.examples[part] for part in PARTS]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
    other = parts_of(read, tiny, seed=1)
    assert (other.numbers["fit"].tolist(), other.examples) != (own.numbers["fit"].tolist(), own.examples)


def test_the_rows_of_a_layer_are_the_runs(read: Run, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting_rows, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr(fitting_rows, "_MOST_ROWS", {"validation": 9, "held_out": 5})
    own = parts_of(read, tiny)
    assert (own.drawn["validation"], own.drawn["held_out"]) == (9, 5)
    rows, ends = read.activations("resid_post", 0), read.activations("resid_post", own.last)
    found = own.read(0)
    for part in PARTS:
        assert np.array_equal(found.drawn[part], rows[own.numbers[part]])
        np.testing.assert_array_equal(own.ends()[part], normed(ends[own.numbers[part]], readout_of(tiny)))
    inside = own.part_of_row == 1
    np.testing.assert_allclose(found.validation.mean, rows[inside].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.validation.mean_rest, (ends - rows)[inside].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_ridge_is_scikit_learns_on_the_rows_that_are_fitted(read: Run, tiny: LoadedModel) -> None:
    found = tf.fit_lens(read, kind="ridge", layers=[0], model=tiny)
    own = parts_of(read, tiny)
    rows = read.activations("resid_post", 0)[own.numbers["fit"]].astype(float)
    missing = read.activations("resid_post", own.last)[own.numbers["fit"]] - rows
    about = rows - rows.mean(axis=0)
    penalty = found.about["penalties"]["0"] * np.trace(about.T @ about) / rows.shape[1]
    theirs = Ridge(alpha=penalty, solver="cholesky").fit(rows, missing)
    np.testing.assert_allclose(found.weights[0], theirs.coef_ + np.eye(rows.shape[1]), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.biases[0], theirs.intercept_, rtol=1e-3, atol=1e-4)
    assert found.held_out is not None
    assert found.held_out.chosen == ("ridge",)


def plain_figures(run: Run, model: LoadedModel, rows: np.ndarray) -> tuple[float, float]:
    """KL and top-1 of what the model's own modules say of rows, against its logits of held-out rows."""
    held_out = parts_of(run, model).numbers["held_out"]
    aims = torch.from_numpy(run.activations("logits")[held_out])
    network: Any = model.model
    with torch.inference_mode():
        said = network.lm_head(network.model.norm(torch.from_numpy(rows[held_out])))
    kl = torch.nn.functional.kl_div(said.log_softmax(1), aims.log_softmax(1), reduction="batchmean", log_target=True)
    return float(kl), float((said.argmax(1) == aims.argmax(1)).float().mean())


def test_its_figures_are_those_of_the_models_own_modules(read: Run, tiny: LoadedModel, fitted: tf.Translators) -> None:
    own = fitted.held_out
    assert own is not None
    assert own.rows == parts_of(read, tiny).rows["held_out"]
    for i, layer in enumerate(fitted.layers):
        rows = read.activations("resid_post", layer)
        kl, top1 = plain_figures(read, tiny, fitted.translated(rows, layer))
        logit_kl, logit_top1 = plain_figures(read, tiny, rows)
        assert (own.kl[i], own.logit_kl[i]) == pytest.approx((kl, logit_kl), rel=1e-3, abs=1e-5)
        assert (own.top1[i], own.logit_top1[i]) == pytest.approx((top1, logit_top1))


def test_the_last_layer_says_what_is_said_in_the_end(fitted: tf.Translators) -> None:
    own = fitted.held_out
    assert own is not None
    assert (own.kl[-1], own.top1[-1], own.logit_kl[-1], own.chosen[-1]) == (0, 1, 0, "identity")
    assert (fitted.weights[-1] == np.eye(fitted.d_model)).all()
    assert not fitted.biases[-1].any()


def test_it_is_the_same_each_time_and_another_by_another_seed(
    read: Run, tiny: LoadedModel, fitted: tf.Translators
) -> None:
    again = tf.fit_lens(read, model=tiny, steps=40)
    assert (again.weights == fitted.weights).all()
    assert again.to_json() == fitted.to_json()
    other = tf.fit_lens(read, model=tiny, steps=40, seed=3)
    assert (other.weights[0] != fitted.weights[0]).any()


def test_it_knows_whose_it_is(fitted: tf.Translators, read: Run) -> None:
    assert (fitted.kind, fitted.model_weights) == ("tuned", read.about.model_weights)
    assert fitted.about["site"] == "dec.resid_post"
    assert sum(fitted.about["examples"].values()) == EXAMPLES
    fitted.check_model(fitted.d_model, fitted.d_vocab or 0, read.about.model_weights)


def test_of_a_model_with_texts_it_is_that_of_their_run(tiny: LoadedModel, fitted: tf.Translators) -> None:
    told: list[tuple[int, int]] = []
    found = tf.fit_lens(tiny, token_lists(), steps=40, progress=lambda *at: told.append(at))
    assert (found.weights == fitted.weights).all()
    assert told[-1] == (len(found.layers) * 40,) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_hidden_says_the_same_of_the_logit_lens_as_the_stream(
    tiny: LoadedModel, read: Run, fitted: tf.Translators
) -> None:
    hidden = tf.record(tiny, token_lists(), "hidden", dtype="float32")
    found = tf.fit_lens(hidden, model=tiny, steps=40)
    assert found.layers == fitted.layers
    assert found.about["site"] == "dec.hidden"
    assert found.held_out is not None
    assert fitted.held_out is not None
    np.testing.assert_allclose(found.held_out.logit_kl, fitted.held_out.logit_kl, rtol=1e-4, atol=1e-6)
    assert (found.held_out.kl[:-1] < found.held_out.logit_kl[:-1]).all()


def test_some_layers_and_the_first_examples(read: Run, tiny: LoadedModel) -> None:
    found = tf.fit_lens(read, kind="ridge", layers=[1], limit=12, model=tiny)
    assert found.layers == (1,)
    assert sum(found.about["examples"].values()) == 12
    first = tf.record(tiny, token_lists()[:12], "resid_post", dtype="float32")
    again = tf.fit_lens(first, kind="ridge", layers=[1], model=tiny)  # of rows that other batches rounded otherwise
    np.testing.assert_allclose(again.weights, found.weights, rtol=1e-3, atol=1e-4)


class Spoilt(Run):
    """A run with a number that is none, in the second row of its first example at layer 1."""

    def stream(self, site: Any, layer: int | None = None, *how: Any, **more: Any) -> Iterator[np.ndarray]:
        for number, block in enumerate(super().stream(site, layer, *how, **more)):
            if number == 0 and layer == 1:
                block[1, 2] = np.nan
            yield block


def test_rows_of_nan_are_refused_by_name(read: Run, tiny: LoadedModel) -> None:
    where = f"dec.resid_post of layer 1, example {read.ids[0]}: a row holds NaN or inf"
    with pytest.raises(NumericError, match=re.escape(where)):
        tf.fit_lens(Spoilt(read._source), model=tiny, steps=2)


def test_what_cannot_be_fitted_is_refused_in_words(read: Run, tiny: LoadedModel, byte: LoadedModel) -> None:
    few = tf.record(tiny, token_lists(9), "resid_post", dtype="float32")
    with pytest.raises(UsageError, match=r"a lens of 9 examples; .* it takes 10 that have tokens; more texts"):
        tf.fit_lens(few, model=tiny)
    with pytest.raises(UsageError, match="a lens of 4 examples"):
        tf.fit_lens(read, model=tiny, limit=4)
    with pytest.raises(SelectionError, match="layer 7 requested; this run holds layers 0, 1"):
        tf.fit_lens(read, model=tiny, layers=[0, 7])
    with pytest.raises(UsageError, match="no kind 'linear'; tuned or ridge"):
        inspect.unwrap(tf.fit_lens)(read, kind="linear", model=tiny)
    with pytest.raises(UsageError, match="a run and texts"):
        tf.fit_lens(read, ["a"], model=tiny)
    with pytest.raises(UsageError, match="what shall the model read"):
        tf.fit_lens(tiny)
    with pytest.raises(ConfigurationChanged, match="is not the one that this run was recorded with"):
        tf.fit_lens(read, model=byte)
    first = tf.record(tiny, token_lists(12), "resid_post", layers=[0], dtype="float32")
    with pytest.raises(NotRecorded, match="does not hold the last layer of"):
        tf.fit_lens(first, model=tiny)
    with pytest.raises(NotRecorded, match="no residual stream"):
        tf.fit_lens(tf.record(tiny, token_lists(12), "mlp_out"), model=tiny)
    encoder = tf.load_model(tiny_model("bert"))
    with pytest.raises(Unsupported, match="predicts no next token"):
        tf.fit_lens(encoder, token_lists(12))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1.5}, {"seed": -1}, {"limit": 0}])
def test_numbers_that_make_no_sense_are_refused(read: Run, tiny: LoadedModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a whole number"):
        inspect.unwrap(tf.fit_lens)(read, model=tiny, **wrong)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten times the rows, of which as many are drawn; numpy's memory is what is traced."""
    monkeypatch.setattr(fitting_rows, "_MOST_BYTES", 1 << 19)
    monkeypatch.setattr(fitting_rows, "_MOST_ROWS", {"validation": 256, "held_out": 256})
    peaks: list[int] = []
    for n in (200, 2000):
        random = np.random.default_rng(n)
        texts = [random.integers(0, 90, size=60).tolist() for _ in range(n)]
        run = tf.record(tiny, texts, "resid_post", out=tmp_path / str(n), shard_examples=32, batch_size=32)
        tracemalloc.start()
        tf.fit_lens(run, model=tiny, steps=5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000 * 8  # and a few numbers for each row, which say whose it is


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:texts are cut to")  # one of the demo's is longer than the model reads
@pytest.mark.parametrize("name", ["byte", "byte-sparse"])
def test_on_the_built_in_models_it_is_nearer_at_every_layer_and_names_the_likeliest_as_often(
    name: str, tmp_path: Path
) -> None:
    run = tf.record(name, "demo", "resid_post", out=tmp_path / "run")
    own = tf.fit_lens(run).held_out
    assert own is not None
    assert (own.kl[:-1] < 0.8 * own.logit_kl[:-1]).all()
    assert (own.top1 >= own.logit_top1).all()
