"""Trait curves over tokens, and the quality of vectors layer by layer, as matplotlib figures."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from traceformer.analysis.directions import Direction
from traceformer.analysis.projection import Projections, TextCurves
from traceformer.errors import UsageError, check_is
from traceformer.figures.style import inline, titled
from traceformer.texts.shown import label, visible

__all__ = ["direction_figure", "direction_html", "traits_figure", "traits_html"]

_LINES = colormaps["tab10"]
_LAYERS = colormaps["viridis"]
_MOST_LINES = 6
_MOST_PANELS = 12
_MOST_TICKS = 116


def traits_figure(value: Projections, *, title: str | None = None) -> Figure:
    """Returns one panel per direction for one example, else one per example with all directions in it.

    A dashed line is where the response begins. Of several layers each has a line, or, beyond six, a row of a map; where
    there are several examples, the mean over layers is drawn. Beyond 12 examples the first 12 are shown.
    """
    check_is(value, Projections, "what project gave")
    found = value.examples
    title = f"{value.run_name}  {value.key}" if title is None else title
    if len(found) == 1:
        return _of_one(found[0], f"{title}{_layer(found[0])}  example {found[0].example_id}")
    shown = found[:_MOST_PANELS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5.2 * columns, 2.4 * rows + 0.8), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, own in zip(places, shown, strict=False):
        for i, name in enumerate(own.names):
            axes.plot(own.mean(i), color=_LINES(i % 10), linewidth=1.2, label=label(name))
        _decorate(axes, own)
        axes.set_title(label(own.example_id), fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    places[0].legend(fontsize=7)
    layers = "" if len(found[0].by_layer) == 1 else f", mean over {len(found[0].by_layer)} layers"
    first = f", the first {len(shown)} of {len(found)} examples" if len(shown) < len(found) else ""
    figure.suptitle(titled(f"{title}{_layer(found[0])}: projection of every token{layers}{first}"), fontsize=10)
    return figure


def traits_html(value: Projections) -> str:
    """Returns the same for a notebook."""
    return inline(traits_figure(value), alternative=repr(value))


def _layer(own: TextCurves) -> str:
    [*layers] = own.by_layer
    return f" L{layers[0]}" if len(layers) == 1 and layers[0] is not None else ""


def _of_one(own: TextCurves, title: str) -> Figure:
    n_tokens, layers = len(own.tokens), list(own.by_layer)
    as_map = len(layers) > _MOST_LINES
    height = max(2.2, 0.16 * len(layers)) if as_map else 2.4
    figure = Figure(
        figsize=(min(max(0.12 * n_tokens, 7.0), 14.0) + 1.5, height * len(own.names) + 1.5), layout="constrained"
    )
    panels = list(figure.subplots(len(own.names), 1, squeeze=False, sharex=True)[:, 0])
    for i, (axes, name) in enumerate(zip(panels, own.names, strict=True)):
        if as_map:
            numbers = np.stack([own.by_layer[layer].values[:, i] for layer in layers])
            limit = float(np.abs(numbers).max(initial=0)) or 1.0
            image = axes.imshow(numbers, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto")
            step = math.ceil(len(layers) / 16)
            axes.set_yticks(range(0, len(layers), step), [f"L{layer}" for layer in layers[::step]], fontsize=7)
            figure.colorbar(image, ax=axes, label="projection")
        else:
            for n, layer in enumerate(layers):
                colour = _LINES(i % 10) if len(layers) == 1 else _LAYERS(n / max(1, len(layers) - 1))
                axes.plot(own.by_layer[layer].values[:, i], marker=".", color=colour, label=f"L{layer}")
            axes.margins(x=0.01)
            axes.set_ylabel("projection", fontsize=8)
            if len(layers) > 1:
                axes.legend(fontsize=7)
        _decorate(axes, own, as_map)
        axes.set_title(label(name), fontsize=9)
    step = math.ceil(n_tokens / _MOST_TICKS)
    shown = range(0, n_tokens, step)
    panels[-1].set_xticks(shown, [label(visible(own.tokens[position])) for position in shown], rotation=90, fontsize=7)
    figure.suptitle(titled(title), fontsize=10)
    return figure


def _decorate(axes: Axes, own: TextCurves, as_map: bool = False) -> None:
    """Zero, and the line between prompt and response."""
    if not as_map:
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    if own.n_prompt is not None:
        axes.axvline(own.n_prompt - 0.5, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            "response", (own.n_prompt - 0.5, 1), (3, -8), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7,
        )  # fmt: skip


def direction_figure(*values: Direction, title: str | None = None) -> Figure:
    """Returns how well a direction does at each layer, on examples that it was not fitted on; or several directions.

    Raises:
        UsageError: it is not known of one.
    """
    for value in values:
        check_is(value, Direction, "what fit_direction gave")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, effect = figure.subplots(1, 2)
    for number, value in enumerate(values):
        if not value.quality:
            raise UsageError(f"how well {value.name} does is not known", why="it was not fitted here")
        layers = [0 if layer is None else layer for layer in value.quality]
        name, style = str(value.about.get("method", value.name)), {"color": _LINES(number % 10), "marker": "."}
        accuracy.plot(layers, _numbers(value, "held_out_accuracy"), label=name, **style)
        shuffled = f"{name}, shuffled, highest of 10"
        accuracy.plot(layers, _numbers(value, "shuffled_highest"), linestyle=":", label=shuffled, **style)
        effect.plot(layers, _numbers(value, "effect_size"), label=name, **style)
    accuracy.axhline(0.5, color="0.8", zorder=0)
    accuracy.set(ylim=(0, 1.03), title="held-out accuracy")
    effect.set(title="effect size (Cohen's d, held out)")
    effect.axhline(0, color="0.8", zorder=0)
    for axes in (accuracy, effect):
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.legend(fontsize=7)
    figure.suptitle(label(title or values[0].name), fontsize=10)
    return figure


def direction_html(value: Direction) -> str:
    """Returns the same for a notebook."""
    return inline(direction_figure(value), alternative=repr(value))


def _numbers(value: Direction, name: str) -> list[float]:
    return [math.nan if (number := own.get(name)) is None else number for own in value.quality.values()]
