"""What is proved before the first batch: models that are not what their row says record nothing."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.capture.proofs.check import ALONE, check_model
from traceformer.capture.recorder import Recorder, Span
from traceformer.errors import Unsupported, UsageError
from traceformer.models.families import FAMILIES
from traceformer.models.family import Architecture
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey, ArraySpec, Selection

TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23]]


def wrong_sum(model: Any) -> None:
    """A block that adds more to the stream than its attention and its MLP."""
    grow(model.base_model.h[1], 1.01)


def grow(block: Any, factor: float) -> None:
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) * factor


def norm_across_the_batch(model: Any) -> None:
    model.base_model.h[1].ln_1.register_forward_hook(lambda module, args, output: output - output.mean(0, keepdim=True))


def leak_of_later_tokens(model: Any) -> None:
    model.base_model.h[1].ln_1.register_forward_hook(lambda module, args, output: output + 0.5 * output.roll(-1, 1))


TAMPERED = [
    (wrong_sum, r"dec.resid_post equals resid_mid \+ mlp_out"),
    (norm_across_the_batch, "change with no other text in its batch"),
    (leak_of_later_tokens, "changes with no later one"),
]


@pytest.mark.parametrize(("tamper", "fact"), TAMPERED)
def test_a_model_that_is_not_what_its_row_says_records_nothing(
    tamper: Callable[[Any], None], fact: str, tmp_path: Path
) -> None:
    model = tiny_model("gpt2")
    tamper(model)
    with pytest.raises(Unsupported, match=f"{fact}.*is off by.*traceformer check"):
        record(load_model(model), TEXTS, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def chance(model: Any) -> None:
    model.base_model.h[1].ln_1.register_forward_hook(lambda module, args, output: output + torch.randn(output.shape))


@pytest.mark.parametrize(
    ("tamper", "fact"), [(chance, "the same each time"), (leak_of_later_tokens, "changes with no later one")]
)
def test_a_text_of_one_token_hides_neither_chance_nor_leaks(tamper: Callable[[Any], None], fact: str) -> None:
    model = tiny_model("gpt2")
    tamper(model)
    with pytest.raises(Unsupported, match=fact):
        record(load_model(model), [TEXTS[0], [20]])


def test_a_lone_text_shows_what_leaks_from_later_tokens() -> None:
    model = tiny_model("gpt2")
    leak_of_later_tokens(model)
    with pytest.raises(Unsupported, match="changes with no later one"):
        record(load_model(model), TEXTS[:1])


@pytest.mark.parametrize("tamper", [wrong_sum, leak_of_later_tokens])
def test_such_a_model_answers_nothing(
    tamper: Callable[[Any], None], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    tamper(loaded.model)
    with pytest.raises(Unsupported, match="does not hold"):
        generate(loaded, ["one text", "another text, and a longer one"], max_tokens=3, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("tamper", "fact"), TAMPERED)
def test_other_dtypes_hide_no_fault(tamper: Callable[[Any], None], fact: str, dtype: torch.dtype) -> None:
    model: Any = tiny_model("gpt2")
    model.to(dtype)
    if tamper is wrong_sum:
        grow(model.base_model.h[1], 1.5)
    else:
        model.base_model.h[1].ln_1 = model.base_model.h[0].ln_1  # below float32 the first attention is looked at
        tamper(model)
    with pytest.raises(Unsupported, match=fact):
        record(load_model(model), TEXTS)


def test_what_a_users_hook_adds_is_recorded_as_it_passes() -> None:
    model: Any = tiny_model("gpt2")
    plain = record(load_model(model), TEXTS, "resid_post", dtype="float32")
    model.base_model.h[1].register_forward_hook(lambda module, args, output: output + 1)
    steered = record(load_model(model), TEXTS, "resid_post", dtype="float32")
    for example in range(len(TEXTS)):
        assert np.array_equal(steered.get(example, "resid_post", 1), plain.get(example, "resid_post", 1) + 1)
        assert np.array_equal(steered.get(example, "resid_post", 0), plain.get(example, "resid_post", 0))


def convbert() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"intermediate_size": 48, "embedding_size": 32, "max_position_embeddings": 40, "conv_kernel_size": 3},
        }
        return transformers.ConvBertModel(transformers.ConvBertConfig(**sizes)).eval()


@pytest.fixture
def convbert_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = FAMILIES["bert"]
    assert isinstance(bert.blocks, Architecture)
    row = replace(bert, blocks=replace(bert.blocks, has_attention_function=False))
    monkeypatch.setitem(FAMILIES, "convbert", row)  # pyright: ignore[reportArgumentType]
    return


@pytest.mark.usefixtures("convbert_has_a_row")
def test_a_model_that_padding_changes_runs_its_texts_one_by_one() -> None:
    model = convbert()
    run = record(load_model(model), TEXTS, "resid_post", dtype="float32")
    assert run.meta["padding"].startswith("none: padding changes")
    with torch.no_grad():
        for number, ids in enumerate(TEXTS):
            own = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer in range(2):
                np.testing.assert_array_equal(run.resid(number, "post_mlp", layer), own[layer + 1][0].numpy())
        together = torch.tensor([TEXTS[0], [*TEXTS[1], 0, 0, 0, 0, 0]])
        padded = model(together, attention_mask=(together > 0).long()).last_hidden_state[1, :4]
    assert np.abs(padded.numpy() - run.resid(1, "post_mlp", 1)).max() > 1e-3  # what a padded batch would have stored


@pytest.mark.usefixtures("convbert_has_a_row")
def test_check_proves_such_a_model_alone_and_says_so() -> None:
    model = convbert()
    result = check_model(model, [{"enc": ids} for ids in TEXTS], selection=Selection(("resid_post", "hidden")))
    assert result.ok
    assert "padding changes the model's numbers" in result.untested[ALONE]
    spec = ArraySpec(ArrayKey("enc", None, "embed"), (), (), 32)
    with Recorder(model, [spec]) as recorder, pytest.raises(UsageError, match=r"in one pass.*padding changes"):
        recorder.run({"enc": [Span(0, 4), Span(0, 9)]}, input_ids=torch.zeros(2, 9, dtype=torch.long))


class Streams(nn.Module):
    """A block of a model with several residual streams: (stream, batch, position, width)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        streams = hidden_states if hidden_states.dim() == 4 else hidden_states.expand(2, *hidden_states.shape)
        return streams + 0.1 * torch.randn(streams.shape, generator=torch.Generator().manual_seed(0))


