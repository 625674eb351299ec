"""The three conventions in which attention, activations and logits become numbers; every verb knows the same ones.

A is a row of a pattern (where one query looks), p the softmax of a row of logits.

                                  exact                    thesis                 nanochat
    a row is                      A / ΣA                   A / (ΣA + 1e-9)        A, as it was recorded
    its entropy, in nats          -Σ A ln A, 0 ln 0 = 0    -Σ A ln(A + 1e-9)      -Σ A ln(A + 1e-8)
    a cell is sparse below        0.0001                   0.0001                 0.01
    cells that the mask hides     do not count             are sparse cells       are sparse cells
    the same weight has every     query                    example                query
    an activation is sparse       within 1e-6 of zero      (not defined)          within 1e-6 of zero
    std divides by                n                        (not defined)          n - 1
    entropy of logits, in nats    -Σ p ln p                (not defined)          -Σ p ln(p + 1e-8)

`thesis` is that of the byte-transformer thesis, `nanochat` that of the nanochat traces. Metrics that these do not have
themselves (what a head's attention to the token before is, say) follow the same rules: how rows are divided, which
cells count, what weighs the same. What a convention says nothing about is left out, and never taken from another one.

A share of sparse cells has its threshold in its name, `sparsity_0.0001`; the thesis's own is called `sparsity`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["CONVENTIONS", "SPARSITY", "Convention", "ConventionName"]

ConventionName: TypeAlias = Literal["exact", "thesis", "nanochat"]

SPARSITY = "sparsity"


@dataclass(frozen=True, slots=True)
class Convention:
    """How rows of attention, entropies, sparsities and standard deviations are meant.

    Attributes:
        name: What it is called.
        divides_rows: Whether a row of a pattern is divided by its sum.
        beside_sum: Added to that sum.
        in_logarithm: Added to every probability inside a logarithm; 0 means 0 log 0 = 0.
        hidden_cells: Whether cells that the mask hides count.
        weighs: Whether every query has the same weight in a mean, or every example.
        sparse_weight: A cell of a pattern below this is sparse.
        sparse_value: An activation whose absolute value is below this is sparse; None where activations and logits are
            not defined.
        lost_degrees: What std divides by: the count less this.
    """

    name: ConventionName
    divides_rows: bool
    beside_sum: float
    in_logarithm: float
    hidden_cells: bool
    weighs: Literal["queries", "examples"]
    sparse_weight: float
    sparse_value: float | None
    lost_degrees: int

    @property
    def sparsity(self) -> str:
        """What the share of sparse cells of a pattern is called."""
        return SPARSITY if self.name == "thesis" else f"{SPARSITY}_{self.sparse_weight:g}"

    @property
    def value_sparsity(self) -> str:
        """What the share of sparse activations is called."""
        return f"{SPARSITY}_{self.sparse_value:g}"

    def column(self, metric: str) -> str:
        """Returns what a metric of heads is called in a table."""
        return self.sparsity if metric == SPARSITY else metric


CONVENTIONS: Mapping[ConventionName, Convention] = {
    "exact": Convention(
        name="exact",
        divides_rows=True,
        beside_sum=0.0,
        in_logarithm=0.0,
        hidden_cells=False,
        weighs="queries",
        sparse_weight=1e-4,
        sparse_value=1e-6,
        lost_degrees=0,
    ),
    "thesis": Convention(
        name="thesis",
        divides_rows=True,
        beside_sum=1e-9,
        in_logarithm=1e-9,
        hidden_cells=True,
        weighs="examples",
        sparse_weight=1e-4,
        sparse_value=None,
        lost_degrees=0,
    ),
    "nanochat": Convention(
        name="nanochat",
        divides_rows=False,
        beside_sum=0.0,
        in_logarithm=1e-8,
        hidden_cells=True,
        weighs="queries",
        sparse_weight=0.01,
        sparse_value=1e-6,
        lost_degrees=1,
    ),
}
