"""Nodes and links of the figure of paths."""

import numpy as np
import pytest
from reverse_attention.beam import BeamPath as ForeignPath
from reverse_attention.sankey import beams_to_sankey as foreign_sankey
from reverse_attention.sankey import compute_beam_weights

from traceformer.analysis.paths.sankey import BeamPath, beams_to_sankey, path_weights

TOKENS = [f"t{position}" for position in range(12)]


def random_paths(random: np.random.Generator) -> list[BeamPath]:
    paths: list[BeamPath] = []
    for _ in range(int(random.integers(0, 6))):
        earlier = random.choice(11, size=int(random.integers(0, 5)), replace=False).tolist()
        positions = [11, *sorted(earlier, reverse=True)]
        weights = random.random(len(positions) - 1).tolist()
        score = float(-3 * random.random())
        paths.append(BeamPath(positions, [TOKENS[p] for p in positions], positions, weights, score, score))
    return paths


@pytest.mark.parametrize("aggregate", [True, False])
def test_agrees_with_the_reverse_attention_package(aggregate: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        paths = random_paths(random)
        foreign_paths = [
            ForeignPath(p.positions, p.tokens, p.token_ids, p.edge_attns, p.score_raw, p.score_norm) for p in paths
        ]
        own, foreign = (
            beams_to_sankey(paths, 3, aggregate=aggregate),
            foreign_sankey(foreign_paths, TOKENS, 3, aggregate),
        )
        assert [(n.id, n.name, n.position, n.layer) for n in own.nodes] == [
            (n.id, n.name, n.position, n.layer) for n in foreign.nodes
        ]
        assert [(k.source, k.target, k.beam_indices) for k in own.links] == [
            (k.source, k.target, k.beam_indices) for k in foreign.links
        ]
        assert [link.value for link in own.links] == pytest.approx([link.value for link in foreign.links])
        assert path_weights(paths) == pytest.approx(compute_beam_weights(foreign_paths))


def test_a_link_states_its_attention_beside_its_value() -> None:
    paths = [
        BeamPath([2, 0], ["c", "a"], [2, 0], [0.25], -1.0, -1.0),
        BeamPath([2, 0], ["c", "a"], [2, 0], [0.25], -1.0, -1.0),
    ]
    [link] = beams_to_sankey(paths).links
    assert (link.attention, link.value, link.beam_indices) == (0.25, 0.25, [0, 1])


def test_nodes_differ_by_layer_by_stack_and_by_step() -> None:
    across = BeamPath([1, 1, 0], ["b", "b", "a"], [1, 1, 0], [0.5, 0.5], -1.0, -1.0, states=[2, 1, 0])
    assert [node.id for node in beams_to_sankey([across]).nodes] == ["L0_P0", "L1_P1", "L2_P1"]
    cross = BeamPath([1, 1], ["b", "x"], [1, 7], [0.5], -1.0, -1.0, stacks=["dec", "enc"])
    assert [(node.id, node.stack) for node in beams_to_sankey([cross], 4).nodes] == [("E4_P1", "enc"), ("L4_P1", "dec")]
    turning = [
        BeamPath([1, 0, 2], ["b", "a", "c"], [1, 0, 2], [0.5, 0.5], -1.0, -1.0),
        BeamPath([1, 2, 0], ["b", "c", "a"], [1, 2, 0], [0.5, 0.5], -1.0, -1.0),
    ]
    steps = beams_to_sankey(turning, by_step=True)
    assert {node.id: node.step for node in steps.nodes} == {
        "L0_P1_S0": 0,
        "L0_P0_S1": 1,
        "L0_P2_S2": 2,
        "L0_P2_S1": 1,
        "L0_P0_S2": 2,
    }
    step_of = {node.id: node.step for node in steps.nodes}
    assert all(step_of[link.source] == step_of[link.target] + 1 for link in steps.links)


def test_a_path_with_a_wrong_number_of_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="2 positions and 0 edges"):
        beams_to_sankey([BeamPath([1, 0], ["b", "a"], [1, 0], [], 0.0, 0.0)])
