"""Tokens as pages write them."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traceformer.viewer.labels import part_notes, visible


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
