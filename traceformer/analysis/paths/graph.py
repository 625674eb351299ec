"""The graph that paths run through: nodes, and weighted edges backward to what each node looked at.

Three kinds, with n positions and L layers:

- `causal`: one layer; nodes are positions 0 .. n-1, edges lead to strictly earlier positions.
- `any`: one layer of an encoder; edges lead to every other position, and a path visits a node once.
- `layers`: nodes are `state * n + position` for states 0 (what enters layer 0) .. L (what leaves layer L-1); the
  edges of state s lead to state s-1 with the weights of layer s-1.

In the first and the last kind every edge leads to a smaller node, so paths can be counted through in order.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import NumericError
from traceformer.shapes import Bool, Float, Float32, Int

__all__ = ["SMALLEST_WEIGHT", "Edges", "Graph", "Kind", "log_weights", "top_k"]

Kind: TypeAlias = Literal["causal", "any", "layers"]

SMALLEST_WEIGHT = 1e-12
"""A weight below it counts as this much in scores, so that one tiny edge costs no more than ln(1e-12) = -27.6."""

_LARGEST_WEIGHT = 1.01  # a stored pattern is rounded, in the sqrt8 codec by up to 0.004


class Edges(NamedTuple):
    """The strongest edges of some nodes, by weight descending, then node ascending; -1 and 0 where there are fewer."""

    nodes: Int[np.ndarray, "node edge"]
    weights: Float32[np.ndarray, "node edge"]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Where paths may go.

    Attributes:
        weights: One layer's, or all layers' from the first to the last; zero is no edge.
        kind: Which edges there are; see the module.
        terminal: Where a path ends when it arrives.
        allowed: Positions that a path may enter.
        min_weight: Weaker edges are left out.
    """

    weights: Float32[np.ndarray, "layer query key"]
    kind: Kind
    terminal: Bool[np.ndarray, "node"]
    allowed: Bool[np.ndarray, "key"]
    min_weight: float = 0.0

    @property
    def n_positions(self) -> int:
        return self.weights.shape[2]

    @property
    def n_nodes(self) -> int:
        return self.n_positions * (len(self.weights) + 1 if self.kind == "layers" else 1)

    def deepest(self, node: int) -> int:
        """Returns how many edges a path from this node can have at most."""
        return node // self.n_positions if self.kind == "layers" else node if self.kind == "causal" else self.n_nodes

    def first_edge(self, nodes: Int[np.ndarray, "node"]) -> Int[np.ndarray, "node"]:
        """Returns the node that column 0 of each node's row stands for."""
        if self.kind != "layers":
            return np.zeros_like(nodes)
        return (nodes // self.n_positions - 1) * self.n_positions

    def rows(self, nodes: Int[np.ndarray, "node"]) -> Float32[np.ndarray, "node key"]:
        """Returns the weights of each node's edges, zero where there is none; a copy.

        Rows of a causal layer end at the latest position that any of the nodes may look at.

        Raises:
            NumericError: a weight is not a number, negative or larger than one.
        """
        if self.kind == "layers":
            state, position = np.divmod(nodes, self.n_positions)
            rows = self.weights[state - 1, position]
            rows[state == 0] = 0  # the inputs of layer 0 looked at nothing
        elif self.kind == "causal":
            width = int(nodes.max(initial=0))
            rows = self.weights[0, nodes, :width]
            rows[np.arange(width) >= nodes[:, None]] = 0
        else:
            rows = self.weights[0, nodes]
            rows[np.arange(len(nodes)), nodes] = 0
        if not (rows.min(initial=0) >= 0 and rows.max(initial=0) <= _LARGEST_WEIGHT):  # false for nan, too
            bad = rows[~((rows >= 0) & (rows <= _LARGEST_WEIGHT))].flat[0]
            raise NumericError(f"an attention weight is {bad}", why="weights lie between 0 and 1")
        rows[:, ~self.allowed[: rows.shape[1]]] = 0
        if self.min_weight > 0:
            rows[rows < self.min_weight] = 0
        return rows


def log_weights(weights: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns ln(weight) in float64, not below ln(SMALLEST_WEIGHT), and -inf where there is no edge."""
    with np.errstate(divide="ignore"):
        return np.where(weights > 0, np.log(np.maximum(weights.astype(np.float64), SMALLEST_WEIGHT)), -np.inf)


def top_k(
    graph: Graph,
    nodes: Int[np.ndarray, "node"],
    k: int,
    visited: Bool[np.ndarray, "node key"] | None = None,
) -> Edges:
    """Returns each node's k strongest edges; none into a node that is marked in its row of `visited`."""
    rows = graph.rows(nodes)
    if visited is not None:
        rows[visited] = 0
    count, width = rows.shape
    found = Edges(np.full((count, k), -1, np.int32), np.zeros((count, k), np.float32))
    if width == 0:
        return found
    if k < width:
        # Everything that reaches the k-th largest weight: k cells, and more where weights are equal.
        threshold = np.partition(rows, width - k, axis=1)[:, width - k, None]
        row, column = np.nonzero((rows >= threshold) & (rows > 0))
    else:
        row, column = np.nonzero(rows)
    weight = rows[row, column]
    order = np.lexsort((column, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    row, column, weight, rank = (array[rank < k] for array in (row, column, weight, rank))
    found.nodes[row, rank] = column + graph.first_edge(nodes)[row]
    found.weights[row, rank] = weight
    return found
