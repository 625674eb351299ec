"""Paths as nodes and links between them, as a Sankey diagram draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["BeamPath", "SankeyData", "SankeyLink", "SankeyNode", "beams_to_sankey", "path_weights"]


@dataclass(frozen=True, slots=True)
class BeamPath:
    """A path with its tokens: the target first, then backward.

    Attributes:
        positions: Where each token stands in its text.
        tokens: The tokens as they are shown.
        token_ids: Their ids in the vocabulary.
        edge_attns: The weight of the edge from each token to the next; one fewer than tokens.
        score_raw: The sum of the edges' log weights.
        score_norm: The same after the length norm.
        states: Across layers, how many layers each node lies above the inputs.
        heads: The head of each edge, where it was chosen per edge.
        stacks: `enc` or `dec` for each token, where a path goes from one into the other.
    """

    positions: list[int]
    tokens: list[str]
    token_ids: list[int]
    edge_attns: list[float]
    score_raw: float
    score_norm: float
    states: list[int] | None = None
    heads: list[int] | None = None
    stacks: list[str] | None = None


@dataclass(frozen=True, slots=True)
class SankeyNode:
    """A token in the diagram.

    `layer` is the layer that was traced; across layers, how many layers lie below. `stack` is `enc` for a token of
    the source. In a layer that looks ahead, `step` counts the edges from the target, so that links never turn back.
    """

    id: str
    name: str
    position: int
    layer: int = 0
    stack: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class SankeyLink:
    """An edge that some of the beams share, drawn from the earlier token to the later one.

    `value` is the sum over these beams of beam weight * edge weight; `attention` is the edge weight itself.
    """

    source: str
    target: str
    value: float
    beam_indices: list[int] = field(default_factory=list[int])
    attention: float = 0.0


@dataclass(frozen=True, slots=True)
class SankeyData:
    """A whole diagram."""

    nodes: list[SankeyNode]
    links: list[SankeyLink]


def path_weights(beams: Sequence[BeamPath]) -> list[float]:
    """Returns each path's share among these: the softmax of their scores."""
    if not beams:
        return []
    best = max(beam.score_norm for beam in beams)
    weights = [math.exp(beam.score_norm - best) for beam in beams]
    return [weight / sum(weights) for weight in weights]


def beams_to_sankey(
    beams: Sequence[BeamPath], layer: int = 0, *, aggregate: bool = True, by_step: bool = False
) -> SankeyData:
    """Returns the diagram of some paths.

    Args:
        beams: The paths, best first.
        layer: The layer they run in; across layers each node knows its own.
        aggregate: Whether a link counts each beam by its share among all; else by one.
        by_step: Whether a token that occurs after different numbers of edges is several nodes.

    Raises:
        ValueError: a path has not one edge fewer than positions.
    """
    weights = path_weights(beams) if aggregate else [1.0] * len(beams)
    nodes: dict[str, SankeyNode] = {}
    values: dict[tuple[str, str], float] = {}
    attentions: dict[tuple[str, str], float] = {}
    users: dict[tuple[str, str], list[int]] = {}
    for index, (beam, weight) in enumerate(zip(beams, weights, strict=True)):
        if len(beam.positions) != len(beam.edge_attns) + 1:
            raise ValueError(f"a path of {len(beam.positions)} positions and {len(beam.edge_attns)} edges")
        own = [_node(beam, place, layer, by_step) for place in range(len(beam.positions))]
        nodes |= {node.id: node for node in own}
        for later, earlier, attention in zip(own[:-1], own[1:], beam.edge_attns, strict=True):
            link = (earlier.id, later.id)
            values[link] = values.get(link, 0.0) + weight * attention
            attentions[link] = attention
            users.setdefault(link, []).append(index)
    links = [SankeyLink(*link, value, users[link], attentions[link]) for link, value in values.items()]
    return SankeyData(sorted(nodes.values(), key=_place), links)


def _place(node: SankeyNode) -> tuple[int, int, int, int]:
    return (node.layer, node.stack == "dec", node.position, -(node.step or 0))


def _node(beam: BeamPath, place: int, layer: int, by_step: bool) -> SankeyNode:
    position, stack = beam.positions[place], None if beam.stacks is None else beam.stacks[place]
    layer = layer if beam.states is None else beam.states[place]
    name = f"{'E' if stack == 'enc' else 'L'}{layer}_P{position}" + (f"_S{place}" if by_step else "")
    return SankeyNode(name, beam.tokens[place], position, layer, stack, place if by_step else None)
