"""Files of path traces are read as they were written."""

import json
from pathlib import Path

import numpy as np
import pytest
from reverse_attention.beam import BeamPath as ForeignPath
from reverse_attention.beam import TraceResult as ForeignResult
from reverse_attention.sankey import beams_to_sankey, trace_result_to_json

from traceformer import load_trace, save_trace
from traceformer.analysis.paths.result import Paths
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, trace_paths
from traceformer.errors import NotFound, Unreadable
from traceformer.formats.results.path_traces import model_name


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    result = _result()
    save_trace(result, tmp_path / "trace.json")
    assert load_trace(tmp_path / "trace.json") == result


def _result() -> Paths:
    weights = np.tril(np.random.default_rng(0).random((1, 5, 5))).astype(np.float32) / 5
    tokens = TokenRow([1, 2, 3, 4, 5], list("añ€\n "), [None] * 5, np.zeros(5, bool), np.ones(5, bool))
    [result] = trace_paths([EdgeWeights(weights, 0, (0,))], tokens, [-1], PathOptions(certify=True))
    return result


def test_a_file_of_the_reverse_attention_package_is_read(tmp_path: Path) -> None:
    path = ForeignPath([2, 0], ["c", "a"], [7, 5], [0.25], -1.386, -1.386)
    sankey = beams_to_sankey([path], ["a", "b", "c"], 4)
    foreign = ForeignResult(3, 2, 4, 5, 5, ["a", "b", "c"], [path], sankey, ["a -> c (score: -1.3860)"])
    written = trace_result_to_json(foreign)
    (tmp_path / "trace.json").write_text(
        json.dumps(written) if isinstance(written, dict) else written, encoding="utf-8"
    )
    result = load_trace(tmp_path / "trace.json")
    assert (result.seq_len, result.target_pos, result.layer, result.tokens) == (3, 2, 4, ["a", "b", "c"])
    assert (result.beams[0].positions, result.beams[0].edge_attns) == ([2, 0], [0.25])
    assert [(link.source, link.target) for link in result.sankey.links] == [("L4_P0", "L4_P2")]


def _deep(levels: int) -> object:
    return [_deep(levels - 1)] if levels else 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"metadata": 3}', b"\xff\xfe"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(Unreadable, match=r"no trace\.json"):
        load_trace(tmp_path / "x.json")


@pytest.mark.parametrize(
    "settings",
    [{"weighting": "entropy"}, {"weighting": 3}, {"heads": "all"}, {"agg_heads": ["mean"]}, {"run": _deep(40)}],
)
def test_settings_that_mean_nothing_here_are_refused(settings: dict[str, object], tmp_path: Path) -> None:
    written = _result().to_json()
    written["metadata"]["settings"] |= settings
    (tmp_path / "trace.json").write_text(json.dumps(written))
    with pytest.raises(Unreadable, match="settings nest" if "run" in settings else next(iter(settings))):
        load_trace(tmp_path / "trace.json")


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    written = _result().to_json()
    written["tokens"][0] = "\ud800"
    (tmp_path / "trace.json").write_text(json.dumps(written))
    with pytest.raises(Unreadable, match=r"tokens\[0\]"):
        load_trace(tmp_path / "trace.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"missing\.json"):
        load_trace(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("gpt2", "gpt2"),
        ("Qwen/Qwen2-0.5B", "Qwen/Qwen2-0.5B"),
        ("/data/models/mine", "mine"),
        ("/data/models/mine/", "mine"),
        ("../models/mine", "mine"),
        ("./mine", "mine"),
        ("some/deep/folder", "folder"),
        (r"C:\\models\\mine", "mine"),
        ("", ""),
    ],
)
def test_a_result_names_a_model_and_not_where_it_lies(source: str, name: str) -> None:
    assert model_name(source) == name


def test_a_folder_that_looks_like_a_hub_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name("private/mine") == "mine"
    monkeypatch.chdir(tmp_path / "private" / "mine")
    assert model_name(".") == "mine"
