"""TraceStorage as the nanochat engine uses it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.formats.foreign import ACTIVATIONS, RESPONSE, N, T, documented, original, truth, write
from traceformer.compat.trace_storage import TraceStorage
from traceformer.errors import NotFound, Unreadable, UsageError


def captures(own: Any, rows: slice) -> dict[str, Any]:
    """As the model's captures come: tensors of a batch of one, a list over layers."""
    return {
        "token_embeddings": torch.from_numpy(own.embeddings[rows])[None],
        "output_logits": torch.from_numpy(own.logits[rows])[None],
        "attention_weights": [torch.from_numpy(layer[:, rows, : rows.stop])[None] for layer in own.attention],
        "layer_activations": [
            {name: torch.from_numpy(layer[i, rows])[None] for i, name in enumerate(ACTIVATIONS)}
            for layer in own.activations
        ],
    }


def test_a_trace_made_by_hand_has_a_nanochat_traces_structure(tmp_path: Path) -> None:
    storage = TraceStorage(tmp_path / "deep/traces")
    trace_id = storage.create_trace("The capital of France is", " Paris.", "geography", {"model_source": "sft"})
    assert storage.load_trace(trace_id)["tokens"] == {"input_tokens": [], "output_tokens": []}
    storage.save_tokens(trace_id, range(N), RESPONSE)
    storage.save_activations(trace_id, **captures(truth(), slice(0, T)))
    steps = [captures(truth(), slice(0, N)), captures(truth(), slice(N, N + 1))]
    storage.save_intermediate_steps(trace_id, steps)
    data = storage.load_trace(trace_id)
    expected = documented()
    assert list(data) == list(expected)
    assert (data["response"], data["category"]) == (" Paris.", "geography")
    assert data["tokens"] == {"input_tokens": [*range(N)], "output_tokens": RESPONSE}
    assert storage.load_trace_data(trace_id) == data["model_data"]
    weights = data["model_data"]["attention_weights"]["layer_1"]
    assert weights["shape"] == [1, 3, T, T]
    assert weights["dtype"] == "torch.float32"
    assert np.array_equal(np.array(weights["data"], np.float32)[0], truth().attention[1])
    assert [step["step"] for step in data["intermediate_steps"]] == [0, 1]
    assert data["intermediate_steps"][1]["attention_weights"]["layer_0"]["shape"] == [1, 3, 1, N + 1]
    assert storage.load_trace_metadata(trace_id) == {name: data[name] for name in list(data)[:6]}


def test_bfloat16_and_missing_captures_are_saved(tmp_path: Path) -> None:
    storage = TraceStorage(tmp_path)
    trace_id = storage.create_trace("a", "b")
    pattern = torch.rand(1, 2, 3, 3).bfloat16()
    storage.save_activations(
        trace_id, None, None, [None, pattern], [{}, {"post_attn": None, "post_mlp": pattern[:, 0]}]
    )
    data = storage.load_trace_data(trace_id)
    assert data["token_embeddings"] is data["output_logits"] is None
    assert data["attention_weights"]["layer_1"]["dtype"] == "torch.bfloat16"
    assert torch.equal(torch.tensor(data["attention_weights"]["layer_1"]["data"]).bfloat16(), pattern)
    storage.save_activations(trace_id, None, None, [pattern.double().numpy()], [])
    assert storage.load_trace_data(trace_id)["attention_weights"]["layer_0"]["dtype"] == "torch.float64"


def test_a_summary_has_shapes_and_counts(tmp_path: Path) -> None:
    write(tmp_path / "trace_a.json", documented("trace_a"))
    found = TraceStorage(tmp_path).get_trace_summary("trace_a")
    assert list(found["metadata"]) == ["trace_id", "timestamp", "prompt", "response", "category"]
    assert found["data_info"] == {
        "token_embeddings": {"shape": [1, T, 4], "dtype": "torch.float32"},
        "output_logits": {"shape": [1, len(RESPONSE), 6], "dtype": "torch.float32"},
        "attention_weights": "Dictionary with 2 items",
        "layer_activations": "Dictionary with 2 items",
        "input_token_count": N,
        "output_token_count": len(RESPONSE),
    }


