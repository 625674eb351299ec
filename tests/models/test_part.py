"""Models made of several models are recorded by their text model, under its own row, loaded by name or at hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.marks import slow
from tests.tiny_folders import TEXTS, write_tiny_model
from traceformer.analysis.lens import normed, read_out
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.errors import Unreadable, Unsupported
from traceformer.models.dims import ModelDims
from traceformer.models.families import FAMILIES, architecture_of, own_family
from traceformer.models.head_weights import head_weights_of, open_head_weights
from traceformer.models.load import load_model
from traceformer.models.part import (
    is_composite,
    placeholders,
    stack_config,
    start_token_of,
    text_config,
    text_part,
    text_prefix,
)
from traceformer.models.readout import open_readout, readout_of
from traceformer.models.tiny import tiny_model
from traceformer.models.weights import read_config
from traceformer.questions.check import check

COMPOSITES = ("llava", "gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "voxtral", "smolvlm")
WITH_ROWS = ("llava", "gemma3", "mistral3", "internvl", "voxtral")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composites") / "tiny-llava"
    write_tiny_model(folder, "llava")
    return folder


def test_a_composite_is_known_by_its_text_model() -> None:
    model: Any = tiny_model("llava")
    assert is_composite(model.config)
    assert text_config(model.config) is model.config.text_config
    assert text_part(model) is model.model.language_model
    assert own_family(model.config) is FAMILIES["llama"]
    assert ModelDims.of(model).stacks["dec"].n_layers == model.config.text_config.num_hidden_layers


def test_any_other_model_is_its_own_part() -> None:
    model: Any = tiny_model("gpt2")
    assert not is_composite(model.config)
    assert text_config(model.config) is model.config
    assert stack_config(model.config, "dec") is model.config
    assert text_part(model) is model.transformer


def test_a_config_file_that_leaves_defaults_out_states_them_all_the_same() -> None:
    stated = text_config({"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": 64}})
    assert (stated["model_type"], stated["hidden_size"]) == ("llama", 64)
    assert stated["num_attention_heads"] == transformers.LlamaConfig().num_attention_heads


def test_an_encoder_decoder_of_two_configs_has_the_sizes_of_each() -> None:
    config: Any = tiny_model("t5gemma").config
    config.encoder.num_hidden_layers = 3
    assert stack_config(config, "enc") is config.encoder
    assert {stack: dims.n_layers for stack, dims in ModelDims.from_config(config).stacks.items()} == {
        "enc": 3,
        "dec": config.decoder.num_hidden_layers,
    }
    assert start_token_of(config) == config.decoder.bos_token_id


def test_tokens_that_stand_for_images_and_sounds_are_told_by_the_config() -> None:
    config = transformers.Qwen2VLConfig(image_token_id=90, video_token_id=91)
    assert placeholders(config) == {90: "image", 91: "video"}
    assert placeholders(transformers.GPT2Config()) == {}


def test_the_tensors_of_a_text_model_are_told_by_its_embedding_and_blocks() -> None:
    names = ("vision.layers.0.q.weight", "language.embed_tokens.weight", "language.layers.0.q.weight", "norm.weight")
    assert text_prefix(names, "embed_tokens", "layers") == "language."
    with pytest.raises(Unreadable, match="cannot be told; embed_tokens"):
        text_prefix(names[:2], "embed_tokens", "layers")


def test_a_composite_in_a_folder_is_loaded_as_what_its_config_says(llava: Path) -> None:
    loaded = load_model(str(llava), device="cpu")
    assert type(loaded.model).__name__ == "LlavaForConditionalGeneration"
    assert loaded.dims.arch == "dec"
    run = record(loaded, list(TEXTS[:3]), "attn resid logits", dtype="float32", batch_size=3)
    ids = torch.tensor([[*run.tokens.input_ids[0]]])
    with torch.no_grad():
        own = loaded.model(input_ids=ids, output_hidden_states=True)
    np.testing.assert_allclose(run.get(0, "logits"), own.logits[0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(run.get(0, "resid_pre", 1), own.hidden_states[1][0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_readout_of_a_composite_is_read_from_its_files(llava: Path) -> None:
    loaded = load_model(str(llava), device="cpu")
    ids = torch.tensor([[5, 17, 42]])
    with torch.no_grad():
        output = loaded.model(input_ids=ids, output_hidden_states=True)
        last = output.hidden_states[-1][0].numpy()
    for readout in (open_readout(llava, read_config(llava)), readout_of(loaded)):
        said = read_out(last, readout, top=1)
        assert said.top_ids[:, 0].tolist() == output.logits[0].argmax(-1).tolist()
    assert normed(last, readout).shape == last.shape


def test_heads_of_a_composite_read_the_same_from_its_files_as_from_the_model(llava: Path) -> None:
    there, held = open_head_weights(llava), head_weights_of(load_model(str(llava), device="cpu"))
    for one, other in zip(there.layer(1).__class__.__slots__, held.layer(1).__class__.__slots__, strict=True):
        np.testing.assert_array_equal(getattr(there.layer(1), one), getattr(held.layer(1), other))
    np.testing.assert_array_equal(there.embedding.rows(0, 9), held.embedding.rows(0, 9))


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPOSITES)
def test_every_fact_of_a_composite_holds(family: str) -> None:
    checked = check(load_model(tiny_model(family)))
    assert checked.ok


@pytest.mark.slow
@pytest.mark.parametrize("family", [*COMPOSITES, "t5gemma"])
def test_a_composite_answers_as_its_own_generate_does_and_a_replay_gives_the_same(family: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / family, family)
    loaded = load_model(str(tmp_path / family), device="cpu", with_head=True)
    prompts = ["The river froze", "Seven ships left the harbour at dawn"]
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "dtype": "float32"}
    live, replayed = (generate(loaded, prompts, "attn resid", replay=replay, **asked) for replay in (False, True))
    for example in range(2):
        assert [*live.tokens.tokens[example]] == [*replayed.tokens.tokens[example]]
        for spec in live.layout.arrays:
            for layer in spec.layers:
                one, other = (run.get(example, spec.key, layer) for run in (live, replayed))
                np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", [slow(name) for name in WITH_ROWS])
def test_a_composite_has_the_row_of_its_text_model(family: str) -> None:
    config = tiny_model(family).config
    assert architecture_of(config) is architecture_of(config.get_text_config())


def test_a_composite_without_a_row_of_its_text_model_is_refused_by_that_name() -> None:
    config = transformers.CONFIG_MAPPING["glm5_next"]()
    with pytest.raises(Unsupported, match="no architecture row for model type 'glm5_next_text'"):
        architecture_of(config)
