"""Sizes of the ready-made models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PretrainedConfig

from traceformer.bytelm import SparseByteForCausalLM
from traceformer.bytelm.patterns import patterns_from_json, thesis_patterns
from traceformer.bytelm.presets import PRESETS, build_config
from traceformer.errors import UsageError


def n_parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_dense_is_a_plain_llama_and_sparse_has_the_same_parameters(preset: str) -> None:
    dense, sparse = build_config(preset, "dense"), build_config(preset, "sparse")
    with torch.device("meta"):
        models = [AutoModelForCausalLM.from_config(config) for config in (dense, sparse)]
    assert [type(model) for model in models] == [LlamaForCausalLM, SparseByteForCausalLM]
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]


def test_the_same_seed_gives_dense_and_sparse_the_same_weights() -> None:
    weights = []
    for attention in ("dense", "sparse"):
        torch.manual_seed(5)
        weights.append(AutoModelForCausalLM.from_config(build_config("tiny", attention)).state_dict())
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_small_is_small_enough_to_ship_and_thesis_is_as_large_as_the_originals_sparse_model() -> None:
    small = build_config("small", "dense")
    assert 2e6 < n_parameters(small) < 4e6  # in float16 under 8 MB
    assert small.max_position_embeddings == 512
    thesis = build_config("thesis", "sparse")
    assert (thesis.num_hidden_layers, thesis.num_attention_heads, thesis.hidden_size) == (12, 8, 512)
    assert thesis.max_position_embeddings == 1024
    assert abs(n_parameters(thesis) / 37_959_936 - 1) < 0.01


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_embeddings_are_tied_and_special_tokens_known(attention: str) -> None:
    config = build_config("tiny", attention)
    assert config.tie_word_embeddings
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (258, 256, 256, 257)


def test_patterns_follow_the_heads_and_the_context() -> None:
    config = build_config("tiny", "sparse", num_attention_heads=4, max_position_embeddings=96)
    assert patterns_from_json(config.head_patterns) == thesis_patterns(4, 96)
    own = [{"window": 4, "columns": [0]}] * 8
    assert build_config("tiny", "sparse", head_patterns=own).head_patterns == own


def test_a_preset_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no preset 'huge'.*tiny, small, thesis"):
        build_config("huge", "dense")
