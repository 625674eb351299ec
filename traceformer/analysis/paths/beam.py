"""Beam search backward along the edges of a graph, for many targets at once.

1. Every target begins as one open path of no edge.
2. Each open path is extended by the `top_k` strongest edges of its last node (by weight, then the earlier node).
   A path whose last node has no edge is complete; so is one whose new node is terminal.
3. Of each target's open paths the `top_beam` best stay, and step 2 is repeated until none is open. All open paths
   have equally many edges, so any length norm ranks them like the sum of their log weights.
4. Of each target's complete paths the `top_beam` best are returned, by score after the length norm.

Equal scores keep the order in which they were found: fewer edges first, then the stronger first edges. Open and
complete paths are rows of arrays that know their parent's row; positions are put together at the end only.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from traceformer.analysis.paths.graph import Graph, log_weights, top_k
from traceformer.errors import UsageError
from traceformer.shapes import Bool, Float, Int

__all__ = ["BeamState", "LengthNorm", "beam_search", "beam_search_backward"]

_SLOTS_AT_ONCE = 1 << 20  # extensions considered in one step, over all targets that are searched together
_FILL_CELLS = 1 << 24  # weights looked at in one go


@dataclass(frozen=True, slots=True)
class LengthNorm:
    """How a path's score depends on its number of edges: the sum of log weights over edges ** power."""

    power: float

    @classmethod
    def parse(cls, text: str) -> "LengthNorm":
        """Returns what `none`, `avg_logprob`, `sqrt` or `pow:0.7` means.

        Raises:
            UsageError: it is none of them.
        """
        named = {"none": 0.0, "avg_logprob": 1.0, "sqrt": 0.5}
        if text in named:
            return cls(named[text])
        if re.fullmatch(r"pow:[+-]?(\d+\.?\d*|\.\d+)", str(text)):
            return cls(float(text.removeprefix("pow:")))
        raise UsageError(f"no length norm {text!r}", hint="none, avg_logprob, sqrt, or pow:0.7")

    def score(self, log_score: float, n_edges: int) -> float:
        """Returns the score of a path; one without an edge keeps its sum, zero."""
        return log_score if n_edges == 0 else log_score / n_edges**self.power


@dataclass(frozen=True, slots=True)
class BeamState:
    """A path as nodes and weights: the target first, then backward."""

    positions: list[int]
    edge_attns: list[float]
    log_score: float
    is_terminal: bool = False

    @property
    def current_pos(self) -> int:
        return self.positions[-1]

    @property
    def num_edges(self) -> int:
        return len(self.edge_attns)


def beam_search_backward(
    attn: Any,
    target_pos: int,
    top_beam: int = 5,
    top_k: int = 5,
    min_attn: float = 0.0,
    length_norm: str = "avg_logprob",
    stop_at_bos: bool = True,
    bos_positions: Iterable[int] | None = None,
    attention_mask: Any = None,
) -> list[BeamState]:
    """Returns the best paths backward from a target through one causal layer, best first.

    The function of reverse-attention, with its defaults.

    Args:
        attn: Weights (query, key) as an array or tensor; what lies on and above the diagonal is not looked at.
        target_pos: Where the paths begin; negative counts from the end.
        top_beam: How many paths are kept at each step, and returned.
        top_k: How many edges of a node are tried.
        min_attn: Weaker edges are left out.
        length_norm: `none`, `avg_logprob`, `sqrt` or `pow:a`.
        stop_at_bos: Whether paths end at `bos_positions`; they always end at position 0.
        bos_positions: Where the tokens lie that begin a text.
        attention_mask: One number per position, 0 for those that no path may enter.

    Raises:
        UsageError: an argument out of range, or arrays of shapes that do not fit.
        NumericError: a weight that is not between 0 and 1.
    """
    weights = _as_array(attn, np.float32)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise UsageError(f"attention of shape {weights.shape}", hint="one (query, key) square, heads combined")
    n = len(weights)
    allowed = np.ones(n, bool) if attention_mask is None else _as_array(attention_mask, np.float32).reshape(-1) != 0
    if len(allowed) != n:
        raise UsageError(f"a mask of {len(allowed)} for {n} positions")
    if not -n <= target_pos < n:
        raise UsageError(f"target position {target_pos} requested", why=f"there are positions 0-{n - 1}")
    terminal = np.zeros(n, bool)
    terminal[:1] = True
    if stop_at_bos:
        terminal[list(bos_positions or ())] = True
    graph = Graph(weights[None], "causal", terminal, allowed, min_attn)
    norm = LengthNorm.parse(length_norm)
    return beam_search(graph, [target_pos % n], top_beam=top_beam, top_k=top_k, norm=norm)[0]


