"""The metrics of attention heads as one table: a row per head, of every attention that was measured, and how it was."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from traceformer.analysis.conventions import ConventionName
from traceformer.arguments import checked
from traceformer.errors import NotFound, NotRecorded, SelectionError
from traceformer.presentation import in_notebook, plain, present
from traceformer.shapes import Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HeadMetrics", "HeadName", "Measured", "join_heads"]


class HeadName(NamedTuple):
    """Which head: of `enc.self`, `dec.self` or `dec.cross`, by the model's own numbers; `str` writes `L5H3`."""

    attention: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, and how; None, or nothing, where a table does not say.

    Attributes:
        source: The run, the texts or the file that the metrics come from.
        model: The model's name.
        texts: How many texts were read, and a digest of them: the same for the same texts, wherever they come from.
        convention: What entropy and sparsity mean, as in `conventions.py`.
        sparse_below: What a cell is sparse below.
        window: How many tokens on either side `local_mass` counts.
        examples: How many examples the metrics of each attention are means over.
        queries: How many queries these have together.
        without: The layers of each attention's stack that have no attention, where not all have some.
    """

    source: str = ""
    model: str | None = None
    convention: ConventionName | None = None
    window: int | None = None
    examples: Mapping[str, int] = field(default_factory=dict[str, int])
    queries: Mapping[str, int] = field(default_factory=dict[str, int])
    texts: str | None = None
    sparse_below: float | None = None
    without: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeadMetrics:
    """The metrics of some heads; NaN where one has no meaning, such as a distance across two texts.

        metrics.to_frame().sort_values("induction").tail(3)
        metrics.grid("entropy")                             # (layer, head)

    Attributes:
        rows: The heads, those of one attention one after the other.
        values: Name of each metric -> a number per head. A sparsity has its threshold in its name (`sparsity_0.0001`),
            but for the thesis's own.
        about: What was measured, and how.
    """

    rows: tuple[HeadName, ...]
    values: Mapping[str, Float64[np.ndarray, "row"]]
    about: Measured

    @property
    def attentions(self) -> tuple[str, ...]:
        """`enc.self`, `dec.self`, `dec.cross`, as far as there are heads of them."""
        return tuple(dict.fromkeys(row.attention for row in self.rows))

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({row.layer for row in self.rows}))

    @property
    def heads(self) -> tuple[int, ...]:
        return tuple(sorted({row.head for row in self.rows}))

    @property
    def names(self) -> tuple[str, ...]:
        """`L5H3` for each head, with its attention before it where there are several."""
        several = len(self.attentions) > 1
        return tuple(f"{row.attention} {row}" if several else str(row) for row in self.rows)

    def part(self, attention: str) -> "HeadMetrics":
        """Returns the heads of one attention.

        Raises:
            NotFound: there are none.
        """
        chosen = [index for index, row in enumerate(self.rows) if row.attention == attention]
        if not chosen:
            there = ", ".join(sorted(filter(None, self.attentions)))
            raise NotFound(f"{self.about.source} has no attention {attention}", hint=f"it has {there or 'none'}")
        values = {name: column[chosen] for name, column in self.values.items()}
        return HeadMetrics(tuple(self.rows[index] for index in chosen), values, self.about)

    def column(self, metric: str) -> str:
        """Returns a column's full name: `sparsity` means the only sparsity there is, whatever its threshold.

        Raises:
            NotRecorded: there is no such column.
            SelectionError: there are several.
        """
        if metric in self.values:
            return metric
        alike = [name for name in self.values if re.fullmatch(re.escape(str(metric)) + r"_\d[\d.e+-]*", name)]
        if len(alike) > 1:
            raise SelectionError(f"which {metric} of {self.about.source}?", hint=" or ".join(alike))
        if not alike:
            why = f"its metrics are {', '.join(self.values) or 'none'}"
            raise NotRecorded(f"{self.about.source} has no column {metric}", why=why, hint="one of these")
        return alike[0]

    def grid(self, metric: str, attention: str | None = None) -> Float64[np.ndarray, "layer head"]:
        """Returns one metric as a grid over `layers` and `heads` of one attention; NaN where a head is not there.

        Raises:
            NotFound, NotRecorded, SelectionError: no such attention or metric, or several.
        """
        if attention is None and len(self.attentions) > 1:
            raise SelectionError("which attention?", hint=" or ".join(self.attentions))
        own = self if attention is None else self.part(attention)
        layers, heads = own.layers, own.heads
        grid = np.full((len(layers), len(heads)), np.nan)
        for row, value in zip(own.rows, own.values[own.column(metric)], strict=True):
            grid[layers.index(row.layer), heads.index(row.head)] = value
        return grid

    def has_all(self, metric: str) -> bool:
        """Whether every head has a number in this column."""
        return metric in self.values and bool(np.isfinite(self.values[metric]).all())

    def features(self, metrics: Sequence[str]) -> Float64[np.ndarray, "row feature"]:
        """Returns these metrics side by side.

        Raises:
            NotRecorded: there is no such metric, or a head has no number there.
            SelectionError: there are several.
        """
        names = [self.column(metric) for metric in metrics]
        if not names:
            raise NotRecorded(f"no metric of {self.about.source} is named", hint=f"some of {', '.join(self.values)}")
        features = np.stack([self.values[name] for name in names], axis=1)
        missing = ~np.isfinite(features)
        if missing.any():
            row, column = (int(index[0]) for index in np.nonzero(missing))
            several = len(self.attentions) > 1
            raise NotRecorded(
                f"{self.about.source}: {self.names[row]} has no {names[column]}",
                why=f"a number is missing in {int(missing.any(axis=1).sum())} of {len(features)} rows",
                hint=f'`attention="{self.attentions[0]}"`' if several else "other metrics",
            )
        return features

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per head: attention, layer, head, and a column per metric."""
        import pandas as pd

        places = {name: [row[number] for row in self.rows] for number, name in enumerate(HeadName._fields)}
        return pd.DataFrame({**places, **self.values})

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics of each attention as (layer, head) lists, with None for NaN."""
        about = self.about
        return {
            "source": about.source,
            "model": about.model,
            "texts": about.texts,
            "convention": about.convention,
            "sparse_below": about.sparse_below,
            "window": about.window,
            "attention": {
                attention: {
                    "layers": list(self.part(attention).layers),
                    "heads": list(self.part(attention).heads),
                    "examples": about.examples.get(attention),
                    "queries": about.queries.get(attention),
                    **({"without_attention": list(gaps)} if (gaps := about.without.get(attention)) else {}),
                    "metrics": {name: plain(self.grid(name, attention)) for name in self.values},
                }
                for attention in self.attentions
            },
        }

    @checked
    def write(self, path: str | Path) -> None:
        """Writes the table as CSV; `traceformer.cluster` reads it."""
        present(self, "csv", path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadMetrics):
            return NotImplemented
        same = self.rows == other.rows and self.about == other.about and list(self.values) == list(other.values)
        return same and all(
            np.array_equal(self.values[name], other.values[name], equal_nan=True) for name in self.values
        )

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride]  # as of all values with arrays

    def __repr__(self) -> str:
        about = self.about
        of = " and ".join(filter(None, self.attentions))
        parts = (
            f"{len(self.rows)} heads" + (f" of {of}" if of else ""),
            f"{len(self.values)} metrics",
            f"{about.convention} convention" if about.convention else "",
        )
        return f"HeadMetrics({about.model or about.source}: {', '.join(filter(None, parts))})"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def join_heads(
    tables: Sequence[HeadMetrics],
    *,
    source: str,
    model: str | None,
    texts: str | None = None,
    without: Mapping[str, Sequence[int]] | None = None,
) -> HeadMetrics:
    """Returns the heads of several attentions, measured in the same way, as one table."""
    about = replace(
        tables[0].about,
        source=source,
        model=model,
        texts=texts,
        examples={name: count for table in tables for name, count in table.about.examples.items()},
        queries={name: count for table in tables for name, count in table.about.queries.items()},
        without=without or {},
    )
    return HeadMetrics(
        tuple(row for table in tables for row in table.rows),
        {name: np.concatenate([table.values[name] for table in tables]) for name in tables[0].values},
        about,
    )
