"""The rows that a lens is fitted on, chosen by and measured on: other examples each, read from a run layer by layer.

1. Examples are dealt to three parts, at random by a seed, and never a row of one to two of them.
2. Of each part some rows are drawn, evenly over it, as many as have room; which they are is the same for all layers.
3. A layer is read once, beside the last one: all rows of the first two parts go into moments, the drawn ones are kept.

So memory is bounded by the rows that are drawn, and by what one shard of two layers takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from traceformer.analysis.lens import normed
from traceformer.analysis.ridge import Moments
from traceformer.errors import NotRecorded, NumericError, UsageError
from traceformer.models.readout import Readout
from traceformer.shapes import Float32, Int64
from traceformer.sites import ArraySpec
from traceformer.store.run import Run

__all__ = ["FEWEST", "PARTS", "FittingRows", "LayerRows", "Part"]

Part: TypeAlias = Literal["fit", "validation", "held_out"]
PARTS: tuple[Part, ...] = get_args(Part)

FEWEST = 10
"""Examples that have tokens."""

_SHARES = {"validation": 0.15, "held_out": 0.15}
_MOST_BYTES = 256 << 20  # of the rows that are drawn to be fitted
_MOST_ROWS = {"validation": 4096, "held_out": 16384}
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class LayerRows:
    """What was read of a layer: of all rows of two parts their moments, of each part the rows that were drawn."""

    fit: Moments
    validation: Moments
    drawn: dict[Part, Float32[np.ndarray, "row d_model"]]


class FittingRows:
    """The rows of a run's residual stream, in three parts.

    Attributes:
        key: The array that is read.
        layers: The model's numbers of the layers that the run holds, the last one among them.
        last: The model's last layer.
        examples: How many examples each part has.
        rows: How many rows.
        drawn: How many of them are drawn.
        numbers: Which these are, counted over all rows of the array, in rising order.
        part_of: For each example the number of its part, -1 for none.
        part_of_row: For each row the number of its part, -1 for none.
    """

    def __init__(self, run: Run, spec: ArraySpec, readout: Readout, *, limit: int | None = None, seed: int = 0) -> None:
        """Deals the examples.

        Raises:
            NotRecorded: the run does not hold the last layer.
            UsageError: there are too few examples with tokens.
        """
        self._run, self._spec, self._readout = run, spec, readout
        self.key = spec.key
        # `hidden` begins with the embedding: entry i + 1 is what layer i left, and the last one is behind the norm.
        self._first = 1 if spec.key.site == "hidden" else 0
        self.last = (run.about.dims_of("dec").n_layers or 0) - 1
        self.layers = tuple(number - self._first for number in spec.layers if number >= self._first)
        if self.last not in self.layers:
            stored = ", ".join(map(str, self.layers))
            raise NotRecorded(
                f"this run does not hold the last layer of {spec.key}",
                why=f"a lens is fitted to what layer {self.last} says; it holds {stored}",
                hint="record all layers",
            )
        lengths = run.lengths(spec.key.stack)[: run.n if limit is None else limit]
        part_of = _dealt(lengths, seed)
        of_row = np.repeat(part_of, lengths)
        self._n_rows = len(of_row)
        random = np.random.default_rng(seed)
        self.numbers: dict[Part, Int64[np.ndarray, "row"]] = {}
        self.examples: dict[Part, int] = {}
        self.rows: dict[Part, int] = {}
        for number, part in enumerate(PARTS):
            rows = np.flatnonzero(of_row == number)
            most = max(1, _MOST_BYTES // (4 * spec.width))
            most = min(most, _MOST_ROWS.get(part, most))
            chosen = np.sort(random.choice(rows, most, replace=False)) if len(rows) > most else rows
            self.numbers[part] = chosen
            self.examples[part], self.rows[part] = int((part_of == number).sum()), len(rows)
        self.part_of = part_of
        self.part_of_row = of_row
        self.drawn: dict[Part, int] = {part: len(rows) for part, rows in self.numbers.items()}

    def ends(self) -> dict[Part, Float32[np.ndarray, "row d_embed"]]:
        """Returns the last layer's drawn rows, normed: what the unembedding makes the model's own words of.

        Raises:
            NumericError: a row holds NaN or inf.
        """
        found: dict[Part, Float32[np.ndarray, "row d_embed"]] = {
            part: np.empty((n, self._readout.unembedding.shape[1]), np.float32) for part, n in self.drawn.items()
        }
        for start, block in self._blocks(self.last):
            for part, (here, there) in self._taken(start, len(block)).items():
                found[part][there] = normed(block[here], self._readout, skip_norm=self._is_normed)
        return found

    def read(self, layer: int) -> LayerRows:
        """Returns what a layer's rows are, beside those that they should become.

        Raises:
            NumericError: a row holds NaN or inf.
        """
        d = self._spec.width
        moments: dict[Part, Moments] = {"fit": Moments(d), "validation": Moments(d)}
        drawn: dict[Part, Float32[np.ndarray, "row d_model"]] = {
            part: np.empty((n, d), np.float32) for part, n in self.drawn.items()
        }
        for (start, block), (_, last) in zip(self._blocks(layer), self._blocks(self.last), strict=True):
            targets = self._before_the_norm(last)
            own = self.part_of_row[start : start + len(block)]
            for number, part in enumerate(PARTS):
                if part in moments and (inside := own == number).any():
                    moments[part].add(block[inside], targets[inside])
            for part, (here, there) in self._taken(start, len(block)).items():
                drawn[part][there] = block[here]
        return LayerRows(moments["fit"], moments["validation"], drawn)

    @property
    def _is_normed(self) -> bool:
        return self._first == 1

    def _blocks(self, layer: int) -> Iterator[tuple[int, Float32[np.ndarray, "row d_model"]]]:
        """The rows of a layer that belong to a part, block by block, and the number of the first of each."""
        start = 0
        for block in self._run.stream(self._spec.key, layer + self._first, _ROWS_AT_ONCE):
            rows = block[: self._n_rows - start]
            if not np.isfinite(rows).all():
                self._refuse(layer, start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]))
            yield start, rows
            start += len(block)
            if start >= self._n_rows:
                return

    def _refuse(self, layer: int, row: int) -> None:
        number = int(np.searchsorted(np.cumsum(self._run.lengths(self._spec.key.stack)), row, side="right"))
        where = f"{self._spec.key} of layer {layer}, example {self._run.ids[number]}"
        raise NumericError(f"{where}: a row holds NaN or inf", why="nothing can be fitted to it")

    def _taken(self, start: int, count: int) -> dict[Part, tuple[Int64[np.ndarray, "row"], slice]]:
        """Which rows of a block are drawn for each part, and their places among these."""
        found: dict[Part, tuple[Int64[np.ndarray, "row"], slice]] = {}
        for part, rows in self.numbers.items():
            first, last = np.searchsorted(rows, (start, start + count))
            if last > first:
                found[part] = rows[first:last] - start, slice(int(first), int(last))
        return found

    def _before_the_norm(self, rows: Float32[np.ndarray, "row d_model"]) -> Float32[np.ndarray, "row d_model"]:
        """Rows that the final norm would make the last layer's of: those themselves, or those that it has made, undone.

        A norm forgets how long a row was: one of length 1 a number stands for all of them.
        """
        own = self._readout
        if not self._is_normed or own.norm is None:
            return rows
        if own.norm_bias is not None:
            rows = rows - own.norm_bias
        if own.norm_weight is None:
            return rows
        weight = own.norm_weight + 1 if own.norm.endswith("plus_one") else own.norm_weight
        there = np.abs(weight) > 1e-6 * np.abs(weight).max()
        return np.where(there, rows / np.where(there, weight, 1), 0).astype(np.float32)


def _dealt(lengths: Int64[np.ndarray, "example"], seed: int) -> Int64[np.ndarray, "example"]:
    """The number of each example's part; -1 of those without tokens."""
    having = np.flatnonzero(lengths)
    if len(having) < FEWEST:
        raise UsageError(
            f"a lens of {len(having)} example{'s' * (len(having) != 1)}",
            why=f"some are to fit, some to choose by, some to measure on: it takes {FEWEST} that have tokens",
            hint="more texts",
        )
    order = np.random.default_rng(seed).permutation(having)
    part_of = np.full(len(lengths), -1)
    ends = np.cumsum(
        [len(having) - sum(_count(part, len(having)) for part in PARTS[1:]), _count("validation", len(having))]
    )
    for number, own in enumerate(np.split(order, ends)):
        part_of[own] = number
    return part_of


def _count(part: Part, n: int) -> int:
    return max(1, round(_SHARES[part] * n))
