"""Who takes what a forward pass shows: rows and squares as they are, or what is made of them while the model runs."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from traceformer.capture.scores import AttentionCall, Span
from traceformer.shapes import Int64
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = [
    "Derived",
    "Follows",
    "GrowingSink",
    "Reduced",
    "ReducedRows",
    "Reduction",
    "Sink",
    "Spans",
    "TakesSquares",
]

Spans = Mapping[Stack, Sequence[Span]]


class Sink(Protocol):
    """Where a recorder's arrays go. The tensors are the model's own: keep copies, never views.

    `layer` is the model's layer number, None for sites without one.
    """

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        """Takes one layer of a batch, padding included: (batch, position, width) or (batch, head, position, width).

        Of a site with one row per example it is (batch, width) or (batch, head, width).
        """
        ...

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        """Takes some query rows of one example's scores or patterns, float32 (head, query, key).

        `queries` and `keys` count from the example's first true token. Keys of a pattern that come after all
        queries of the block may be left out where the model is causal: those cells are zero.
        """
        ...


@runtime_checkable
class TakesSquares(Protocol):
    """A sink that may take the squares of several examples at once, since each launch on a device takes its time."""

    def squares_at_once(self, like: Tensor) -> int:
        """Returns how many bytes of float32 it takes at once of what lies where this tensor does; 0 for one by one."""
        ...

    def squares(self, spec: ArraySpec, layer: int, examples: range, queries: Span, keys: Span, blocks: Tensor) -> None:
        """Takes what `Sink.square` takes of several examples, all rows of each: float32 (example, head, query, key)."""
        ...


class GrowingSink(Protocol):
    """Where the arrays of growing sequences go. Columns count from the batch's first one, padding included."""

    def begin(self, stack: Stack, columns: Span) -> None:
        """Says which columns of a stack the following arrays are of."""
        ...

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        """Takes rows of the last columns begun: (batch, column, width) or (batch, head, column, width)."""
        ...

    def squares(self, spec: ArraySpec, layer: int, queries: Span, keys: Span, block: Tensor) -> None:
        """Takes some query rows of all patterns, float32 (batch, head, query, key); other keys' cells are zero."""
        ...


class _Replacing(Protocol):
    """What is kept in place of another array, and made of it while the model runs."""

    @property
    def source(self) -> ArrayKey:
        """The array that it is made of."""
        ...

    @property
    def specs(self) -> Sequence[ArraySpec]:
        """The arrays that it gives."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a run states of it, and what must be equal to resume: name -> JSON value."""
        ...


class Derived(_Replacing, Protocol):
    """What is made of an array's rows, one per layer and token."""

    def of(self, layer: int, rows: Tensor) -> Mapping[ArrayKey, Tensor]:
        """Returns all of them for one layer's rows, (batch, position, width)."""
        ...


class Reduction(Protocol):
    """One layer's patterns on their way to what is made of them, in one pass."""

    def take(self, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        """Takes some query rows of a row's patterns, float32 (head, query, key), in order, as `Sink.square` does.

        The block may be changed after that.
        """
        ...

    def arrays(self) -> Mapping[ArrayKey, Tensor]:
        """Returns all that is made of them, as `Sink.rows` takes it, once every block has been taken."""
        ...


class Reduced(_Replacing, Protocol):
    """What is made of patterns."""

    def at_work(self) -> AbstractContextManager[object]:
        """Returns the block in which patterns come."""
        ...

    def begin(self, layer: int, rows: "ReducedRows") -> Reduction:
        """Begins a layer of a pass."""
        ...


class Follows(Protocol):
    """What is told of attention calls whose patterns are not computed."""

    def follows(self, key: ArrayKey) -> bool:
        """Returns whether these patterns are of that kind."""
        ...

    def follow(
        self, call: AttentionCall, spec: ArraySpec, layer: int, queries: Sequence[Span], keys: Sequence[Span]
    ) -> None:
        """Takes one call, with the places of each row's queries and keys: the same objects in all of a pass."""
        ...


class ReducedRows(NamedTuple):
    """The rows of a pass whose patterns are reduced.

    Attributes:
        queries: Where each row's queries are.
        keys: Where its keys are.
        columns: How many positions the queries' stack has, padding included.
        tokens: The token ids of each row's queries, where they are known; the same object for all layers of a pass.
    """

    queries: Sequence[Span]
    keys: Sequence[Span]
    columns: int
    tokens: Sequence[Int64[np.ndarray, "_"]] | None
