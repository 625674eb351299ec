"""A lens as a matplotlib figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter

from traceformer.analysis.lens import Lens
from traceformer.errors import UsageError, check_choice, check_is
from traceformer.figures.style import blank, placed, styled, titled, written_on
from traceformer.shapes import Float32
from traceformer.texts.shown import label, visible

__all__ = ["MARKS", "Mark", "lens_figure"]

Mark: TypeAlias = Literal["probability", "rank", "kl", "entropy"]

MARKS: Mapping[Mark, str] = {
    "probability": "its probability",
    "rank": "rank of the token that came",
    "kl": "KL(last layer || this layer), nats",
    "entropy": "entropy of all tokens, nats",
}
"""What the colour of a cell may say: the brighter, the surer, or the nearer to what came or to the last layer."""


class _Shades(NamedTuple):
    """The numbers that colours stand for, and which colour is which."""

    values: Float32[np.ndarray, "layer position"]
    colours: str
    norm: Normalize


_IN_A_ROW = 40  # positions whose tokens have room beside each other
_MOST_ROWS = 12
_LONGEST = 9  # characters of a token in a cell
_FRAME = "#D55E00"


@styled
def lens_figure(value: Lens, *, mark: Mark = "probability", title: str | None = None, ax: Axes | None = None) -> Figure:
    """Returns layers upwards, positions to the right: the likeliest next token, its probability as the colour.

    A frame marks where that is the token which came next. Longer texts go on below, 40 positions in a row; beyond 480
    there is no room for the tokens.

    Args:
        value: The lens.
        mark: What the colour says: `probability`, that of the likeliest token; `rank`, that of what came (1 for
            the likeliest); `kl`, how far what the last layer says diverges from what this one says; or `entropy`.
        title: In place of the model's stack and the example.
        ax: Where to draw up to 40 positions.

    Raises:
        UsageError: there are more, for one `ax`; or nothing is known of what is to be marked.
    """
    check_is(value, Lens, "what lens gave")
    check_choice("mark", mark, MARKS)
    shades = _shades(value, mark)
    n_layers, n_positions = len(value.layers), len(value.positions)
    written = n_positions <= _IN_A_ROW * _MOST_ROWS
    in_a_row = min(n_positions, _IN_A_ROW) if written else n_positions
    rows = [range(start, min(start + in_a_row, n_positions)) for start in range(0, n_positions, max(in_a_row, 1))]
    if ax is not None and len(rows) > 1:
        raise UsageError(f"{n_positions} positions for one ax", hint=f"`positions` of the lens, {_IN_A_ROW} at most")
    width = 0.42 * in_a_row if written else min(max(0.05 * n_positions, 8.0), 24.0)
    size = max(width, 4.5) + 1.6, len(rows) * (max(0.24 * n_layers, 1.0) + 0.6) + 0.9
    if ax is None:
        figure = Figure(figsize=size, layout="constrained")
        places: list[Axes] = figure.subplots(len(rows), 1, squeeze=False)[:, 0].tolist()
    else:
        figure, axes = placed(ax, *size)
        places = [axes]
    image = None
    for axes, row in zip(places, rows, strict=True):
        image = _draw(axes, value, shades, row, in_a_row, written=written)
    through = "" if value.translated is None else f", {value.translated}"
    what = f"the likeliest next token after each layer{through}" + ", framed where it came" * written
    heading = titled(f"{title or f'{value.key.stack}  example {value.example_id}'}\n{what}")
    if ax is None:
        figure.suptitle(heading)
    else:
        ax.set_title(heading)
    if image is not None:
        bar = figure.colorbar(image, ax=places, label=MARKS[mark], shrink=max(0.3, 0.9 / len(rows)))
        if mark == "rank":
            bar.ax.yaxis.set_major_formatter(ScalarFormatter())
    return figure


def _shades(value: Lens, mark: Mark) -> _Shades:
    if mark == "probability":
        return _Shades(value.top_probabilities[:, :, 0], "viridis", Normalize(0, 1))
    numbers = {"rank": np.where(value.target_rank > 0, value.target_rank, np.nan), "kl": value.kl}
    found = numbers.get(mark, value.entropy).astype(np.float32)
    if not np.isfinite(found).any():
        why = "no token came next" if mark == "rank" else f"what was read out of {value.key} does not say it"
        raise UsageError(f"`mark={mark!r}`, of which nothing is known", why=why, hint="another `mark`")
    largest = float(np.nanmax(found))
    return _Shades(found, "viridis_r", LogNorm(1, max(largest, 10)) if mark == "rank" else Normalize(0, largest or 1))


def _draw(axes: Axes, value: Lens, shades: _Shades, row: Sequence[int], in_a_row: int, *, written: bool) -> AxesImage:
    """Some positions of all layers, as wide as `in_a_row` of them."""
    cells = np.full((len(value.layers), in_a_row), np.nan, np.float32)
    cells[:, : len(row)] = shades.values[:, row]
    image = axes.imshow(cells, cmap=blank(shades.colours), norm=shades.norm, origin="lower", aspect="auto")
    if written:
        for layer in range(len(value.layers)):
            for column, position in enumerate(row):
                token_id = int(value.top_ids[layer, position, 0])
                text = label(_short(visible(value.names[token_id])))
                colour = written_on(image, float(cells[layer, column]))
                axes.text(column, layer, text, ha="center", va="center", fontsize=6.5, color=colour)
                if token_id == value.targets[position]:
                    axes.add_patch(_frame(column, layer))
    every = 1 if written else math.ceil(len(row) / 64)
    shown = range(0, len(row), every)
    axes.set_xticks(shown, [label(_short(visible(value.tokens[row[i]]))) for i in shown], rotation=90)
    step = math.ceil(len(value.layers) / 32)
    axes.set_yticks(range(0, len(value.layers), step), [f"L{layer}" for layer in value.layers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"token at positions {value.positions[row[0]]} to {value.positions[row[-1]]}")
    return image


def _frame(position: int, layer: int) -> Rectangle:
    return Rectangle((position - 0.47, layer - 0.45), 0.94, 0.9, fill=False, edgecolor=_FRAME, linewidth=1.2)


def _short(token: str) -> str:
    return token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…"
