"""Encoders whose queries see a part of the keys: patterns at their true positions, or a refusal in words."""

from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from traceformer.analysis.visibility import Visibility, visibility_of
from traceformer.errors import Unsupported
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey
from traceformer.store.meta import AttentionFacts

IDS = [[*range(20, 43)], [31, 7, 12, 60, 5]]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.filterwarnings("ignore:Input ids are automatically padded")
def test_a_longformers_pattern_is_a_dense_softmax_in_its_window() -> None:
    model: Any = tiny_model("longformer")
    run = tf.record(tf.load_model(model), IDS, "attn qkv z resid_pre", dtype="float32")
    for example, (ids, layer) in enumerate((ids, layer) for ids in IDS for layer in range(3)):
        example //= 3
        own, reach = model.longformer.encoder.layer[layer].attention.self, model.config.attention_window[layer] // 2
        rows = torch.from_numpy(run.get(example, "resid_pre", layer))
        with torch.no_grad():
            q, k, v = (
                part(rows).unflatten(1, (4, 8)).transpose(0, 1).numpy() for part in (own.query, own.key, own.value)
            )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(8)
        far = np.abs(np.subtract.outer(np.arange(len(ids)), np.arange(len(ids)))) > reach
        pattern = softmax(np.where(far, -np.inf, scores))
        np.testing.assert_allclose(run.get(example, "attn_pattern", layer), pattern, atol=1e-5)
        np.testing.assert_allclose(run.get(example, "z", layer), pattern @ v, atol=1e-4)
        np.testing.assert_allclose(run.get(example, "q", layer), q / np.sqrt(8), atol=1e-4)
        for site, values in (("k", k), ("v", v)):
            np.testing.assert_allclose(run.get(example, site, layer), values, atol=1e-4)
    assert run.about.attention.local_attention == (4, 4, 8)


@pytest.mark.filterwarnings("ignore:Input ids are automatically padded")
def test_tokens_that_look_everywhere_are_refused_with_what_can_be_recorded() -> None:
    model = tf.load_model(tiny_model("longformer", task="SequenceClassification"))  # whose first token does
    with pytest.raises(Unsupported, match=r"some tokens look everywhere.*the stream can be recorded"):
        tf.record(model, IDS, "attn")
    tf.record(model, IDS, "resid")


def test_of_windows_that_differ_each_layer_has_its_own() -> None:
    facts = AttentionFacts.from_json({"local_attention": [4, 8]})
    key = ArrayKey("enc", "self", "attn_pattern")
    assert [visibility_of(facts, key, layer, ahead=True) for layer in (0, 1)] == [
        Visibility(causal=False, window=2),
        Visibility(causal=False, window=4),
    ]
    assert AttentionFacts.from_json({"local_attention": [4, "x"]}).local_attention is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["big_bird", "bigbird_pegasus"])
def test_a_text_that_switches_attention_to_blocks_is_refused_and_a_shorter_one_is_not(family: str) -> None:
    model: Any = tiny_model(
        family, attention_type="block_sparse", block_size=2, num_random_blocks=1, max_position_embeddings=64
    )
    loaded, ids = tf.load_model(model), [*range(20, 35)]
    run = tf.record(loaded, [ids[:14], ids[:3]], "resid_post", dtype="float32")  # (5 + 2 * 1) * 2 tokens
    assert run.get(0, "resid_post").shape[1] == 14
    with pytest.raises(
        Unsupported, match=r"a text of 15 tokens; beyond 14 tokens .* attends to blocks of keys.*original_full"
    ):
        tf.record(loaded, [ids], "resid_post")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Input ids are automatically padded")
def test_the_stream_of_an_encoder_that_pads_its_texts_is_found() -> None:
    model: Any = tiny_model("led")
    ids = [each[: 7 - number] for number, each in enumerate(IDS)]
    run = tf.record(tf.load_model(model), ids, "resid_post", dtype="float32")
    for number, own in enumerate(ids):
        with torch.no_grad():
            given = {"input_ids": torch.tensor([own]), "decoder_input_ids": torch.tensor([[2]])}
            states = model(**given, output_hidden_states=True).encoder_hidden_states
        for layer, state in enumerate(states[1:]):
            np.testing.assert_allclose(run.get(number, "resid_post", layer), state[0, : len(own)], atol=1e-4)
