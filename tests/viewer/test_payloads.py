"""What pages are sent agrees with the search result, computed here from its paths alone."""

import json
import math

import pytest

from tests.viewer import traces
from traceformer.analysis.paths.result import TraceResult
from traceformer.viewer.path_payloads import paths_payload


def lanes_of(result: TraceResult) -> dict[tuple[object, ...], float]:
    """Returns share x attention of every edge of every path, by the ends' places and the beam."""
    weights = [math.exp(beam.score_norm) for beam in result.beams]
    found: dict[tuple[object, ...], float] = {}
    for index, beam in enumerate(result.beams):
        for step, attention in enumerate(beam.edge_attns):
            found[(index, step, beam.positions[step + 1], beam.positions[step])] = (
                attention * weights[index] / sum(weights)
            )
    return found


@pytest.mark.parametrize("make", traces.TRACES.values(), ids=traces.TRACES)
def test_every_lane_of_every_link_is_share_times_attention(make: object) -> None:
    result: TraceResult = make()  # pyright: ignore
    expected = lanes_of(result)
    trace = paths_payload(result.to_json())["traces"][0]
    drawn = {}
    for link in trace["links"]:
        ends = link["source"], link["target"]
        for lane in link["lanes"]:
            nodes = trace["beams"][lane["beam"]]["nodes"]
            step = nodes.index(link["target"])
            assert nodes[step + 1] == link["source"]
            source, target = (trace["nodes"][end]["position"] for end in ends)
            drawn[(lane["beam"], step, source, target)] = lane["value"]
            assert lane["attention"] == result.beams[lane["beam"]].edge_attns[step]
        assert link["value"] == pytest.approx(sum(lane["value"] for lane in link["lanes"]), abs=1e-12)
    assert drawn == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("make", traces.TRACES.values(), ids=traces.TRACES)
def test_payloads_are_json_and_their_links_lead_forward(make: object) -> None:
    payload = paths_payload(make().to_json())  # pyright: ignore
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    for trace in payload["traces"]:
        columns = [node["column"] for node in trace["nodes"]]
        assert (trace["arrangement"] == "grid") == (None not in columns) == bool(trace["columns"])
        for link in trace["links"]:
            if trace["columns"]:
                assert columns[link["target"]] == columns[link["source"]] + 1
        assert all(beam["nodes"][0] == trace["target"] for beam in trace["beams"])
        assert sum(beam["share"] for beam in trace["beams"]) == pytest.approx(1)


def test_a_head_of_its_own_is_a_trace_of_its_own() -> None:
    payload = paths_payload(traces.each_head().to_json())
    assert [trace["name"] for trace in payload["traces"]] == ["all heads", "L2H3", "L2H7"]
    heads = {lane["head"] for link in payload["traces"][0]["links"] for lane in link["lanes"]}
    assert heads <= {3, 7}
    assert heads


def test_columns_of_all_layers_are_named_by_the_layer_they_leave() -> None:
    trace = paths_payload(traces.all_layers().to_json())["traces"][0]
    assert trace["columns"] == ["inputs", "L0", "L1", "L2", "L3", "L4", "L5"]
    assert trace["nodes"][trace["target"]]["column"] == 6


def test_a_file_of_the_reverse_attention_package_can_be_shown() -> None:
    beam = {"positions": [2, 0], "tokens": ["c", "a"], "token_ids": [3, 1], "edge_attns": [0.5]}
    payload = paths_payload(
        {
            "metadata": {"seq_len": 3, "target_pos": 2, "layer": 1, "top_beam": 5, "top_k": 5},
            "tokens": ["a", "b", "c"],
            "beams": [{**beam, "score_raw": math.log(0.5), "score_norm": math.log(0.5)}],
            "sankey": {
                "nodes": [
                    {"id": "L1_P0", "name": "a", "position": 0, "layer": 1},
                    {"id": "L1_P2", "name": "c", "position": 2, "layer": 1},
                ],
                "links": [{"source": "L1_P0", "target": "L1_P2", "value": 0.5, "beam_indices": [0]}],
            },
            "paths_text": ["a -> c"],
        }
    )
    links = payload["traces"][0]["links"]
    assert links == [
        {"source": 0, "target": 1, "value": 0.5, "lanes": [{"beam": 0, "attention": 0.5, "head": None, "value": 0.5}]}
    ]


def test_a_search_that_found_nothing_still_has_its_target() -> None:
    found = traces.one_layer().to_json() | {"beams": [], "sankey": {"nodes": [], "links": []}}
    trace = paths_payload(found)["traces"][0]
    assert [node["position"] for node in trace["nodes"]] == [found["metadata"]["target_pos"]]
    assert trace["links"] == trace["beams"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "An edge's attention is that of layer 5, mean of heads."),
        ({"exclude_self": True}, "self-attention taken out, the rest brought back to the row's sum"),
        ({"exclude_sink": True, "exclude_self": True}, "self-attention and sinks taken out"),
    ],
)
def test_how_an_edge_was_made_is_said(options: dict[str, bool], words: str) -> None:
    trace = paths_payload(traces.one_layer(**options).to_json())["traces"][0]
    assert words in trace["edge"]["made"]


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (None, ""),
        (
            {"optimum": True, "found": 1, "best_scores": [-1.0], "gap": 0.0},
            "Certified: this is the best path there is.",
        ),
        ({"optimum": True, "found": 2, "best_scores": [-1.0, -2.0], "gap": 0.0}, "Certified: these are the 2 best"),
        ({"optimum": True, "found": 1, "best_scores": [-1.0, -2.0], "gap": 0.0}, "the first is the best of all; 1 of"),
        ({"optimum": False, "found": 0, "best_scores": [-1.0], "gap": 0.25}, "falls short of the best by 0.25; 0 of"),
    ],
)
def test_a_certificate_is_said_in_words(certificate: dict[str, object] | None, words: str) -> None:
    found = traces.one_layer().to_json()
    found["metadata"]["certificate"] = certificate
    said = paths_payload(found)["traces"][0]["certificate"]
    assert words in said
    assert bool(words) == bool(said)
