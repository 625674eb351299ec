"""How near each layer comes to what the model says in the end: through translators, and through the logit lens."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from traceformer.analysis.translators import HeldOut, Translators
from traceformer.errors import UsageError, check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import category, faint, label, quiet, sheet, styled, titled

__all__ = ["translators_figure", "translators_html"]

_MOST_TICKS = 24


@styled
def translators_figure(
    *values: Translators, title: str | None = None, figure: Figure | SubFigure | None = None
) -> Figure:
    """Returns two charts over layers: the held-out KL to the end, and how often the likeliest word is the same.

    The dashed line is the logit lens on the same rows. Several, as a tuned lens and one by ridge, have a colour each.
    Both charts are drawn in `figure` if that is given.

    Raises:
        UsageError: it is not known of one how well it does.
    """
    for value in values:
        check_is(value, Translators, "what fit_lens gave")
    if not values:
        raise UsageError("a figure of no translators", hint="what fit_lens gave")
    held_out = [_known(value) for value in values]
    whole, place = sheet(figure, 8.4, 3.4)
    divergence, agreement = place.subplots(1, 2)
    for number, (value, own) in enumerate(zip(values, held_out, strict=True)):
        # Curves that lie on each other are seen as rings.
        style = dict[str, Any](
            color=category(number), marker="o", markersize=7 - 2 * (number % 3), linewidth=1.6, clip_on=False
        )
        divergence.plot(value.layers, own.kl, label=label(_named(value)), fillstyle="none", **style)
        agreement.plot(value.layers, own.top1, fillstyle="none", **style)
    style = dict[str, Any](color=quiet(), linestyle="--", marker=".", markersize=4, linewidth=1.2, clip_on=False)
    divergence.plot(values[0].layers, held_out[0].logit_kl, label="logit lens", **style)
    agreement.plot(values[0].layers, held_out[0].logit_top1, **style)
    divergence.set_title("KL to what is said in the end, nats")
    agreement.set_title("likeliest word as in the end, share of rows")
    divergence.set_ylim(bottom=0)
    agreement.set_ylim(0, 1.03)
    for axes in (divergence, agreement):
        _over_layers(axes, values[0].layers)
    divergence.legend()
    first = held_out[0]
    read = f"{first.rows:,} rows of {first.examples} examples that neither fitting nor choosing has seen"
    kinds = ", ".join(dict.fromkeys(map(_named, values)))
    place.suptitle(titled(f"{values[0].model or 'a model'}: {kinds}\n{read}" if title is None else title))
    return whole


def translators_html(value: Translators) -> str:
    """Returns the same for a notebook."""
    return inline(translators_figure(value), alternative=repr(value))


def _known(value: Translators) -> HeldOut:
    if value.held_out is None:
        raise UsageError("how well these translators do is not known", why="they were not fitted here")
    return value.held_out


def _named(value: Translators) -> str:
    return {"ridge": "ridge lens", "tuned": "tuned lens", "jacobian": "Jacobian lens"}[value.kind]


def _over_layers(axes: Axes, layers: tuple[int, ...]) -> None:
    shown = sorted({layers[round(place)] for place in np.linspace(0, len(layers) - 1, min(len(layers), _MOST_TICKS))})
    axes.set_xticks(shown, [f"L{layer}" for layer in shown])
    axes.set_xlabel("layer")
    axes.grid(axis="y", color=faint(), linewidth=0.6)
    axes.set_axisbelow(True)
