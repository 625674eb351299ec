"""Trait curves over tokens, and the quality of vectors layer by layer, as matplotlib figures."""

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from traceformer.analysis.directions import Direction
from traceformer.analysis.projection import Projections, TextCurves
from traceformer.errors import UsageError, check_choice, check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import SIGNED, category, charts, faint, headed, ink, sheet, styled
from traceformer.figures.trait_text import text_figure
from traceformer.shapes import Float32
from traceformer.texts.shown import label, visible

__all__ = ["TraitChart", "direction_figure", "direction_html", "traits_figure"]

TraitChart: TypeAlias = Literal["curves", "text"]

_LAYERS = colormaps["viridis"]
_MOST_LINES = 6
_MOST_PANELS = 12
_MOST_TICKS = 116


@styled
def traits_figure(
    value: Projections,
    *,
    chart: TraitChart = "curves",
    smooth: int = 1,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Returns one panel per direction for one example, else one per example with all directions in it.

    A dashed line is where the response begins, a dotted one the threshold that the direction was fitted with, if that
    is known. Of several layers each has a line, or, beyond six, a row of a map; where there are several examples, the
    mean over layers is drawn. Beyond 12 examples the first 12 are shown.

    Args:
        value: What was projected.
        chart: `curves`, or `text`: the tokens of the first example, coloured by their projection.
        smooth: Over how many tokens around each the mean is drawn, the curve itself thin behind it.
        title: In place of the run and its array.
        ax: Where to draw a single panel.

    Raises:
        UsageError: no such chart, nothing to smooth over, or several panels for one `ax`.
    """
    check_is(value, Projections, "what project gave")
    check_choice("chart", chart, get_args(TraitChart))
    if smooth < 1:
        raise UsageError(f"the mean over {smooth} tokens", hint="1 for the curve as it is")
    found = value.examples
    title = f"{value.run_name}  {value.array}" if title is None else title
    if chart == "text":
        return text_figure(value, f"{title}{_layer(found[0])}  example {found[0].example_id}", ax)
    if len(found) == 1:
        return _of_one(found[0], value, smooth, f"{title}{_layer(found[0])}  example {found[0].example_id}", ax)
    shown = found[:_MOST_PANELS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, places = charts(ax, rows, columns, 5.2 * columns, 2.4 * rows + 0.8, sharey=True)
    for axes, own in zip(places, shown, strict=False):
        for i, name in enumerate(own.names):
            _curve(axes, own.mean(i), smooth, category(i), label(name))
        _decorate(axes, own)
        axes.set_title(label(own.example_id))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    places[0].legend()
    layers = "" if len(found[0].by_layer) == 1 else f", mean over {len(found[0].by_layer)} layers"
    first = f", the first {len(shown)} of {len(found)} examples" if len(shown) < len(found) else ""
    headed(figure, ax, f"{title}{_layer(found[0])}: projection of every token{layers}{first}")
    return figure


def _layer(own: TextCurves) -> str:
    [*layers] = own.by_layer
    return f" L{layers[0]}" if len(layers) == 1 and layers[0] is not None else ""


def _curve(axes: Axes, values: Float32[np.ndarray, "token"], smooth: int, colour: Any, name: str) -> None:
    """A curve over tokens; smoothed, the mean over those tokens around each that there are."""
    if smooth == 1:
        axes.plot(values, color=colour, linewidth=1.2, marker=".", markersize=3, label=name)
        return
    axes.plot(values, color=colour, linewidth=0.6, alpha=0.35)
    width = np.ones(smooth)
    sums, counts = (np.convolve(numbers, width, mode="full") for numbers in (values, np.ones(len(values))))
    start = (smooth - 1) // 2
    axes.plot((sums / counts)[start : start + len(values)], color=colour, linewidth=1.6, label=name)


def _of_one(own: TextCurves, value: Projections, smooth: int, title: str, ax: Axes | None) -> Figure:
    n_tokens, layers = len(own.tokens), list(own.by_layer)
    as_map = len(layers) > _MOST_LINES
    height = max(2.2, 0.16 * len(layers)) if as_map else 2.4
    size = min(max(0.12 * n_tokens, 7.0), 14.0) + 1.5, height * len(own.names) + 1.5
    figure, panels = charts(ax, len(own.names), 1, *size, sharex=True)
    for i, (axes, name) in enumerate(zip(panels, own.names, strict=True)):
        if as_map:
            numbers = np.stack([own.by_layer[layer].values[:, i] for layer in layers])
            limit = float(np.abs(numbers).max(initial=0)) or 1.0
            image = axes.imshow(numbers, cmap=SIGNED, vmin=-limit, vmax=limit, origin="lower", aspect="auto")
            step = math.ceil(len(layers) / 16)
            axes.set_yticks(range(0, len(layers), step), [f"L{layer}" for layer in layers[::step]])
            figure.colorbar(image, ax=axes, label="projection")
        else:
            for n, layer in enumerate(layers):
                colour = category(i) if len(layers) == 1 else _LAYERS(n / max(1, len(layers) - 1))
                _curve(axes, own.by_layer[layer].values[:, i], smooth, colour, f"L{layer}")
                threshold = value.threshold(i, layer)
                if threshold is not None:
                    axes.axhline(threshold, color=colour, linestyle=":", linewidth=1)
            axes.margins(x=0.01)
            axes.set_ylabel("projection")
            if len(layers) > 1:
                axes.legend()
        _decorate(axes, own, as_map)
        if ax is None:
            axes.set_title(label(name))
    step = math.ceil(n_tokens / _MOST_TICKS)
    shown = range(0, n_tokens, step)
    panels[-1].set_xticks(shown, [label(visible(own.tokens[position])) for position in shown], rotation=90)
    headed(figure, ax, title if ax is None else f"{title}  {own.names[0]}")
    return figure


def _decorate(axes: Axes, own: TextCurves, as_map: bool = False) -> None:
    """Zero, and the line between prompt and response."""
    if not as_map:
        axes.axhline(0, color=faint(), linewidth=0.8, zorder=0)
    if own.n_prompt is not None:
        axes.axvline(own.n_prompt - 0.5, color=ink(), linestyle="--", linewidth=1)
        axes.annotate(
            "response", (own.n_prompt - 0.5, 1), (3, -8), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7,
        )  # fmt: skip


@styled
def direction_figure(*values: Direction, title: str | None = None, figure: Figure | SubFigure | None = None) -> Figure:
    """Returns how well a direction does at each layer, on examples that it was not fitted on; or several directions.

    These are two charts side by side, in `figure` if that is given.

    Raises:
        UsageError: it is not known of one.
    """
    whole, place = sheet(figure, 9, 3.6)
    accuracy, effect = place.subplots(1, 2)
    for value in values:
        check_is(value, Direction, "what fit_direction gave")
    for number, value in enumerate(values):
        if not value.quality:
            raise UsageError(f"how well {value.name} does is not known", why="it was not fitted here")
        layers = [0 if layer is None else layer for layer in value.quality]
        # Curves of two directions that lie on each other are seen as rings.
        name, size = str(value.about.get("method", value.name)), 9 - 2 * (number % 4)
        style = dict[str, Any](color=category(number), marker="o", fillstyle="none", markersize=size)
        accuracy.plot(layers, _numbers(value, "held_out_accuracy"), label=name, **style)
        shuffled = f"{name}, shuffled, highest of 10"
        accuracy.plot(layers, _numbers(value, "shuffled_highest"), linestyle=":", label=shuffled, **style)
        effect.plot(layers, _numbers(value, "effect_size"), label=name, **style)
    accuracy.axhline(0.5, color=faint(), zorder=0)
    accuracy.set(ylim=(0, 1.03), title="held-out accuracy")
    effect.set(title="effect size (Cohen's d, held out)")
    effect.axhline(0, color=faint(), zorder=0)
    for axes in (accuracy, effect):
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.legend()
    place.suptitle(label(title or values[0].name))
    return whole


def direction_html(value: Direction) -> str:
    """Returns the same for a notebook."""
    return inline(direction_figure(value), alternative=repr(value))


def _numbers(value: Direction, name: str) -> list[float]:
    return [math.nan if (number := own.get(name)) is None else number for own in value.quality.values()]
