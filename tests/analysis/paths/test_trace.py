"""From attention to paths: what is traced, in which order, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from reverse_attention.beam import BeamPath as ForeignPath
from reverse_attention.tokenize import format_path_text

from tests.analysis.paths.plain_paths import every_path
from traceformer.analysis.paths.graph import Graph
from traceformer.analysis.paths.result import TraceResult, format_path
from traceformer.analysis.paths.sankey import BeamPath
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, trace_paths
from traceformer.errors import Unsupported, UsageError
from traceformer.texts.shown import visible


def row_of(n: int, *, ends: tuple[int, ...] = (), padding: tuple[int, ...] = ()) -> TokenRow:
    positions = np.arange(n)
    names = [f" t{position}" for position in range(n)]
    return TokenRow(
        list(range(100, 100 + n)), names, [None] * n, np.isin(positions, ends), ~np.isin(positions, padding)
    )


def matrices(seed: int, layers: int, n: int, *, causal: bool = True) -> np.ndarray:
    weights = np.random.default_rng(seed).random((layers, n, n))
    weights = np.tril(weights) if causal else weights
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def trace(weights: EdgeWeights, target: int = -1, tokens: TokenRow | None = None, **options: Any) -> TraceResult:
    n = weights.matrices.shape[1]
    return trace_paths([weights], tokens or row_of(n), [target], PathOptions(**options))[0]


def test_a_result_states_everything_that_decided_it() -> None:
    result = trace(EdgeWeights(matrices(0, 1, 7), 3, (0, 2), row_sums=(0.9, 1.0)), 5, top_beam=2, exclude_self=True)
    assert (result.seq_len, result.target_pos, result.layer, result.top_beam, result.top_k) == (7, 5, 3, 2, 5)
    assert result.settings == {
        "min_attn": 0.0,
        "agg_heads": "mean",
        "length_norm": "avg_logprob",
        "stop_at_bos": True,
        "search": "beam",
        "weighting": "attention",
        "exclude_self": True,
        "exclude_sink": False,
        "kind": "causal",
        "heads": [0, 2],
        "row_sums": [0.9, 1.0],
        "residual_share": None,
    }
    assert [path.positions[0] for path in result.beams] == [5, 5]
    assert all(path.tokens == [f" t{p}" for p in path.positions] for path in result.beams)
    assert all(path.token_ids == [100 + p for p in path.positions] for path in result.beams)


@pytest.mark.parametrize(("weighting", "share"), [("attention", 0.0), ("rollout", 0.5), ("value-norm", 0.5)])
def test_across_layers_the_best_path_has_the_largest_product_of_mixed_matrices(weighting: str, share: float) -> None:
    layers = matrices(1, 3, 4)
    result = trace(EdgeWeights(layers, "all", (0,)), weighting=weighting, length_norm="none", search="exact")
    mixed = (1 - share) * layers + share * np.eye(4)
    products = {(3, b, c, d): mixed[2, 3, b] * mixed[1, b, c] * mixed[0, c, d] for b, c, d in np.ndindex(4, 4, 4)}
    expected = sorted(products.values(), reverse=True)[:5]
    assert np.exp([path.score_raw for path in result.beams]) == pytest.approx(expected, rel=1e-5)
    for path in result.beams:
        assert path.states == [3, 2, 1, 0]
        assert products[tuple(path.positions)] == pytest.approx(np.exp(path.score_raw), rel=1e-5)
    assert result.attribution["rollout"] == pytest.approx((mixed[2] @ mixed[1] @ mixed[0])[3], abs=1e-6)


def test_shares_of_rollout_are_the_sums_over_all_paths() -> None:
    result = trace(
        EdgeWeights(matrices(2, 3, 3), "all", (0,)),
        weighting="rollout",
        search="exact",
        top_beam=1000,
        length_norm="none",
    )
    sums = np.zeros(3)
    for path in result.beams:
        sums[path.positions[-1]] += np.exp(path.score_raw)
    assert result.attribution["rollout"] == pytest.approx(sums, abs=1e-6)


def test_the_largest_flow_is_there_if_asked_for() -> None:
    result = trace(EdgeWeights(matrices(3, 2, 4), "all", (0,)), max_flow=True, weighting="rollout")
    assert set(result.attribution) == {"rollout", "max_flow"}
    flows, shares = np.array(result.attribution["max_flow"]), np.array(result.attribution["rollout"])
    assert np.all(flows >= shares - 1e-6)  # one flow may use all the room that the paths share


def test_the_head_of_each_edge_is_named() -> None:
    layers = matrices(4, 2, 5)
    chosen = np.random.default_rng(4).integers(0, 9, (2, 5, 5)).astype(np.int16)
    for path in trace(EdgeWeights(layers, "all", (7, 8), chosen=chosen), agg_heads="max").beams:
        assert path.heads == [
            chosen[1, path.positions[0], path.positions[1]],
            chosen[0, path.positions[1], path.positions[2]],
        ]


def test_paths_into_a_source_end_there() -> None:
    own, cross = matrices(5, 1, 4), matrices(6, 1, 4, causal=False)[0, :, :3]
    weights = EdgeWeights(own, 2, (0,), source=cross)
    source = row_of(3, ends=(2,))
    [result] = trace_paths(
        [weights], row_of(4), [-1], PathOptions(top_beam=50, top_k=9, length_norm="none"), source=source
    )
    products: dict[tuple[tuple[int, ...], int], float] = {}

    def go(path: tuple[int, ...], product: float) -> None:
        for key in range(3):
            products[path, key] = product * cross[path[-1], key]
        for earlier in range(path[-1]):
            go((*path, earlier), product * own[0, path[-1], earlier])

    go((3,), 1.0)
    assert len(result.beams) == len(products)
    for path in result.beams:
        assert path.stacks == ["dec"] * (len(path.positions) - 1) + ["enc"]
        expected = products[tuple(path.positions[:-1]), path.positions[-1]]
        assert np.exp(path.score_raw) == pytest.approx(expected, rel=1e-5)
    assert result.source_tokens == source.texts
    assert result.settings["kind"] == "cross"


def test_sinks_and_self_attention_are_left_out_everywhere() -> None:
    tokens = row_of(6, ends=(2,))
    result = trace(
        EdgeWeights(matrices(7, 1, 6), 0, (0,)), tokens=tokens, exclude_sink=True, exclude_self=True, top_beam=99
    )
    assert all(set(path.positions) <= {5, 4, 3, 1} for path in result.beams)
    raw = matrices(7, 1, 6)[0]
    rest = raw[5, [1, 3, 4]].sum()
    by_edge = {tuple(path.positions[:2]): path.edge_attns[0] for path in result.beams}
    assert by_edge[5, 4] == pytest.approx(raw[5, 4] / rest)


def test_in_a_layer_that_looks_ahead_no_token_comes_twice_and_paths_end_at_special_tokens() -> None:
    result = trace(
        EdgeWeights(matrices(8, 1, 6, causal=False), 0, (0,), looks_ahead=True),
        2,
        row_of(6, ends=(0, 5)),
        top_beam=20,
        certify=True,
    )
    assert any(max(path.positions) > 2 for path in result.beams)
    assert all(len(set(path.positions)) == len(path.positions) for path in result.beams)
    assert {path.positions[-1] for path in result.beams} == {0, 5}
    assert result.certificate is None
    assert {node.step for node in result.sankey.nodes} >= {0, 1, 2}


def test_a_certificate_states_how_far_the_beam_falls_short() -> None:
    attn = np.zeros((1, 4, 4), np.float32)
    attn[0, 3, :3] = 0.4, 0.1, 0.5  # the stronger first edge leads into a poor continuation
    attn[0, 2, :2] = 0.01, 0.01
    attn[0, 1, 0] = 1.0
    weights = EdgeWeights(attn, 0, (0,))
    poor = trace(weights, top_beam=1, top_k=1, length_norm="none", certify=True).certificate
    assert poor is not None
    assert not poor.optimum
    assert poor.best_scores == pytest.approx([np.log(0.4)])
    # 3 -> 2 -> 0, of equal edges the earlier position, against 3 -> 0
    assert poor.gap == pytest.approx(np.log(0.4) - np.log(0.5 * 0.01))
    rich = trace(weights, top_beam=3, top_k=3, length_norm="none", certify=True)
    graph = Graph(attn, "causal", np.arange(4) == 0, np.ones(4, bool))
    assert rich.certificate is not None
    assert rich.certificate.best_scores == pytest.approx([score for score, _ in every_path(graph, 3, 0.0)[:3]])
    assert (rich.certificate.optimum, rich.certificate.gap) == (True, 0.0)


def test_each_head_by_itself_and_the_best_of_all() -> None:
    per_head = [EdgeWeights(matrices(10 + head, 1, 6), 1, (head,)) for head in (2, 5)]
    [both] = trace_paths(per_head, row_of(6), [-1], PathOptions(agg_heads="none", top_beam=3))
    alone = [trace(weights, top_beam=3) for weights in per_head]
    assert [head.beams for head in both.heads] == [one.beams for one in alone]
    assert both.settings["heads"] == [2, 5]
    best = sorted((path.score_norm for one in alone for path in one.beams), reverse=True)[:3]
    assert [path.score_norm for path in both.beams] == best
    assert {path.heads[0] for path in both.beams if path.heads} <= {2, 5}


def test_json_gives_the_same_result_back() -> None:
    chosen = np.ones((2, 5, 5), np.int16)
    results = [
        trace(
            EdgeWeights(matrices(11, 2, 5), "all", (0,), chosen=chosen), agg_heads="max", certify=True, max_flow=True
        ),
        trace(EdgeWeights(matrices(12, 1, 5, causal=False), 0, (0,), looks_ahead=True)),
        trace_paths(
            [EdgeWeights(matrices(13, 1, 5), 0, (h,)) for h in (0, 1)], row_of(5), [-1], PathOptions(agg_heads="none")
        )[0],
    ]
    for result in results:
        assert TraceResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_json_has_the_layout_of_reverse_attention() -> None:
    data = trace(EdgeWeights(matrices(14, 1, 5), 0, (0,))).to_json()
    assert {"seq_len", "target_pos", "layer", "top_beam", "top_k"} <= data["metadata"].keys()
    assert {"tokens", "beams", "sankey", "paths_text"} <= data.keys()
    assert {"positions", "tokens", "token_ids", "edge_attns", "score_raw", "score_norm"} <= data["beams"][0].keys()
    assert {"id", "name", "position", "layer"} <= data["sankey"]["nodes"][0].keys()
    assert {"source", "target", "value", "beam_indices"} <= data["sankey"]["links"][0].keys()


@pytest.mark.parametrize("data", [{}, {"metadata": {}}, {"metadata": {"seq_len": 1}, "beams": [{}], "sankey": {}}])
def test_json_that_is_no_trace_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"no trace\.json"):
        TraceResult.from_json(data)


def test_paths_in_words_are_those_of_the_package_with_every_token_made_visible() -> None:
    tokens = ["end", " a b", "", "new\nline", "tab\t", "first"]
    path = BeamPath(list(range(6)), tokens, list(range(6)), [0.5] * 5, -3.0, -0.60005)
    foreign = ForeignPath(
        list(range(6)), [visible(token) for token in tokens], list(range(6)), [0.5] * 5, -3.0, -0.60005
    )
    assert format_path(path) == format_path_text(foreign)


def test_a_token_that_stays_stands_once() -> None:
    path = BeamPath([2, 2, 2, 0], ["c", "c", "c", "a"], [2, 2, 2, 0], [0.5] * 3, -3.0, -1.0, states=[3, 2, 1, 0])
    assert format_path(path) == "a -> c (score: -1.0000)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_beam": 0}, "top_beam"),
        ({"top_k": 0}, "top_k"),
        ({"min_attn": -0.1}, "min_attn"),
        ({"min_attn": float("nan")}, "min_attn"),
        ({"agg_heads": "median"}, "median"),
        ({"length_norm": "long"}, "long"),
        ({"search": "depth"}, "depth"),
        ({"weighting": "norms"}, "norms"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PathOptions(**options)


@pytest.mark.parametrize(
    ("layer", "options", "words"),
    [
        ("all", {"agg_heads": "none"}, "across layers"),
        ("all", {"agg_heads": 3}, "across layers"),
        (0, {"weighting": "rollout"}, "rollout is across layers"),
        (0, {"max_flow": True}, "flow is across layers"),
    ],
)
def test_options_that_do_not_go_together_are_refused(layer: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trace(EdgeWeights(matrices(15, 1, 4), layer, (0,)), **options)


def test_targets_out_of_range_or_padding_and_impossible_searches_are_refused() -> None:
    weights = EdgeWeights(matrices(16, 1, 4), 0, (0,))
    for target in (4, -5):
        with pytest.raises(UsageError, match="tokens 0-3"):
            trace(weights, target)
    with pytest.raises(UsageError, match="padding"):
        trace(weights, 3, row_of(4, padding=(3,)))
    with pytest.raises(Unsupported, match="looks ahead"):
        trace(EdgeWeights(matrices(16, 1, 4), 0, (0,), looks_ahead=True), search="exact")
    with pytest.raises(Unsupported, match="into its source"):
        PathOptions().check("all", has_source=True)