class ManyStreams(transformers.GPT2LMHeadModel):
    """A model that carries two residual streams, and ends with their mean."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.h = nn.ModuleList(map(Streams, self.transformer.h))
        self.transformer.ln_f.register_forward_pre_hook(lambda module, args: args[0].mean(0))


def test_several_residual_streams_are_refused_by_site_and_layer() -> None:
    model = ManyStreams(tiny_model("gpt2").config).eval()
    spec = ArraySpec(ArrayKey("dec", None, "resid_post"), (1,), (), 32)

    with Recorder(model, [spec]) as recorder, pytest.raises(Unsupported) as raised:
        recorder.run({"dec": [Span(0, 4), Span(0, 4)]}, input_ids=torch.full((2, 4), 7))
    said = str(raised.value)
    assert "dec.resid_post of layer 1 has shape (2, 2, 4, 32)" in said
    assert "transformer.h.1 (Streams)" in said


@pytest.mark.parametrize("shape", [(2, 32), (4, 32), (1, 8, 32), (4, 2, 32), (2, 3, 32)])
def test_no_other_shape_is_taken_for_batch_and_position(shape: tuple[int, ...]) -> None:
    model: Any = tiny_model("gpt2")
    model.base_model.h[1].mlp.register_forward_hook(lambda module, args, output: torch.zeros(shape))
    spec = ArraySpec(ArrayKey("dec", None, "mlp_out"), (1,), (), 32)
    with Recorder(model, [spec]) as recorder, pytest.raises(Unsupported, match=r"mlp_out of layer 1 has shape"):
        recorder.run({"dec": [Span(0, 4), Span(0, 4)]}, input_ids=torch.full((2, 4), 7))


def test_a_text_beyond_the_positions_is_refused_before_the_pass() -> None:
    model = tiny_model("roberta", pad_token_id=1)
    spec = ArraySpec(ArrayKey("enc", None, "embed"), (), (), 32)
    with Recorder(model, [spec]) as recorder, pytest.raises(UsageError, match=r"63 tokens.*has positions for 62"):
        recorder.run({"enc": [Span(0, 63)]}, input_ids=torch.full((1, 63), 7))
    with pytest.raises(UsageError, match="63 tokens"):
        check_model(model, [{"enc": [7] * 63}])


def test_few_tokens_are_proved_and_the_result_is_not_changed() -> None:
    model = tiny_model("llama")
    passes: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 99, length).tolist() for length in (60, 60, 60, 60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(load_model(model), texts, batch_size=4)
    *before, run = passes
    assert run == 240
    assert before == [8, 48, 18]  # whether it looks ahead; a text beside another; alone


def test_a_model_that_padding_changes_answers_its_prompts_one_by_one(tiny_folder: Callable[..., Path]) -> None:
    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    model: Any = loaded.model
    norm = model.base_model.h[1].ln_1
    forward = norm.forward
    norm.forward = lambda rows: forward(rows) * (1 + 0.01 * rows.shape[1])
    prompts = ["one text", "another text, and a longer one", "Yes"]
    together = generate(loaded, prompts, "resid_post", max_tokens=4, temperature=0, dtype="float32")
    assert together.meta["padding"].startswith("none: padding changes")
    for number, prompt in enumerate(prompts):
        alone = generate(loaded, prompt, "resid_post", max_tokens=4, temperature=0, dtype="float32")
        assert list(alone.tokens.input_ids[0]) == list(together.tokens.input_ids[number])
        np.testing.assert_array_equal(alone.get(0, "resid_post"), together.get(number, "resid_post"))
