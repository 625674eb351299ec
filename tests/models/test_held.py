"""Models that the user holds: what is recorded of them, what is refused, and that they stay as they were."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from tests.tiny_folders import TEXTS
from traceformer.capture.extract import record
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.compat import ReverseAttentionTracer
from traceformer.errors import Unsupported, UsageError
from traceformer.models.held import underneath
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel, weights_digest
from traceformer.models.tiny import tiny_model
from traceformer.sites import Selection
from traceformer.store.run import TraceStore

Folder = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT reads it
# Nothing is compiled before it runs; the eager backend spares the import of torch's compiler.
compiled = partial(torch.compile, backend="eager")
WRAPPERS: Mapping[str, Callable[[nn.Module], Any]] = {
    "as it is": lambda model: model,
    "compiled": compiled,
    "in DataParallel": nn.DataParallel,
    "in DataParallel and compiled": lambda model: compiled(nn.DataParallel(model)),
}


@pytest.fixture
def tokenizer(tiny_folder: Folder) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder("gpt2"), padding_side="left", pad_token="</s>")


def recorded(loaded: LoadedModel, texts: Path, out: Path, *capture: str) -> TraceStore:
    """A run of three texts, alone in their batches so that nothing is summed in another order."""
    selection = Selection(capture or ("attn_pattern", "resid_post", "logits"))
    return record(loaded, texts, selection, limit=3, dtype="float32", batch_size=1, out=out)


def state_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Everything of a model and a tokenizer that recording might change."""
    modules = list(model.modules())
    return {
        "training": [module.training for module in modules],
        "hooks": [(list(each._forward_hooks), list(each._forward_pre_hooks)) for each in modules],
        "forward": [module.__dict__.get("forward") for module in modules],
        "weights": weights_digest(model),
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "config": [model.config.to_json_string(), model.config._attn_implementation],
        "generation config": getattr(model, "generation_config", None) and model.generation_config.to_json_string(),
        "tokenizer": [repr(tokenizer), tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id],
    }


