"""Every setting of a model's generation_config.json holds, or is replaced by its like, or is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from traceformer.capture.generation.generate import generate
from traceformer.capture.generation.sampling import Sampling
from traceformer.errors import Unsupported, UsageError
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run

PROMPTS = ("Seven ships left the harbour", "Yes")
N_NEW = 6

HOLD: list[dict[str, Any]] = [
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 2, "num_return_sequences": 2},
    {"repetition_penalty": 1.8, "pad_token_id": 57},
    {"guidance_scale": 1.5},
    {"cache_implementation": "static"},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[89], [48, 57], [23]]},
    {"sequence_bias": [[[89], -10.0], [[9], 30.0]]},
    {"min_length": 14, "eos_token_id": [2, 57, 89]},
    {"min_new_tokens": 4, "eos_token_id": [2, 57, 89]},
    {"eos_token_id": [2, 20, 22, 57]},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 2},
    {"suppress_tokens": [48, 57, 89]},
    {"begin_suppress_tokens": [48, 89, 23]},
    {"exponential_decay_length_penalty": (2, 1.5)},
    {"encoder_repetition_penalty": 3.0},
    {"encoder_no_repeat_ngram_size": 1},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 4.0}},
    {"cache_implementation": "hybrid"},
    {"max_new_tokens": 3},
    {"min_p": 0.1, "top_h": 0.4, "typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    {"output_attentions": True, "output_scores": True, "return_dict_in_generate": True, "low_memory": True},
]
REPLACED: list[dict[str, Any]] = [{"use_cache": False}, {"prefill_chunk_size": 2}, {"prompt_lookup_num_tokens": 3}]
REFUSED: list[dict[str, Any]] = [
    {"cache_implementation": "quantized"},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"token_healing": True},
    {"is_assistant": True},
    {"dola_layers": "low"},
    {"num_beam_groups": 2, "num_beams": 4},
    {"force_words_ids": [[5]], "num_beams": 2},
    {"constraints": [1]},
]


def _fast(settings: list[dict[str, Any]], count: int) -> list[Any]:
    """The first of them in the fast set, the others in the slow one."""
    return [each if n < count else pytest.param(each, marks=pytest.mark.slow) for n, each in enumerate(settings)]


@pytest.fixture
def with_settings(load: Callable[..., LoadedModel]) -> Callable[..., LoadedModel]:
    """A family's tiny model, with settings of its own on top of those that it has."""

    def make(family: str, **settings: Any) -> LoadedModel:
        loaded = load(family)
        stated = loaded.model.generation_config.to_dict() | settings  # pyright: ignore[reportAttributeAccessIssue]
        loaded.model.generation_config = GenerationConfig.from_dict(stated)
        return load_model(loaded.model, loaded.tokenizer)

    return make


def own_responses(loaded: LoadedModel, max_new_tokens: int | None) -> list[list[int]]:
    """What the model's own `generate` answers to each prompt alone, up to its end token."""
    more = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    ends = loaded.model.generation_config.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]
    responses: list[list[int]] = []
    for prompt in PROMPTS:
        ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
        found: Any = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **more)  # pyright: ignore
        start = ids.shape[1] if loaded.dims.arch == "dec" else 1
        for row in getattr(found, "sequences", found)[:, start:].tolist():
            stop = next((n + 1 for n, token in enumerate(row) if token in torch.tensor([ends]).flatten()), len(row))
            responses.append(row[:stop])
    return responses


