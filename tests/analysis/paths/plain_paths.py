"""Paths one by one, straight from their definition: every path there is, and a beam search without arrays."""

import math
from collections.abc import Iterator

import numpy as np

from traceformer.analysis.paths.graph import Graph

Edge = tuple[int, float]
Ranked = tuple[float, list[int]]


def edges_of(graph: Graph, node: int) -> list[Edge]:
    """The edges of a node, by the definition of each kind of graph; those into nodes already visited included."""
    n, weights = graph.n_positions, graph.weights
    if graph.kind == "layers":
        state, position = divmod(node, n)
        row = [] if state == 0 else weights[state - 1, position]
        first = (state - 1) * n
    else:
        row, first = weights[0, node], 0
    return [
        (first + key, float(weight))
        for key, weight in enumerate(row)
        if graph.allowed[key]
        and weight > 0
        and weight >= graph.min_weight
        and (graph.kind != "causal" or key < node)
        and (graph.kind != "any" or key != node)
    ]


def score(log_score: float, n_edges: int, power: float) -> float:
    return log_score / n_edges**power if n_edges else log_score


def every_path(graph: Graph, target: int, power: float) -> list[Ranked]:
    """All complete paths from a target with their scores, best first."""

    def go(path: list[int], log_score: float) -> Iterator[Ranked]:
        edges = edges_of(graph, path[-1])
        if not edges or (len(path) > 1 and graph.terminal[path[-1]]):
            yield score(log_score, len(path) - 1, power), path
            return
        for node, weight in edges:
            yield from go([*path, node], log_score + math.log(weight))

    return sorted(go([target], 0.0), key=lambda found: -found[0])


def plain_beam(graph: Graph, target: int, top_beam: int, top_k: int, power: float) -> list[Ranked]:
    """A beam search with lists, for graphs of every kind; no node twice."""
    active: list[tuple[float, list[int]]] = [(0.0, [target])]
    complete: list[Ranked] = []
    while active:
        extended: list[tuple[float, list[int]]] = []
        ended: list[Ranked] = []
        for log_score, path in active:
            edges = [edge for edge in edges_of(graph, path[-1]) if edge[0] not in path]
            if not edges:
                complete.append((score(log_score, len(path) - 1, power), path))
            for node, weight in sorted(edges, key=lambda edge: (-edge[1], edge[0]))[:top_k]:
                new = (log_score + math.log(weight), [*path, node])
                if graph.terminal[node]:
                    ended.append((score(new[0], len(path), power), new[1]))
                else:
                    extended.append(new)
        complete += ended
        active = sorted(extended, key=lambda each: -each[0])[:top_beam]
    return sorted(complete, key=lambda found: -found[0])[:top_beam]


def random_graph(random: np.random.Generator, kind: str, n: int, layers: int = 1, sharp: float = 1.0) -> Graph:
    """A graph of random weights whose rows sum to one, with some terminal nodes and some that may not be entered."""
    weights = random.random((layers, n, n)) ** sharp
    if kind != "any":
        weights = np.tril(weights)
    weights = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    n_nodes = n * (layers + 1) if kind == "layers" else n
    terminal = random.random(n_nodes) < 0.1
    if kind == "causal":
        terminal[0] = True
    if kind == "layers":
        terminal[:n] = True
    smallest = float(random.choice([0.0, 0.0, 0.03, 0.1]))
    return Graph(weights, kind, terminal, random.random(n) < 0.9, smallest)  # pyright: ignore[reportArgumentType]
