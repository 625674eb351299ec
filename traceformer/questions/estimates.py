"""Patching estimated: every cell at once from slopes, and the largest ones measured beside it.

1. Each group of pairs is estimated: a pass with gradients for each pair, whatever the number of cells.
2. The cells that change most by their mean estimates are measured as any sweep measures them, in all pairs.
3. What both say of these cells is their agreement: `Effects.agreement`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from traceformer.analysis.agreement import largest
from traceformer.analysis.effects import Axis, Effects, Swept, mean_over_pairs, normalised
from traceformer.progress import OnStep
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.shapes import Float64

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.edits.metrics import Goal
    from traceformer.capture.edits.sweeping import Grid, Measured, Sweeper, Values

__all__ = ["ReadGroup", "estimate_effects"]


@dataclass(frozen=True, slots=True, eq=False)
class ReadGroup:
    """Some pairs of the same lengths, ready to be swept.

    Attributes:
        base: The texts that are patched: (text, position).
        grid: The cells.
        values: What they are patched with.
        goal: What the metric compares them with.
        of_source: The metric of the texts that the values are from.
        is_clean: Whether these are the clean ones.
    """

    base: "Tensor"
    grid: "Grid"
    values: "Values"
    goal: "Goal"
    of_source: Float64[np.ndarray, "text"]
    is_clean: bool

    def ends(self, measured: "Measured") -> tuple[Float64[np.ndarray, "text"], Float64[np.ndarray, "text"]]:
        """Returns the metric of the clean and of the corrupt texts, untouched."""
        of_base = measured.untouched.numpy()
        return (self.of_source, of_base) if self.is_clean else (of_base, self.of_source)


def estimate_effects(
    read: Callable[[Sequence[int]], ReadGroup],
    groups: Sequence[Sequence[int]],
    axes: tuple[Axis, ...],
    pairs: Sequence[str],
    sweeper: "Sweeper",
    about: Swept,
    *,
    steps: int = 1,
    exact_top: int = 0,
    folder: EffectsFolder | None = None,
    told: OnStep,
) -> Effects:
    """Returns estimated effects of all cells, and measured ones of those that they say change most.

    Args:
        read: Reads a group of pairs, given their numbers.
        groups: The numbers of the pairs of each group.
        axes: What the cells run over.
        pairs: The pairs' names.
        sweeper: How cells are measured.
        about: What is done.
        steps: At how many points of the way to the new values slopes are taken.
        exact_top: How many cells are measured: those that change most.
        folder: Where the effects of each pair go, once they are there.
        told: Told how many of how many pairs are done.

    Raises:
        Unsupported, UsageError, NumericError: as `estimated` and `Sweeper.sweep` raise them.
    """
    from traceformer.capture.edits.estimating import estimated
    from traceformer.capture.edits.started import WAYS

    shape = tuple(len(axis.numbers) for axis in axes)
    total, done = len(pairs) * (1 + (exact_top > 0)), 0
    estimates, exact = (np.full((len(pairs), *shape), np.nan) for _ in range(2))
    clean, corrupt = np.empty(len(pairs)), np.empty(len(pairs))
    for numbers in groups:
        group = read(numbers)
        found = estimated(sweeper.passes, group.base, group.grid, group.values, sweeper.metric, group.goal, steps=steps)
        clean[numbers], corrupt[numbers] = group.ends(found)
        estimates[numbers] = normalised(found.metric.numpy(), clean[numbers], corrupt[numbers])
        told(done := done + len(numbers), total)
    places = largest(mean_over_pairs(estimates) - about.untouched, exact_top)
    chosen = {int(np.ravel_multi_index(place, shape)) for place in places}
    kept = set() if folder is None else set(folder.done())
    for numbers in groups:
        left = [number for number in numbers if number not in kept]
        for number in kept.intersection(numbers):
            assert folder is not None
            exact[number] = folder.read(number)["exact"]
        if left and chosen:
            group = read(left)
            cells = tuple(cell if number in chosen else None for number, cell in enumerate(group.grid.cells))
            found = sweeper.sweep(group.base, replace(group.grid, cells=cells), group.values, group.goal)
            exact[left] = normalised(found.metric.numpy(), clean[left], corrupt[left])
        if folder is not None:
            for number in left:
                arrays = {"estimate": estimates[number], "exact": exact[number]}
                folder.write(number, {**arrays, "clean": clean[number, None], "corrupt": corrupt[number, None]})
        if chosen:
            told(done := done + len(numbers), total)
    way = f"estimated from slopes at {steps} point{'s' * (steps != 1)} of the way"
    way += f"; {len(chosen)} cells measured {WAYS[sweeper.way]}" if chosen else ""
    about = replace(about, way=way, compared=sweeper.compared, error=sweeper.error)
    if folder is not None:
        folder.finish(about)
    return Effects(axes, {"estimate": estimates, "exact": exact}, clean, corrupt, tuple(pairs), about)
