"""What all cards share: a frame with its style, tables, and colours that are seen on light and on dark alike.

A colour is one of two hues, laid over whatever is behind it, as strong as the number that it stands for. Nothing is
said of the colour of text, which is the notebook's own.
"""

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from traceformer.shapes import UInt8
from traceformer.texts.shown import printable, visible

__all__ = ["HUES", "MORE", "card", "cut", "picture", "said", "shade", "signed", "spread", "table", "token"]

MORE = (47, 127, 214)
"""The colour of numbers from zero on: blue."""
_ABOVE = (214, 84, 47)

HUES = ("#2f7fd6", "#e08a00", "#00a077", "#c86fa3", "#d6542f", "#8a8a00")
"""The colours of curves, which are told apart on light and on dark."""

_LEVELS = 16
_FAINTEST = 0.1  # of a picture's colour, where it says nothing
_LONGEST = 96  # characters of a name

# JupyterLab and VS Code have styles of their own for tables in outputs, which the doubled class outweighs.
_STYLE = """\
.tf-card.tf-card{font-size:13px;line-height:1.45;max-width:100%;overflow-x:auto;padding:2px 0 6px}
.tf-card.tf-card p{margin:4px 0;max-width:72em}.tf-card.tf-card b{font-weight:600}
.tf-card.tf-card .quiet{opacity:.7}
.tf-card.tf-card table{border-collapse:collapse;border:0;margin:4px 0 8px;width:auto;table-layout:auto;font-size:12px;\
font-variant-numeric:tabular-nums}
.tf-card.tf-card :is(tr,thead,tbody,tfoot){background:none!important;border:0;padding:0}
.tf-card.tf-card :is(td,th){padding:2px 10px 2px 0;border:0;text-align:left;vertical-align:baseline;line-height:1.4;\
white-space:nowrap;max-width:none}
.tf-card.tf-card .n{text-align:right}
.tf-card.tf-card th{font-weight:400;opacity:.7}
.tf-card.tf-card thead th{border-bottom:1px solid rgba(128,128,128,.4)}
"""


def card(*parts: str, style: str = "") -> str:
    """Returns the parts in their frame; `style` is what only this kind of card needs."""
    return f'<div class="tf-card"><style>{_STYLE}{style}</style>{"".join(parts)}</div>'


def said(text: object) -> str:
    """Returns a name or a text from anywhere as HTML, on one line, at most 96 characters of it."""
    return escape(printable(cut(str(text), _LONGEST)))


def token(text: str, most: int = 12) -> str:
    """Returns a token as HTML, with every character visible."""
    return escape(cut(visible(text), most))


def cut(text: str, most: int) -> str:
    """Returns a text, or as much of it as there is room for."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def spread(count: int, most: int) -> list[int]:
    """Returns which of `count` things are shown where there is room for `most`: the first, the last, and between."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, max(most, 1)).tolist()})


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """Returns a table of cells that are HTML already; the columns `numeric` are set to the right."""
    marks = [" class=n" if column in numeric else "" for column in range(len(heads))]
    head = "".join(f"<th{mark}>{name}" for mark, name in zip(marks, heads, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{mark}>{cell}" for mark, cell in zip(marks, row, strict=True)) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def shade(strength: float) -> str:
    """Returns the CSS colour of a number from 0 to 1, to be laid over what is behind; of NaN it is clear."""
    return _laid(MORE, strength)


def signed(strength: float) -> str:
    """Returns that of a number from -1 to 1: red is more, blue is less."""
    return _laid(_ABOVE if strength > 0 else MORE, abs(strength))


def _laid(colour: tuple[int, int, int], strength: float) -> str:
    red, green, blue = colour
    return f"rgba({red},{green},{blue},{min(strength, 1):.2f})" if np.isfinite(strength) else "transparent"


def picture(cells: UInt8[np.ndarray, "row column"], *, zoom: int, alternative: str) -> str:
    """Returns a picture of one colour as an HTML image that carries its own data, each cell `zoom` pixels wide.

    A cell is from 0, clear, to 255, opaque; 16 steps of it are told apart.
    """
    rows, columns = cells.shape
    data = base64.b64encode(_png(np.rint(cells / 255 * (_LEVELS - 1)).astype(np.uint8))).decode()
    size = f"width:{columns * zoom}px;height:{rows * zoom}px;max-width:none;image-rendering:pixelated"
    return f'<img alt="{escape(alternative)}" style="{size};display:block" src="data:image/png;base64,{data}">'


def _png(levels: UInt8[np.ndarray, "row column"]) -> bytes:
    """Four bits a cell, which are the number of a colour: 0 is clear."""
    rows, columns = levels.shape
    pairs = np.pad(levels, ((0, 0), (0, columns % 2)))
    lines = np.pad(pairs[:, ::2] << 4 | pairs[:, 1::2], ((0, 0), (1, 0)))  # the first byte: a line is stored as it is
    head = struct.pack(">IIBBBBB", columns, rows, 4, 3, 0, 0, 0)
    shares = np.linspace(_FAINTEST, 1, _LEVELS - 1)
    opacity = bytes([0, *np.rint(255 * shares).astype(int).tolist()])
    body = zlib.compress(lines.tobytes(), 9)
    chunks = ((b"IHDR", head), (b"PLTE", bytes(MORE) * _LEVELS), (b"tRNS", opacity), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
