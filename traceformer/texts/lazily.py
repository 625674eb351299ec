"""A sequence whose items are made of those of another one, each anew when it is asked for."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

__all__ = ["Lazily"]

Source = TypeVar("Source")
Item = TypeVar("Item")


class Lazily(Sequence[Item], Generic[Source, Item]):
    """What `make` gives for each of `sources`; a slice is made when it is asked for, too."""

    __slots__ = ("_make", "_sources")

    def __init__(self, sources: Sequence[Source], make: Callable[[Source], Item]) -> None:
        self._sources = sources
        self._make = make

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> "Lazily[Source, Item]": ...

    def __getitem__(self, index: int | slice) -> "Item | Lazily[Source, Item]":
        if isinstance(index, slice):
            return Lazily(self._sources[index], self._make)
        return self._make(self._sources[index])
