"""What a user is told of models that no row can describe: the mechanism by its name, and what would work."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, BartForCausalLM, T5EncoderModel

from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.capture.proofs.check import CheckResult
from traceformer.errors import TraceformerError, Unsupported
from traceformer.models.dims import ModelDims
from traceformer.models.load import load_model
from traceformer.models.mechanisms import mechanisms_of, stated
from traceformer.models.shrunk import shrunk_config
from traceformer.models.tiny import tiny_model
from traceformer.questions.check import check

ASKED: dict[str, Callable[[Path], Any]] = {
    "load": lambda folder: load_model(str(folder)),
    "check": lambda folder: check(str(folder)),
    "record": lambda folder: record(str(folder), ["Yes", "Seven ships left."]),
    "generate": lambda folder: generate(str(folder), "Seven ships", max_tokens=2),
}


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("canine", "'canine' has no vocabulary of tokens"),
    ],
)
def test_whatever_is_asked_of_it_the_mechanism_is_named(
    family: str, said: str, ask: str, tiny_folder: Callable[..., Path]
) -> None:
    with pytest.raises(Unsupported, match=said):
        ASKED[ask](tiny_folder(family))


@pytest.mark.parametrize("family", ["canine"])
def test_a_familys_name_is_refused_like_its_checkpoint(family: str) -> None:
    with pytest.raises(Unsupported, match=f"'{family}'"):
        check(family)


def test_the_text_part_of_several_models_is_recorded_by_itself_too(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("gemma3", text_config={"max_position_embeddings": 20})
    whole: Any = AutoModelForImageTextToText.from_pretrained(folder)
    result = check(load_model(whole.get_decoder(), AutoTokenizer.from_pretrained(folder)), ["Yes", "Seven ships"])
    assert isinstance(result, CheckResult)
    assert result.ok
    assert any(proof.key == "dec.self.attn_pattern" for proof in result.proofs)


def test_what_no_automatic_class_makes_is_loaded_as_the_class_that_its_config_names(
    tiny_folder: Callable[..., Path],
) -> None:
    loaded = load_model(str(tiny_folder("emu3")))
    assert type(loaded.model).__name__ == "Emu3ForCausalLM"
    assert [dims.n_layers for dims in loaded.dims.stacks.values()] == [2]


def test_a_model_that_no_class_is_known_of_is_refused(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    shutil.copytree(tiny_folder("emu3"), tmp_path / "model")
    stating = tmp_path / "model" / "config.json"
    stating.write_text(stating.read_text().replace("Emu3ForCausalLM", "Emu3ForNobody"))
    with pytest.raises(Unsupported, match=r"cannot be loaded by its name.*its own class.*load_model\(model, tokenizer"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("ask", ["check", "record", "generate"])
def test_texts_of_a_model_whose_prefix_is_seen_both_ways_are_refused(
    ask: str, tiny_folder: Callable[..., Path]
) -> None:
    with pytest.raises(Unsupported, match=r"texts of PaliGemma.* by themselves; without token_type_ids"):
        ASKED[ask](tiny_folder("paligemma"))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("deepseek_v3", []),
        ("gemma3n_text", ["4 residual streams"]),
        ("glm_moe_dsa", []),
        ("gpt2", []),
        ("gemma2", []),
        ("modernbert", []),
        ("llama4_text", []),
    ],
)
def test_a_config_says_what_no_row_describes(family: str, words: list[str]) -> None:
    found = mechanisms_of(shrunk_config(family))
    assert len(found) == len(words)
    assert all(word in mechanism for word, mechanism in zip(words, found, strict=True))


def test_what_differs_by_layer_is_not_read_as_if_it_did_not() -> None:
    config = shrunk_config("gemma4_text")
    assert stated(config, "hidden_size") == 32
    assert stated(config, "no_such_setting", 5) == 5
    with pytest.raises(Unsupported, match="do not all have the same head_dim; its config says it layer by layer"):
        stated(config, "head_dim")


def test_a_picture_model_may_be_no_text_transformer() -> None:
    with pytest.raises(Unsupported, match=r"'resnet' states none of .*; it may not be a text transformer"):
        ModelDims.from_config(AutoConfig.for_model("resnet"))


@pytest.mark.parametrize("kind", [BartForCausalLM, T5EncoderModel])
def test_one_stack_of_an_encoder_decoder_by_itself_has_its_part_of_the_row(kind: Any) -> None:
    if kind is BartForCausalLM:
        config: Any = tiny_model("bart", encoder_layers=3, max_position_embeddings=20).config
        config.is_encoder_decoder, config.is_decoder = False, True
    else:
        config = tiny_model("t5").config
    torch.manual_seed(0)
    result = check(load_model(kind(config).eval()))
    assert isinstance(result, CheckResult)
    assert result.ok
    stack = "dec" if kind is BartForCausalLM else "enc"
    assert {proof.key.partition(".")[0] for proof in result.proofs} == {stack}
    assert {f"{stack}.resid_mid", f"{stack}.self.attn_pattern"} <= {proof.key for proof in result.proofs}


def test_an_encoder_decoder_that_does_not_say_how_an_answer_begins_is_refused(tmp_path: Path) -> None:
    from tests.tiny_folders import write_tiny_model

    write_tiny_model(tmp_path / "model", "t5", decoder_start_token_id=None, bos_token_id=None)
    for ask in (ASKED["generate"], ASKED["check"], lambda folder: record(str(folder), ["Yes"], targets=["No"])):
        with pytest.raises(TraceformerError, match="decoder_start_token_id"):
            ask(tmp_path / "model")
    with pytest.raises(Unsupported, match="states no decoder_start_token_id"):
        check(load_model(tiny_model("t5", decoder_start_token_id=None)))
