"""The k best paths of all, by dynamic programming; what a beam may miss.

Every edge leads to an earlier node, so the best way to complete a path from a node follows from those of the nodes
before it. With these known, paths are listed best first by a best-first search whose bounds are exact: it never
follows a prefix that does not belong to one of the k best.

A length norm makes the best completion depend on how many edges there are already. Three cases:

1. `none`: it does not; one pass over the edges.
2. `avg_logprob`: the mean of a path's log weights exceeds m exactly if its sum of (log weight - m) is positive. Take
   for m the k-th best mean known, list the k best paths by that sum, and repeat while m rises (Dinkelbach 1967).
3. Any other power: the best completions with exactly 1, 2, 3 ... edges, each from those with one edge fewer. How long
   a path need be considered is bounded by straight lines: for any slope, a path of n edges sums to at most
   max(sum - slope * edges) + slope * n.

All edges of at least the graph's smallest weight count; there is no `top_k`.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from traceformer.analysis.paths.beam import BeamState, LengthNorm
from traceformer.analysis.paths.graph import Graph, log_weights
from traceformer.errors import Unsupported, UsageError
from traceformer.shapes import Float, Int

__all__ = ["best_paths"]

_MEAN = LengthNorm(1.0)
_NODES_AT_ONCE = 256
_CELLS_KEPT = 1 << 23  # 64 MiB of log weights
_ROUNDING = 1e-9  # sums of the same path in another order differ by less


def best_paths(graph: Graph, targets: Sequence[int], *, k: int, norm: LengthNorm) -> list[list[BeamState]]:
    """Returns for each target (a node) the k best complete paths there are, best first.

    Paths are complete as in `beam_search`: they end at a terminal node, or where there is no edge.

    Raises:
        UsageError: `k` is less than one.
        Unsupported: the layer looks ahead. A path may not visit a token twice, and no dynamic program knows which it
            has visited.
        NumericError: a weight that is not between 0 and 1.
    """
    if k < 1:
        raise UsageError(f"at least 1 path must be asked for, not {k}")
    if graph.kind == "any":
        raise Unsupported(
            "no exact search in one layer that looks ahead",
            why="its paths may turn either way, and the best of them cannot be found in reasonable time",
            hint="search with beams; or across layers, where every edge leads one layer down",
        )
    if not len(targets):
        return []
    search = _Search(graph, max(targets))
    plain = search.completions(0.0)
    if norm.power == 0:
        found = [search.best_by_sum(target, k, plain, 0.0) for target in targets]
    elif norm == _MEAN:
        found = [search.best_by_mean(target, k, plain) for target in targets]
    else:
        found = search.best_by_length(targets, k, norm, plain)
    return [_ranked(paths, norm)[:k] for paths in found]


def _ranked(paths: Sequence[BeamState], norm: LengthNorm) -> list[BeamState]:
    return sorted(paths, key=lambda path: -norm.score(path.log_score, path.num_edges))


class _Prefix(NamedTuple):
    """A path from the target to `node`, as a chain; `log_score` is its sum of log weights."""

    node: int
    weight: float
    n_edges: int
    log_score: float
    parent: "_Prefix | None"

    def state(self) -> BeamState:
        positions: list[int] = []
        weights: list[float] = []
        step: _Prefix | None = self
        while step is not None:
            positions.append(step.node)
            weights.append(step.weight)
            step = step.parent
        return BeamState(positions[::-1], weights[-2::-1], self.log_score, is_terminal=True)


class _Edges(NamedTuple):
    nodes: Int[np.ndarray, "edge"]
    weights: Float[np.ndarray, "edge"]
    logs: Float[np.ndarray, "edge"]


class _Ranked(NamedTuple):
    """Some edges of a node; `values` are the largest sums with which a path can be completed through each."""

    nodes: list[int]
    weights: list[float]
    logs: list[float]
    values: list[float]


_Completion = Callable[[int, Int[np.ndarray, "node"]], Float[np.ndarray, "node"]]
"""The largest sum with which a path can be completed from these nodes, with so many edges where that matters."""


class _Wanted(NamedTuple):
    """What one listing is after, and the edges that it has ranked so far, by node and number of edges left."""

    k: int
    completion: _Completion
    slope: float
    ranked: dict[tuple[int, int], _Ranked]


class _Search:
    """The edges of a graph up to one node."""

    def __init__(self, graph: Graph, last: int) -> None:
        self._graph = graph
        self._last = last
        self._known: dict[int, _Edges] = {}
        self._kept: dict[int, Float[np.ndarray, "node key"]] = {}

    def _edges(self, node: int) -> _Edges:
        if node not in self._known:
            nodes = np.array([node])
            row = self._graph.rows(nodes)[0]
            columns = np.flatnonzero(row)
            first = self._graph.first_edge(nodes)[0]
            self._known[node] = _Edges(columns + first, row[columns], log_weights(row[columns]))
        return self._known[node]

    def _groups(self, last: int) -> Iterator[tuple[Int[np.ndarray, "node"], slice, Float[np.ndarray, "node key"]]]:
        """Yields nodes up to `last` in order, which nodes their columns stand for, and log weights.

        No edge of a group leads into the same group.
        """
        for nodes, logs in self._blocks(last):
            if self._graph.kind == "layers":
                first = int(self._graph.first_edge(nodes[:1])[0])
                if first < 0:  # what enters layer 0 looked at nothing
                    first, logs = 0, logs[:, :0]
                yield nodes, slice(first, first + logs.shape[1]), logs
            else:
                for i, node in enumerate(nodes.tolist()):
                    yield nodes[i : i + 1], slice(0, node), logs[i : i + 1, :node]

    def _blocks(self, last: int) -> Iterator[tuple[Int[np.ndarray, "node"], Float[np.ndarray, "node key"]]]:
        """Yields many nodes' log weights at once, kept for the next time unless they are too many."""
        size = self._graph.n_positions if self._graph.kind == "layers" else _NODES_AT_ONCE
        keep = self._last * self._graph.n_positions <= _CELLS_KEPT
        for start in range(0, last + 1, size):
            nodes = np.arange(start, min(start + size, self._last + 1))
            block = self._kept.get(start)
            if block is None:
                block = log_weights(self._graph.rows(nodes))
                if keep:
                    self._kept[start] = block
            here = nodes <= last
            yield nodes[here], block[here]

    def completions(self, slope: float, last: int | None = None) -> Float[np.ndarray, "node"]:
        """Returns the largest sum of (log weight - slope) over the ways to complete a path that has come to a node."""
        last = self._last if last is None else last
        best = np.zeros(last + 1)
        for nodes, columns, logs in self._groups(last):
            values = (logs - slope + best[columns]).max(axis=1, initial=-np.inf)
            best[nodes] = np.where(self._graph.terminal[nodes] | (values == -np.inf), 0.0, values)
        return best

    def _onward(self, node: int, left: int, wanted: _Wanted) -> _Ranked:
        """Returns the edges of a node, the best to go on with first; `left` is how many the path still has to have."""
        if (node, left) not in wanted.ranked:
            edges = self._edges(node)
            values = edges.logs - wanted.slope + wanted.completion(left - 1, edges.nodes)
            order = np.argsort(-values, kind="stable")[: wanted.k]  # the k best paths use no others
            order = order[values[order] > -np.inf]
            wanted.ranked[node, left] = _Ranked(*(array[order].tolist() for array in (*edges, values)))
        return wanted.ranked[node, left]

    def _listed(self, target: int, wanted: _Wanted, n_edges: int = 0) -> list[BeamState]:
        """Returns the up to k complete paths of the largest sum of (log weight - slope), the largest first.

        `n_edges` is how many edges all of them have, where the completions depend on it.
        """
        start = _Prefix(target, 0.0, 0, 0.0, None)
        first = self._onward(target, n_edges, wanted)
        if not first.nodes:
            return [start.state()]
        serial = count()  # equal ones in the order they were met
        queue = [(-first.values[0], next(serial), start, 0)]
        found: list[BeamState] = []
        while queue and len(found) < wanted.k:
            cost, _, prefix, rank = heapq.heappop(queue)
            edges = self._onward(prefix.node, n_edges - prefix.n_edges, wanted)
            if rank + 1 < len(edges.nodes):
                worse = edges.values[rank] - edges.values[rank + 1]
                heapq.heappush(queue, (cost + worse, next(serial), prefix, rank + 1))
            node = edges.nodes[rank]
            step = _Prefix(node, edges.weights[rank], prefix.n_edges + 1, prefix.log_score + edges.logs[rank], prefix)
            if self._graph.terminal[node] or not self._onward(node, n_edges - step.n_edges, wanted).nodes:
                found.append(step.state())
            else:
                heapq.heappush(queue, (cost, next(serial), step, 0))
        return found

    def best_by_sum(self, target: int, k: int, best: Float[np.ndarray, "node"], slope: float) -> list[BeamState]:
        """Returns the k paths of the largest sum of (log weight - slope); `best` are the completions at this slope."""
        return self._listed(target, _Wanted(k, lambda _, nodes: best[nodes], slope, {}))

    def best_by_mean(self, target: int, k: int, plain: Float[np.ndarray, "node"]) -> list[BeamState]:
        """Returns paths, among them the k of the largest mean log weight; `plain` are the completions at slope 0."""
        found = {tuple(path.positions): path for path in self.best_by_sum(target, k, plain, 0.0)}
        slope = -np.inf
        while True:
            paths = _ranked(list(found.values()), _MEAN)[:k]
            worst = _MEAN.score(paths[-1].log_score, paths[-1].num_edges)
            if len(paths) < k or worst <= slope:  # fewer than k: those are all there are
                return paths
            slope = worst
            better = self.best_by_sum(target, k, self.completions(slope, target), slope)
            found |= {tuple(path.positions): path for path in better}

    def best_by_length(
        self, targets: Sequence[int], k: int, norm: LengthNorm, plain: Float[np.ndarray, "node"]
    ) -> list[list[BeamState]]:
        """Returns for each target paths, among them the k best under any norm."""
        known = [self.best_by_sum(target, k, plain, 0.0) + self.best_by_mean(target, k, plain) for target in targets]
        longest = self._longest(targets, k, norm, known)
        by_length = self._completions_by_length(longest)
        found: list[list[BeamState]] = []
        for target in targets:
            edges = self._edges(target)
            if not len(edges.nodes):
                found.append(self.best_by_sum(target, 1, plain, 0.0))
                continue
            lengths = np.arange(1, longest + 1)
            most = (edges.logs + by_length[:-1, edges.nodes]).max(axis=1) / lengths**norm.power
            paths: list[BeamState] = []
            # The best path of each length is among those found, so k lengths are enough.
            for n in lengths[np.argsort(-most, kind="stable")][:k].tolist():
                if most[n - 1] > -np.inf:
                    wanted = _Wanted(k, lambda left, nodes: by_length[left, nodes], 0.0, {})
                    paths += self._listed(target, wanted, n)
            found.append(paths)
        return found

    def _longest(self, targets: Sequence[int], k: int, norm: LengthNorm, known: list[list[BeamState]]) -> int:
        """Returns how many edges any of the k best paths can have: where the bounds fall under what is known."""
        means = [path.log_score / path.num_edges for paths in known for path in paths if path.num_edges]
        if not means:
            return 0
        slopes = {0.0, *np.quantile(means, np.linspace(0, 1, 5)).tolist(), 2 * min(means)}
        lines = [(slope, self.completions(slope)) for slope in slopes]
        longest = 0
        for target, paths in zip(targets, known, strict=True):
            distinct = {tuple(path.positions): path for path in paths}
            scores = [norm.score(path.log_score, path.num_edges) for path in _ranked(list(distinct.values()), norm)]
            lengths = np.arange(1, self._graph.deepest(target) + 1)
            edges = self._edges(target)
            if len(scores) >= k and len(edges.nodes):
                starts = [(slope, (edges.logs - slope + best[edges.nodes]).max()) for slope, best in lines]
                most = np.min([start + slope * lengths for slope, start in starts], axis=0)
                lengths = lengths[most / lengths**norm.power >= scores[k - 1] - _ROUNDING]
            longest = max(longest, int(lengths.max(initial=0)))
        return longest

    def _completions_by_length(self, longest: int) -> Float[np.ndarray, "edges node"]:
        """Returns the largest sum of log weights with which a path is completed in exactly so many edges."""
        best = np.full((longest + 1, self._last + 1), -np.inf)
        for nodes, columns, logs in self._groups(self._last):
            ended = self._graph.terminal[nodes] | (logs.max(axis=1, initial=-np.inf) == -np.inf)
            best[0, nodes] = np.where(ended, 0.0, -np.inf)
            for i in np.flatnonzero(~ended).tolist():
                best[1:, nodes[i]] = (best[:-1, columns] + logs[i]).max(axis=1)
        return best
