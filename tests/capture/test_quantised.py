"""A quantised model: each text is recorded as the model computes it alone, and weights are those it multiplies by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.errors import Unsupported
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.quantised import holds_codes, quantisation_of, refuse_codes, weights_of
from traceformer.models.tiny import tiny_model
from traceformer.questions.check import check
from traceformer.questions.live_paths import output_weights

TEXTS = ("Yes", "Seven ships left the harbour at dawn, and five came back.", "The river froze over.", "Why not?")


class _Coded(torch.nn.Linear):
    """A quantised module: whole numbers, and the step between them."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.step = float(plain.weight.detach().abs().max()) / 127
        codes = (plain.weight / self.step).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.bias = plain.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.weight * self.step, self.bias)


def test_the_weights_of_a_quantised_module_are_those_that_it_multiplies_by() -> None:
    plain = torch.nn.Linear(7, 5)
    coded = _Coded(plain)
    torch.testing.assert_close(weights_of(plain), plain.weight.T, rtol=0, atol=0)
    torch.testing.assert_close(weights_of(coded), (coded.weight * coded.step).T, rtol=1e-5, atol=1e-6)


def test_quantised_modules_are_found_by_what_they_hold() -> None:
    model = tiny_model("llama")
    assert quantisation_of(model) is None
    model.model.layers[1].mlp.up_proj = _Coded(model.model.layers[1].mlp.up_proj)
    assert quantisation_of(model) == "quantised (_Coded)"
    with pytest.raises(Unsupported, match=r"head\.weight, which is quantised"):
        refuse_codes({"head.weight": model.model.layers[1].mlp.up_proj.weight}, "the logit lens")
    assert holds_codes(torch.zeros(2, dtype=torch.float8_e4m3fn))
    assert not holds_codes(torch.zeros(2, dtype=torch.half))


@pytest.fixture(scope="module")
def eight_bit(tiny_folder: Callable[..., Path]) -> LoadedModel:
    """A llama in 8 bits, with a threshold that some of its tokens pass: their columns are left in 16 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tiny_folder("llama", hidden_size=64, intermediate_size=64)
    how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=2.0)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how)
    return load_model(model, load_model(str(folder), device="cpu").tokenizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_texts_of_an_8_bit_model_are_recorded_alone(eight_bit: LoadedModel) -> None:
    model: Any = eight_bit.model
    run = record(eight_bit, TEXTS, "hidden attn", dtype="float32", batch_size=4)
    moved = 0.0
    ids = [eight_bit.tokenizer(text)["input_ids"] for text in TEXTS]
    longest = max(map(len, ids))
    with torch.inference_mode():
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        together = model(padded, attention_mask=(padded != 0).long(), output_hidden_states=True).hidden_states
        for number, row in enumerate(ids):
            alone = torch.cat(model(torch.tensor([row]), output_hidden_states=True).hidden_states).numpy()
            np.testing.assert_array_equal(run.hidden(number), alone)
            moved = max(moved, float(abs(torch.stack(together)[:, number, : len(row)].numpy() - alone).max()))
    assert moved > 1e-3  # what batch mates would have changed
    assert run.about.quantised == "bitsandbytes (Linear8bitLt)"
    assert run.about.padding is not None
    assert "runs alone" in run.about.padding


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_computed_with_weights_uses_those_of_the_8_bit_module(eight_bit: LoadedModel) -> None:
    result: Any = check(eight_bit)
    assert result.ok
    assert any("runs alone" in why for why in result.untested.values())
    module: Any = eight_bit.model.get_submodule("model.layers.1.self_attn.o_proj")
    codes, step = module.weight.float(), module.state.SCB[:, None] / 127
    expected = (codes * step).T.reshape(4, 16, 64).numpy()
    np.testing.assert_allclose(output_weights(eight_bit.model, "dec", "self", 1, 4), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_answers_of_an_8_bit_model_are_its_own_and_not_replayed(eight_bit: LoadedModel) -> None:
    run = generate(eight_bit, TEXTS[:2], "hidden", max_tokens=5, temperature=0, dtype="float32")
    for number, text in enumerate(TEXTS[:2]):
        ids = torch.tensor([eight_bit.tokenizer(text)["input_ids"]])
        own: Any = eight_bit.model.generate(ids, max_new_tokens=5, do_sample=False)  # pyright: ignore
        assert list(run.tokens.input_ids[number]) == own[0].tolist()
    with pytest.raises(Unsupported, match="rounds a whole text otherwise than token by token"):
        generate(eight_bit, TEXTS[0], max_tokens=5, replay=True)
