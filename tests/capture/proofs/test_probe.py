"""What is found out about models whose family has no row."""

import json
from typing import Any

import pytest
import torch

from tests.odd_model import eager_attention_forward, odd_model
from traceformer.capture.proofs.check import random_examples
from traceformer.capture.proofs.probe import Probe, probe_model
from traceformer.models.families import FAMILIES
from traceformer.models.tiny import tiny_model


def probe(family: str, monkeypatch: pytest.MonkeyPatch, *, hide_all: bool = False) -> Probe:
    """What is found out about a family whose own row is hidden, or all are."""
    model: Any = tiny_model(family)
    before = (model.config._attn_implementation, model.training)
    examples = random_examples(model.config)[:2]
    for each in [*FAMILIES] if hide_all else [family]:
        monkeypatch.delitem(FAMILIES, each)  # pyright: ignore[reportArgumentType]
    found = probe_model(model, examples, name=family)
    assert (model.config._attn_implementation, model.training) == before
    return found


def test_a_family_that_an_existing_row_fits_needs_only_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("qwen2", monkeypatch)
    assert found.ok
    assert found.found is not None
    assert found.found.result.ok
    assert "llama" in found.found.families.split(", ")
    assert found.advice.endswith(f"with the blocks of {found.found.families}")
    assert found.row is not None
    assert "blocks=blocks.LLAMA" in found.row


def test_blocks_that_no_family_has_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("gpt2", monkeypatch, hide_all=True)
    assert found.found is not None
    assert (found.blocks, found.found.families) == (("h",), "")
    assert found.parts["attn.c_attn"] == "Conv1D"
    assert {proof.key for proof in found.found.result.proofs} >= {"dec.self.q_proj", "dec.mlp_act", "dec.logits"}
    assert "with the blocks that `--write-row` prints" in found.advice


def test_attention_out_of_sight_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("gpt_neo", monkeypatch, hide_all=True)
    assert found.found is not None
    sites = {proof.key.rpartition(".")[2] for proof in found.found.result.proofs}
    assert sites >= {"token_embed", "embed", "resid_pre", "attn_out", "mlp_out", "resid_post", "hidden", "logits"}
    assert found.found.result.refused["q"] == "its attention does not pass through transformers' attention function"


def test_an_argument_to_attention_that_is_not_understood_is_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = odd_model()
    for floor in model.tower.floors:
        forward = floor.ear.forward
        monkeypatch.setattr(floor.ear, "forward", _with_slopes(floor.ear, forward))
    found = probe_model(model, random_examples(model.config, arch="dec")[:2])
    assert found.found is not None
    assert "Ear passes alibi_slopes to attention" in found.found.result.refused["attn_pattern"]
    assert {proof.key for proof in found.found.result.proofs} >= {"dec.resid_mid", "dec.logits"}


def _with_slopes(ear: Any, forward: Any) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def with_slopes(x: torch.Tensor, mask: torch.Tensor | None, *_: Any) -> Any:
        q, k, v = (part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (ear.asks, ear.tells, ear.gives))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(ear.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(ear, q, k, v, mask, scaling=ear.scaling, alibi_slopes=torch.ones(4))
        return ear.says(mixed.flatten(2)), weights

    return with_slopes


@pytest.mark.parametrize("odd", [{}, {"across_batch": True}], ids=["found", "not found"])
def test_a_probe_is_json(odd: dict[str, Any]) -> None:
    model = odd_model(**odd)
    found = probe_model(model, random_examples(model.config, arch="dec")[:2])
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["model_type"], data["ok"], data["advice"]) == ("oddity", not odd, found.advice)
    if odd:
        assert (data["result"], data["row"]) == (None, None)
        assert "is the same in a padded batch as alone" in data["obstacle"]
    else:
        assert data["result"]["ok"]
        assert data["architecture"]["stacks"]["dec"]["token_embed"] == "words"
