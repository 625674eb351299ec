"""Texts of any length for runs that no model has made: words that look English, and tokens that are hard to show.

Words come as often as in a language (Zipf), and stretches of text come again, for induction heads to look at. Some
tokens are a line break, a character of several bytes, a byte of one, or very long.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

__all__ = ["VOCABULARY", "Text", "text_of"]

Unit = tuple[str, ...]  # the names of tokens that belong together: the bytes of one character

_COMMON, _BEGINNINGS, _MIDDLES, _ENDS = (
    words.split()
    for words in (
        "the of and to in a is that for it as was with on by at from this be are not which or an have but were "
        "one all their there been if more when who would about time out up into than its only some could new "
        "other then these two may first any now such like our over even most made after also many before must "
        "through where much should well way",
        "br c cl d f fl g gr h l m n p pl qu r s sh st t tr v w",
        "a ai e ea i o oa ou u",
        "ble ck d ft lly ld ment n nd ness ng r red rst s ssion st t ting tion ve x",
    )
)
_MADE_UP = [f"▁{a}{b}{c}" for a, b, c in product(_BEGINNINGS, _MIDDLES, _ENDS)]
_STOPS: tuple[Unit, ...] = ((",",), (".",), (".",), (";",), ("?",), ("<0x0A>",), (".", "<0x0A>", "<0x0A>"))
_ODD: tuple[Unit, ...] = (
    ("▁café",),
    ("▁日本語",),
    ("<0xF0>", "<0x9F>", "<0x99>", "<0x82>"),  # 🙂
    ("▁counterrevolutionaries",),
    ("▁https://example.org/a/very/long/address?with=parameters",),
    ("=" * 48,),
    ("▁▁▁▁▁▁▁▁",),
    ("<0x09>",),
)
_START = "<s>"
VOCABULARY: tuple[str, ...] = (
    _START,
    *dict.fromkeys(
        (*(f"<0x{byte:02X}>" for byte in range(256)), *(name for unit in (*_STOPS, *_ODD) for name in unit))
    ),
    *(f"▁{word}" for word in _COMMON),
    *_MADE_UP,
)
_ID = {name: number for number, name in enumerate(VOCABULARY)}
_SHORTEST, _LONGEST_STRETCH = 4, 17


class Text(NamedTuple):
    """A text and its tokens: their names, their numbers in the vocabulary, and where each lies in the text."""

    text: str
    names: list[str]
    ids: list[int]
    offsets: list[list[int]]


def text_of(n_tokens: int, random: np.random.Generator) -> Text:
    """Returns a text of so many tokens, of which the first, `<s>`, stands for none of it."""
    units: list[Unit] = []
    odd = [_ODD[number] for number in random.permutation(len(_ODD))]
    while _tokens(units) < n_tokens - 1:
        units += _next_units(units, odd, random)
    while _tokens(units) > n_tokens - 1:
        units.pop()
    units += [("▁the",)] * (n_tokens - 1 - _tokens(units))
    text, names, offsets = "", [_START], [[0, 0]]
    for unit in units:
        written = _written(unit)
        offsets += _spans(unit, written, len(text))
        names += unit
        text += written
    return Text(text, names, [_ID[name] for name in names], offsets)


def _spans(unit: Unit, written: str, start: int) -> list[list[int]]:
    """Returns where each token lies: without the space before a word; bytes at their character."""
    if len(unit) == len(written):
        return [[start + i, start + i + 1] for i in range(len(unit))]
    spaces = len(written) - len(written.lstrip(" "))
    return [[start + (spaces == 1), start + len(written)]] * len(unit)


def _tokens(units: list[Unit]) -> int:
    return sum(map(len, units))


def _next_units(units: list[Unit], odd: list[Unit], random: np.random.Generator) -> list[Unit]:
    """Returns what comes next: an odd token, a stretch of what there is, or a few words and a stop."""
    if odd and random.random() < 0.4:
        return [odd.pop()]
    if len(units) > 2 * _LONGEST_STRETCH and random.random() < 0.3:
        start = int(random.integers(0, len(units) - _LONGEST_STRETCH))
        return units[start : start + int(random.integers(_SHORTEST, _LONGEST_STRETCH))]
    words = [_word(random) for _ in range(int(random.integers(3, 12)))]
    return [*words, _STOPS[int(random.integers(len(_STOPS)))]]


def _word(random: np.random.Generator) -> Unit:
    rank = int(random.zipf(1.3)) - 1
    return (f"▁{_COMMON[rank]}" if rank < len(_COMMON) else _MADE_UP[rank % len(_MADE_UP)],)


def _written(unit: Unit) -> str:
    """Returns the text that the unit's tokens stand for."""
    written = b"".join(
        bytes([int(name[3:5], 16)]) if name.startswith("<0x") else name.replace("▁", " ").encode() for name in unit
    )
    return written.decode()
