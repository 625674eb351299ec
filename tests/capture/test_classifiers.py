"""Classifiers and reward models: loaded as what their checkpoints are, and recorded with their own output."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.capture.proofs.facts import OWN_NUMBERS, failures
from tests.families import KEPT, mostly_slow
from tests.tiny_folders import TEXTS
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.capture.proofs.check import ALONE, check_model, random_examples
from traceformer.errors import Unreadable, Unsupported
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model
from traceformer.questions.lens import lens
from traceformer.sites import Selection
from traceformer.store.run import Run

CLASSIFIERS = [family for family in KEPT if family not in ("nanochat", "byte_sparse", "xglm", "granite")]
FAST = ("gpt2", "bert")
MOSTLY_SLOW = mostly_slow(CLASSIFIERS, FAST)
TASK = {"task": "SequenceClassification", "id2label": {0: "calm", 1: "angry", 2: "glad"}}
SHORT = TEXTS[:4]


def own_logits(folder: Path, run: Run) -> np.ndarray:
    """What transformers' class says of each text alone, without padding."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return np.array([model(input_ids=torch.tensor([list(ids)])).logits[0].numpy() for ids in run.tokens.input_ids])


def class_logits(run: Run) -> np.ndarray:
    return np.array([run.class_logits(example) for example in range(run.n)])


