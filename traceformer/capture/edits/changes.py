"""What an edit does to the numbers that it is about: one example's, at its heads and positions.

A change is called with these, (position, width), (head, position, width) or, of patterns, (head, query, key), in
float32 or float64, and with where they are. It returns as many others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.sites import SITES, ArrayKey, ArraySpec
from traceformer.store.run import Run
from traceformer.texts.shown import unnamed

__all__ = [
    "Add",
    "Change",
    "Cut",
    "Mean",
    "Patch",
    "ProjectOut",
    "Resample",
    "Scale",
    "Where",
    "as_direction",
    "check_change",
    "token_named_otherwise",
    "zeros",
]


_ROUNDING = 1e-5  # of a pattern's row in float32: what is missing to 1 beyond that is a sink's


class Where(NamedTuple):
    """Which numbers a change is given; `positions` are of rows or queries, `keys` of a pattern's keys, else empty."""

    key: ArrayKey
    layer: int | None
    heads: Sequence[int]
    example: int
    positions: Tensor
    keys: Tensor


Change: TypeAlias = Callable[[Tensor, Where], Tensor]


def zeros(part: Tensor, where: Where) -> Tensor:
    return torch.zeros_like(part)


@dataclass(frozen=True, slots=True)
class Scale:
    by: float

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        return part if self.by == 1 else part * self.by


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """Adds `scale` times a direction, (width) or one for each head, (head, width)."""

    direction: np.ndarray
    scale: float

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        if self.scale == 0:
            return part
        return part + self.scale * _rows_of(self.direction, part, where)


@dataclass(frozen=True, slots=True, eq=False)
class ProjectOut:
    """Takes out what lies along directions: x - (x B^T) B with B an orthonormal basis of them, (direction, width)."""

    basis: np.ndarray

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        basis = torch.as_tensor(self.basis, dtype=part.dtype).to(part.device)
        _check_width(self.basis, part.shape[-1], where.key)
        return part - (part @ basis.T) @ basis


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Puts other numbers there: an array's, or those of an example of a run, at the same positions.

    Of an array as many as are edited, or fewer axes, which then serve for all positions or heads.
    """

    source: np.ndarray | Run
    example: int | str = 0
    source_position: Sequence[int] | None = None

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        if isinstance(self.source, Run):
            values = rows_of_run(self.source, self.example, where, self.source_position)
        else:
            values = self.source
        return _broadcast(values, part, where)


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """Puts a run's mean there: over all tokens of all its examples, or of each position over those that have it."""

    run: Run
    per_position: bool
    cache: dict[tuple[ArrayKey, int | None], np.ndarray]

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        place = (where.key, where.layer)
        if place not in self.cache:
            self.cache[place] = mean_of_run(self.run, *place, per_position=self.per_position)
        means = self.cache[place]
        if where.heads:
            means = means[_stored_heads(self.run, where.key, where.heads)]
        if not self.per_position:
            return _broadcast(means[..., None, :], part, where)
        last = int(where.positions.max())
        if last >= means.shape[-2]:
            raise SelectionError(
                f"the mean at position {last}",
                why=f"the longest example of {self.run.name} has {means.shape[-2]} tokens",
                hint="per_position=False, or a run of longer texts",
            )
        return _broadcast(means[..., where.positions.numpy(), :], part, where)


