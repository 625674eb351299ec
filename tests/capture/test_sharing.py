"""Which rows share a pass: what is recorded of a text is what a fresh model computes of it alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.capture.plan import plan_arrays
from traceformer.capture.proofs.check import check_model, random_examples
from traceformer.capture.proofs.limits import limits_of, straddling
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.capture.sharing import Sharing
from traceformer.errors import Unsupported, UsageError
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.sites import Selection

LIMIT = 20
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": LIMIT,
    "factor": 4.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
# Dynamic NTK begins where its config says that the model ends: `model_of` has texts go on beyond.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": LIMIT}),
    "longrope": ("llama", {"rope_parameters": LONGROPE}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
}
TEXTS = ("Yes", "Seven ships left the harbour at dawn.", "The river froze over.", "Seven ships came back at dusk, too.")


@pytest.fixture(scope="module")
def tokenizer(load: Callable[..., LoadedModel]) -> Any:
    return load("llama").tokenizer


def model_of(name: str, tokenizer: Any) -> LoadedModel:
    family, changes = MODELS[name]
    model = tiny_model(family, **changes)
    stated, model.config.max_position_embeddings = model.config.max_position_embeddings, 64
    loaded = load_model(model, tokenizer)
    model.config.max_position_embeddings = stated
    return loaded


def own_hidden(name: str, ids: list[int]) -> np.ndarray:
    family, changes = MODELS[name]
    with torch.inference_mode():
        output = tiny_model(family, **changes)(torch.tensor([ids]), output_hidden_states=True)
    return torch.cat(output.hidden_states).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_recorded_as_a_fresh_model_computes_it_alone(name: str, tokenizer: Any) -> None:
    loaded = model_of(name, tokenizer)
    run = record(loaded, TEXTS, "hidden", dtype="float32", batch_size=4)
    lengths = [run.length(text) for text in range(len(TEXTS))]
    assert min(lengths) <= LIMIT < sorted(lengths)[-2]  # two on either side
    for text, length in enumerate(lengths):
        ids = tokenizer(TEXTS[text])["input_ids"]
        assert len(ids) == length
        np.testing.assert_allclose(run.hidden(text), own_hidden(name, ids), atol=2e-5)


def test_rows_that_would_change_each_other_may_not_share_a_pass(tokenizer: Any) -> None:
    model = model_of("longrope", tokenizer).model
    arrays = plan_arrays(Selection(("hidden",)), model).arrays
    spans = {"dec": [Span(0, 8), Span(0, 23)]}
    with Recorder(model, arrays) as recorder, pytest.raises(UsageError, match="texts of 8 and 23 tokens in one pass"):
        recorder.run(spans, input_ids=torch.ones(2, 23, dtype=torch.long))  # pyright: ignore[reportArgumentType]


def test_parts_keep_to_one_side_and_to_the_order_of_rows() -> None:
    lengths: list[Mapping[Any, int]] = [{"dec": length} for length in (23, 8, LIMIT, LIMIT + 1, 1, 40)]
    family, changes = MODELS["longrope"]
    assert Sharing(tiny_model(family, **changes)).parts(range(6), lengths) == [[0, 3, 5], [1, 2, 4]]
    family, changes = MODELS["dynamic"]
    assert Sharing(tiny_model(family, **changes)).parts(range(6), lengths) == [[0], [1, 2, 4], [3], [5]]
    assert Sharing(tiny_model("llama")).parts(range(6), lengths) == [[0, 1, 2, 3, 4, 5]]
    grown = Sharing(tiny_model(*MODELS["longrope"][:1], **MODELS["longrope"][1])).parts(range(6), lengths, growth=13)
    assert grown == [[0, 3, 5], [1], [2], [4]]  # 1 + 13 and 8 + 13 part on the way


class _Odd(nn.Module):
    """A rope that nobody has heard of: from 30 tokens on it turns all of a pass the other way."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        sign = 1 if int(position_ids.max()) < 29 else -1
        turn = sign * position_ids[..., None].float() / torch.arange(1, 9, device=x.device)
        return turn.cos().to(x.dtype), turn.sin().to(x.dtype)


def test_a_rope_of_any_other_kind_is_found_by_what_it_does() -> None:
    model = tiny_model("llama")
    model.model.rotary_emb = _Odd()
    assert Sharing(model).changes_after(3, 60) == 29


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_answers_across_the_limit_are_the_models_own_for_each_prompt(name: str, tokenizer: Any) -> None:
    loaded = model_of(name, tokenizer)
    prompts = ["Yes", "Seven ships left the", "The river froze over"]
    run = generate(loaded, prompts, "hidden", max_tokens=14, temperature=0, dtype="float32")
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        fresh: Any = tiny_model(MODELS[name][0], **MODELS[name][1])
        own = fresh.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False)
        assert list(run.tokens.input_ids[number]) == own[0].tolist()
        assert ids.shape[1] < LIMIT or number == 1
    assert max(run.tokens.n_tokens) > LIMIT


def test_what_a_replay_would_not_have_had_is_refused(tokenizer: Any) -> None:
    loaded = model_of("longrope", tokenizer)
    room = LIMIT - len(tokenizer("Yes")["input_ids"])
    with pytest.raises(Unsupported, match=f"change after {LIMIT} tokens") as refused:
        generate(loaded, "Yes", max_tokens=room + 1, temperature=0, replay=True)
    assert refused.value.hint == f"`max_tokens={room}`"
    assert generate(loaded, "Yes", "hidden", max_tokens=room, temperature=0, replay=True).tokens.replayed[0]
    with pytest.raises(Unsupported, match=f"whole context again after {LIMIT} tokens"):  # as Phi-3 does
        generate(model_of("phi3", tokenizer), "Yes", "hidden", max_tokens=room + 3, temperature=0)


def test_check_lies_on_both_sides_of_every_limit(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model(*MODELS["phi3"][:1], **MODELS["phi3"][1])
    assert limits_of(model.config) == {"max_position_embeddings": 64, "original_max_position_embeddings": LIMIT}
    examples, untested = straddling(model, random_examples(model.config))
    assert [len(each["dec"]) for each in examples] == [17, 9, 12, LIMIT, LIMIT + 1, 64]
    assert untested == {}
    assert check_model(model, examples, selection=Selection(("hidden", "attn_pattern"))).ok
    model.config.original_max_position_embeddings = model.config.max_position_embeddings = 4096
    assert [*straddling(model, random_examples(model.config))[1]] == []  # nothing lies beyond the last position
    model.config.max_position_embeddings = 131072
    assert [*straddling(model, random_examples(model.config))[1]] == ["beyond original_max_position_embeddings=4096"]
