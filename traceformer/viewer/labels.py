"""How tokens are written on pages, where nothing is invisible: a space is a middle dot, a line's end an arrow."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby

__all__ = ["part_notes", "visible"]

_NAMED = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def visible(text: str) -> str:
    """Returns a token's text with every character that would not be seen, or that would move others, made visible."""
    return "".join(_NAMED.get(character) or _visible(character) for character in text) or "∅"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in ("Zs", "Zl", "Zp"):  # control, direction, surrogate, private, spaces
        return f"⟨{ord(character):04X}⟩"
    return f"◌{character}" if category[0] == "M" else character


def part_notes(hexes: Sequence[str | None]) -> list[str]:
    """Returns for each token what its bytes are a part of; empty for tokens that are whole characters.

    Args:
        hexes: For each token its bytes as hexadecimal digits, or None if they are whole characters.
    """
    notes: list[str] = []
    for is_part, group in groupby(hexes, lambda digits: digits is not None):
        own = list(group)
        notes += _notes([bytes.fromhex(digits or "") for digits in own]) if is_part else [""] * len(own)
    return notes


def _notes(parts: Sequence[bytes]) -> list[str]:
    """The notes of neighbouring tokens of which none is a whole number of characters."""
    whole = b"".join(parts)
    # Where each byte's character begins, as the decoder sees it: it replaces what is no character byte by byte.
    owner: list[str] = []
    place = 0
    while place < len(whole):
        length = next((n for n in range(1, 5) if _decodes(whole[place : place + n])), 1)
        character = whole[place : place + length]
        owner += [character.decode() if _decodes(character) else ""] * length
        place += length
    notes: list[str] = []
    place = 0
    for part in parts:
        characters = dict.fromkeys(character for character in owner[place : place + len(part)] if character)
        of = f", part of {' and '.join(visible(character) for character in characters)}" if characters else ""
        notes.append(f"{'byte' if len(part) == 1 else 'bytes'} {part.hex(' ').upper()}{of}")
        place += len(part)
    return notes


def _decodes(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False