@dataclass(frozen=True, slots=True, eq=False)
class Resample:
    """Puts the numbers of another example of a run there, at the same positions: one that is long enough, seeded."""

    run: Run
    seed: int

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        last = max(int(where.positions.max()), int(where.keys.max()) if len(where.keys) else 0)
        stack = where.key.token_stack
        others = [
            number for number in range(self.run.n) if number != where.example and self.run.length(number, stack) > last
        ]
        if not others:
            raise SelectionError(
                f"no other example of {self.run.name} is as long as {last + 1} tokens", hint="a run of more texts"
            )
        chosen = others[int(np.random.default_rng((self.seed, where.example)).integers(len(others)))]
        return _broadcast(rows_of_run(self.run, chosen, where, None), part, where)


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Takes keys out of the sight of queries; renormalised, what is left of a row is as if they had been masked."""

    keys: Callable[[Where], Tensor]
    renormalise: bool

    def __call__(self, part: Tensor, where: Where) -> Tensor:
        keys = self.keys(where).to(part.device)
        if not bool(keys.any()):
            return part
        left = part.masked_fill(keys, 0)
        if not self.renormalise:
            return left
        rest = left.sum(-1, keepdim=True)
        at_sink = 1 - part.sum(-1, keepdim=True)  # a head may look at nothing: that share is in no key
        share = rest + torch.where(at_sink > _ROUNDING, at_sink, 0)
        is_cut = (part.masked_fill(~keys, 0) > 0).any(-1, keepdim=True)
        if bool((is_cut & (share <= 0)).any()):
            raise UsageError(
                "a query has no key left",
                why="all that it looks at is cut, so that nothing can be renormalised",
                hint="renormalise=False, or leave it a key",
            )
        return torch.where(is_cut, left / share, part)


def check_change(change: Change, key: ArrayKey, layer: int | None, heads: Sequence[int], width: int) -> None:
    """Refuses what cannot be done at a place, as far as that can be told before a pass.

    Args:
        change: What is to be done.
        key: The array.
        layer: The layer.
        heads: The heads that are edited; none where the site has none.
        width: How wide its rows are; 0 where that is not known.

    Raises:
        UsageError: numbers of another width, or the mean of patterns.
        NotRecorded: a run that lacks the array, the layer, or a head.
        SelectionError: an example that lacks one of the positions that are said of it.
    """
    if isinstance(change, Add):
        _check_width(change.direction, width, key)
    elif isinstance(change, ProjectOut):
        _check_width(change.basis, width, key)
    elif isinstance(change, Patch) and not isinstance(change.source, Run):
        if width and change.source.shape[-1] not in (1, width):
            raise UsageError(f"values of shape {change.source.shape} for {key}", why=f"its rows have width {width}")
    elif isinstance(change, Mean | Patch | Resample):
        run = change.source if isinstance(change, Patch) else change.run
        assert isinstance(run, Run)
        if isinstance(change, Mean) and SITES[key.site].is_matrix:
            raise UsageError(f"the mean of {key}", why="its rows have as many entries as there are keys")
        _held(run, key, layer)
        _stored_heads(run, key, heads)
        if isinstance(change, Patch) and change.source_position is not None:
            _check_positions(run, change.example, key, change.source_position)


def as_direction(values: Any, what: str = "direction") -> np.ndarray:
    """Returns a vector, or one for each head, as float64; of a direction that was fitted its own.

    Raises:
        UsageError: it is none, or has entries that are no numbers.
    """
    vector = getattr(values, "vector", values)
    if isinstance(vector, Tensor):
        vector = vector.detach().cpu().to(torch.promote_types(vector.dtype, torch.float64)).numpy()
    try:
        array = np.asarray(vector).astype(np.float64, casting="same_kind")  # no complex ones
    except (TypeError, ValueError) as error:
        raise UsageError(f"`{what}` is no array of numbers", hint="a vector of the site's width") from error
    if array.ndim == 0 or array.size == 0 or not np.isfinite(array).all():
        raise UsageError(
            f"`{what}` of shape {array.shape}",
            why="it holds NaN or infinity" if array.size and array.ndim else "it has no entries",
            hint="a vector of the site's width",
        )
    return array


def rows_of_run(run: Run, example: int | str, where: Where, positions: Sequence[int] | None) -> np.ndarray:
    """Returns what a run holds of a place for one example: (position, width) or (head, position, width).

    Raises:
        NotRecorded: the run does not hold it.
        SelectionError: the example is too short.
    """
    _held(run, where.key, where.layer)
    wanted = where.positions.tolist() if positions is None else list(positions)
    _check_positions(run, example, where.key, wanted)
    rows = run.get(example, where.key, where.layer)
    if where.heads:
        rows = rows[_stored_heads(run, where.key, where.heads)]
    if not len(where.keys):
        return rows[..., wanted, :]
    squares = rows[:, wanted]
    return squares[..., where.keys.clamp(min=0).numpy()] * (where.keys >= 0).numpy()


def token_named_otherwise(run: Run, example: int | str, tokenizer: Any) -> tuple[int, str, str] | None:
    """Returns the first token of a run's example that a tokenizer names otherwise: its id, its name, the other name."""
    if tokenizer is None:
        return None
    told = run.encodings(example)
    for stack in ("", "dec_"):
        ids, tokens = (list(told.get(f"{stack}{what}") or ()) for what in ("input_ids", "tokens"))
        named = tokenizer.convert_ids_to_tokens([int(number) for number in ids])
        for number, token, name in zip(ids, tokens, named, strict=False):
            if name is not None and token not in (name, unnamed(number)):
                return number, token, name
    return None


