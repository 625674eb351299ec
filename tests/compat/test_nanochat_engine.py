"""InterpretabilityEngine against the models' own eager passes and the nanochat engine's formulas."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.checkpoints import Writer, random_weights
from traceformer import TraceStore
from traceformer.compat.nanochat_engine import InterpretabilityEngine
from traceformer.compat.trace_storage import TraceStorage
from traceformer.errors import Unsupported, UsageError
from traceformer.formats.nanochat_json.read import read_files
from traceformer.formats.options import ImportOptions
from traceformer.models.nanochat import load_model

PROMPT = "The river froze over"
Folder = Callable[..., Path]


def engine_of(folder: Path, traces: Path, **options: Any) -> InterpretabilityEngine:
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    return InterpretabilityEngine(model, AutoTokenizer.from_pretrained(folder), traces)


def eager(engine: InterpretabilityEngine, ids: list[int]) -> Any:
    """One plain pass over the whole sequence, by the model's own eager attention."""
    model = copy.deepcopy(engine.model)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return model(torch.tensor([ids]), output_attentions=True)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "nanochat"])
def test_a_trace_is_what_a_plain_pass_over_its_tokens_shows(tiny_folder: Folder, tmp_path: Path, family: str) -> None:
    engine = engine_of(tiny_folder(family), tmp_path)
    result = engine.generate_and_capture(PROMPT, category="rivers", metadata={"note": "x"}, max_tokens=7)
    ids = result["prompt_tokens"] + result["response_tokens"]
    n, total = len(result["prompt_tokens"]), len(ids)
    data = engine.storage.load_trace_data(result["trace_id"])
    expected = eager(engine, ids)

    def numbers(tensor: dict[str, Any]) -> np.ndarray:
        assert list(np.shape(tensor["data"])) == tensor["shape"]
        return np.array(tensor["data"], np.float32)

    for layer, pattern in enumerate(expected.attentions):
        assert numbers(data["attention_weights"][f"layer_{layer}"]) == pytest.approx(pattern.numpy(), abs=1e-5)
    logits = expected.logits[:, n - 1 : total - 1].numpy()
    assert numbers(data["output_logits"]) == pytest.approx(logits, abs=1e-4)
    embedded = engine.model.get_input_embeddings()(torch.tensor([ids])).detach().numpy()
    if family != "gemma2":  # which scales inside the embedding module
        assert numbers(data["token_embeddings"]) == pytest.approx(embedded, abs=1e-6)
    for layer in data["layer_activations"].values():
        assert list(layer) == ["pre_attn_norm", "post_attn", "pre_mlp_norm", "post_mlp"]
        assert all(tensor["shape"] == [1, total, 32] for tensor in layer.values())


def test_what_is_returned_has_the_nanochat_engines_names(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path / "new/traces")
    result = engine.generate_and_capture(prompt=PROMPT, category="rivers", metadata={"note": "x"}, max_tokens=4, seed=3)
    assert list(result) == ["trace_id", "prompt", "response", "prompt_tokens", "response_tokens", "metadata"]
    assert result["metadata"]["metadata"]["note"] == "x"
    assert result["metadata"]["generation_params"] == {"max_tokens": 4, "temperature": 0.6, "top_k": 50, "seed": 3}
    storage = TraceStorage(tmp_path / "new/traces")
    assert storage.list_traces(category="rivers") == [result["trace_id"]]
    assert storage.list_traces(category="lakes") == []
    data = storage.load_trace(result["trace_id"])
    assert (data["prompt"], data["response"]) == (PROMPT, result["response"])
    assert data["timestamp"].replace("-", "").replace(":", "")[:15].replace("T", "_") == result["trace_id"][6:21]
    assert data["tokens"]["output_tokens"] == result["response_tokens"]
    assert data["intermediate_steps"] is None
    assert data["response"] == engine.tokenizer.decode(
        result["prompt_tokens"] + result["response_tokens"], skip_special_tokens=True
    ).removeprefix(engine.tokenizer.decode(result["prompt_tokens"], skip_special_tokens=True))
    again = engine.generate_and_capture(prompt=PROMPT, max_tokens=4, seed=3)
    assert again["response_tokens"] == result["response_tokens"]
    assert again["trace_id"] != result["trace_id"]


