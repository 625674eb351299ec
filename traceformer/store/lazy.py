"""Arrays that are read when they are asked for, as views: choosing a part of one reads nothing.

They have that part of a tensorstore's interface that readers of runs use, so that these are the same for both. Their
numbers are made by a `Filling`: of chunks in a bucket, or of codes and scales.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeAlias

import numpy as np

from traceformer.shapes import Int64, Shaped

__all__ = ["Filling", "LazyArray", "Places"]

Places: TypeAlias = "range | Int64[np.ndarray, 'place']"
"""What is chosen of an axis, in order."""


class Filling(Protocol):
    """What makes the numbers of an array."""

    @property
    def pool(self) -> Executor:
        """Whose threads do it. None of them may wait for another of the same pool."""
        ...

    def fill(self, target: Shaped[np.ndarray, "..."], places: tuple[Places, ...]) -> None:
        """Puts the numbers at these places of each axis into an array of that shape."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LazyArray:
    """A part of an array.

    Attributes:
        shown: The axes that it has, of those of the whole, in its order.
        numpy_dtype: What numbers are read as.
    """

    _filling: Filling
    _places: tuple[Places, ...]
    shown: tuple[int, ...]
    numpy_dtype: np.dtype[Any]

    @classmethod
    def of(cls, filling: Filling, shape: Sequence[int], dtype: np.dtype[Any]) -> "LazyArray":
        """Returns a whole array of this shape."""
        return cls(filling, tuple(map(range, shape)), tuple(range(len(shape))), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self._places[axis]) for axis in self.shown)

    @property
    def rank(self) -> int:
        return len(self.shown)

    @property
    def dtype(self) -> Self:
        """Itself, whose `numpy_dtype` it is: what a tensorstore's `dtype` is asked for."""
        return self

    @property
    def oindex(self) -> Self:
        """Itself: each axis is always indexed on its own."""
        return self

    def __getitem__(self, index: Any) -> "LazyArray":
        """Returns the part of it at an index: whole numbers, slices, places, and one `...`."""
        index = index if isinstance(index, tuple) else (index,)
        at = next((i for i, part in enumerate(index) if part is Ellipsis), None)
        if at is not None:
            index = (*index[:at], *(slice(None),) * (self.rank - len(index) + 1), *index[at + 1 :])
        places, shown = [*self._places], [*self.shown]
        for axis, part in zip(self.shown, index, strict=False):
            places[axis] = _chosen(places[axis], part)
            if isinstance(part, int | np.integer):
                shown.remove(axis)
        return replace(self, _places=tuple(places), shown=tuple(shown))

    def transpose(self, order: Sequence[int]) -> "LazyArray":
        return replace(self, shown=tuple(self.shown[axis] for axis in order))

    def astype(self, dtype: Any) -> "LazyArray":
        """Returns the same, read as another type that holds its numbers exactly."""
        return replace(self, numpy_dtype=np.dtype(dtype))

    def read(self) -> "Future[Shaped[np.ndarray, '...']]":
        """Returns what will be its numbers."""
        return self._filling.pool.submit(self._read)

    def read_into(self, target: Shaped[np.ndarray, "..."]) -> "Future[None]":
        """Returns what says when its numbers are in `target`."""
        return self._filling.pool.submit(self._fill, target)

    def _read(self) -> Shaped[np.ndarray, "..."]:
        target = np.empty(self.shape, self.numpy_dtype)
        self._fill(target)
        return target

    def _fill(self, target: Shaped[np.ndarray, "..."]) -> None:
        # As the whole has them: in the order of its axes, those that are not shown with a length of 1.
        ordered = target.transpose(np.argsort(self.shown)) if self.rank > 1 else target
        whole = ordered[tuple(slice(None) if axis in self.shown else None for axis in range(len(self._places)))]
        self._filling.fill(whole, self._places)


def _chosen(places: Places, part: Any) -> Places:
    """Returns the places that a whole number, a slice, or several numbers choose."""
    if isinstance(part, int | np.integer):
        one = int(places[int(part)])
        return range(one, one + 1)
    if isinstance(places, range) and not isinstance(part, slice):
        return places.start + places.step * np.asarray(part)
    return places[part]
