"""The rows of a run that probes are fitted on: those of tokens or of whole texts, read again in every pass.

What fits into 64 MB is kept, in the numbers that were read; other rows are read anew each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from traceformer.analysis.methods import Position
from traceformer.errors import NotRecorded, NumericError, UsageError
from traceformer.shapes import Bool, Float, Int64
from traceformer.sites import ArraySpec
from traceformer.store.run import Run

__all__ = ["KEPT_BYTES", "ProbeRows", "rows_spec"]

KEPT_BYTES = 64 << 20
_BATCH = 8192

Block: TypeAlias = Float[np.ndarray, "row d"]


def rows_spec(run: Run, site: str) -> ArraySpec:
    """Returns the array that a site or a key names, one with a row per token, or per token and head.

    Raises:
        SelectionError, NotRecorded: as `run.spec` raises them.
        UsageError: it has no rows of activations.
    """
    spec = run.spec(site)
    if not spec.site.is_per_token or spec.site.is_derived or spec.site.holds_ids:
        raise UsageError(f"{spec.key} has no activations of tokens", why=spec.site.meaning, hint='`site="resid_post"`')
    return spec


@dataclass(slots=True, eq=False)
class ProbeRows:
    """Some rows of one layer, or of one head: as they are of tokens, or one for each text.

    Called, it yields them, a block at a time. Rows with NaN or infinite numbers are refused.

    Attributes:
        run: The run.
        spec: A token array of it.
        layer: The model's number of the layer; None where the site has none.
        head: That of a head; None for all side by side.
        position: What stands for a text; None for rows of tokens.
        wanted: Which rows are yielded, of all tokens or of all texts.
    """

    run: Run
    spec: ArraySpec
    layer: int | None
    head: int | None
    position: Position | None
    wanted: Bool[np.ndarray, "row"]
    _kept: list[np.ndarray] = field(default_factory=list[np.ndarray])
    _whole: bool = False

    def __call__(self) -> Iterator[Block]:
        """Yields the rows."""
        if self._whole:
            yield from self._kept
            return
        start, kept = 0, list[np.ndarray]()
        fits = 4 * int(self.wanted.sum()) * _width(self.spec, self.head) <= KEPT_BYTES
        for block in self._tokens() if self.position is None else self._texts(self.position):
            here = self.wanted[start : start + len(block)]
            rows = block if here.all() else block[here]
            if not np.isfinite(rows).all():
                raise self._not_finite(start + int(np.flatnonzero(here)[~np.isfinite(rows).all(axis=1)][0]))
            start += len(block)
            if fits:
                kept.append(rows)
            if len(rows):
                yield rows
        if fits:
            self._kept, self._whole = [rows for rows in kept if len(rows)], True

    def _tokens(self) -> Iterator[Block]:
        return self.run.stream(self.spec.key, self.layer, _BATCH, head=self.head)

    def _texts(self, position: Position) -> Iterator[Block]:
        first = _first_tokens(self.run, self.spec, position)
        rows: list[np.ndarray] = []
        for row, (example_id, values) in enumerate(self.run.head(self.spec.key, self.layer, self.head)):
            if not self.wanted[row]:
                rows.append(np.zeros(_width(self.spec, self.head), np.float32))
            else:
                chosen = values[..., -1:, :] if position == "last" else values[..., first[row] :, :]
                if not chosen.shape[-2]:
                    why = f'`position="{position}"`'
                    raise UsageError(f"example {example_id} has no tokens", why=why, hint="leave it out")
                rows.append(chosen.mean(axis=-2, dtype=np.float32).reshape(-1))
            if len(rows) == _BATCH:
                yield np.stack(rows)
                rows = []
        if rows:
            yield np.stack(rows)

    def _not_finite(self, row: int) -> NumericError:
        lengths = self.run.lengths(self.spec.key.token_stack)
        text = row if self.position is not None else int(np.searchsorted(np.cumsum(lengths), row, side="right"))
        place = f"example {self.run.example_id(text)}"
        if self.position is None:
            place += f", position {row - int(lengths[:text].sum())}"
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return NumericError(f"a row{layer} is NaN or infinite", why=place, hint="leave out its label")


def _width(spec: ArraySpec, head: int | None) -> int:
    return spec.width * (max(1, len(spec.heads)) if head is None else 1)


def _first_tokens(run: Run, spec: ArraySpec, position: Position) -> Int64[np.ndarray, "text"]:
    """Where in each text what stands for it begins.

    Raises:
        NotRecorded: `response` of a run that is no generation.
    """
    if position != "response":
        return np.zeros(run.n, np.int64)
    column = run.columns_of(["n_prompt"])
    if "n_prompt" not in column.column_names or spec.key.token_stack != "dec" or column["n_prompt"].null_count:
        raise NotRecorded("this run holds no responses", hint='`position="mean"`, or a run that generate made')
    return np.asarray(column["n_prompt"].to_numpy(), np.int64)