def test_captures_can_be_taken_as_tensors_and_cleared(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path)
    nothing = engine.extract_model_captures()
    assert nothing["token_embeddings"] is None
    assert nothing["attention_weights"] == [None] * 3
    result = engine.generate_and_capture(PROMPT, max_tokens=4)
    captures = engine.extract_model_captures()
    ids = result["prompt_tokens"] + result["response_tokens"]
    assert torch.allclose(captures["attention_weights"][2], eager(engine, ids).attentions[2], atol=1e-5)
    assert captures["output_logits"].shape == (1, 4, 99)
    assert list(captures["layer_activations"][0]) == ["pre_attn_norm", "post_attn", "pre_mlp_norm", "post_mlp"]
    # What was captured can be saved by hand.
    trace_id = engine.storage.create_trace(PROMPT, result["response"])
    engine.storage.save_activations(trace_id, **captures)
    assert engine.storage.load_trace_data(trace_id) == engine.storage.load_trace_data(result["trace_id"])
    engine.clear_model_captures()
    assert str(engine.extract_model_captures()) == str(nothing)


def test_an_analysis_has_the_nanochat_engines_numbers(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path)
    trace_id = engine.generate_and_capture(PROMPT, max_tokens=6)["trace_id"]
    captures = engine.extract_model_captures()
    found = engine.analyze_trace(trace_id)
    assert list(found) == ["trace_id", "metadata", "analysis"]
    assert found["analysis"]["attention"]["num_layers"] == 3
    for layer in range(3):
        weights = captures["attention_weights"][layer].double()
        stats = found["analysis"]["attention"]["layer_stats"][str(layer)]
        assert stats["attention_entropy"] == pytest.approx(float(-(weights * (weights + 1e-8).log()).sum(-1).mean()))
        assert stats["mean_attention"] == pytest.approx(float(weights.mean()))
        assert stats["max_attention"] == pytest.approx(float(weights.max()))
        assert stats["head_sparsity"] == pytest.approx(float((weights < 0.01).double().mean()))
        own = found["analysis"]["activations"]["layer_stats"][str(layer)]
        for name, values in captures["layer_activations"][layer].items():
            values = values.double()
            assert own[name]["mean"] == pytest.approx(float(values.mean()))
            assert own[name]["std"] == pytest.approx(float(values.std()))
            assert (own[name]["min"], own[name]["max"]) == pytest.approx((float(values.min()), float(values.max())))
            assert own[name]["sparsity"] == float((values.abs() < 1e-6).double().mean())
    logits = captures["output_logits"][0].double()
    p = logits.softmax(-1)
    found = found["analysis"]["logits"]
    assert found["mean_logit"] == pytest.approx(float(logits.mean()))
    assert found["std_logit"] == pytest.approx(float(logits.std()))
    assert found["entropy_per_position"] == pytest.approx((-(p * (p + 1e-8).log()).sum(-1)).tolist())
    assert found["top_tokens_per_position"] == logits.topk(5).indices.tolist()
    exact = engine.analyze_trace(trace_id, convention="exact")["analysis"]["attention"]["layer_stats"]["0"]
    assert exact["head_sparsity"] < stats["head_sparsity"]


