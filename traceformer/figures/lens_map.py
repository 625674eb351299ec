"""The logit lens as a matplotlib figure."""

import math

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from traceformer.analysis.lens import Lens
from traceformer.errors import check_is
from traceformer.figures.style import inline, titled
from traceformer.texts.shown import label, visible

__all__ = ["lens_figure", "lens_html"]

_COLOURS = "viridis"
_MOST_WRITTEN = 40
_LONGEST = 9  # characters of a token in a cell


def lens_figure(value: Lens, *, title: str | None = None) -> Figure:
    """Returns layers upwards, positions to the right: the likeliest next token, its probability as the colour.

    A red frame marks where that is the token which came next. Beyond 40 positions there is no room for the tokens.
    """
    check_is(value, Lens, "what lens gave")
    n_layers, n_positions = len(value.layers), len(value.positions)
    written = n_positions <= _MOST_WRITTEN
    width = 0.55 * n_positions if written else min(max(0.05 * n_positions, 8.0), 24.0)
    figure = Figure(figsize=(max(width, 4.5) + 2.2, max(0.3 * n_layers, 1.5) + 1.7), layout="constrained")
    axes = figure.add_subplot()
    probabilities = value.top_probabilities[:, :, 0]
    image = axes.imshow(probabilities, cmap=_COLOURS, vmin=0, vmax=1, origin="lower", aspect="auto")
    if written:
        for layer in range(n_layers):
            for position in range(n_positions):
                token_id, light = int(value.top_ids[layer, position, 0]), probabilities[layer, position] > 0.5
                text = label(_short(visible(value.names[token_id])))
                axes.text(
                    position, layer, text, ha="center", va="center", fontsize=7, color="black" if light else "white"
                )
                if token_id == value.targets[position]:
                    axes.add_patch(_frame(position, layer))
    every = 1 if written else math.ceil(n_positions / 64)
    shown = range(0, n_positions, every)
    axes.set_xticks(shown, [label(_short(visible(value.tokens[i]))) for i in shown], fontsize=7, rotation=90)
    step = math.ceil(n_layers / 32)
    axes.set_yticks(range(0, n_layers, step), [f"L{layer}" for layer in value.layers[::step]], fontsize=8)
    axes.tick_params(length=0)
    axes.set(xlabel="token at the position", ylabel="after layer")
    what = "the likeliest next token after each layer" + ", framed where it came" * written
    figure.suptitle(titled(f"{title or f'{value.key}  example {value.example_id}'}\n{what}"), fontsize=9)
    figure.colorbar(image, ax=axes, label="its probability", shrink=0.9)
    return figure


def lens_html(value: Lens) -> str:
    """Returns the same for a notebook."""
    return inline(lens_figure(value), alternative=repr(value))


def _frame(position: int, layer: int) -> Rectangle:
    return Rectangle((position - 0.48, layer - 0.46), 0.96, 0.92, fill=False, edgecolor="red", linewidth=1.2)


def _short(token: str) -> str:
    return token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…"
