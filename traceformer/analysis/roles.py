"""The role card: what each head looks for, what its weights copy, and what the model loses without it, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.circuits import Circuits
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.analysis.massive import MassiveActivations
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROLES", "ROLE_FROM", "Roles", "join_roles"]

ROLES: Mapping[str, str] = {
    "previous_token": "previous token",
    "induction": "induction",
    "duplicate_token": "duplicate token",
    "first_token": "sink",
    "self": "own token",
}
"""The metrics that make a role, and its name."""

ROLE_FROM = 0.4
"""The attention that the largest of them has at least; a head with less has no role."""

_BEHAVIOUR = (*ROLES, "retrieval")
_WEIGHTS = {
    "copying": "copying",
    "ov_rank": "ov_rank",
    "qk_rank": "qk_rank",
    "previous_token": "previous_token_weights",
    "induction": "induction_weights",
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Roles:
    """One row per head: behaviour, weights, and the effect of its ablation.

        roles.to_frame().sort_values("induction").tail(3)

    Attributes:
        rows: The heads.
        values: Column -> a number per head: metrics of `heads`; numbers of `circuits`, those that share a metric's name
            with `_weights` behind it; and `ablation`, by how much the loss grows without the head. NaN for no meaning.
        massive: How much of the residual stream is massive; None where there was none to look at.
        circuits: What the weights say; None where they were not to be had.
        about: The texts, and how they were measured.
        notes: Column, or `massive`, -> why it is empty, or what it is of.
    """

    rows: tuple[HeadName, ...]
    values: Mapping[str, Float64[np.ndarray, "row"]]
    massive: MassiveActivations | None
    circuits: Circuits | None
    about: Measured
    notes: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """`L5H3` for each head, with its attention before it where there are several."""
        several = len({row.attention for row in self.rows}) > 1
        return tuple(f"{row.attention} {row}" if several else str(row) for row in self.rows)

    @property
    def roles(self) -> tuple[str, ...]:
        """The name of what each head attends to most, if that has 0.4 of its attention at least, else `""`."""
        scores = np.stack([np.nan_to_num(self.values[name], nan=-1) for name in ROLES], axis=1)
        names = list(ROLES.values())
        best = scores.argmax(axis=1)
        return tuple(names[n] if row[n] >= ROLE_FROM else "" for n, row in zip(best.tolist(), scores, strict=True))

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns that have a number."""
        return tuple(name for name, column in self.values.items() if np.isfinite(column).any())

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per head: attention, layer, head, role, and a column per number."""
        import pandas as pd

        places = {name: [row[number] for row in self.rows] for number, name in enumerate(HeadName._fields)}
        return pd.DataFrame({**places, "role": self.roles, **self.values})

    def to_json(self) -> dict[str, Any]:
        """Returns a list of heads, the massive activations and the notes, with None for NaN."""
        columns = {name: plain(column) for name, column in self.values.items()}
        return {
            "source": self.about.source,
            "model": self.about.model,
            "texts": self.about.texts,
            "heads": [
                {**row._asdict(), "role": role, **{name: column[number] for name, column in columns.items()}}
                for number, (row, role) in enumerate(zip(self.rows, self.roles, strict=True))
            ],
            "massive": None if self.massive is None else self.massive.to_json(),
            "notes": dict(self.notes),
        }

    def __repr__(self) -> str:
        with_role = sum(map(bool, self.roles))
        return f"Roles({self.about.model or self.about.source}: {with_role} of {len(self.rows)} heads have a role)"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def join_roles(
    metrics: HeadMetrics,
    *,
    circuits: Circuits | None = None,
    massive: MassiveActivations | None = None,
    ablation: Mapping[tuple[int, int], float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Roles:
    """Returns the role card of heads that were measured.

    Args:
        metrics: Their metrics.
        circuits: What the weights say of a decoder's heads.
        massive: What was counted in its stream.
        ablation: (layer, head) -> by how much the loss grows without it.
        notes: What is to be said of columns.
    """
    none = np.full(len(metrics.rows), np.nan)
    values: dict[str, Float64[np.ndarray, "row"]] = {name: metrics.values.get(name, none) for name in _BEHAVIOUR}
    for name, column in _WEIGHTS.items():
        values[column] = none if circuits is None else _of_rows(metrics.rows, circuits.values[name])
    found = ablation or {}
    values["ablation"] = np.array([found.get((row.layer, row.head), np.nan) for row in metrics.rows], np.float64)
    told = {} if circuits is None else {_WEIGHTS[name]: why for name, why in circuits.notes.items()}
    return Roles(metrics.rows, values, massive, circuits, metrics.about, {**told, **(notes or {})})


def _of_rows(rows: Sequence[HeadName], grid: Float[np.ndarray, "layer head"]) -> Float64[np.ndarray, "row"]:
    """Each head's number, NaN for heads of other attentions than a decoder's own."""
    own = ("dec.self", "")
    return np.array([grid[row.layer, row.head] if row.attention in own else np.nan for row in rows], np.float64)