def test_what_the_original_code_left_is_one_trace_with_its_response(tmp_path: Path) -> None:
    original(tmp_path, steps=True)
    storage = TraceStorage(tmp_path)
    [trace_id] = storage.list_traces()
    assert storage.load_trace(trace_id)["response"] == " Paris."
    assert storage.load_trace_metadata(trace_id)["timestamp"] == "2024-11-02T14:30:22.123456"
    assert storage.get_trace_summary(trace_id)["data_info"]["intermediate_steps_count"] == 3


@pytest.mark.slow
def test_ten_thousand_traces_are_filtered_without_being_parsed(tmp_path: Path) -> None:
    # Whoever read beyond the head would fail: nothing there is JSON.
    for number, category in enumerate(("geography", "history", None)):
        text = json.dumps(documented(f"trace_{number}", category=category))
        beginning = text[: text.index('"tokens"') + len('"tokens": ')]
        (tmp_path / f"model{number}").write_text(beginning + "and now no JSON any more " * 1000, encoding="utf-8")
    for number in range(10_000):
        os.link(tmp_path / f"model{number % 3}", tmp_path / f"trace_{number:05d}.json")
    storage = TraceStorage(tmp_path)
    assert len(storage.list_traces()) == 10_000
    found = storage.list_traces(category="history")
    assert found == [f"trace_{number:05d}" for number in range(1, 10_000, 3)]


def test_a_file_that_is_no_trace_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "trace_a.json", documented("trace_a"))
    (tmp_path / "trace_b.json").write_text("nonsense")
    storage = TraceStorage(tmp_path)
    with pytest.warns(UserWarning, match="trace_b"):
        assert storage.list_traces(category="geography") == ["trace_a"]


def test_two_traces_of_one_moment_have_two_names(tmp_path: Path) -> None:
    storage = TraceStorage(tmp_path)
    ids = [storage.create_trace("a", "") for _ in range(20)]
    assert storage.list_traces() == ids
    assert len(set(ids)) == 20


@pytest.mark.parametrize("trace_id", ["../trace_a", "a/b", "..", "/etc/passwd", ""])
def test_a_trace_id_that_is_a_path_is_refused(tmp_path: Path, trace_id: str) -> None:
    storage = TraceStorage(tmp_path / "traces")
    write(tmp_path / "trace_a.json", documented("trace_a"))
    for use in (storage.load_trace, storage.get_trace_summary, lambda name: storage.save_tokens(name, [], [])):
        with pytest.raises(UsageError):
            use(trace_id)


def test_a_trace_that_is_not_there_is_told(tmp_path: Path) -> None:
    storage = TraceStorage(tmp_path)
    for use in (storage.load_trace, storage.load_trace_metadata, storage.load_trace_data, storage.get_trace_summary):
        with pytest.raises(NotFound):
            use("trace_nothing")
    assert storage.list_traces() == []


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 4), torch.zeros(1, 3, dtype=torch.int64), np.zeros((3,))])
def test_what_is_no_tensor_of_one_sequence_is_refused(tmp_path: Path, bad: Any) -> None:
    storage = TraceStorage(tmp_path)
    trace_id = storage.create_trace("a", "b")
    with pytest.raises(UsageError):
        storage.save_activations(trace_id, bad, None, [], [])


@pytest.mark.parametrize("name", ["model_data", "tokens"])
def test_a_trace_whose_parts_are_no_objects_has_no_summary(tmp_path: Path, name: str) -> None:
    write(tmp_path / "trace_a.json", {**documented("trace_a"), name: 5})
    with pytest.raises(Unreadable, match=name):
        TraceStorage(tmp_path).get_trace_summary("trace_a")