@pytest.mark.parametrize("family", MOSTLY_SLOW)
def test_class_logits_are_what_the_model_says_of_each_text_alone(
    family: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder(family, **TASK)
    loaded, out = load_model(folder, device="cpu"), tmp_path / "run"
    sites = "resid_post class_logits"
    run = record(loaded, SHORT, sites, dtype="float32", batch_size=3, shard_examples=2, out=out)
    np.testing.assert_allclose(class_logits(run), own_logits(folder, run), rtol=0, atol=2e-5)
    assert run.about.labels == ("calm", "angry", "glad")
    assert run.arrays()[f"{'enc' if run.arch == 'enc' else 'dec'}_class_logits"] == (4, 3)
    assert run.verify().ok


def test_a_reward_model_that_pads_with_a_token_of_its_own_pools_the_last_true_token(
    tiny_folder: Callable[..., Path],
) -> None:
    folder = tiny_folder("qwen3", task="SequenceClassification", num_labels=1, pad_token_id=17)
    run = record(load_model(folder, device="cpu"), SHORT, "class_logits", dtype="float32", batch_size=4)
    assert run.about.batch_size == 4
    np.testing.assert_allclose(class_logits(run), own_logits(folder, run), rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding", [None, -1])
def test_a_classifier_that_knows_no_padding_takes_one_text_at_a_time(
    padding: int | None, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder("llama", **TASK, pad_token_id=padding)
    loaded = load_model(folder, device="cpu")
    run = record(loaded, SHORT, "class_logits", dtype="float32", batch_size=4)
    assert run.about.batch_size == 1
    assert np.array_equal(class_logits(run), own_logits(folder, run))
    assert record(loaded, SHORT, "resid_post", batch_size=4).about.batch_size == 4


def test_a_classifier_has_no_logits_and_what_needs_them_says_so(tiny_folder: Callable[..., Path]) -> None:
    loaded = load_model(tiny_folder("gpt2", **TASK), device="cpu")
    assert type(loaded.model).__name__ == "GPT2ForSequenceClassification"
    why = "GPT2ForSequenceClassification is a classifier, which has no language-model head"
    with pytest.raises(Unsupported, match=f"this model has no logits; {why}"):
        record(loaded, SHORT, "attn logits")
    with pytest.warns(UserWarning, match="has no logits: left out"):
        run = record(loaded, SHORT[:1], "all")
    assert run.about.left_out == ("logits",)
    assert run.layout.spec(run.spec("class_logits").key)
    with pytest.raises(Unsupported, match=f"generates no text; {why}"):
        generate(loaded, "Why?")
    with pytest.raises(
        Unsupported, match="the readout of GPT2ForSequenceClassification; it has no language-model head"
    ):
        lens(run, 0, model=loaded)
    with pytest.raises(
        Unsupported, match="the readout of GPT2ForSequenceClassification; it has no language-model head"
    ):
        lens(run, 0)
    with pytest.raises(Unsupported, match="without an unembedding"):
        record(loaded, SHORT, "resid_post", lens_top_k=2)


def test_a_language_model_is_no_classifier_and_nobody_misses_that(load: Callable[..., Any]) -> None:
    with pytest.raises(Unsupported, match=r"this model has no class_logits; .* is a language model"):
        record(load("llama"), SHORT, "class_logits")
    assert record(load("llama"), SHORT[:1], "all").about.left_out == ()


def test_a_decoder_without_any_head_is_recorded_without_logits(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    bare: Any = tiny_model("llama").base_model
    bare.save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    assert type(loaded.model).__name__ == "LlamaModel"
    run = record(loaded, SHORT[:1], "resid_post")
    with torch.inference_mode():
        own = bare(torch.tensor([list(run.tokens.input_ids[0])]), output_hidden_states=True)
    np.testing.assert_allclose(run.get(0, "resid_post", 1), own.hidden_states[2][0], rtol=0, atol=2e-2)
    with pytest.raises(Unsupported, match="no logits; it was loaded without a language-model head"):
        record(loaded, SHORT, "logits")
    with pytest.raises(Unsupported, match="the readout of LlamaModel"):
        lens(run, 0)


def test_a_classifier_that_lacks_its_head_or_its_pooler_is_refused(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = shutil.copytree(tiny_folder("bert", **TASK), tmp_path / "model")
    model: Any = load_model(folder, device="cpu").model
    weights = {name: tensor for name, tensor in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(Unreadable, match=r"lacks the weights of bert\.pooler\.dense\.bias, bert\.pooler"):
        load_model(folder, device="cpu")


def test_an_encoder_decoders_classifier_wants_its_end_token_and_no_targets(tiny_folder: Callable[..., Path]) -> None:
    loaded = load_model(tiny_folder("bart", **TASK), device="cpu")
    with pytest.raises(Unsupported, match="no class_logits; its decoder reads the text itself, not `targets`"):
        record(loaded, SHORT[:1], "class_logits", targets=["It did."])
    loaded.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(Unsupported, match="BartForSequenceClassification takes them at the end token, 2"):
        record(loaded, SHORT, "class_logits")


def test_texts_without_tokens_are_passed_over_and_the_others_keep_what_is_said_of_them(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_model(tiny_folder("gpt2", **TASK), device="cpu")
    texts = ["Yes", "\u0301", "Why not?", "\u0301"]  # of a lone accent the tokenizer leaves nothing
    with pytest.warns(UserWarning, match="texts without a token are passed over: 2"):
        run = record(loaded, texts, "class_logits", dtype="bfloat16", shard_examples=2, out=tmp_path / "run")
    assert list(run.tokens["index"]) == [0, 2]
    alone = record(loaded, [texts[0], texts[2]], "class_logits", dtype="bfloat16")
    np.testing.assert_array_equal(class_logits(run), class_logits(alone))


@pytest.mark.parametrize("task", ["TokenClassification", "QuestionAnswering"])
def test_what_is_told_of_tokens_is_a_row_per_token(task: str, tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("bert", task=task, num_labels=2)
    run = record(load_model(folder, device="cpu"), SHORT, "token_class_logits", dtype="float32")
    made = AutoModelForQuestionAnswering if task == "QuestionAnswering" else AutoModelForTokenClassification
    model: Any = made.from_pretrained(folder)
    with torch.inference_mode():
        own = model(torch.tensor([list(run.tokens.input_ids[2])]))
    expected = own.logits[0] if task != "QuestionAnswering" else torch.stack([own.start_logits, own.end_logits], -1)[0]
    np.testing.assert_allclose(run.get(2, "token_class_logits"), expected, rtol=0, atol=2e-5)
    assert run.about.labels == (("start", "end") if task == "QuestionAnswering" else ("LABEL_0", "LABEL_1"))


def check(family: str, task: str, *sites: str) -> None:
    labels = {} if task == "QuestionAnswering" else {"num_labels": 3}
    model: Any = tiny_model(family, task=task, **labels)
    examples: Any = random_examples(model.config)
    if task == "SequenceClassification" and model.config.is_encoder_decoder:
        examples = [{"enc": [*each["enc"], model.config.eos_token_id]} for each in examples]
    result = check_model(model, examples, selection=Selection(sites or ("all",)))
    assert failures(result) == {}
    site = "class_logits" if task == "SequenceClassification" else "token_class_logits"
    own = {proof.fact for proof in result.proofs if proof.key.endswith(f".{site}")}
    is_pair = model.config.is_encoder_decoder
    facts = {"equals the model's own when nothing is recorded", OWN_NUMBERS}
    facts |= set() if is_pair else {"equals the model's own head on the last residual stream", ALONE}
    facts |= {"equals the model's own of the text alone"} if site == "class_logits" else set()
    assert own == (set() if is_pair and site != "class_logits" else facts)


def test_every_fact_about_a_classifier_holds() -> None:
    check("gpt2", "SequenceClassification", "final_norm", "class_logits")


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_every_fact_about_every_familys_classifiers_holds(family: str, task: str) -> None:
    known = getattr(transformers, f"AutoModelFor{task}")._model_mapping
    is_encoder_alone = tiny_model(family).config.model_type in ("t5", "mt5") and task == "TokenClassification"
    if type(tiny_model(family).config) in known and not is_encoder_alone:
        check(family, task)
