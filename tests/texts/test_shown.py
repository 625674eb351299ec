"""A token as terminals, figures and pages show it."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.texts.shown import Piece, label, part_notes, pieces_decoded, pieces_of_text, unnamed, visible

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
@example("a  b")  # each space is a token, and belongs to no other
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("\n\n", "↵↵"),
        ("\t", "⇥"),
        ("", "∅"),
        ("a\u00a0b", "a⟨00A0⟩b"),
        ("\u202eabc", "⟨202E⟩abc"),
        ("\u200d", "⟨200D⟩"),
        ("\0", "⟨0000⟩"),
        ("\u0301", "◌\u0301"),
        ("<b>", "<b>"),
        ("猫", "猫"),
    ],
)
def test_nothing_in_a_token_stays_invisible(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(deadline=None)
@given(st.text())
def test_no_label_holds_a_control_character_or_a_space(text: str) -> None:
    assert not [character for character in visible(text) if unicodedata.category(character)[0] in "CZ"]


def test_a_character_split_over_tokens_is_named_at_each_of_them() -> None:
    first, second, third = ("€"[:1].encode()[i : i + 1].hex() for i in range(3))
    notes = part_notes([None, first, second, third, None])
    assert notes == ["", "byte E2, part of €", "byte 82, part of €", "byte AC, part of €", ""]


def test_a_token_that_ends_one_character_and_begins_the_next_names_both() -> None:
    data = "é€".encode()
    assert part_notes([data[:1].hex(), data[1:3].hex(), data[3:].hex()]) == [
        "byte C3, part of é",
        "bytes A9 E2, part of é and €",
        "bytes 82 AC, part of €",
    ]


def test_bytes_of_no_character_are_bytes_only() -> None:
    assert part_notes(["ff", None, "e282"]) == ["byte FF", "", "bytes E2 82"]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=6), st.data())
def test_however_a_text_is_cut_every_part_names_its_characters(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(encoded) - 1)))))
    parts = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    parts = [part for part in parts if part]
    owners = [character for character in encoded.decode() for _ in character.encode()]
    place = 0
    for part, note in zip(parts, part_notes([part.hex() for part in parts]), strict=True):
        expected = dict.fromkeys(owners[place : place + len(part)])
        assert note.endswith("part of " + " and ".join(visible(character) for character in expected))
        place += len(part)


def test_a_token_known_by_its_number_only_is_called_by_it() -> None:
    assert unnamed(475) == "#475"


def test_no_token_is_mathematics_to_matplotlib_nor_breaks_a_line() -> None:
    assert label("$x$\n") == r"\$x\$\n"
