"""Sweeps estimated: every cell of a grid at once, from slopes; see `slopes`.

What `Sweeper.sweep` measures cell by cell, `estimated` answers to first order: the metric of the untouched pass, and
what each part of a cell would change of it, added up, as parts of one layer do to first order.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from traceformer.capture.edits.metrics import Goal, Metric
from traceformer.capture.edits.slopes import Read, estimates_at
from traceformer.capture.edits.started import Passes
from traceformer.capture.edits.sweeping import Cell, Grid, Measured, Values
from traceformer.capture.edits.touching import Place
from traceformer.errors import UsageError

__all__ = ["estimated"]


def estimated(
    passes: Passes, ids: Tensor, grid: Grid, values: Values, metric: Metric, goal: Goal, *, steps: int = 1
) -> Measured:
    """Returns what a sweep over texts of one length would measure, to first order.

    Args:
        passes: How the model is run.
        ids: The texts: (text, position).
        grid: The cells.
        values: What takes the place of what is touched.
        metric: What is looked at.
        goal: What it compares these texts with.
        steps: At how many points of the way to the new values slopes are taken.

    Raises:
        Unsupported: the model has no such place.
        UsageError: a cell has several layers, the metric has no gradient, or `steps` is less than one.
    """
    if any(len(cell.layers) > 1 for cell in grid.present):
        raise UsageError(
            "an estimate of touching several layers at once",
            why="what the first of them changes reaches the others, which no slope tells",
            hint="layer among the axes of `over`, or `estimate=False`",
        )
    # Tensors that were made in inference mode hold no gradients; copies do.
    with torch.inference_mode(mode=False):
        goal, ids = goal.rows(torch.arange(len(ids), device=ids.device)), ids.clone()
        return _estimated(passes, ids, grid, values, metric, goal, steps)


def _estimated(
    passes: Passes, ids: Tensor, grid: Grid, values: Values, metric: Metric, goal: Goal, steps: int
) -> Measured:
    layers = sorted({cell.layers[0] for cell in grid.present})
    places: list[Place] = [(key, layer) for key in values.keys for layer in layers]
    at = metric.at(passes.n_answers(ids.shape[1]))
    untouched, found = list[Tensor](), list[list[float]]()
    for number in range(len(ids)):  # one by one, so that memory does not grow with their number
        row = torch.tensor([number], device=ids.device)
        text, own = Read(passes, ids[row], at), goal.rows(row)
        other = {place: values.by_place[place] for place in places}
        other = {place: rows if len(rows) == 1 else rows[row] for place, rows in other.items()}
        with torch.no_grad():
            untouched.append(metric.of(text.logits({}), own))
        parts = estimates_at(text, other, partial(metric.of, goal=own), places, steps=steps)
        parts = {place: change[0].detach().cpu().double() for place, change in parts.items()}
        found.append([_total(cell, values, parts) for cell in grid.cells])
    base, changes = torch.cat(untouched).cpu().double(), torch.tensor(found, dtype=torch.float64)
    return Measured(base, base.reshape(-1, *[1] * len(grid.shape)) + changes.reshape(-1, *grid.shape))


def _total(cell: Cell | None, values: Values, parts: Mapping[Place, Tensor]) -> float:
    """What the parts of a cell change together, NaN for none."""
    if cell is None:
        return float("nan")
    [layer] = cell.layers
    total = 0.0
    for key in values.keys:
        own = parts[key, layer]
        chosen: list[Sequence[int] | None] = [cell.heads] if own.dim() > 1 else []
        chosen += [cell.positions, cell.keys][: own.dim() - len(chosen)]
        for axis, numbers in enumerate(chosen):
            if numbers is not None:
                own = own.index_select(axis, torch.tensor([*numbers]))
        total += float(own.sum())
    return total
