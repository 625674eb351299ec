"""Sweeps: one cell after the other is touched in every text, and the metric of each pass is kept.

1. `grid_of` lists the cells that a sweep's axes run over, such as a layer and a position each.
2. Texts of one length are swept together. Their cells become rows of batches: of one layer to begin at, sorted by the
   first position that is touched, and cut where that costs least (`batches_of`).
3. In each row, what the cell names takes the new values, and all else stays as it is.
4. Some cells are computed a second time by whole passes. Where that differs, all are made in a way that does more work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from traceformer.capture.edits.metrics import Goal, Metric
from traceformer.capture.edits.started import Passes, Untouched, Way
from traceformer.capture.edits.touching import Place, Touch
from traceformer.sites import SITES, ArrayKey

__all__ = ["Cell", "Grid", "Measured", "Sweeper", "Values", "batches_of", "grid_of", "grid_of_groups"]

_PER_PASS = 24
"""What a batch costs beside its tokens, in tokens: hooks, and weights that are read once."""
_MOST_ROWS = 4
"""Rows of a batch of short parts of texts, in units of those of a batch of whole texts."""
_COMPARED_FIRST, _COMPARED_LATER = 3, 1
_WORTH_COMPARING = 100  # passes of a group of texts, of which one more is little
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
_TOLERANCE_OF_HALVES = 16  # units in the last place, of one or of the metric: what another batch shape changes


@dataclass(frozen=True, slots=True)
class Cell:
    """What is touched at once: some layers, and of these some heads, positions and keys; None for all of them.

    `of_layers` has for each layer its own heads, in the place of `heads`.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    keys: tuple[int, ...] | None = None
    of_layers: Mapping[int, tuple[int, ...]] | None = None

    def heads_of(self, layer: int) -> tuple[int, ...] | None:
        return self.heads if self.of_layers is None else self.of_layers[layer]

    @property
    def first(self) -> int:
        return 0 if self.positions is None else min(self.positions)


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a sweep in texts of one length, in the order of its axes; None where these have no such cell."""

    shape: tuple[int, ...]
    cells: tuple[Cell | None, ...]

    @property
    def present(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell is not None)


def grid_of(
    over: Sequence[str],
    chosen: Mapping[str, Sequence[int]],
    narrowed: Mapping[str, Sequence[int]],
    positions: range,
    *,
    causal: bool,
) -> Grid:
    """Returns the cells that axes run over.

    Args:
        over: Their names: `layer`, `head`, `position`, `query`, `key`.
        chosen: The numbers on each of these axes; positions may be negative, from a text's end.
        narrowed: What is touched of the other axes, where it is not all.
        positions: Those of the text that may be touched.
        causal: Whether a query sees no later key, so that there is no such edge.
    """

    def place(number: int) -> int | None:
        """A position of the text, None where it has no such one."""
        at = number + positions.stop if number < 0 else number
        return at if at in positions else None

    def resolved(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
        if numbers is None:
            return None if positions.start == 0 else tuple(positions)
        return tuple(at for at in map(place, numbers) if at is not None)

    def cell(numbers: tuple[int, ...]) -> Cell | None:
        own: dict[str, Sequence[int]] = {**narrowed, **{name: (n,) for name, n in zip(over, numbers, strict=True)}}
        queries = resolved(own.get("query", own.get("position")))
        keys = resolved(own["key"]) if "key" in own else None
        if queries == () or keys == () or (causal and queries and keys and min(keys) > max(queries)):
            return None
        heads = own.get("head")
        return Cell(tuple(own["layer"]), None if heads is None else tuple(heads), queries, keys)

    numbers = [chosen[name] for name in over]
    return Grid(tuple(map(len, numbers)), tuple(map(cell, product(*numbers))))


def grid_of_groups(groups: Sequence[Sequence[tuple[int, int]]]) -> Grid:
    """Returns a cell for each group of heads, (layer, head), all of which are touched at once."""

    def cell(group: Sequence[tuple[int, int]]) -> Cell:
        layers = sorted({layer for layer, _ in group})
        of_layers = {layer: tuple(head for own, head in group if own == layer) for layer in layers}
        return Cell(tuple(layers), of_layers=of_layers)

    return Grid((len(groups),), tuple(map(cell, groups)))


class _Row(NamedTuple):
    """One row of a batch: which text, and the number of its cell."""

    text: int
    cell: int


def batches_of(firsts: Sequence[int], length: int, batch_size: int) -> list[range]:
    """Returns consecutive parts of rows that are sorted by their first position, such that all cost least.

    A batch reads each of its rows from the smallest first position on: rows times that many tokens, and something for
    the batch itself. It has no more tokens than `batch_size` whole texts.
    """
    best: list[tuple[int, int]] = [(0, 0)]  # the cost of all rows before, and where their last batch begins
    for stop in range(1, len(firsts) + 1):
        options: list[tuple[int, int]] = []
        for start in range(stop - 1, -1, -1):
            tokens = (stop - start) * (length - firsts[start])
            if stop - start > 1 and (tokens > batch_size * length or stop - start > _MOST_ROWS * batch_size):
                break
            options.append((best[start][0] + tokens + _PER_PASS, start))
        best.append(min(options))
    parts: list[range] = []
    stop = len(firsts)
    while stop:
        parts.append(range(best[stop][1], stop))
        stop = best[stop][1]
    return parts[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What takes the place of what is touched.

    Attributes:
        by_place: For each array and layer (text or 1, [head,] position or 1, width), of a matrix its last two axes are
            queries and keys.
        keys: The arrays, all of which are touched in every cell.
    """

    keys: tuple[ArrayKey, ...]
    by_place: Mapping[Place, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The metric of texts: untouched, and of each cell of the grid; NaN where they have no such cell."""

    untouched: Tensor
    metric: Tensor


class Sweeper:
    """Sweeps over groups of texts, each of one length, in one way.

    Attributes:
        passes: How the model is run.
        way: How touched passes are made.
        compared: How many cells were computed a second time by whole passes.
        error: The largest difference of these.
    """

    def __init__(self, passes: Passes, metric: Metric, batch_size: int) -> None:
        self.passes = passes
        self.way: Way = "positions"
        self.compared = 0
        self.error = 0.0
        self.metric = metric
        self._batch_size = 1 if passes.sharing.alone is not None else batch_size

    def at(self, length: int) -> int | None:
        """Returns the position that is looked at in a text of this length; None for all."""
        return self.metric.at(self.passes.n_answers(length))

    def sweep(self, ids: Tensor, grid: Grid, values: Values, goal: Goal) -> Measured:
        """Returns the metric of texts of one length (text, position), untouched and touched: (text, cell).

        Raises:
            NumericError: the metric is not finite.
        """
        at = self.at(ids.shape[1])
        while True:
            of_heads = any(key.site == "z" for key in values.keys)
            base = self.passes.untouched(ids, at, way=self.way, of_heads=of_heads)
            self.way = base.way
            touched = self._touched(base, grid.present, values, goal, at)
            weaker: Way | None = {"positions": "layers", "layers": "whole"}.get(self.way)  # pyright: ignore[reportAssignmentType]
            if weaker is None or self._is_as_whole(base, grid.present, touched, values, goal, at):
                break
            if base.mixed:  # mixed values may be gated before they are projected
                self.passes.begins_at_mixed = False
            else:
                self.way = weaker
        metric = torch.full((len(ids), len(grid.cells)), torch.nan, dtype=torch.float64)
        metric[:, [number for number, cell in enumerate(grid.cells) if cell is not None]] = touched
        untouched = self.metric.of(base.logits, goal).cpu().double()
        return Measured(untouched, metric.reshape(len(ids), *grid.shape))

    def _touched(self, base: Untouched, cells: Sequence[Cell], values: Values, goal: Goal, at: int | None) -> Tensor:
        n_texts, length = base.ids.shape
        metric = torch.empty((n_texts, len(cells)), dtype=torch.float64)
        by_layer: dict[int, list[int]] = {}
        for number, cell in enumerate(cells):
            by_layer.setdefault(min(cell.layers), []).append(number)
        for layer, numbers in sorted(by_layer.items()):
            numbers.sort(key=lambda number: cells[number].first)
            rows = [_Row(text, number) for number in numbers for text in range(n_texts)]
            firsts = [cells[row.cell].first if self.way == "positions" else 0 for row in rows]
            for part in batches_of(firsts, length, self._batch_size):
                batch = rows[part.start : part.stop]
                found = self._run(base, batch, cells, values, goal, at, self.way, layer, firsts[part.start])
                for row, value in zip(batch, found.tolist(), strict=True):
                    metric[row] = value
        return metric

    def _run(
        self,
        base: Untouched,
        batch: Sequence[_Row],
        cells: Sequence[Cell],
        values: Values,
        goal: Goal,
        at: int | None,
        way: Way,
        layer: int,
        first: int,
    ) -> Tensor:
        """The metric of one batch."""
        texts = torch.tensor([row.text for row in batch], device=base.ids.device)
        touches = _touches([cells[row.cell] for row in batch], texts, values, base.ids.shape[1])
        logits = self.passes.touched(base, texts, touches, at, layer=layer, first=first, way=way)
        return self.metric.of(logits, goal.rows(texts)).cpu().double()

    def _is_as_whole(
        self, base: Untouched, cells: Sequence[Cell], touched: Tensor, values: Values, goal: Goal, at: int | None
    ) -> bool:
        """Whether whole passes give the same, of some cells of this group of texts."""
        count = _COMPARED_LATER if self.compared else _COMPARED_FIRST
        if self.compared and touched.numel() < _WORTH_COMPARING:
            return True
        every = [_Row(text, number) for text in range(len(base.ids)) for number in range(len(cells))]
        # Spread over the positions that passes begin at, so that most stand beside a prefix, and over layers.
        every.sort(key=lambda row: (cells[row.cell].first, min(cells[row.cell].layers), row))
        chosen = [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(min(count, len(every)))]
        chosen = chosen[: self._batch_size]
        found = self._run(base, chosen, cells, values, goal, at, "whole", 0, 0)
        ours = torch.stack([touched[row] for row in chosen])
        dtype = base.logits.dtype
        tolerance = _TOLERANCE.get(dtype, _TOLERANCE_OF_HALVES * torch.finfo(dtype).eps)
        error = float((ours - found).abs().max())
        if error > tolerance * max(1.0, float(found.abs().max())):
            return False
        self.compared += len(chosen)
        self.error = max(self.error, error)
        return True


def _touches(cells: Sequence[Cell], texts: Tensor, values: Values, length: int) -> dict[Place, Touch]:
    """What is done in one batch: at each place the cells that are meant there take their new values."""
    touches: dict[Place, Touch] = {}
    for key in values.keys:
        for layer in sorted({layer for cell in cells for layer in cell.layers}):
            new = values.by_place[key, layer]
            mask = _mask([cell if layer in cell.layers else None for cell in cells], key, layer, length, new)
            touches[key, layer] = _taking(mask, new, texts, by_head=SITES[key.site].axes[1] != "position")
    return touches


def _mask(cells: Sequence[Cell | None], key: ArrayKey, layer: int, length: int, like: Tensor) -> Tensor:
    """Which parts of an array each row's cell means: (row, [head,] position, 1), or (row, head, query, key).

    Of rows that all have one cell it is one row.
    """
    by_head, is_matrix = SITES[key.site].axes[1] != "position", SITES[key.site].is_matrix
    n_heads = like.shape[1] if by_head else 1
    if all(cell is cells[0] for cell in cells):  # in several texts
        cells = cells[:1]
    mask = torch.zeros((len(cells), n_heads, length, length if is_matrix else 1), dtype=torch.bool, device=like.device)
    for own, cell in zip(mask, cells, strict=True):
        if cell is not None:
            chosen = cell.heads_of(layer) if by_head else None
            heads = range(n_heads) if chosen is None else chosen
            queries = range(length) if cell.positions is None else cell.positions
            keys = range(mask.shape[-1]) if cell.keys is None else cell.keys
            own[torch.tensor([*heads])[:, None, None], torch.tensor([*queries])[:, None], torch.tensor([*keys])] = True
    return mask if by_head else mask[:, 0]


def _taking(mask: Tensor, new: Tensor, texts: Tensor, *, by_head: bool) -> Touch:
    """Puts new values where a mask is true. A pass may see the last positions only."""
    axis = 2 if by_head else 1

    def last(tensor: Tensor, count: int) -> Tensor:
        return tensor if tensor.shape[axis] == 1 else tensor.narrow(axis, tensor.shape[axis] - count, count)

    def touch(tensor: Tensor) -> Tensor:
        count = tensor.shape[axis]
        rows = last(new, count)
        rows = rows if len(rows) == 1 else rows[texts]
        return torch.where(last(mask, count), rows.to(tensor.dtype), tensor)

    return touch
