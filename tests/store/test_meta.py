"""What a run says of itself, typed: written and read back, and whatever older or foreign files say."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traceformer.store.meta import AttentionFacts, Dims, RunMeta

SIZES = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_model": 24, "d_head": 6}
RECORDED: dict[str, Any] = {
    "run_id": "run",
    "model": "gpt2",
    "model_name": "gpt2",
    "model_type": "gpt2",
    "revision": None,
    "model_files": None,
    "arch": "dec",
    "n_examples": 3,
    "num_layers": 2,
    "num_heads": 4,
    "head_dim": 6,
    "layers_stored": {"dec": [0, 1]},
    "heads_stored": {},
    "dtype": "float16",
    "left_out": [],
    "projection": None,
    "time": "2025-01-01 12:00:00",
    "dims": {"dec": SIZES},
    "attention": {
        "implementation": "sdpa",
        "gqa": {"dec": {"n_heads": 4, "n_kv_heads": 2}},
        "q_k": "words",
        "pattern": "words",
        "rotary": False,
        "relative_position_bias": False,
        "softcap": None,
        "sinks": False,
        "sliding_window": None,
        "local_attention": None,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "model_dtype": "float32",
    "device": "cpu",
    "versions": {"traceformer": "0.1.0"},
    "python": "3.11",
    "dataset": "demo",
    "split": "train",
    "max_seq_len": 512,
    "capture": ["attn"],
    "has_targets": None,
    "tokens": {"total": {"dec": 30}},
    "padding": "on the right",
    "decoder_inputs": None,
    "batch_size": 8,
    "command_line": "traceformer extract gpt2",
}


def test_a_recorded_run_is_written_as_it_is_read() -> None:
    assert json.dumps(RunMeta.from_json(RECORDED).to_json()) == json.dumps(RECORDED)


def test_a_generation_states_its_settings_and_its_category() -> None:
    stated = {**RECORDED, "kind": "generation", "generation": {"top_k": 50}, "category": None}
    found = RunMeta.from_json(stated)
    assert found.to_json() == stated
    assert (found.kind, found.generation, found.category) == ("generation", {"top_k": 50}, None)


def test_what_a_run_states_has_types() -> None:
    found = RunMeta.from_json(RECORDED | {"configuration": {"model weights": "abc"}, "layout": {}})
    assert found.dims_of("dec") == Dims(n_layers=2, n_heads=4, n_kv_heads=2, d_model=24, d_head=6)
    assert found.dims_of("enc") == Dims()
    assert found.attention.layer_types == ("sliding_attention", "full_attention")
    assert found.layers_stored == {"dec": (0, 1)}
    assert (found.model_weights, found.other) == ("abc", {})


def test_a_model_whose_attention_is_not_recordable_states_what_it_is() -> None:
    facts = AttentionFacts("eager", {"dec": {"n_heads": 4, "n_kv_heads": 4}})
    assert facts.to_json() == {"implementation": "eager", "gqa": {"dec": {"n_heads": 4, "n_kv_heads": 4}}}
    assert AttentionFacts.from_json(facts.to_json()) == facts


def test_an_older_run_states_less_and_what_is_not_known_is_kept() -> None:
    found = RunMeta.from_json({"run_id": "old", "model": "bert", "dims": {"enc": {"n_layers": 2}}, "mood": ["good"]})
    assert (found.revision, found.attention, found.dims_of("enc").n_heads) == (None, AttentionFacts(), None)
    assert found.other == {"mood": ["good"]}
    assert found.to_json() == {
        "run_id": "old",
        "model": "bert",
        "dims": {"enc": {"n_layers": 2}},
        "mood": ["good"],
    }


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "attention"])
@pytest.mark.parametrize("value", [[[]], {"enc": 3}, 1.5, object()])
def test_what_is_of_another_type_is_kept_and_not_believed(name: str, value: Any) -> None:
    found = RunMeta.from_json({name: value})
    default = getattr(RunMeta(), name)
    read = getattr(found, name)
    assert found.other == {name: value} if read == default else isinstance(value, dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
)


@settings(deadline=None)
@given(stated=st.dictionaries(st.sampled_from([*RECORDED, "kind", "imported", "generation"]) | st.text(), json_values))
def test_whatever_a_file_states_can_be_read_and_written_again(stated: dict[str, Any]) -> None:
    found = RunMeta.from_json(stated)
    json.dumps(found.to_json())
    assert RunMeta.from_json(found.to_json()).to_json() == found.to_json()