def _as_array(values: Any, dtype: Any) -> np.ndarray:
    """An array or tensor of any dtype and device; numpy knows no bfloat16."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu()
    return np.asarray(values, dtype=dtype)


def beam_search(
    graph: Graph, targets: Sequence[int], *, top_beam: int, top_k: int, norm: LengthNorm
) -> list[list[BeamState]]:
    """Returns for each target (a node) the best complete paths that a beam of `top_beam` finds, best first.

    Raises:
        UsageError: `top_beam` or `top_k` is less than one.
        NumericError: a weight that is not between 0 and 1.
    """
    for name, value in (("top_beam", top_beam), ("top_k", top_k)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    edges = _Edges.of(graph, top_k)
    at_once = max(1, _SLOTS_AT_ONCE // (top_beam * top_k))
    if graph.kind == "any":
        at_once = max(1, _FILL_CELLS // (top_beam * graph.n_positions))
    found: list[list[BeamState]] = []
    for start in range(0, len(targets), at_once):
        some = np.asarray(targets[start : start + at_once], np.int32)
        found += _search(graph, edges, some, top_beam, norm)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Edges:
    """Each node's strongest edges, looked up when a path first comes there. The last row is that of no node."""

    graph: Graph
    k: int
    nodes: Int[np.ndarray, "node edge"]
    weights: Float[np.ndarray, "node edge"]
    logs: Float[np.ndarray, "node edge"]
    known: Bool[np.ndarray, "node"]

    @classmethod
    def of(cls, graph: Graph, k: int) -> "_Edges":
        k = min(k, graph.n_positions)
        shape = (1 if graph.kind == "any" else graph.n_nodes + 1, k)
        nodes, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        return cls(graph, k, nodes, weights, np.full(shape, -np.inf), np.zeros(len(nodes), bool))

    def fill(self, nodes: Int[np.ndarray, "..."]) -> None:
        new = np.unique(nodes[(nodes >= 0) & ~self.known[nodes]])
        step = max(1, _FILL_CELLS // self.graph.n_positions)
        for start in range(0, len(new), step):
            some = new[start : start + step]
            self.nodes[some], self.weights[some] = top_k(self.graph, some, self.k)
            self.logs[some] = log_weights(self.weights[some])
        self.known[new] = True


class _Extensions(NamedTuple):
    """One step's edges: for each searched target, open path and edge the new node (-1 = none) and its weight."""

    nodes: Int[np.ndarray, "target path edge"]
    weights: Float[np.ndarray, "target path edge"]
    logs: Float[np.ndarray, "target path edge"]


@dataclass(slots=True)
class _Tree:
    """Every node that was ever on an open path, with the entry it was reached from."""

    nodes: list[np.ndarray] = field(default_factory=list[np.ndarray])
    weights: list[np.ndarray] = field(default_factory=list[np.ndarray])
    parents: list[np.ndarray] = field(default_factory=list[np.ndarray])
    size: int = 0

    def add(self, nodes: np.ndarray, weights: np.ndarray, parents: np.ndarray) -> Int[np.ndarray, "entry"]:
        self.nodes.append(nodes)
        self.weights.append(weights)
        self.parents.append(parents)
        self.size += len(nodes)
        return np.arange(self.size - len(nodes), self.size)

    def paths(self, entries: Sequence[int], scores: Sequence[float]) -> list[BeamState]:
        """Returns the paths that end at these entries."""
        nodes, weights, parents = (np.concatenate(parts) for parts in (self.nodes, self.weights, self.parents))
        found: list[BeamState] = []
        for entry, log_score in zip(entries, scores, strict=True):
            positions: list[int] = []
            attns: list[float] = []
            while entry >= 0:
                positions.append(int(nodes[entry]))
                attns.append(float(weights[entry]))
                entry = int(parents[entry])
            found.append(BeamState(positions[::-1], attns[-2::-1], log_score, is_terminal=True))
        return found


@dataclass(slots=True)
class _Complete:
    """The complete paths worth keeping: of each target the `top_beam` best, in the order they were found."""

    top_beam: int
    targets: np.ndarray
    entries: np.ndarray
    log_scores: np.ndarray
    scores: np.ndarray
    worst: np.ndarray  # per target: what a path must exceed to be kept

    @classmethod
    def none(cls, n_targets: int, top_beam: int) -> "_Complete":
        integers, floats = np.zeros(0, np.int64), np.zeros(0)
        return cls(top_beam, integers, integers, floats, floats, np.full(n_targets, -np.inf))

    def add(self, targets: np.ndarray, entries: np.ndarray, log_scores: np.ndarray, scores: np.ndarray) -> None:
        self.targets = np.concatenate([self.targets, targets])
        self.entries = np.concatenate([self.entries, entries])
        self.log_scores = np.concatenate([self.log_scores, log_scores])
        self.scores = np.concatenate([self.scores, scores])
        if len(self.targets) > 4 * self.top_beam * len(self.worst) + 4096:
            self.cut()

    def cut(self) -> None:
        """Leaves each target's best, and sorts them: by target, then best first."""
        order = np.lexsort((-self.scores, self.targets))  # stable: equal ones stay as they were found
        targets = self.targets[order]
        rank = np.arange(len(order)) - np.searchsorted(targets, targets)
        order = order[rank < self.top_beam]
        self.targets, self.entries = self.targets[order], self.entries[order]
        self.log_scores, self.scores = self.log_scores[order], self.scores[order]
        full = rank == self.top_beam - 1
        self.worst[targets[full]] = self.scores[rank[rank < self.top_beam] == self.top_beam - 1]


def _search(
    graph: Graph, edges: _Edges, targets: Int[np.ndarray, "target"], top_beam: int, norm: LengthNorm
) -> list[list[BeamState]]:
    tree, complete = _Tree(), _Complete.none(len(targets), top_beam)
    terminal = np.append(graph.terminal, False)
    rows = np.arange(len(targets))  # the targets that have an open path
    current = targets[:, None]
    scores = np.zeros((len(targets), 1))
    entries = tree.add(targets, np.zeros(len(targets), np.float32), np.full(len(targets), -1))[:, None]
    visited = _first_visits(graph, targets)
    n_edges = 0
    while len(rows):
        new = _extend(edges, current, visited)
        dead = (current >= 0) & (new.nodes[..., 0] < 0)
        if dead.any():
            path = scores[dead]
            complete.add(rows[np.nonzero(dead)[0]], entries[dead], path, path / max(n_edges, 1) ** norm.power)
        n_edges += 1
        extended = scores[..., None] + new.logs
        ends = terminal[new.nodes]
        if ends.any():
            row, slot, _ = np.nonzero(ends)
            path = extended[ends]
            normed = path / n_edges**norm.power
            kept = normed > complete.worst[rows[row]]
            row, slot = row[kept], slot[kept]
            reached = tree.add(new.nodes[ends][kept], new.weights[ends][kept], entries[row, slot])
            complete.add(rows[row], reached, path[kept], normed[kept])
            extended[ends] = -np.inf
        shape = extended.shape
        row, chosen = _best(extended.reshape(len(rows), -1), top_beam)
        slot, edge = np.divmod(chosen, shape[2])
        scores = extended[row, slot, edge]
        is_open = scores > -np.inf
        current = np.where(is_open, new.nodes[row, slot, edge], -1)
        parents = entries[row, slot]
        entries = np.full(current.shape, -1)
        entries[is_open] = tree.add(current[is_open], new.weights[row, slot, edge][is_open], parents[is_open])
        alive, width = is_open.any(axis=1), int(is_open.sum(axis=1).max(initial=0))
        if visited is not None:
            visited = visited[row, slot]
            visited[np.arange(len(rows))[:, None], np.arange(current.shape[1]), current] = True
            visited = visited[alive, :width]
        rows, current, scores, entries = (
            rows[alive],
            current[alive, :width],
            scores[alive, :width],
            entries[alive, :width],
        )
    complete.cut()
    paths = tree.paths(complete.entries.tolist(), complete.log_scores.tolist())
    bounds = np.searchsorted(complete.targets, np.arange(len(targets) + 1))
    return [paths[start:stop] for start, stop in pairwise(bounds)]


def _first_visits(graph: Graph, targets: Int[np.ndarray, "target"]) -> Bool[np.ndarray, "target path key"] | None:
    """What each open path has visited, where it could come there again."""
    if graph.kind != "any":
        return None
    visited = np.zeros((len(targets), 1, graph.n_positions), bool)
    visited[np.arange(len(targets)), 0, targets] = True
    return visited


def _extend(
    edges: _Edges, current: Int[np.ndarray, "target path"], visited: Bool[np.ndarray, "target path key"] | None
) -> _Extensions:
    if visited is None:
        edges.fill(current)
        return _Extensions(edges.nodes[current], edges.weights[current], edges.logs[current])
    nodes = np.full((*current.shape, edges.k), -1, np.int32)
    weights = np.zeros(nodes.shape, np.float32)
    here = current >= 0
    nodes[here], weights[here] = top_k(edges.graph, current[here], edges.k, visited[here])
    return _Extensions(nodes, weights, log_weights(weights))


def _best(
    scores: Float[np.ndarray, "row choice"], count: int
) -> tuple[Int[np.ndarray, "row 1"], Int[np.ndarray, "row chosen"]]:
    """Returns indices of each row's `count` largest scores, largest first, equal ones in order."""
    row = np.arange(len(scores))[:, None]
    cost = -scores
    if count >= scores.shape[1]:
        return row, np.argsort(cost, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(cost, count - 1, axis=1)[:, :count], axis=1)
    largest = cost[row, chosen].max(axis=1, keepdims=True)
    # Where more are equal to the last one than were chosen, which of them were is chance.
    tied = (cost == largest).sum(axis=1) > (cost[row, chosen] == largest).sum(axis=1)
    tied &= np.isfinite(largest[:, 0])
    if tied.any():
        chosen[tied] = np.argsort(cost[tied], axis=1, kind="stable")[:, :count]
    return row, chosen[row, np.argsort(cost[row, chosen], axis=1, kind="stable")]