def mean_of_run(run: Run, key: ArrayKey, layer: int | None, *, per_position: bool) -> np.ndarray:
    """Returns a place's mean over a run: ([head,] width), or ([head,] position, width)."""
    total: np.ndarray | None = None
    counts = np.zeros(max(run.length(number, key.token_stack) for number in range(run.n)))
    for number in range(run.n):
        rows = run.get(number, key, layer).astype(np.float64)
        n = rows.shape[-2]
        if total is None:
            total = np.zeros((*rows.shape[:-2], len(counts), rows.shape[-1]))
        total[..., :n, :] += rows
        counts[:n] += 1
    assert total is not None
    if per_position:
        return total / counts[:, None]
    return total.sum(-2) / counts.sum()


def _check_positions(run: Run, example: int | str, key: ArrayKey, positions: Sequence[int]) -> None:
    length = run.length(example, key.token_stack)
    outside = [position for position in positions if not -length <= position < length]
    if outside:
        raise SelectionError(
            f"position {outside[0]} of example {run.example_id(example)!r} of {run.name}",
            why=f"it has {length} tokens",
            hint="positions that both have, or source_position",
        )


def _held(run: Run, key: ArrayKey, layer: int | None) -> ArraySpec:
    """What a run holds of an array, once it has the layer."""
    spec = run.spec(key)
    if layer is not None and layer not in spec.layers:
        raise NotRecorded(f"{run.name} holds no layer {layer} of {key}", hint=f"it has layers {_listed(spec.layers)}")
    return spec


def _stored_heads(run: Run, key: ArrayKey, heads: Sequence[int]) -> list[int]:
    """Where a run has the heads of an array."""
    stored = run.spec(key).heads
    missing = [head for head in heads if head not in stored]
    if missing:
        raise NotRecorded(
            f"{run.name} holds no head {_listed(missing)} of {key}", hint=f"it has heads {_listed(stored)}"
        )
    return [stored.index(head) for head in heads]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _check_width(values: np.ndarray, width: int, key: ArrayKey) -> None:
    if width and values.shape[-1] != width:
        raise UsageError(f"a direction of width {values.shape[-1]}", why=f"{key} has rows of width {width}")


def _rows_of(direction: np.ndarray, part: Tensor, where: Where) -> Tensor:
    _check_width(direction, part.shape[-1], where.key)
    rows = direction[..., None, :] if direction.ndim == 2 else direction
    return _broadcast(rows, part, where)


def _broadcast(values: np.ndarray, part: Tensor, where: Where) -> Tensor:
    """The values, spread over what is edited, in its dtype."""
    try:
        spread = np.broadcast_to(values, part.shape)
    except ValueError as error:
        raise UsageError(
            f"values of shape {values.shape} for {where.key}",
            why=f"what is edited has shape {tuple(part.shape)}",
            hint="as many, or one row for all positions",
        ) from error
    if not np.isfinite(spread).all():
        raise UsageError(f"values for {where.key} hold NaN or infinity", hint="finite numbers")
    return torch.as_tensor(np.array(spread), dtype=part.dtype).to(part.device)
