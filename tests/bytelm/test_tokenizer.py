"""One token per byte, exactly, through everything that transformers does with a tokenizer."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from traceformer.bytelm.tokenizer import D_VOCAB, END_OF_TEXT, PAD, ByteTokenizer, decode_bytes, encode_bytes
from traceformer.errors import UsageError

TOKENIZER = ByteTokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_ids_of_a_text_are_its_utf8_bytes(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\r\n\t", "\0", "a <|endoftext|><|pad|> b", "  two  spaces ", "été", "日本😀"]
)
def test_no_text_is_special(text: str) -> None:
    assert TOKENIZER(text)["input_ids"] == list(text.encode())


@given(st.binary())
def test_any_bytes_come_back(data: bytes) -> None:
    ids = encode_bytes(data)
    assert ids.tolist() == list(data)
    assert decode_bytes(ids) == data == decode_bytes(ids.tolist())
    assert TOKENIZER.decode(ids.tolist()) == data.decode("utf-8", errors="replace")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_the_bytes_of_a_character_share_its_place(text: str) -> None:
    places = [(index, index + 1) for index, character in enumerate(text) for _ in character.encode()]
    assert TOKENIZER(text, return_offsets_mapping=True)["offset_mapping"] == places


def test_tokens_are_printable_and_those_of_gpt2() -> None:
    tokens = TOKENIZER.convert_ids_to_tokens(list(range(256)))
    assert set(tokens) == set(ByteLevel.alphabet())
    assert all(token.isprintable() and len(token) == 1 for token in tokens)
    assert tokens[ord("A")] == "A"
    assert tokens[ord(" ")] == "Ġ"


def test_special_tokens_follow_the_bytes() -> None:
    assert len(TOKENIZER) == D_VOCAB == 258
    assert TOKENIZER.bos_token_id == TOKENIZER.eos_token_id == END_OF_TEXT == 256
    assert TOKENIZER.pad_token_id == PAD == 257
    assert TOKENIZER.num_special_tokens_to_add() == 0
    assert TOKENIZER.decode([72, 105, END_OF_TEXT, PAD], skip_special_tokens=True) == "Hi"
    assert TOKENIZER.convert_ids_to_tokens([END_OF_TEXT, PAD]) == ["<|endoftext|>", "<|pad|>"]


def test_special_tokens_are_no_bytes() -> None:
    assert decode_bytes([72, END_OF_TEXT, 105, PAD]) == b"Hi"
    assert decode_bytes([]) == b""
    for ids in ([258], [3, -1], np.array([65, 1000])):
        with pytest.raises(UsageError, match="is no byte"):
            decode_bytes(ids)


@pytest.mark.parametrize("model_type", ["llama", "byte_sparse"])
def test_a_saved_tokenizer_loads_as_any_other(model_type: str, tmp_path: Path) -> None:
    ByteTokenizer(model_max_length=512).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), ByteTokenizer.from_pretrained(tmp_path)):
        assert loaded.is_fast
        assert loaded.model_max_length == 512
        assert loaded("é<|pad|>")["input_ids"] == list("é<|pad|>".encode())
        assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (END_OF_TEXT, PAD, D_VOCAB)
        assert loaded.decode([0xC3, 0x28]) == "\ufffd("
        assert loaded.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_a_batch_is_padded_and_cut() -> None:
    batch = TOKENIZER(["ab", "abcdef"], padding=True, truncation=True, max_length=4)
    assert batch["input_ids"] == [[97, 98, PAD, PAD], [97, 98, 99, 100]]
    assert batch["attention_mask"] == [[1, 1, 0, 0], [1, 1, 1, 1]]
