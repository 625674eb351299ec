"""Pictures of effects: a map whose axes are layers, heads and tokens."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from traceformer.analysis.effects import Axis, Effects
from traceformer.errors import SelectionError, check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import SIGNED, category, charts, faint, headed, styled
from traceformer.shapes import Float64
from traceformer.texts.shown import label, visible

__all__ = ["effects_figure", "effects_html"]

_MOST_TICKS = 64
_LONGEST = 10  # characters of a token on an axis
_MOST_PANELS = 16


@styled
def effects_figure(value: Effects, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Returns a map of the mean effects: the first axis upwards, tokens to the right; red is more, blue is less.

    Of one axis it is a curve with the spread over pairs. Of three, a map for each number of the first one, which no
    single `ax` has room for.

    Raises:
        SelectionError: more axes, or more than 16 maps.
        UsageError: several maps for one `ax`.
    """
    check_is(value, Effects, "what patch or ablate gave")
    values, axes = value.values, value.axes
    limit = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    if len(axes) < 2:
        figure, (place,) = charts(ax, 1, 1, min(max(0.3 * values.size, 4.0), 16.0), 3.2)
        _curve(place, value)
    else:
        panels = axes[0].labels if len(axes) == 3 else ("",)
        if len(axes) > 3 or len(panels) > _MOST_PANELS:
            shape = " x ".join(str(len(axis.numbers)) for axis in axes)
            raise SelectionError(f"a picture of {shape} effects", hint="fewer layers or heads, or `to_frame()`")
        *_, down, across = axes
        columns = min(len(panels), 4)
        rows = math.ceil(len(panels) / columns)
        size = min(max(0.24 * len(across.numbers), 3.0), 18.0), min(max(0.24 * len(down.numbers), 1.6), 12.0)
        figure, places = charts(ax, rows, columns, columns * size[0] + 1.8, rows * (size[1] + 0.8) + 0.7)
        grids = values if len(axes) == 3 else values[None]
        image = None
        for place, grid, name in zip(places, grids, panels, strict=False):
            image = place.imshow(grid, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
            place.invert_yaxis()
            _ticks(place, down, across)
            place.set_title(name)
        for place in places[len(panels) :]:
            place.set_axis_off()
        assert image is not None
        figure.colorbar(image, ax=places, label=_in_words(value), shrink=0.9)
    headed(figure, ax, title or _title(value))
    return figure


def effects_html(value: Effects) -> str:
    """Returns the map for a notebook; of more axes than a picture has, the line that says what they are."""
    import html

    try:
        return inline(effects_figure(value), alternative=repr(value))
    except SelectionError:
        return f"<pre>{html.escape(repr(value))}</pre>"


def _curve(axes: Axes, value: Effects) -> None:
    (axis,) = value.axes
    places, mean = np.arange(len(axis.numbers)), value.values
    axes.axhline(0, color=faint(), linewidth=0.8)
    axes.plot(places, mean, marker="o", markersize=3, color=category(5))
    spread: Float64[np.ndarray, "cell"] = np.nan_to_num(value.spread)
    axes.fill_between(places, mean - spread, mean + spread, color=category(5), alpha=0.15, linewidth=0)
    shown, names = _shown(axis)
    axes.set_xticks(shown, names, rotation=90 if axis.has_tokens else 0)
    axes.set_xlabel(axis.name)
    axes.set_ylabel(_in_words(value))


def _ticks(place: Axes, down: Axis, across: Axis) -> None:
    for axis, of in ((place.xaxis, across), (place.yaxis, down)):
        shown, names = _shown(of)
        rotation = 90 if of.has_tokens and axis is place.xaxis else 0
        axis.set_ticks(shown, names, rotation=rotation)
        axis.set_label_text(of.name)
    place.tick_params(length=0)


def _shown(axis: Axis) -> tuple[Sequence[int], list[str]]:
    """Which numbers of an axis are written, and how: the token where there is one, else the position."""
    shown = range(0, len(axis.numbers), math.ceil(len(axis.numbers) / _MOST_TICKS))
    return shown, [_written(axis.labels[i]) or str(axis.numbers[i]) for i in shown]


def _written(token: str) -> str:
    text = visible(token) if token else ""
    return label(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _in_words(value: Effects) -> str:
    metric = value.about.metric.replace("_", " ")
    return f"more {metric} without it" if value.about.verb == "ablate" else f"share of the {metric}"


def _title(value: Effects) -> str:
    about = value.about
    sites = " + ".join(site.rpartition(".")[2] for site in about.sites)
    of = "text" if about.verb == "ablate" else "pair"
    count = f"{of} {value.pairs[0]}" if len(value.pairs) == 1 else f"mean of {len(value.pairs)} {of}s"
    return f"{about.model}: {about.how} {sites}, {count}"
