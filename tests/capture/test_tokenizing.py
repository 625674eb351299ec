"""Texts into ids and padded batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny_folders import TEXTS
from traceformer.capture.batches import pad
from traceformer.capture.encoding import Encoded, Encoder
from traceformer.capture.packing import Batching, batches_by_length
from traceformer.errors import Unsupported
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel


@pytest.fixture(scope="module")
def gpt2(tiny_folder: Callable[..., Path]) -> LoadedModel:
    return load_model(str(tiny_folder("gpt2")), device="cpu")


def rows_of(*lengths: int) -> list[Encoded]:
    return [Encoded({"dec": list(range(length))}, {"dec": ["x"] * length}, None) for length in lengths]


def test_ids_and_tokens_are_the_tokenizers_own(gpt2: LoadedModel) -> None:
    for text, row in zip(TEXTS, Encoder(gpt2, 128, 64).encode(TEXTS), strict=True):
        assert row.ids["dec"] == gpt2.tokenizer(text)["input_ids"]
        assert row.tokens["dec"] == gpt2.tokenizer.tokenize(text)
        assert not row.truncated
        assert row.offsets is not None
        pieces = [text[start:stop].lower() for start, stop in row.offsets]
        assert [piece for piece, token in zip(pieces, row.tokens["dec"], strict=True) if token != "<unk>"] == [
            token for token in row.tokens["dec"] if token != "<unk>"
        ]


def test_truncation_is_on_the_right_and_counted(gpt2: LoadedModel) -> None:
    encoder = Encoder(gpt2, 5, 64)
    whole = gpt2.tokenizer(TEXTS[2])["input_ids"]
    [row] = encoder.encode([TEXTS[2]])
    assert row.ids["dec"] == whole[:5]
    assert row.truncated
    lengths = encoder.measure(TEXTS)
    assert list(lengths.tokens["dec"]) == [min(5, len(gpt2.tokenizer(text)["input_ids"])) for text in TEXTS]
    assert lengths.truncated == sum(len(gpt2.tokenizer(text)["input_ids"]) > 5 for text in TEXTS)


def test_a_limit_beyond_the_models_positions_is_the_models(gpt2: LoadedModel) -> None:
    assert Encoder(gpt2, 1000, 64).max_tokens == 64
    assert Encoder(gpt2, "auto", 64).max_tokens == 64


def test_t5_keeps_its_end_token_when_text_and_target_are_cut(tiny_folder: Callable[..., Path]) -> None:
    t5 = load_model(str(tiny_folder("t5")), device="cpu")
    [row] = Encoder(t5, 6, 4).encode([TEXTS[2]], [TEXTS[3]])
    assert len(row.ids["enc"]) == 6
    assert row.ids["enc"][-1] == t5.tokenizer.eos_token_id
    assert row.labels is not None
    assert len(row.labels) == 4
    assert row.labels[-1] == t5.tokenizer.eos_token_id
    assert row.ids["dec"] == [t5.config.decoder_start_token_id, *row.labels[:-1]]


def test_a_tokenizer_of_another_model_is_refused(gpt2: LoadedModel, tiny_folder: Callable[..., Path]) -> None:
    small = load_model(str(tiny_folder("gpt2", vocab_size=40)), device="cpu")
    with pytest.raises(Unsupported, match="only 40 embeddings"):
        Encoder(replace(small, tokenizer=gpt2.tokenizer), 64, 64).encode(TEXTS)


def test_batches_hold_similar_lengths_and_skip_what_has_no_token() -> None:
    lengths = [row.lengths for row in rows_of(5, 1, 3, 0, 4, 3)]
    assert batches_by_length(lengths, Batching(rows=2)) == [[1, 2], [5, 4], [0]]


def test_padding_is_on_the_right_with_explicit_positions() -> None:
    inputs, spans = pad(rows_of(2, 4), 9, "cpu", with_positions=True)
    assert inputs["input_ids"].tolist() == [[0, 1, 9, 9], [0, 1, 2, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3]] * 2
    assert spans == {"dec": [(0, 2), (0, 4)]}


def test_encoder_decoders_get_inputs_for_both_stacks() -> None:
    row = Encoded({"enc": [5, 6], "dec": [0]}, {"enc": ["a", "b"], "dec": ["c"]}, None, [7])
    inputs, spans = pad([row], 9, "cpu", with_positions=False)
    assert {name: value.tolist() for name, value in inputs.items()} == {
        "input_ids": [[5, 6]],
        "attention_mask": [[1, 1]],
        "decoder_input_ids": [[0]],
        "decoder_attention_mask": [[1]],
    }
    assert spans == {"enc": [(0, 2)], "dec": [(0, 1)]}
    assert inputs["input_ids"].dtype == torch.long
