from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.texts.shown import Piece, pieces_decoded, pieces_of_text

BYTES = ByteTokenizer()


def both_ways(text: str) -> tuple[list[Piece], list[Piece]]:
    """The pieces of a byte tokenizer's tokens, from decoding each and from their places in the text."""
    encoded = BYTES(text, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    tokens = BYTES.convert_ids_to_tokens(ids)
    return (
        pieces_decoded(tokens, [BYTES.decode([each]) for each in ids]),
        pieces_of_text(tokens, encoded["offset_mapping"], text),
    )


def test_parts_of_characters_are_shown_as_bytes() -> None:
    decoded, placed = both_ways("a €")
    expected = [
        Piece("a"),
        Piece(" "),
        Piece(r"\xe2", "e2"),
        Piece(r"\x82", "82"),
        Piece(r"\xac", "ac"),
    ]
    assert decoded == placed == expected


@given(st.text(max_size=20))
def test_bytes_and_characters_together_are_the_text(text: str) -> None:
    for pieces in both_ways(text):
        joined = b"".join(bytes.fromhex(piece.hex) if piece.hex else piece.text.encode() for piece in pieces)
        assert joined.decode() == text


def test_a_real_replacement_character_is_a_character() -> None:
    assert pieces_decoded(["ï¿½"], ["\ufffd"]) == [Piece("\ufffd")]


def test_bytes_of_sentencepiece_vocabularies_are_known() -> None:
    assert pieces_decoded(["<0xE2>", "▁the"], ["\ufffd", "the"]) == [Piece(r"\xe2", "e2"), Piece("the")]


def test_words_are_shown_as_they_stand_in_the_text(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    text = "Bees  returning<b>"
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    shown = [piece.text for piece in pieces_of_text(tokens, encoded["offset_mapping"], text)]
    assert shown == ["[CLS]", "Bees", "returning", "<", "b", ">", "[SEP]"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["Ġthe", "âĤ", "¬"], [Piece(" the"), Piece(r"\xe2\x82", "e282"), Piece(r"\xac", "ac")]),
        (["▁the", "cat"], [Piece(" the"), Piece("cat")]),
        (["[CLS]", "é"], [Piece("[CLS]"), Piece("é")]),
    ],
)
def test_without_places_tokens_are_shown_by_name(tokens: list[str], expected: list[Piece]) -> None:
    assert pieces_of_text(tokens, None, "") == expected


def test_a_space_that_offsets_leave_out_is_shown() -> None:
    assert pieces_of_text(["The", "Ġcat"], [(0, 3), (4, 7)], "The cat") == [Piece("The"), Piece(" cat")]