def responses_of(run: Run) -> list[list[int]]:
    column = "dec_input_ids" if run.arch == "encdec" else "input_ids"
    return [[*map(int, row[column])][row["n_prompt"] :] for _, row in run.tokens.iterrows()]


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("settings", _fast(HOLD, 4), ids=lambda settings: "-".join(settings))
@pytest.mark.parametrize("family", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_what_the_file_says_holds(
    family: str, settings: dict[str, Any], with_settings: Callable[..., LoadedModel]
) -> None:
    if family == "t5" and "guidance_scale" in settings:
        return  # its own `generate` cannot
    loaded = with_settings(family, **settings, do_sample=False)
    asked = None if "max_new_tokens" in settings else N_NEW
    run = generate(loaded, PROMPTS, "resid_post", max_tokens=asked, batch_size=2)
    assert responses_of(run) == own_responses(loaded, asked)


@pytest.mark.parametrize("settings", REPLACED, ids=lambda settings: "-".join(settings))
def test_what_is_replaced_gives_the_same_and_is_said(
    settings: dict[str, Any], with_settings: Callable[..., LoadedModel]
) -> None:
    [name] = settings
    plain = responses_of(generate(with_settings("llama"), PROMPTS, "resid_post", max_tokens=N_NEW, temperature=0))
    loaded = with_settings("llama", **settings)
    with pytest.warns(UserWarning, match=f"in place of {name}={settings[name]}"):
        run = generate(loaded, PROMPTS, "resid_post", max_tokens=N_NEW, temperature=0)
    assert responses_of(run) == plain
    assert run.about.generation is not None
    assert [*run.about.generation["replaced"]] == [name]


@pytest.mark.parametrize("settings", REFUSED, ids=lambda settings: "-".join(settings))
def test_what_cannot_be_recorded_is_refused_by_name(
    settings: dict[str, Any], with_settings: Callable[..., LoadedModel]
) -> None:
    with pytest.raises(Unsupported, match=next(iter(settings))):
        generate(with_settings("llama", **settings), PROMPTS, temperature=0)


def test_a_file_that_searches_by_contrast_is_not_sampled_instead(with_settings: Callable[..., LoadedModel]) -> None:
    with pytest.raises(Unsupported, match=r"contrastive search, which .* asks for with penalty_alpha=0\.6"):
        generate(with_settings("llama", penalty_alpha=0.6, top_k=4), PROMPTS, max_tokens=3)


def test_what_transformers_raises_is_the_products_error(with_settings: Callable[..., LoadedModel]) -> None:
    with pytest.raises(Unsupported, match=r"the generate\(\) of tiny-llama fails") as refused:
        generate(with_settings("llama", top_h=7.0), PROMPTS, max_tokens=3, temperature=1)
    assert "ValueError" in refused.value.why


def test_sampling_is_the_files_where_it_is_left_open(with_settings: Callable[..., LoadedModel]) -> None:
    assert Sampling.of(with_settings("llama")) == Sampling()
    stated = {"do_sample": True, "temperature": 0.9, "top_k": 7, "top_p": 0.8, "num_beams": 2, "max_new_tokens": 9}
    assert Sampling.of(with_settings("llama", **stated), top_k=5) == Sampling(9, 0.9, 5, 0.8, 1, 2)
    assert Sampling.of(with_settings("llama", do_sample=True)).temperature == 1
    assert Sampling.of(with_settings("llama", do_sample=False, temperature=0.9)).temperature == 0
    assert Sampling.of(with_settings("llama", num_beams=4)).temperature == 0
    assert Sampling.of(with_settings("t5", max_length=12)).max_tokens == 11
    with pytest.raises(UsageError, match=r"max_length=40 .* counts the prompt"):
        Sampling.of(with_settings("llama", max_length=40))
    assert Sampling.of(with_settings("llama", max_length=40), max_tokens=7).max_tokens == 7


def test_a_sampled_response_is_the_models_own(with_settings: Callable[..., LoadedModel]) -> None:
    loaded = with_settings("llama", do_sample=True, temperature=0.7, top_k=9, top_p=0.9, min_p=0.01)
    ids = torch.tensor([loaded.tokenizer(PROMPTS[0])["input_ids"]])
    with torch.random.fork_rng():
        torch.manual_seed(42)
        own: Any = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW)  # pyright: ignore
    assert (
        responses_of(generate(loaded, PROMPTS[0], "resid_post", max_tokens=N_NEW))[0] == own[0, ids.shape[1] :].tolist()
    )
