"""Blocks that multiply what they add (Granite), or gate heads before W_O; and models of several residual streams."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.marks import slow
from traceformer.errors import Unsupported
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.questions.lens import lens

TEXTS = [[*range(5, 5 + length)] for length in (9, 21, 3)]
Load = Callable[..., LoadedModel]


def facts_of(checked: Any) -> set[str]:
    assert checked.ok
    return {f"{proof.key} {proof.fact}" for proof in (getattr(checked, "result", None) or checked).proofs}


@pytest.fixture(scope="module")
def granite() -> LoadedModel:
    return tf.load_model(tiny_model("granite"))


def test_what_granites_sublayers_add_is_multiplied(granite: LoadedModel) -> None:
    model: Any = granite.model
    made: dict[str, torch.Tensor] = {}
    block = model.model.layers[1]
    hooks = [
        block.self_attn.register_forward_hook(lambda module, args, out: made.update(attn_out=out[0][0])),
        block.mlp.register_forward_hook(lambda module, args, out: made.update(mlp_out=out[0])),
    ]
    with torch.no_grad():
        model(torch.tensor([TEXTS[0]]))
    for hook in hooks:
        hook.remove()
    run = tf.record(granite, TEXTS, "attn_out mlp_out mlp_down resid", dtype="float32")
    for site, tensor in made.items():
        np.testing.assert_allclose(run.get(0, site, 1), 0.22 * tensor.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.get(0, "mlp_down", 1), made["mlp_out"].numpy(), rtol=1e-5, atol=1e-6)
    stream = run.get(0, "resid_pre", 1) + run.get(0, "attn_out", 1) + run.get(0, "mlp_out", 1)
    np.testing.assert_allclose(stream, run.get(0, "resid_post", 1), rtol=1e-5, atol=1e-5)


def test_granites_logits_come_of_its_lens(granite: LoadedModel) -> None:
    run = tf.record(granite, TEXTS, "resid_post logits", dtype="float32")
    probabilities = torch.tensor(run.get(0, "logits")).softmax(-1).max(-1).values.numpy()
    seen = lens(run, 0, model=granite).to_frame()
    last = seen[(seen["layer"] == granite.dims.stacks["dec"].n_layers - 1) & (seen["rank"] == 1)]
    np.testing.assert_allclose(last["probability"].to_numpy(), probabilities, rtol=1e-4)


def test_an_edit_of_what_is_added_is_in_its_units(granite: LoadedModel) -> None:
    plain = tf.record(granite, TEXTS[:1], "resid_mid attn_out", dtype="float32")
    with tf.edit(granite, tf.edits.zero("attn_out", layer=1)):
        without = tf.record(granite, TEXTS[:1], "resid_mid attn_out", dtype="float32")
    expected = plain.get(0, "resid_mid", 1) - plain.get(0, "attn_out", 1)
    np.testing.assert_allclose(without.get(0, "resid_mid", 1), expected, rtol=1e-5, atol=1e-6)
    with tf.edit(granite, tf.edits.scale("attn_out", 1, 1.0)):
        same = tf.record(granite, TEXTS[:1], "resid_mid attn_out", dtype="float32")
    assert (same.get(0, "resid_mid", 1) == plain.get(0, "resid_mid", 1)).all()


@slow
@pytest.mark.parametrize("family", ["granite", "granitemoe", "hyperclovax", "minicpm3"])
def test_every_fact_about_multiplied_sums_holds(family: str) -> None:
    facts = facts_of(tf.check(tf.load_model(tiny_model(family))))
    assert "dec.resid_mid equals resid_pre + attn_out, normed in post-norm blocks" in facts
    assert "dec.logits equals the unembedding of the last residual stream" in facts


@slow
@pytest.mark.parametrize("family", ["afmoe", "laguna"])
def test_gated_heads_are_proved_through_their_gate(family: str) -> None:
    facts = facts_of(tf.check(tf.load_model(tiny_model(family))))
    assert "dec.self.attn_out equals W_O of z times its gate, after the post-norm" in facts


@pytest.mark.slow
def test_several_streams_are_refused_and_attention_is_recorded() -> None:
    model = tf.load_model(tiny_model("gemma3n_text"))
    run = tf.record(model, TEXTS, "attn qkv z", dtype="float32", batch_size=3)
    eager = type(model.model)(model.config).eval()
    eager.load_state_dict(model.model.state_dict())
    eager.set_attn_implementation("eager")
    for example, ids in enumerate(TEXTS):
        with torch.no_grad():
            own = eager(torch.tensor([ids]), output_attentions=True).attentions
        for layer, pattern in enumerate(own):
            np.testing.assert_allclose(run.attn(example, layer=layer), pattern[0].numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(Unsupported, match="several residual streams"):
        tf.record(model, TEXTS, "resid_pre")
