"""A recorder leaves a model as it was, whatever happens."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.capture.recording import SOME, Kept, batch, logits, plan, record, state_of
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.errors import Unsupported
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey, ArraySpec


class Raising:
    """A sink that fails when it has been given a few things."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.taken = 0

    def rows(self, *_: Any) -> None:
        self.taken += 1
        if self.taken == 7:
            raise self.error

    def square(self, *_: Any) -> None:
        pass


class Clumsy(Exception):
    pass


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_is_left_as_it_was(family: str, implementation: str) -> None:
    model = tiny_model(family)
    if implementation == "sdpa" and model.config._attn_implementation == "eager":
        implementation = "eager"  # Gemma 2, GPT-OSS and the families outside the interface have no other
    model.set_attn_implementation(implementation)
    before, plain = state_of(model), logits(model)
    inputs, spans = batch(model)
    with Recorder(model, plan(model), Kept()) as recorder:
        recorder.run(spans, **inputs)
        assert torch.equal(logits(model), plain)
    assert state_of(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    "error", [Clumsy("sink"), KeyboardInterrupt(), SystemExit()], ids=lambda error: type(error).__name__
)
def test_a_model_is_left_as_it_was_when_the_sink_fails(error: BaseException) -> None:
    model = tiny_model("t5").train()
    model.encoder.eval()
    before = state_of(model)
    inputs, spans = batch(model)
    with pytest.raises(type(error)), Recorder(model, plan(model), Raising(error)) as recorder:
        recorder.run(spans, **inputs)
    assert state_of(model) == before


def test_a_model_is_left_as_it_was_when_it_fails_itself() -> None:
    model = tiny_model("gpt2")
    before = state_of(model)
    with pytest.raises(IndexError), Recorder(model, plan(model), Kept()) as recorder:
        recorder.run({"dec": [Span(0, 2)]}, input_ids=torch.tensor([[5, 1234]]))
    assert state_of(model) == before


@pytest.mark.parametrize("site", ["attn_pattern", "no such module"])
def test_a_model_is_left_as_it_was_when_something_asked_for_is_not_there(site: str) -> None:
    model = tiny_model("xglm").train()
    row = architecture_of(model.config)
    [(stack, stack_row)] = row.stacks.items()
    before = state_of(model)
    inputs, spans = batch(model)
    spec = ArraySpec(ArrayKey("dec", "self", "attn_pattern"), (0,), (0,))
    if site == "no such module":
        wrong = Architecture({stack: type(stack_row)("no.such", "wte", stack_row.attention, {})}, True)
    else:
        wrong = Architecture(row.stacks, has_attention_function=True)
    with (
        pytest.raises(Unsupported, match=r"never showed dec\.self\.attn_pattern|has no module no\.such"),
        Recorder(model, [spec], Kept(), wrong) as recorder,
    ):
        recorder.run(spans, **inputs)
    assert state_of(model) == before


def test_a_recorder_can_go_on_after_a_pass_that_failed() -> None:
    model = tiny_model("gpt2")
    sink = Raising(Clumsy("once"))
    inputs, spans = batch(model)
    with Recorder(model, plan(model, "resid", "qkv"), sink) as recorder:
        with pytest.raises(Clumsy):
            recorder.run(spans, **inputs)
        sink.taken = -1000
        recorder.run(spans, **inputs)
    assert sink.taken == -1000 + 1 + 3 * 3 + 3 * 3


def test_transformers_still_collects_its_own_outputs_after_a_pass_was_cut_short() -> None:
    for family in ("llama", "t5", "bert"):
        model = tiny_model(family)
        inputs, _ = batch(model)
        before = model(**inputs, output_hidden_states=True)
        record(model, plan(model, "resid_pre", layers={"enc": (1,), "dec": (1,)}))
        after = model(**inputs, output_hidden_states=True)
        names = [name for name in before if name.endswith("hidden_states")]
        assert names
        for name in names:
            assert all(torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))


def test_passes_run_in_eval_and_inference_mode_even_on_a_model_in_training() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    plain = logits(model)
    modes: list[tuple[bool, bool]] = []

    class Noting(Kept):
        def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
            modes.append((model.transformer.h[0].training, rows.is_inference()))
            super().rows(spec, layer, rows)

    model.train()
    inputs, spans = batch(model)
    kept = Noting()
    with Recorder(model, plan(model, "resid", "logits"), kept) as recorder:
        recorder.run(spans, **inputs)
    assert set(modes) == {(False, True)}
    assert torch.equal(kept.rows_of["dec.logits", None], plain)
    assert all(module.training for module in model.modules())


def test_attention_that_bypasses_the_attention_function_is_refused_before_anything_runs() -> None:
    model = tiny_model("gpt2", reorder_and_upcast_attn=True)
    before = state_of(model)
    with pytest.raises(Unsupported, match="bypasses the attention function"):
        record(model, plan(model, "attn"))
    assert state_of(model) == before
    assert record(model, plan(model, "resid")).rows_of.keys()
