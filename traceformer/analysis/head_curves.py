"""The metrics of attention heads along a training: a table of heads for each of its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.errors import SelectionError, UsageError
from traceformer.presentation import in_notebook
from traceformer.shapes import Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HeadCurves", "along_steps"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeadCurves:
    """The metrics of every head at every step, over the same texts.

        curves = tf.heads("traces/steps")
        curves.curve("induction", layer=3, head=1)       # (step,)
        curves.first_step("induction", 0.5)              # when each head first reaches it; NaN: never

    Attributes:
        steps: How many steps of training the model had behind it, in order.
        rows: The heads, as in `HeadMetrics`.
        values: Name of each metric -> a number per step and head.
        about: What was measured, and how; `source` is the folder of the runs.
    """

    steps: tuple[int, ...]
    rows: tuple[HeadName, ...]
    values: Mapping[str, Float64[np.ndarray, "step row"]]
    about: Measured

    @property
    def attentions(self) -> tuple[str, ...]:
        """`enc.self`, `dec.self`, `dec.cross`, as far as there are heads of them."""
        return tuple(dict.fromkeys(row.attention for row in self.rows))

    @property
    def names(self) -> tuple[str, ...]:
        """`L5H3` for each head, with its attention before it where there are several."""
        several = len(self.attentions) > 1
        return tuple(f"{row.attention} {row}" if several else str(row) for row in self.rows)

    def at(self, step: int) -> HeadMetrics:
        """Returns the metrics of one step.

        Raises:
            SelectionError: there is no such step; the message names those that there are.
        """
        if step not in self.steps:
            raise SelectionError(f"step {step} requested", why=f"there are steps {', '.join(map(str, self.steps))}")
        number = self.steps.index(step)
        return HeadMetrics(self.rows, {name: values[number] for name, values in self.values.items()}, self.about)

    def column(self, metric: str) -> str:
        """Returns a metric's full name, as `HeadMetrics.column` does, and raises what it raises."""
        return self.at(self.steps[0]).column(metric)

    def curve(self, metric: str, *, layer: int, head: int, attention: str | None = None) -> Float64[np.ndarray, "step"]:
        """Returns a metric of one head along the steps.

        Raises:
            NotRecorded: there is no such metric.
            SelectionError: there is no such head, or two attentions have it and `attention` does not say which.
        """
        found = [
            number
            for number, row in enumerate(self.rows)
            if (row.layer, row.head) == (layer, head) and attention in (None, row.attention)
        ]
        if len(found) != 1:
            named = f"L{layer}H{head}" + (f" of {attention}" if attention else "")
            why = f"there are {len(self.rows)} heads, {self.names[0]} to {self.names[-1]}"
            hint = " or ".join(f"attention={self.rows[number].attention!r}" for number in found)
            raise SelectionError(f"{named} requested", why="" if found else why, hint=hint)
        return self.values[self.column(metric)][:, found[0]].copy()

    def first_step(self, metric: str, least: float) -> Float64[np.ndarray, "row"]:
        """Returns the first of the steps at which each head's metric is at least `least`; NaN where it never is.

        Raises:
            NotRecorded: there is no such metric.
        """
        reached = self.values[self.column(metric)] >= least
        first = np.asarray(self.steps, np.float64)[reached.argmax(axis=0)]
        return np.where(reached.any(axis=0), first, np.nan)

    def strongest(self, metric: str, count: int) -> tuple[int, ...]:
        """Returns the numbers of the rows whose metric rises highest at any step, the highest first.

        Raises:
            NotRecorded: there is no such metric.
        """
        highest = np.nan_to_num(self.values[self.column(metric)], nan=-np.inf).max(axis=0)
        return tuple(np.argsort(-highest, kind="stable")[:count].tolist())

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per step and head: step, attention, layer, head, and a column per metric."""
        import pandas as pd

        frames = [self.at(step).to_frame() for step in self.steps]
        for step, frame in zip(self.steps, frames, strict=True):
            frame.insert(0, "step", step)
        return pd.concat(frames, ignore_index=True)

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics of each attention as (step, layer, head) lists, with None for NaN."""
        first, *_ = tables = [self.at(step).to_json() for step in self.steps]
        attention = {
            name: {
                **own,
                "metrics": {
                    metric: [table["attention"][name]["metrics"][metric] for table in tables]
                    for metric in own["metrics"]
                },
            }
            for name, own in first["attention"].items()
        }
        return {**first, "steps": list(self.steps), "attention": attention}

    def __repr__(self) -> str:
        of = f"{len(self.rows)} heads at {len(self.steps)} steps, {self.steps[0]} to {self.steps[-1]}"
        return f"HeadCurves({self.about.source}: {of}, {len(self.values)} metrics)"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def along_steps(tables: Mapping[int, HeadMetrics], source: str) -> HeadCurves:
    """Returns the metrics of several steps of one training, measured in the same way on the same texts.

    Raises:
        UsageError: they are of other heads, other texts, or measured otherwise.
    """
    steps = sorted(tables)
    if not steps:
        raise UsageError("the heads of no step", hint="a folder that tf.record_checkpoints made")
    first = tables[steps[0]]
    for step in steps[1:]:
        other = tables[step]
        parts: Sequence[tuple[str, Any, Any]] = (
            ("heads", first.rows, other.rows),
            ("metrics", list(first.values), list(other.values)),
            ("texts", first.about.texts, other.about.texts),
            ("convention", first.about.convention, other.about.convention),
            ("number of queries", dict(first.about.queries), dict(other.about.queries)),
        )
        changed = [name for name, one, two in parts if one != two]
        if changed:
            raise UsageError(
                f"steps {steps[0]} and {step} cannot be compared",
                why=f"they have other {' and '.join(changed)}",
                hint="record the checkpoints over the same texts, with tf.record_checkpoints",
            )
    values = {name: np.stack([tables[step].values[name] for step in steps]) for name in first.values}
    return HeadCurves(tuple(steps), first.rows, values, replace(first.about, source=source))
