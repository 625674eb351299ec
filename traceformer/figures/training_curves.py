"""Metrics of heads along the steps of a training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from traceformer.analysis.head_curves import HeadCurves
from traceformer.errors import SelectionError, UsageError, check_is
from traceformer.figures.shown import inline
from traceformer.figures.style import category, quiet, sheet, styled, titled

__all__ = ["training_figure", "training_html"]

_METRICS = ("previous_token", "induction", "entropy")
_PER_METRIC = 2
_MOST = 8
_UNITS = {"entropy": "entropy, nats"}


@styled
def training_figure(
    value: HeadCurves,
    *,
    metrics: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    title: str | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Returns one panel per metric over the steps of training, which lie on a logarithmic axis that begins at 0.

    Chosen heads have a colour in all panels, the others are thin grey lines behind them.

    Args:
        value: What `tf.heads` gave of a folder of checkpoints.
        metrics: What is drawn: previous_token, induction and entropy by default, as far as they were measured.
        heads: Which have a colour, by name (`L3H1`): by default those whose scores rise highest, but for entropy.
        title: In place of the model and what it read.
        figure: Where to draw.

    Raises:
        NotRecorded: there is no such metric.
        SelectionError: there is no such head.
        UsageError: no metrics, or more than eight heads.
    """
    check_is(value, HeadCurves, "what heads gave of a folder of checkpoints")
    metrics = [metric for metric in _METRICS if metric in value.values] if metrics is None else metrics
    if not metrics:
        raise UsageError("a figure of no metrics", hint=", ".join(value.values))
    columns = [value.column(metric) for metric in metrics]
    chosen = _strongest(value, columns) if heads is None else _named(value, heads)
    whole, place = sheet(figure, 7.2, 1.0 + 2.1 * len(columns))
    panels = place.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for axes, metric, column in zip(panels, metrics, columns, strict=True):
        _draw(axes, value, column, chosen)
        axes.set_ylabel(titled(_UNITS.get(metric, column.replace("_", " "))))
    _scale(panels[-1], value.steps)
    panels[-1].set_xlabel("training step")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1.4)
    examples = next(iter(value.about.examples.values()), None)
    told = f"{value.about.source}: {len(value.rows)} heads at {len(value.steps)} steps"
    place.suptitle(titled((told + (f", over {examples} texts" if examples else "")) if title is None else title))
    return whole


def training_html(value: HeadCurves) -> str:
    """Returns the same for a notebook."""
    return inline(training_figure(value), alternative=repr(value))


def _strongest(value: HeadCurves, columns: Sequence[str]) -> tuple[int, ...]:
    scores = [column for column in columns if column not in _UNITS and np.isfinite(value.values[column]).any()]
    found = (row for column in scores for row in value.strongest(column, _PER_METRIC))
    return tuple(dict.fromkeys(found))[:_MOST]


def _named(value: HeadCurves, heads: Sequence[str]) -> tuple[int, ...]:
    names = list(value.names)
    missing = [name for name in heads if name not in names]
    if missing:
        raise SelectionError(f"no head {missing[0]}", why=f"there are {names[0]} to {names[-1]}")
    if len(heads) > _MOST:
        raise UsageError(f"{len(heads)} heads in colour", why=f"more than {_MOST} are not told apart", hint="fewer")
    return tuple(map(names.index, heads))


def _draw(axes: Axes, value: HeadCurves, column: str, chosen: Sequence[int]) -> None:
    curves = value.values[column]
    others = [row for row in range(len(value.rows)) if row not in chosen]
    axes.plot(value.steps, curves[:, others], color=quiet(), linewidth=0.6, alpha=0.45)
    for number, row in enumerate(chosen):
        name = titled(value.names[row])
        axes.plot(
            value.steps, curves[:, row], color=category(number), linewidth=1.8, marker="o", markersize=3, label=name
        )
    axes.margins(x=0.02)


def _scale(axes: Axes, steps: Sequence[int]) -> None:
    """A logarithmic axis on which 0 has its place before the first step."""
    first = min((step for step in steps if step > 0), default=1)
    axes.set_xscale("symlog", linthresh=first, linscale=0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:g}"))
