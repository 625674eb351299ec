"""Which rows may share a pass: only those whose numbers no other row of it changes.

1. Rotary frequencies may be one choice per pass: longrope takes the long ones for all rows as soon as one of them is
   long, dynamic NTK stretches all rows by the longest. Which lengths have the same frequencies is asked of the model's
   own rotary modules, which are called as the model calls them, with the positions of texts of these lengths.
2. A quantised module may round all tokens of a pass by the largest of them, so that rows of such models run alone.
3. So do rows of models whose numbers padding changes, whatever the mask says: `keep_apart` is told of these.
4. `Sharing.parts` parts a batch accordingly. It is a pure function of the model and the rows' lengths.

Some rotary modules also remember how long the last pass was; `Sharing.settle` has them forget it, so that a pass gives
what it would give first of all.
"""

import inspect
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from traceformer.errors import UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.mechanisms import attends
from traceformer.models.part import text_part
from traceformer.models.placed import input_device
from traceformer.models.quantised import quantisation_of
from traceformer.sites import Stack

__all__ = ["Lengths", "Sharing", "is_kept_apart", "keep_apart"]

Lengths: TypeAlias = Mapping[Stack, int]
"""The tokens of one row, per stack."""

_LONGEST = 1 << 30

_changed_by_padding: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def keep_apart(model: PreTrainedModel) -> None:
    """Has every row of a model run alone from now on: it was seen that padding changes its numbers."""
    _changed_by_padding.add(model.base_model)


def is_kept_apart(model: PreTrainedModel) -> bool:
    return model.base_model in _changed_by_padding


