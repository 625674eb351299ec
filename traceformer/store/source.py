"""Where a run's numbers and tokens come from: a folder or memory. Reading is the same for both from here on."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from traceformer.shapes import Shaped
from traceformer.sites import ArraySpec
from traceformer.store.aliases import Lead
from traceformer.store.commits import RunHead
from traceformer.store.index import RunIndex
from traceformer.store.objects.path import AnyPath
from traceformer.store.q8 import Rounded
from traceformer.store.zarr3 import Array

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Source"]


class Source(Protocol):
    """What a run is read from. A row is an example's place among those that can be read.

    Layers that are another array's are read there: of one layer that is all there is to it.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def folder(self) -> AnyPath | None:
        """Where it lies, on disk or in a bucket; None in memory."""
        ...

    @property
    def head(self) -> RunHead: ...

    @property
    def index(self) -> RunIndex: ...

    @property
    def finished(self) -> bool: ...

    def steps(self, spec: ArraySpec) -> Iterable[range]:
        """Returns all rows in order, those together that `part` gives in one piece."""
        ...

    def part(self, spec: ArraySpec, rows: range, lead: Lead) -> Array:
        """Returns the rows of one step, or of one example, of an array that is no matrix, as they are stored.

        Token arrays (*lead, token, d) hold the examples' tokens back to back, example arrays are (example, *lead, d).
        """
        ...

    def matrix(
        self, spec: ArraySpec, row: int, lead: Lead, queries: range | None = None
    ) -> Shaped[np.ndarray, "*lead query key"]:
        """Returns an example's matrices, or some rows of them, as they are stored.

        Raises:
            CorruptRun: they are not as they were written.
        """
        ...

    def whole(self, spec: ArraySpec, lead: Lead, *, once: bool = False) -> Array:
        """Returns a whole token array (*lead, slot, d), or a whole example array (example, *lead, d), likewise.

        Its slots and examples are those of `index`. With `once`, chunks are read whole, once, and as
        they are stored: the view may be a faster one, which keeps none of them for who reads its other rows.
        """
        ...

    def rounded(self, spec: ArraySpec, shard: int) -> Rounded:
        """Returns a kept array's rows of a shard as they are stored, where these are codes."""
        ...

    def token_table(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """Returns one row per example, with all columns or with those of these that there are."""
        ...

    def token_rows(self, rows: Sequence[int]) -> "pa.Table | None":
        """Returns these rows of `token_table`; None where they are not read without all others."""
        ...

    def token_columns(self) -> Sequence[str] | None:
        """Returns the columns of `token_table`; None where they are not known without it."""
        ...

    def token_row(self, row: int) -> dict[str, Any]:
        """Returns an example's row of the token table."""
        ...
