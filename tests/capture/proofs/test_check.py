"""The proofs hold for every family, and none of them vanishes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.capture.proofs.facts import FAMILIES, facts_of, failures, two_examples
from tests.capture.proofs.proved import proved
from tests.capture.recording import ALL_MOSTLY_SLOW
from tests.families import KEPT, mostly_slow
from tests.marks import slow
from traceformer.capture.proofs.check import ALONE, CheckResult, Proof, check_model
from traceformer.errors import UsageError
from traceformer.models.load import load_model
from traceformer.models.tiny import TINY, tiny_model
from traceformer.sites import OUTPUTS, SITES, Selection

SAMPLE = ("ministral3", "phi", "starcoder2", "cohere_compass_text", "flint")


def test_every_family_that_is_kept_proved_is_described() -> None:
    assert FAMILIES.keys() == set(KEPT)


@pytest.mark.parametrize("family", mostly_slow((name for name in TINY if name not in KEPT), SAMPLE))
def test_every_fact_about_a_row_holds(family: str) -> None:
    result = proved(family)
    assert failures(result) == {}
    assert result.untested == {}
    sites = {proof.key.rpartition(".")[2] for proof in result.proofs}
    few = {
        site for site in SITES if SITES[site].of_few and site not in OUTPUTS
    }  # which are refused where some would do
    assert (sites | result.refused.keys()) - few == set(Selection(("all",)).sites) - few
    assert all(result.refused.values())


@pytest.mark.parametrize("family", KEPT)
def test_every_fact_about_a_family_holds_and_none_is_missing(family: str) -> None:
    result = proved(family)
    assert failures(result) == {}
    assert {(proof.key, proof.fact) for proof in result.proofs} == facts_of(family)
    assert result.untested == {}


@pytest.mark.parametrize("family", KEPT)
def test_a_site_is_either_proved_or_refused_with_a_reason(family: str) -> None:
    result = proved(family)
    sites = {proof.key.rpartition(".")[2] for proof in result.proofs}
    assert sites & result.refused.keys() == set()
    few = {
        site for site in SITES if SITES[site].of_few and site not in OUTPUTS
    }  # which are refused where some would do
    assert (sites | result.refused.keys()) - few == set(Selection(("all",)).sites) - few
    assert all(result.refused.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("family", ALL_MOSTLY_SLOW)
def test_every_fact_holds_below_float32(family: str, dtype: torch.dtype) -> None:
    """Of every family in both dtypes when slow."""
    model: Any = tiny_model(family)
    result = check_model(model.to(dtype), two_examples(model))
    assert failures(result) == {}
    assert {(proof.key, proof.fact) for proof in result.proofs} == {
        each for each in facts_of(family) if each[1] != ALONE
    }
    assert list(result.untested) == [ALONE]


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("phi3", {"sliding_window": 6}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ("mixtral", {"sliding_window": 6}),
    ("nanochat", {"num_key_value_heads": 4}),
    ("opt", {"layer_norm_elementwise_affine": False, "enable_bias": False}),
    slow("modernbert", {"global_attn_every_n_layers": 1}),
    slow("distilbert", {"sinusoidal_pos_embds": True}),
    slow("t5", {"num_decoder_layers": 2}),
    slow("mt5", {"feed_forward_proj": "relu"}),
    slow("bart", {"scale_embedding": True, "encoder_attention_heads": 8}),
]


@pytest.mark.parametrize(
    ("family", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_every_fact_holds_in_other_configurations(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes)
    result = check_model(model, two_examples(model))
    assert failures(result) == {}
    if family != "mt5":
        assert {(proof.key, proof.fact) for proof in result.proofs} == facts_of(family)


@pytest.mark.parametrize("family", ["opt", "opt_post_norm"])
def test_opt_may_embed_in_fewer_dimensions_than_it_computes_in(family: str) -> None:
    model = tiny_model(family, word_embed_proj_dim=16)
    result = check_model(model, two_examples(model))
    assert failures(result) == {}
    extra = ("dec.hidden", "gives the last of the model's own, after project_out")
    assert {(proof.key, proof.fact) for proof in result.proofs} == facts_of(family) | {extra}


def test_a_real_model_passes_every_proof(minilm: Path) -> None:
    from traceformer.capture.encoding import Encoder

    loaded = load_model(str(minilm), device="cpu", dtype="float32", with_head=True)
    texts = ["A short one.", "The other text is a little longer, and it has a comma in it."]
    result = check_model(loaded.model, [dict(row.ids) for row in Encoder(loaded, "auto", 64).encode(texts)])
    assert failures(result) == {}
    without_head = {each for each in facts_of("bert") if not each[0].endswith("logits")}
    assert {(proof.key, proof.fact) for proof in result.proofs} == without_head
    assert result.refused["logits"] == "it was loaded without a language-model head"


# What a result says.


def test_a_check_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model, two_examples(model))
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_examples_of_one_length_say_that_padding_is_untested() -> None:
    result = check_model(tiny_model("gpt2"), [{"dec": [5, 6, 7]}, {"dec": [8, 9, 10]}])
    assert result.ok
    assert result.untested == {ALONE: "all examples have the same length, so there is no padding"}


@pytest.mark.parametrize("examples", [[], [{"dec": []}], [{"dec": [5, 6]}, {"dec": []}]])
def test_examples_without_a_token_are_refused(examples: list[dict[Any, Any]]) -> None:
    with pytest.raises(UsageError, match="nothing to check"):
        check_model(tiny_model("gpt2"), examples)


def test_a_result_is_json_even_when_an_error_has_no_bound() -> None:
    proof = Proof("dec.self.q", "equals q_proj", math.inf, 1e-5)
    result = CheckResult("m", "float32", "cpu", "sdpa", (proof,), {"resid_mid": "parallel"}, {})
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["proofs"] == [
        {"key": "dec.self.q", "fact": "equals q_proj", "error": "inf", "tolerance": 1e-5, "ok": False}
    ]
    assert (data["ok"], data["refused"]) == (False, {"resid_mid": "parallel"})
