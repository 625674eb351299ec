r"""What a reader is shown for a token: its text; its bytes, where it is only a part of a character.

Byte-level vocabularies write a byte as a printable character (`Ġ` for a space) or as `<0xE2>`. A token that is no
whole number of characters has no text of its own, and its bytes are shown as `\xe2\x82`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Piece", "pieces_decoded", "pieces_of_text"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES = ("Ġ", "▁")  # how vocabularies write the space before a word
_LOST = "\N{REPLACEMENT CHARACTER}"


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


def pieces_of_text(tokens: Sequence[str], offsets: Sequence[Sequence[int]] | None, text: str) -> list[Piece]:
    """Returns tokens as shown, from their names in the vocabulary and where they lie in the text.

    Tokens that lie nowhere, as special ones do, are shown by name. Without offsets so are all, but for how names
    write spaces and, in a byte-level vocabulary, bytes.
    """
    if offsets is None:
        byte_level = any(character in token for token in tokens for character in "ĠĊ")
        return [
            _bytes_shown(token, otherwise=token) if byte_level else Piece(token.replace("▁", " ")) for token in tokens
        ]
    spans = [(int(start), int(stop)) for start, stop in offsets]
    shown: list[Piece] = []
    for i, (token, (start, stop)) in enumerate(zip(tokens, spans, strict=True)):
        if start >= stop:
            shown.append(Piece(token))
        elif any(_overlap((start, stop), spans[j]) for j in (i - 1, i + 1) if 0 <= j < len(spans)):
            shown.append(_bytes_shown(token, otherwise=text[start:stop]))
        else:
            space = token.startswith(_SPACES) and text[:start].endswith(" ")
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


def printable(text: str) -> str:
    """Returns the text with line breaks and control characters escaped, so that no token can steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def shown_token(token: str) -> str:
    """Returns a token as one word: spaces as dots, line breaks as arrows."""
    return printable(token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")) or "''"
