"""Direct logit attribution as a matplotlib figure: the largest parts as bars, all heads and MLPs as a map."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from traceformer.analysis.attribution import Attribution
from traceformer.analysis.logit_split import Part
from traceformer.errors import check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import SIGNED, ink, quiet, sheet, styled, titled
from traceformer.sites import Attention
from traceformer.texts.shown import label, visible

__all__ = ["attribution_figure", "attribution_html"]

_FOR, _AGAINST = "#b2182b", "#2166ac"
_MOST_BARS = 20
_MOST_HEADS = 12
_MOST_WRITTEN = 64
_MOST_NUMBERED = 16  # columns of the map
_LONGEST = 9  # characters of a token


@styled
def attribution_figure(
    value: Attribution, *, title: str | None = None, figure: Figure | SubFigure | None = None
) -> Figure:
    """Returns the 20 largest parts as bars, the others as one; beside them heads and MLPs of every layer in colours.

    Colours reach as far as the heads do; MLPs, which may be far larger, have their numbers written where there is
    room. Heads that were split by source token are rows of a map below, the 12 largest of them: tokens to the right.
    All charts are drawn in `figure` if that is given.
    """
    check_is(value, Attribution, "what attribute gave")
    split = _largest_split(value)
    n_bars = min(len(value.parts), _MOST_BARS) + 1
    n_layers = max(1, 1 + max((part.layer or 0 for part in value.parts), default=0))
    height = max(0.21 * n_bars, 0.24 * n_layers, 2.0) + 0.9
    below = 0.26 * sum(map(len, split.values())) + 0.2 + 0.9 * len(split)
    drawn, whole = sheet(figure, 10.0, height + below)
    halves: Any = whole.subfigures(2, 1, height_ratios=(height, below)) if split else (whole, None)
    upper, lower = halves
    bars, heads = upper.subplots(1, 2, width_ratios=(1.0, 1.25)).tolist()
    _draw_bars(bars, value)
    _draw_heads(upper, heads, value, n_layers)
    if lower is not None:
        _draw_sources(lower, value, split)
    place = f"example {value.example_id}, position {value.position}, {visible(value.token)}"
    likeliest = " (the likeliest next token)" if value.is_likeliest else ""
    what = f"{value.what}{likeliest}: {value.total:.3f}, remainder {value.remainder:.1g}"
    whole.suptitle(titled(f"{title + '  ' if title else ''}{place}\n{what}"))
    return drawn


def attribution_html(value: Attribution) -> str:
    """Returns the same for a notebook."""
    return inline(attribution_figure(value), alternative=repr(value))


def _draw_bars(axes: Axes, value: Attribution) -> None:
    order = np.argsort(-np.abs(value.contributions), kind="stable")
    shown, others = order[:_MOST_BARS], order[_MOST_BARS:]
    names = [str(value.parts[i]) for i in shown]
    sizes = [float(value.contributions[i]) for i in shown]
    if len(others):
        names.append(f"{len(others)} others")
        sizes.append(float(value.contributions[others].sum()))
    axes.barh(range(len(sizes)), sizes, color=[_FOR if size > 0 else _AGAINST for size in sizes], height=0.75)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color=quiet(), linewidth=0.8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("adds to the logit" if value.against is None else "adds to the difference", fontsize=8)


def _draw_heads(figure: Figure | SubFigure, axes: Axes, value: Attribution, n_layers: int) -> None:
    """Layers upwards; to the right the heads, those of cross-attention behind them, and the MLP."""
    grids = {"": value.grid("self"), "×": value.grid("cross")}
    names = [f"{mark}H{head}" for mark, grid in grids.items() for head in range(grid.shape[1])]
    whole = [part for part in value.parts if part.kind == "attn"]
    columns = [grid for grid in grids.values() if grid.size]
    for attention in dict.fromkeys(part.attention for part in whole):
        names.append("attn" if attention == "self" else "× attn")
        columns.append(_column(value, n_layers, "attn", attention))
    names.append("MLP")
    columns.append(_column(value, n_layers, "mlp", None))
    grid = np.concatenate(columns, axis=1)
    limit = float(np.abs(grid[:, :-1]).max()) or 1.0
    image = axes.imshow(grid, cmap=SIGNED, vmin=-limit, vmax=limit, origin="lower", aspect="auto")
    if len(names) <= _MOST_NUMBERED:
        for layer, own in enumerate(grid[:, -1].tolist()):
            colour = "white" if abs(own) > 0.6 * limit else "black"
            axes.text(len(names) - 1, layer, f"{own:.2g}", ha="center", va="center", fontsize=7, color=colour)
    every = math.ceil(len(names) / 24)
    ticks = sorted({*range(0, len(names) - 1, every), len(names) - 1})
    axes.set_xticks(ticks, [names[i] for i in ticks], fontsize=7, rotation=90 if len(names) > 12 else 0)
    step = math.ceil(n_layers / 32)
    axes.set_yticks(range(0, n_layers, step), [f"L{layer}" for layer in range(0, n_layers, step)], fontsize=7)
    for before in np.cumsum([own.shape[1] for own in columns])[:-1]:
        axes.axvline(before - 0.5, color=ink(), linewidth=0.8)
    axes.tick_params(length=0)
    beyond = "both" if float(np.abs(grid).max()) > limit else "neither"
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, extend=beyond).ax.tick_params(labelsize=7)


def _column(value: Attribution, n_layers: int, kind: str, attention: str | None) -> np.ndarray:
    column = np.zeros((n_layers, 1))
    for part, own in zip(value.parts, value.contributions, strict=True):
        if part.kind == kind and part.attention == attention and part.layer is not None:
            column[part.layer] = own
    return column


def _largest_split(value: Attribution) -> dict[Attention, list[Part]]:
    """The largest heads that were split, in the order of the model, by the attention that they belong to."""
    order = np.argsort(-np.abs(value.contributions), kind="stable").tolist()
    chosen = sorted([i for i in order if value.parts[i] in value.sources][:_MOST_HEADS])
    found: dict[Attention, list[Part]] = {}
    for part in (value.parts[i] for i in chosen):
        assert part.attention is not None
        found.setdefault(part.attention, []).append(part)
    return found


def _draw_sources(figure: Figure | SubFigure, value: Attribution, split: Mapping[Attention, Sequence[Part]]) -> None:
    limit = max(float(np.abs(value.sources[part]).max()) for parts in split.values() for part in parts) or 1.0
    heights = [len(parts) for parts in split.values()]
    places = figure.subplots(len(split), 1, squeeze=False, height_ratios=heights)[:, 0].tolist()
    for axes, (attention, parts) in zip(places, split.items(), strict=True):
        grid = np.stack([value.sources[part] for part in parts])
        axes.imshow(grid, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(parts)), [str(part) for part in parts], fontsize=7)
        tokens = value.source_tokens[attention]
        shown = range(0, len(tokens), math.ceil(len(tokens) / _MOST_WRITTEN))
        axes.set_xticks(shown, [label(_short(visible(tokens[i]))) for i in shown], fontsize=7, rotation=90)
        axes.tick_params(length=0)
    places[-1].set_xlabel("by way of the source token", fontsize=8)
    figure.colorbar(places[0].images[0], ax=places, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)


def _short(token: str) -> str:
    return token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…"
