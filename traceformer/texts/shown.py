r"""What a reader is shown for a token, in a terminal, in a figure and on a page.

Its text is what the tokenizer makes of it (`pieces_decoded`, `pieces_of_text`, `pieces_named`). Byte-level
vocabularies write a byte as a printable character (`Ġ` for a space) or as `<0xE2>`. A token that is no whole number of
characters has no text of its own, and its bytes are shown as `\xe2\x82`; `part_notes` say which character they are a
part of. One that is known by number only is called `#475` (`unnamed`).

Results, frames and JSON hold that text. Terminals, figures and pages show `visible` of it: a space is `·`, and nothing
is invisible or moves others. `printable` is for a whole text in a line of a terminal; `label` is how matplotlib takes
what it is to print.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

__all__ = [
    "Piece",
    "label",
    "part_notes",
    "pieces_decoded",
    "pieces_named",
    "pieces_of_text",
    "printable",
    "unnamed",
    "visible",
]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES = ("Ġ", "▁")  # how vocabularies write the space before a word
_LOST = "\N{REPLACEMENT CHARACTER}"
_UNKNOWN = re.compile(r"[\[<]unk[\]>]", re.IGNORECASE)


class Piece(NamedTuple):
    """A token as it is shown, and its bytes as hexadecimal digits if it is no whole number of characters."""

    text: str
    hex: str | None = None


def pieces_decoded(tokens: Sequence[str], decoded: Sequence[str]) -> list[Piece]:
    """Returns tokens as shown, from their names in the vocabulary and what the tokenizer decodes each one to."""
    return [
        _bytes_shown(token, otherwise=text) if _LOST in text else Piece(text)
        for token, text in zip(tokens, decoded, strict=True)
    ]


def pieces_named(tokens: Sequence[str], byte_level: bool | None = None) -> list[Piece]:
    """Returns tokens as shown, from their names in the vocabulary alone: how these write spaces and bytes is undone.

    Args:
        tokens: The names.
        byte_level: Whether each of their characters is a byte; for None it is if one of them has a space's or a line
            break's.
    """
    if byte_level is None:
        byte_level = any(character in token for token in tokens for character in "ĠĊ")
    return [_named(token, byte_level) for token in tokens]


def _named(token: str, byte_level: bool) -> Piece:
    if byte_level or _BYTE.fullmatch(token):
        return _bytes_shown(token, otherwise=token)
    return Piece(token.replace("▁", " "))


def pieces_of_text(
    tokens: Sequence[str], offsets: Sequence[Sequence[int]] | None, text: str, byte_level: bool | None = None
) -> list[Piece]:
    """Returns tokens as shown, from their names in the vocabulary and where they lie in the text.

    Tokens that lie nowhere, as special ones do, are shown by name, and so is one that stands for what the vocabulary
    lacks. Without offsets all are, as `pieces_named` has it.
    """
    if offsets is None:
        return pieces_named(tokens, byte_level)
    spans = [(int(start), int(stop)) for start, stop in offsets]
    shown: list[Piece] = []
    for i, (token, (start, stop)) in enumerate(zip(tokens, spans, strict=True)):
        if start >= stop or _UNKNOWN.fullmatch(token):
            shown.append(Piece(token))
        elif any(_overlap((start, stop), spans[j]) for j in (i - 1, i + 1) if 0 <= j < len(spans)):
            shown.append(_bytes_shown(token, otherwise=text[start:stop]))
        else:
            is_left_out = i == 0 or spans[i - 1][1] < start  # the space before it, which no token has for its own
            space = is_left_out and token.startswith(_SPACES) and text[:start].endswith(" ")
            shown.append(Piece(" " * space + text[start:stop]))
    return shown


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _bytes_shown(token: str, *, otherwise: str) -> Piece:
    """The token by its bytes, as text if they are valid UTF-8 after all."""
    match = _BYTE.fullmatch(token)
    own = bytes([int(match[1], 16)]) if match else _byte_level(token)
    if own is None:
        return Piece(otherwise)
    try:
        return Piece(own.decode("utf-8"))
    except UnicodeDecodeError:
        return Piece("".join(f"\\x{byte:02x}" for byte in own), own.hex())


def _byte_level(token: str) -> bytes | None:
    """The bytes that a token of a byte-level vocabulary stands for; None if it is not written in its alphabet."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return None


def _alphabet() -> dict[str, int]:
    """Byte-level vocabularies write printable Latin-1 bytes as themselves, the other 68 as U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _alphabet()


def unnamed(token_id: int) -> str:
    """Returns what a token is called of which only its number in the vocabulary is known: `#475`."""
    return f"#{token_id}"


def printable(text: str) -> str:
    """Returns the text with line breaks and control characters escaped, so that no token can steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def label(text: str) -> str:
    """Returns the text as matplotlib prints it, which reads what stands between dollar signs as mathematics."""
    return printable(text).replace("$", r"\$")


_NAMED = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def visible(text: str) -> str:
    """Returns a token as one word: every character that would not be seen, or that would move others, made visible."""
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