def own_pass(model: Any, ids: list[int]) -> Any:
    """What the model itself returns in eval mode, by its eager attention."""
    plain = copy.deepcopy(model).eval()
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        return plain(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_is_recorded_is_what_the_model_itself_returns_and_it_stays_as_it_was(
    wrapper: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model: Any = tiny_model("gpt2", resid_pdrop=0.5, attn_pdrop=0.5).train()
    model.transformer.h[1].eval()  # a part that its owner has frozen
    model.transformer.wte.weight.requires_grad_(False)
    before = state_of(model, tokenizer)
    loaded = load_model(WRAPPERS[wrapper](model), tokenizer)
    assert loaded.model is model
    run = recorded(loaded, text_file, tmp_path / "run")
    assert state_of(model, tokenizer) == before
    assert before["training"] == [module.training for module in model.modules()]
    for example, ids, text in zip(run.ids, run.tokens.input_ids, TEXTS, strict=False):
        assert list(ids) == tokenizer(text)["input_ids"]
        expected = own_pass(model, list(ids))
        np.testing.assert_allclose(run.get(example, "logits"), expected.logits[0].numpy(), atol=3e-5)
        for layer in range(2):
            stream = expected.hidden_states[layer + 1][0].numpy()
            np.testing.assert_allclose(run.get(example, "resid_post", layer), stream, atol=3e-5)
            np.testing.assert_allclose(run.attn(example, layer), expected.attentions[layer][0].numpy(), atol=3e-6)


def with_lora(model: Any) -> Any:
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def hooked(model: Any) -> Any:
    """As accelerate leaves it: each module's forward is replaced by one that moves what comes in."""
    add_hook_to_module(model.transformer.h[0], AlignDevicesHook("cpu"))
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


@pytest.mark.parametrize(
    "wrap",
    [
        *WRAPPERS.values(),
        with_lora,
        lambda model: nn.DataParallel(with_lora(model)),
        lambda model: compiled(with_lora(model)),
        lambda model: with_lora(model).base_model,
        lambda model: with_lora(model).get_base_model(),
        hooked,
        lambda model: with_lora(hooked(model)),
        lambda model: accelerate.Accelerator(cpu=True).prepare_model(model),
    ],
)
def test_every_wrapper_is_opened_wherever_a_model_is_taken(wrap: Callable[[Any], Any], tokenizer: Any) -> None:
    wrapped = wrap(tiny_model("gpt2"))
    ids = [5, 6, 7, 8]
    own = getattr(wrapped, "_orig_mod", wrapped).eval()  # compiling it takes seconds
    with torch.inference_mode():
        expected = own(input_ids=torch.tensor([ids])).logits[0]

    run = record(load_model(wrapped, tokenizer), [ids], "logits attn_pattern", dtype="float32")
    assert np.array_equal(run.get(0, "logits"), expected.numpy())

    taken: list[Tensor] = []
    plan = plan_arrays(Selection(("logits",)), underneath(wrapped), stacks=("dec",))
    with Recorder(wrapped, plan.arrays, Taking(taken)) as recorder:
        recorder.run({"dec": [Span(0, len(ids))]}, input_ids=torch.tensor([ids]))
    assert torch.equal(taken[0][0], expected)

    followed = ReverseAttentionTracer(wrapped, tokenizer).trace(ids, layer=1, agg_heads=0, top_beam=1, top_k=1)
    path = followed.beams[0]
    assert path.edge_attns[0] == pytest.approx(run.attn(0, 1, 0)[path.positions[0], path.positions[1]], abs=1e-6)


class Taking:
    def __init__(self, taken: list[Tensor]) -> None:
        self.taken = taken

    def rows(self, spec: Any, layer: int | None, rows: Tensor) -> None:
        self.taken.append(rows.clone())

    def square(self, *_: Any) -> None:
        raise AssertionError("no matrix was asked for")


def test_in_bfloat16_it_is_recorded_in_bfloat16(tokenizer: Any, text_file: Path, tmp_path: Path) -> None:
    model: Any = tiny_model("llama").bfloat16()
    run = recorded(load_model(model, tokenizer), text_file, tmp_path / "run")
    assert run.meta["model_dtype"] == "bfloat16"
    assert model.dtype == torch.bfloat16
    for example, ids in zip(run.ids, run.tokens.input_ids, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([list(ids)])).logits[0]
        assert np.array_equal(run.get(example, "logits"), logits.float().numpy())


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_bare_model_records_all_but_logits(family: str, tokenizer: Any, text_file: Path, tmp_path: Path) -> None:
    model: Any = tiny_model(family).base_model
    loaded = load_model(model, tokenizer)
    assert type(loaded.model).__name__ in ("GPT2Model", "LlamaModel", "BertModel")
    with pytest.warns(UserWarning, match="has no .*logits"):
        run = recorded(loaded, text_file, tmp_path / "run", "all")
    for example, ids in zip(run.ids, run.tokens.input_ids, strict=True):
        with torch.inference_mode():
            last = model(torch.tensor([list(ids)])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(run.get(example, "hidden", run.L), last, atol=3e-5)


def test_weights_that_its_owner_trained_on_are_not_taken_for_those_of_its_folder(
    tiny_folder: Folder, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("gpt2")
    by_name = load_model(folder, device="cpu")
    model = by_name.model
    at_hand = load_model(model, tokenizer)
    assert (at_hand.source, at_hand.name, at_hand.digest) == (str(folder), folder.name, by_name.digest)
    assert (at_hand.held, by_name.held) == (True, False)
    assert recorded(by_name, text_file, tmp_path / "by name").meta["model_files"] is not None
    assert recorded(at_hand, text_file, tmp_path / "at hand").meta["model_files"] is None
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1  # pyright: ignore
    assert load_model(model, tokenizer).digest == weights_digest(model) != by_name.digest


def test_without_a_tokenizer_texts_are_refused(text_file: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model("gpt2"))
    with pytest.raises(UsageError, match="texts cannot be read without a tokenizer"):
        recorded(loaded, text_file, tmp_path / "run")


class OwnTransformer(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids


def never_loaded() -> PreTrainedModel:
    config = tiny_model("gpt2").config
    with torch.device("meta"):
        return type(tiny_model("gpt2"))(config)


def compiled_in_place() -> PreTrainedModel:
    model = tiny_model("gpt2")
    model.compile(backend="eager")
    return model


def compiled_in_part() -> PreTrainedModel:
    model: Any = tiny_model("llama")
    model.model.layers[1] = compiled(model.model.layers[1])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (never_loaded, "they were never loaded"),
        (compiled_in_place, "GPT2LMHeadModel is compiled in place"),
        (compiled_in_part, r"LlamaForCausalLM is compiled at model\.layers\.1;"),
        (lambda: tiny_model("bert", is_decoder=True), "BertForMaskedLM is no encoder any more"),
        (OwnTransformer, "OwnTransformer is no model of transformers.*AutoModelForCausalLM"),
        (lambda: nn.DataParallel(OwnTransformer()), "OwnTransformer is no model of transformers"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(
    make: Callable[[], nn.Module], message: str, tokenizer: Any
) -> None:
    model: Any = make()
    for take in (load_model, partial(Recorder, arrays=[]), lambda it: ReverseAttentionTracer(it, tokenizer)):
        with pytest.raises(Unsupported, match=message):
            take(model)


def test_what_is_no_model_is_refused_with_what_would_work(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="is no model; a model of transformers, such as AutoModelForCausalLM"):
        load_model(tokenizer)
    with pytest.raises(UsageError, match="str is no tokenizer; a tokenizer of transformers"):
        load_model(tiny_model("gpt2"), "gpt2")
    with pytest.raises(UsageError, match="`device` and `dtype` of a model that is at hand; it is recorded as it is"):
        load_model(tiny_model("gpt2"), tokenizer, device="cpu", dtype="float32")