def test_a_model_in_bfloat16_is_traced_in_bfloat16(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path, dtype=torch.bfloat16)
    result = engine.generate_and_capture(PROMPT, max_tokens=3)
    data = engine.storage.load_trace_data(result["trace_id"])
    assert data["token_embeddings"]["dtype"] == "torch.bfloat16"
    ids = torch.tensor(result["prompt_tokens"] + result["response_tokens"])
    embedded = engine.model.get_input_embeddings()(ids)
    assert torch.equal(torch.tensor(data["token_embeddings"]["data"][0]).bfloat16(), embedded)
    wide, own = (engine.extract_model_captures(dtype=dtype)["output_logits"] for dtype in ("float32", "stored"))
    assert (wide.dtype, own.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(wide, own.float())


def test_a_model_in_train_mode_answers_without_dropout_and_stays_in_it(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path / "eval")
    expected = engine.generate_and_capture(PROMPT, max_tokens=5)
    training = torch.nn.DataParallel(copy.deepcopy(engine.model).train())
    result = InterpretabilityEngine(training, engine.tokenizer, tmp_path / "train").generate_and_capture(
        PROMPT, max_tokens=5
    )
    assert all(module.training for module in training.modules())
    assert result["response_tokens"] == expected["response_tokens"]


def test_steps_are_the_passes_of_a_cached_generation(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path)
    result = engine.generate_and_capture(PROMPT, max_tokens=4, capture_intermediate_steps=True)
    steps = engine.storage.load_trace(result["trace_id"])["intermediate_steps"]
    n = len(result["prompt_tokens"])
    shapes = [step["attention_weights"]["layer_0"]["shape"] for step in steps]
    assert shapes == [[1, 4, n, n], *([1, 4, 1, n + i] for i in range(1, 4))]
    expected = eager(engine, result["prompt_tokens"] + result["response_tokens"])
    row = np.array(steps[2]["attention_weights"]["layer_1"]["data"], np.float32)
    assert row == pytest.approx(expected.attentions[1][:, :, n + 1 : n + 2, : n + 2].numpy(), abs=1e-5)


def test_the_run_behind_a_trace_can_be_read_and_the_trace_imported(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path / "traces")
    trace_id = engine.generate_and_capture(PROMPT, max_tokens=4)["trace_id"]
    run = TraceStore(engine.run_of(trace_id))
    back = TraceStore(read_files([engine.storage.path(trace_id)], ImportOptions(tmp_path / "back")))
    for spec in run.layout.arrays:
        if spec.key.site not in ("logits", "final_norm"):
            assert np.array_equal(back.get(back.ids[0], spec.key), run.get(run.ids[0], spec.key))
    n = int(run.tokens.n_prompt[0])
    assert np.array_equal(back.get(back.ids[0], "logits")[n - 1 : -1], run.get(run.ids[0], "logits")[n - 1 : -1])


def test_the_nanochat_engines_example_runs_on_a_nanochat_checkpoint(write_checkpoint: Writer, tmp_path: Path) -> None:
    write_checkpoint()
    model, tokenizer, _ = load_model("sft", "cpu", phase="eval", allow_pickle=True)
    engine = InterpretabilityEngine(model, tokenizer, tmp_path / "traces")
    result = engine.generate_and_capture("The capital of France is", category="geography", max_tokens=20)
    assert tokenizer.convert_ids_to_tokens(result["prompt_tokens"])[0] == "<|bos|>"
    stats = engine.analyze_trace(result["trace_id"])["analysis"]["attention"]["layer_stats"]
    assert list(stats) == ["0", "1", "2"]


def test_assistant_end_stops_the_response(write_checkpoint: Writer, tmp_path: Path) -> None:
    weights = {name: tensor * 0 for name, tensor in random_weights().items()}
    weights["transformer.wte.weight"] += 1
    weights["lm_head.weight"][344] = 1  # <|assistant_end|>
    write_checkpoint(weights=weights)
    model, tokenizer, _ = load_model("sft", "cpu", allow_pickle=True)
    result = InterpretabilityEngine(model, tokenizer, tmp_path).generate_and_capture("x", max_tokens=9, temperature=0)
    assert tokenizer.convert_ids_to_tokens(result["response_tokens"]) == ["<|assistant_end|>"]
    assert result["response"] == ""


def test_what_cannot_be_traced_is_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    engine = engine_of(tiny_folder("gpt2"), tmp_path)
    for options in ({"prompt": ""}, {"prompt": PROMPT, "max_tokens": 500}, {"prompt": PROMPT, "temperature": -1}):
        with pytest.raises(UsageError):
            engine.generate_and_capture(**options)
    assert engine.storage.list_traces() == []
    from transformers import AutoModel

    with pytest.raises(Unsupported):
        InterpretabilityEngine(AutoModel.from_pretrained(tiny_folder("bert")), None, tmp_path)
