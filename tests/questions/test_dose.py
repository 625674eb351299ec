"""Dose and response on the built-in model, beside its own forward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from traceformer.analysis.directions import Direction
from traceformer.errors import SelectionError, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey
from traceformer.texts.prompts import load_prompt_set

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = ["If the argument is not", "Returns a"]


def trait() -> Direction:
    vector = np.random.default_rng(1).normal(size=256).astype(np.float32)
    return Direction("trait", {1: vector}, {"site": "resid_post"})


def test_responses_are_read_by_the_model_as_it_is(byte: LoadedModel) -> None:
    own = trait()
    found = tf.dose(byte, PROMPTS, own, [5, 0], max_tokens=4, temperature=0)
    assert found.scales == (0, 5)
    plain = tf.generate(byte, PROMPTS, "final_norm", max_tokens=4, temperature=0)
    assert found.texts[0] == tuple(plain.tokens.response)
    unit = torch.from_numpy(own.by_layer[1] / np.linalg.norm(own.by_layer[1]))
    for i in range(2):
        for j, prompt in enumerate(PROMPTS):
            read = byte.tokenizer(prompt)["input_ids"]
            ids = torch.tensor([[*read, *byte.tokenizer(found.texts[i][j])["input_ids"]]])
            kept: dict[str, Any] = {}
            layer = byte.model.model.layers[1]
            hook = layer.register_forward_hook(lambda _, __, output, kept=kept: kept.update(rows=output))
            with torch.no_grad():
                predicted = byte.model(ids).logits[0].log_softmax(-1)
            hook.remove()
            rows = kept["rows"][0] if isinstance(kept["rows"], tuple) else kept["rows"]
            n, rows = len(read), rows.reshape(-1, 256)
            expected = predicted[n - 1 : -1].gather(1, ids[0, n:, None]).mean()
            assert found.n_tokens[i, j] == ids.shape[1] - n
            assert found.log_prob[i, j] == pytest.approx(float(expected), abs=1e-5)
            assert found.projection[i, j] == pytest.approx(float((rows[n:] @ unit).mean()), abs=1e-4)
    summary = found.summary()
    assert list(summary.scale) == [0, 5]
    assert summary.projection.to_numpy() == pytest.approx(found.projection.mean(axis=1))
    assert len(found.to_frame()) == 4
    told = found.to_json()
    assert [each["scale"] for each in told["scales"]] == [0, 5]
    assert told["position"] == {"start": -1, "stop": None, "step": None}
    assert "Dose(byte: trait at resid_post of layer 1" in repr(found)
    assert len(tf.figures.dose(found).axes) == 2
    assert "<img" in found._repr_html_()


def test_one_scale_takes_no_step(byte: LoadedModel) -> None:
    assert not tf.dose(byte, PROMPTS[:1], trait(), [0], max_tokens=2).rises


def test_what_cannot_be_measured_is_refused(byte: LoadedModel) -> None:
    own = trait()
    for scales, words in (([], "scales"), ([1.0, 1.0], "twice"), ([float("nan")], "scale=nan")):
        with pytest.raises(UsageError, match=words):
            tf.dose(byte, PROMPTS, own, scales)
    with pytest.raises(SelectionError, match="layer 9"):
        tf.dose(byte, PROMPTS, own, [1], layer=9, max_tokens=2)
    narrow = Direction("narrow", {1: np.ones(7, np.float32)})
    with pytest.raises(UsageError, match="7"):
        tf.dose(byte, PROMPTS, narrow, [0, 1], max_tokens=2)
    encoder = tf.load_model(tiny_model("bert"))
    with pytest.raises(Unsupported, match="generates no text"):
        tf.dose(encoder, PROMPTS, Direction("own", {1: np.ones(32, np.float32)}), [1], max_tokens=2)


def test_an_encoder_decoder_is_steered_and_read_in_its_decoder(tiny_folder: Callable[..., Path]) -> None:
    model = tf.load_model(str(tiny_folder("t5")), device="cpu", with_head=True)
    own = Direction("own", {1: np.random.default_rng(1).normal(size=32).astype(np.float32)})
    found = tf.dose(model, PROMPTS[:1], own, [0, 40], max_tokens=4, temperature=0)
    run = tf.generate(model, PROMPTS[:1], "resid_post", max_tokens=4, temperature=0, dtype="float32")
    assert found.texts[0] == tuple(run.tokens.response)
    assert found.texts[1] != found.texts[0]
    unit = own.by_layer[1] / np.linalg.norm(own.by_layer[1])
    n = int(found.n_tokens[0, 0])
    rows = run.get(0, ArrayKey.parse("dec.resid_post"), 1)
    assert found.projection[0, 0] == pytest.approx(float((rows[1 : 1 + n] @ unit).mean()), abs=1e-4)


@pytest.mark.slow
def test_the_trait_of_the_documentation_rises_with_every_step(byte: LoadedModel) -> None:
    texts = [(EXAMPLES / f"{name}.txt").read_text().splitlines() for name in ("errors", "returns")]
    errors = tf.fit_direction(*texts, model=byte, name="errors")
    found = tf.dose(byte, load_prompt_set("dynamic"), errors, [-60, -40, -20, 0, 20, 40, 60], max_tokens=60)
    assert found.about.layer == 1
    assert found.rises
    fluency = found.log_prob.mean(axis=1)
    assert fluency.argmax() == 3
    assert (np.diff(fluency[:4]) > 0).all()
    assert (np.diff(fluency[3:]) < 0).all()
