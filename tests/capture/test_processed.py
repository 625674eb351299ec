"""Batches that a processor made: what is recorded of them is what the model itself returns of the same batch."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.marks import slow
from tests.seeing import IMAGE, PER_IMAGE, SEEING, seeing
from traceformer.capture.extract import record
from traceformer.errors import UsageError
from traceformer.models.load import load_model
from traceformer.questions.vocabulary import shown_tokens

EXACT = {"atol": 2e-5, "rtol": 2e-5}
FAMILIES = [name if name == "qwen3_vl" else slow(name) for name in SEEING]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_recorded_of_a_batch_with_images_is_the_models_own(family: str) -> None:
    seen = seeing(family)
    run = record(load_model(seen.model), seen.batch, "attn hidden resid logits", dtype="float32")
    seen.model.set_attn_implementation("eager")
    with torch.no_grad():
        own = seen.model(**seen.batch, output_hidden_states=True, output_attentions=True)
    lengths = seen.batch["attention_mask"].sum(1).tolist()
    for example, length in enumerate(lengths):
        assert run.length(example, "dec") == length
        for layer, entry in enumerate(own.hidden_states):
            np.testing.assert_allclose(run.get(example, "dec.hidden", layer), entry[example, :length], **EXACT)
        for layer, pattern in enumerate(own.attentions):
            recorded = run.get(example, "dec.self.attn_pattern", layer)
            np.testing.assert_allclose(recorded, pattern[example, :, :length, :length], **EXACT)
        np.testing.assert_allclose(run.get(example, "dec.logits"), own.logits[example, :length], **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
def test_a_row_of_a_padded_batch_is_what_it_is_alone(family: str) -> None:
    seen = seeing(family)
    model = load_model(seen.model)
    together = record(model, seen.batch, "attn resid", dtype="float32")
    apart = record(model, seen.alone, "attn resid", dtype="float32")
    assert apart.n == together.n == 2
    for example in range(2):
        for spec in together.layout.arrays:
            for layer in spec.layers:
                one, other = (run.get(example, spec.key, layer) for run in (together, apart))
                np.testing.assert_allclose(one, other, **EXACT)


def test_tokens_of_images_are_told_from_those_of_text() -> None:
    seen = seeing("llava")
    run = record(load_model(seen.model), seen.batch, "resid_post")
    assert [*run.tokens.kind[0]] == ["text"] * 3 + ["image"] * PER_IMAGE + ["text"] * 4
    assert [piece.text for piece in shown_tokens(run, 1, "dec")] == ["#1", *["‹image›"] * PER_IMAGE, "#9"]
    assert [*run.tokens.input_ids[1]] == [1, *[IMAGE] * PER_IMAGE, 9]


@pytest.mark.slow
def test_an_image_changes_what_is_recorded() -> None:
    seen = seeing("llava")
    model = load_model(seen.model)
    other = {**seen.alone[0], "pixel_values": 1 - seen.alone[0]["pixel_values"]}
    one, two = (record(model, batch, "resid_post", dtype="float32") for batch in (seen.alone[0], other))
    changed = np.abs(one.get(0, "resid_post", 1) - two.get(0, "resid_post", 1)).max(axis=1)
    assert (changed[:3] == 0).all()
    assert (changed[3:] > 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])}, "has holes"),
        ({"attention_mask": torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])}, "hides a whole row"),
        ({"attention_mask": torch.ones(2, 3)}, r"is \(2, 3\)"),
        ({"input_ids": torch.ones(4)}, "no .row, token. of whole numbers"),
    ],
)
def test_a_batch_that_is_none_is_refused(changes: dict[str, Any], said: str, byte: Any) -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), **changes}
    with pytest.raises(UsageError, match=said):
        record(byte, batch, "resid_post")


def test_what_says_how_texts_are_read_is_refused_beside_a_batch(byte: Any) -> None:
    with pytest.raises(UsageError, match="`limit` does not apply to a processor's batch"):
        record(byte, {"input_ids": torch.tensor([[5, 6, 7, 8]])}, "resid_post", limit=1)
    with pytest.raises(UsageError, match="batch 1 has no input_ids"):
        record(byte, [{"input_ids": torch.tensor([[5, 6]])}, {"pixel_values": torch.ones(1)}], "resid_post")


def test_a_batch_padded_on_the_left_has_its_true_tokens_only(byte: Any) -> None:
    ids = torch.tensor([[0, 0, 72, 101, 108], [82, 111, 109, 101, 33]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    run = record(byte, batch, "attn resid", dtype="float32")
    alone = record(byte, [[72, 101, 108]], "attn resid", dtype="float32")
    assert [*run.tokens.input_ids[0]] == [72, 101, 108]
    for spec in run.layout.arrays:
        for layer in spec.layers:
            np.testing.assert_allclose(run.get(0, spec.key, layer), alone.get(0, spec.key, layer), **EXACT)


def test_batches_of_several_sizes_are_examples_in_their_order(byte: Any) -> None:
    batches = [{"input_ids": torch.tensor([[5, 6, 7]])}, {"input_ids": torch.tensor([[8, 9], [10, 11]])}]
    run = record(byte, batches, "resid_post")
    assert [[*ids] for ids in run.tokens.input_ids] == [[5, 6, 7], [8, 9], [10, 11]]
