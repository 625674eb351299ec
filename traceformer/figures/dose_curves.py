"""Dose and response of steering: the trait's projection and the fluency of responses, one over the other."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from traceformer.analysis.dose import Dose
from traceformer.errors import check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import category, quiet, sheet, styled, titled
from traceformer.shapes import Float64

__all__ = ["dose_figure", "dose_html"]


@styled
def dose_figure(value: Dose, *, title: str | None = None, figure: Figure | SubFigure | None = None) -> Figure:
    """Returns two panels over the scale: projection above, fluency below; a thin line per response, a thick mean.

    The band is the standard error of the mean over responses. A dashed line is the model as it is. Both panels are
    drawn in `figure` if that is given.
    """
    check_is(value, Dose, "what dose gave")
    whole, place = sheet(figure, 6.4, 5.6)
    above, below = place.subplots(2, 1, sharex=True)
    _draw(above, value, value.projection, category(0), f"projection onto {value.about.direction}")
    _draw(below, value, value.log_prob, category(1), "log-probability per token")
    below.set_xlabel(f"scale (times the vector, of norm {value.about.norm:.3g})")
    what = f"{value.about.model}  {value.about.direction} added to {value.about.site} of layer {value.about.layer}"
    read = "responses as the unsteered model reads them"
    place.suptitle(titled(f"{what}\n{len(value.names)} {read}" if title is None else title))
    return whole


def dose_html(value: Dose) -> str:
    """Returns the same for a notebook."""
    return inline(dose_figure(value), alternative=repr(value))


def _draw(axes: Axes, value: Dose, numbers: Float64[np.ndarray, "scale response"], colour: str, name: str) -> None:
    mean, n = numbers.mean(axis=1), numbers.shape[1]
    axes.plot(value.scales, numbers, color=colour, linewidth=0.6, alpha=0.35)
    if n > 1:
        error = numbers.std(axis=1, ddof=1) / np.sqrt(n)
        axes.fill_between(value.scales, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
    axes.plot(value.scales, mean, color=colour, linewidth=2, marker="o", markersize=4)
    axes.axvline(0, color=quiet(), linestyle="--", linewidth=0.8, zorder=0)
    axes.set_ylabel(titled(name))
