"""Families that compute attention in code of their own: what is seen of it, against what they return."""

from typing import Any

import pytest
import torch

from tests.capture.recording import Kept, batch, logits, plan, record, state_of
from tests.families import mostly_slow
from tests.sweep.own_outputs import in_place
from traceformer.capture.recorder import Recorder
from traceformer.models.blocks.parts import outside
from traceformer.models.families import FAMILIES, architecture_of
from traceformer.models.own_attention import OWN_ATTENTION
from traceformer.models.tiny import TINY, tiny_model

OWN = [
    name
    for family, row in FAMILIES.items()
    if any(each.own_attention for each in row.architectures)
    for name in row.tiny.builds(family)
]
MOSTLY_SLOW = mostly_slow(OWN, ("gptj", "gpt_neo", "falcon_new", "deberta-v2"))


def test_every_way_to_compute_attention_is_some_familys() -> None:
    assert {each.own_attention for row in FAMILIES.values() for each in row.architectures} == {"", *OWN_ATTENTION}
    assert set(OWN) <= TINY.keys()


@pytest.mark.parametrize("family", MOSTLY_SLOW)
def test_recorded_patterns_are_those_that_the_model_returns(family: str) -> None:
    model: Any = tiny_model(family)
    model.config._attn_implementation_internal = "eager"  # Falcon returns others beside its other attention
    kept = record(model, plan(model, "attn"))
    inputs, spans = batch(model)
    with torch.inference_mode():
        own = model(**inputs, output_attentions=True).attentions
    assert len(kept.squares) == len(own) * 3
    for (_, layer, example), pattern in kept.squares.items():
        length = next(iter(spans.values()))[example].length
        returned = own[layer][example]
        if family == "longformer":  # which returns a band
            returned = torch.from_numpy(in_place(returned.numpy(), length))
        torch.testing.assert_close(pattern, returned[:, :length, :length], rtol=0, atol=1e-6)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", MOSTLY_SLOW)
def test_a_model_computes_the_same_bits_while_it_is_watched_and_is_left_as_it_was(family: str) -> None:
    model = tiny_model(family)
    before, own = state_of(model), [sorted(vars(module)) for module in model.modules()]
    alone, inputs = logits(model), batch(model)[0]
    with Recorder(model, plan(model, "attn", "qkv"), Kept()) as recorder:
        recorder.run(batch(model)[1], **inputs)
        assert torch.equal(logits(model), alone)
    assert torch.equal(logits(model), alone)
    assert (state_of(model), [sorted(vars(module)) for module in model.modules()]) == (before, own)


def test_blocks_that_are_outside_show_nothing_inside_attention() -> None:
    unseen = outside(architecture_of(tiny_model("gpt_neo").config))
    assert (unseen.has_attention_function, unseen.own_attention) == (False, "")
    assert unseen.keys("attn_pattern") == ()
    assert unseen.keys("q_proj") != ()