class Sharing:
    """What a model lets rows share.

    Attributes:
        quantised: How the model is quantised, so that every row runs alone; None if it is not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.quantised = quantisation_of(model)
        self._model = model
        self._sides: dict[int, Hashable] = {}
        self._ropes = [rope for rope in _rotary_modules(model) if self._depends_on_length(rope)]
        self._counting: list[Any] = [module for module in model.modules() if hasattr(module, "rope_deltas")]
        self.settle()

    @property
    def alone(self) -> str | None:
        """Why every row of the model runs alone; None where rows share a pass."""
        if self.quantised is not None:
            return f"the model is quantised: {self.quantised}"
        return "padding changes the model's numbers" if is_kept_apart(self._model) else None

    @property
    def reads_behind_padding(self) -> bool:
        """Whether padding may come before a text: what hands a state on from token to token would begin with it."""
        stacks = ModelDims.of(self._model).stacks.values()
        return not getattr(self._model, "_is_stateful", False) and all(dims.attending is None for dims in stacks)

    def settle(self) -> None:
        """Has rotary modules forget how long the last pass was, and others how far its images moved positions."""
        for rope in self._ropes:
            self._tables(rope, (0,))
        for module in self._counting:
            module.rope_deltas = None

    def side(self, length: int) -> Hashable:
        """Returns what is equal for lengths that have the same rotary frequencies."""
        if length not in self._sides:
            self._sides[length] = tuple(self._at(rope, length) for rope in self._ropes)
            self.settle()
        return self._sides[length]

    def is_one_side(self, shortest: int, longest: int) -> bool:
        """Returns whether the lengths between these two, and themselves, have the same frequencies."""
        return not self._ropes or self.side(shortest) == self.side(longest)

    def changes_after(self, shortest: int, longest: int) -> int | None:
        """Returns the last length that has the frequencies of the shortest one; None if the longest has them, too."""
        if self.is_one_side(shortest, longest):
            return None
        return next(n for n in range(shortest, longest) if self.side(n + 1) != self.side(shortest))

    def parts(self, rows: Sequence[int], lengths: Sequence[Lengths], *, growth: int = 0) -> list[list[int]]:
        """Returns the rows in as many parts as must run apart, in the order of their first rows.

        Args:
            rows: Numbers of rows.
            lengths: Of all rows.
            growth: How many tokens may be added to each row's decoder: rows that part on the way are parted before.
        """
        if self.alone is not None:
            return [[row] for row in rows]
        together = [lengths[row] for row in rows]
        changing: list[Stack] = [stack for stack in lengths[0] if not self._share(stack, together, growth)]
        found: dict[Hashable, list[int]] = {}
        for row in rows:
            sides = tuple(self._sides_of(stack, lengths[row][stack], growth) for stack in changing)
            found.setdefault(sides, []).append(row)
        return [*found.values()]

    def _share(self, stack: Stack, lengths: Sequence[Lengths], growth: int) -> bool:
        every = [each[stack] for each in lengths]
        return self.is_one_side(min(every), max(every) + _grown(stack, growth))

    def _sides_of(self, stack: Stack, length: int, growth: int) -> Hashable:
        return tuple(self.side(n) for n in range(length, length + _grown(stack, growth) + 1))

    def check(self, lengths: Sequence[Lengths]) -> None:
        """Makes sure that these rows may share a pass.

        Raises:
            UsageError: one of them would change another's numbers.
        """
        parts = self.parts(range(len(lengths)), lengths)
        if len(parts) > 1:
            several = " and ".join(str(max(lengths[part[0]].values())) for part in parts[:2])
            why = "its rotary frequencies are chosen once for a pass, by its longest text"
            if self.quantised is not None:
                why = f"it is quantised, {self.quantised}, and may round a pass by the largest of all its tokens"
            elif self.alone is not None:
                why = "padding changes its numbers"
            raise UsageError(
                f"texts of {several} tokens in one pass", why=f"{type(self._model).__name__}: {why}", hint="a pass each"
            )

    def _depends_on_length(self, rope: nn.Module) -> bool:
        try:
            return self._at(rope, 1) != self._at(rope, _LONGEST)
        except IndexError:  # a table with a row for each position (GPT-J's, from transformers 5.24 on)
            return False

    def _at(self, rope: nn.Module, length: int) -> tuple[bytes, ...]:
        return self._tables(rope, (1, max(1, length - 1)))  # at position 0 all frequencies give the same

    @torch.no_grad()
    def _tables(self, rope: nn.Module, positions: Sequence[int]) -> tuple[bytes, ...]:
        """What a rotary module makes of the first of these positions, bit by bit."""
        device = input_device(self._model)
        like = torch.empty(1, len(positions), 1, device=device, dtype=self._model.dtype)
        given = torch.tensor([[*positions]], device=device)
        try:
            made = [rope(like, given, **kind) for kind in _layer_types(rope)]
        except IndexError:  # it is given positions in time, height and width
            made = [rope(like, given.expand(3, 1, -1), **kind) for kind in _layer_types(rope)]
        return tuple(_bits(table) for tables in made for table in _each(tables))


def _grown(stack: Stack, growth: int) -> int:
    return growth if stack == "dec" else 0


def _rotary_modules(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Yields the modules that make something of positions, and have no weights: of whatever family, whatever name."""
    for module in text_part(model).modules():
        if not module._parameters and not module._modules and _is_rotary(type(module)):  # pyright: ignore[reportPrivateUsage]
            yield module


@cache
def _is_rotary(kind: type[nn.Module]) -> bool:
    """Whether its forward takes hidden states, for their dtype and device, and then positions."""
    return list(inspect.signature(kind.forward).parameters)[2:3] == ["position_ids"]


@cache
def _taken_by(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def _layer_types(rope: nn.Module) -> list[dict[str, str]]:
    """The further arguments of the calls that a model makes in a pass: one for each type of layer, or none."""
    if "layer_type" not in _taken_by(type(rope)):
        return [{}]
    own: Any = rope
    known = own.rope_type if isinstance(getattr(own, "rope_type", None), Mapping) else own.config.layer_types
    used = {*filter(attends, own.config.layer_types)} & {*known} or {
        *known
    }  # some kinds have names of the module's own
    return [{"layer_type": each} for each in sorted(used)]


def _each(tables: Any) -> Iterator[Tensor]:
    yield from (tables,) if isinstance(tables, Tensor) else tables


def _bits(table: Tensor) -> bytes:
    """The first position's row of (batch, position, feature), or of that for each axis."""
    row = table.flatten(0, -4)[0, 0, 0].cpu() if table.dim() > 3 else table[0, 0].cpu()
    return (torch.view_as_real(row) if row.is_complex() else row).float().numpy().tobytes()
