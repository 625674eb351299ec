"""The proofs hold for every family, none of them vanishes, and each of them notices what it is there to notice."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.capture.proved import PAGE, column_of, proved, support_page
from traceformer.capture.attention import AttentionCall, Span
from traceformer.capture.proofs.check import (
    ALONE,
    CheckResult,
    Example,
    Proof,
    check_model,
    random_examples,
    tolerance_of,
)
from traceformer.capture.proofs.place import Rounding, error_between
from traceformer.errors import Unsupported, UsageError
from traceformer.models import architectures as rows
from traceformer.models.family import Architecture, AttentionRow, Tap, into
from traceformer.models.load import load_model
from traceformer.models.tiny import TINY, tiny_model
from traceformer.sites import Selection

pytestmark = pytest.mark.usefixtures("one_thread")

Fact = tuple[str, str]

# What a family is made of, in words of its own; `facts_of` turns them into the facts that must be proved.
FAMILIES = {
    "gpt2": "dec pre-norm plain",
    "llama": "dec pre-norm gated rotary",
    "mistral": "dec pre-norm gated rotary",
    "qwen2": "dec pre-norm gated rotary",
    "qwen3": "dec pre-norm gated rotary",
    "gemma": "dec pre-norm gated rotary",
    "gemma2": "dec pre-norm gated rotary",
    "gemma3_text": "dec pre-norm gated rotary",
    "phi3": "dec pre-norm gated rotary",
    "olmo2": "dec final-norm gated rotary",
    "gpt_neox": "dec pre-norm plain rotary",
    "gpt_neox_parallel": "dec pre-norm plain rotary parallel",
    "opt": "dec pre-norm plain",
    "opt_post_norm": "dec plain",
    "mixtral": "dec pre-norm experts rotary",
    "gpt_oss": "dec pre-norm experts rotary sinks",
    "nanochat": "dec pre-norm plain rotary",
    "bert": "enc plain",
    "roberta": "enc plain",
    "xlm-roberta": "enc plain",
    "electra": "enc plain",
    "distilbert": "enc plain",
    "modernbert": "enc pre-norm gated rotary",
    "t5": "enc dec pre-norm plain",
    "t5_gated": "enc dec pre-norm gated",
    "mt5": "enc dec pre-norm gated",
    "bart": "enc dec plain",
    "gptj": "dec pre-norm plain outside parallel one-norm",
    "bloom": "dec pre-norm plain outside alibi",
    "mpt": "dec pre-norm plain outside alibi",
    "byte_sparse": "dec pre-norm gated rotary",
}
EVERY_STACK = (
    ("token_embed", "equals the embedding's rows of the token ids"),
    ("embed", "equals resid_pre of the first block"),
    ("resid_pre", "equals resid_post of the block before, or embed"),
    ("mlp_out", ""),
    ("resid_post", "equals resid_mid + mlp_out (parallel: resid_pre + attn_out + mlp_out)"),
    ("hidden", "equals the model's own output_hidden_states"),
)
RESID_MID = ("resid_mid", "equals resid_pre + attn_out, normed in post-norm blocks")
EVERY_ATTENTION = (
    ("q_proj", "equals W_Q of attention's input"),
    ("k_proj", "equals W_K of attention's input"),
    ("v_proj", "equals W_V of attention's input"),
    ("v_proj", "gives attn_out through the model's own attentions"),
    ("attn_out", ""),
)
SEEN_ATTENTION = (
    ("v", "equals v_proj"),
    ("attn_scores", "equals q k^T, scaled, softcapped, biased"),
    ("attn_pattern", "equals the softmax of attn_scores in a mask built by hand"),
    ("attn_pattern", "equals the model's own eager attentions"),
    ("z", "equals attn_pattern v"),
    ("attn_out", "equals W_O z + b, after the post-norm where there is one"),
)
ROTARY = (
    ("q", "has the lengths of q_proj (normed where the family does)"),
    ("k", "has the lengths of k_proj (normed where the family does)"),
)
NOT_ROTARY = (
    ("q", "equals q_proj (normed or scaled where the family does)"),
    ("k", "equals k_proj (normed where the family does)"),
)
NORMED = "equals the norm of the residual stream"
ONE_MLP = (
    ("mlp_up", "equals the up projection of the MLP's input"),
    ("mlp_act", ""),
    ("mlp_mid", ""),
    ("mlp_down", "equals the down projection of mlp_mid"),
    ("mlp_out", "equals mlp_down, after the post-norm where there is one"),
)
MLPS = {
    "plain": (*ONE_MLP, ("mlp_act", "equals the activation function of mlp_up"), ("mlp_mid", "equals mlp_act")),
    "gated": (*ONE_MLP, ("mlp_mid", "equals mlp_act * mlp_up")),
    "experts": (("mlp_out", "equals the experts' output for the MLP's input"),),
}
LOGITS = {
    "dec": "equals the unembedding of the last residual stream",
    "enc": "equals the model's own head on the last residual stream",
}


def facts_of(family: str) -> set[Fact]:
    """The facts that must be proved of a family; an empty fact only says that its site is recorded."""
    words = FAMILIES[family].split()
    stacks = [stack for stack in ("enc", "dec") if stack in words]
    facts: set[Fact] = set()

    def add(prefix: str, *more: Fact) -> None:
        facts.update((f"{prefix}.{site}", fact) for site, fact in more)

    for stack in stacks:
        add(stack, *EVERY_STACK)
        for mlp in MLPS.keys() & set(words):
            add(stack, *MLPS[mlp])
        if "parallel" not in words:
            add(stack, RESID_MID)
        if "pre-norm" in words or "final-norm" in words:
            add(stack, ("final_norm", "equals the final norm of the last resid_post"))
        if "pre-norm" in words and "one-norm" not in words:
            add(stack, ("mlp_norm", NORMED))
        for attention in ("self", "cross") if len(stacks) == 2 and stack == "dec" else ("self",):
            add(f"{stack}.{attention}", *EVERY_ATTENTION)
            if "pre-norm" in words:
                add(f"{stack}.{attention}", ("attn_norm", NORMED))
            if "outside" not in words:
                add(f"{stack}.{attention}", *SEEN_ATTENTION, *(ROTARY if "rotary" in words else NOT_ROTARY))
                rows_sum = "to at most 1 (sinks)" if "sinks" in words else "to 1"
                add(f"{stack}.{attention}", ("attn_pattern", f"has rows that sum {rows_sum}"))
    if "alibi" in words:
        add("dec.self", ("q_proj", "gives the model's own attentions with k_proj and ALiBi"))
    add(stacks[-1], ("logits", "equals the model's logits when nothing is recorded"), ("logits", LOGITS[stacks[-1]]))
    return {each for each in facts if each[1]} | {(key, ALONE) for key, _ in facts}


def two_examples(model: Any) -> list[Example]:
    """Examples of different lengths, as few as there can be."""
    return random_examples(model.config)[:2]


def failures(result: CheckResult) -> dict[str, str]:
    return {f"{proof.key} {proof.fact}": f"{proof.error:.1e}" for proof in result.proofs if not proof.ok}


def failing_sites(result: CheckResult) -> set[str]:
    return {proof.key.rpartition(".")[2] for proof in result.proofs if not proof.ok and proof.fact != ALONE}


def test_every_family_is_described() -> None:
    assert FAMILIES.keys() == TINY.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fact_about_a_family_holds_and_none_is_missing(family: str) -> None:
    result = proved(family)
    assert failures(result) == {}
    assert {(proof.key, proof.fact) for proof in result.proofs} == facts_of(family)
    assert result.untested == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_is_either_proved_or_refused_with_a_reason(family: str) -> None:
    result = proved(family)
    sites = {proof.key.rpartition(".")[2] for proof in result.proofs}
    assert sites & result.refused.keys() == set()
    assert sites | result.refused.keys() == set(Selection(("all",)).sites)
    assert all(result.refused.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_fact_holds_below_float32(family: str, dtype: torch.dtype) -> None:
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
    ("modernbert", {"global_attn_every_n_layers": 1}),
    ("distilbert", {"sinusoidal_pos_embds": True}),
    ("t5", {"num_decoder_layers": 2}),
    ("mt5", {"feed_forward_proj": "relu"}),
    ("bart", {"scale_embedding": True, "encoder_attention_heads": 8}),
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
    from traceformer.capture.tokenizing import Encoder

    loaded = load_model(str(minilm), device="cpu", dtype="float32", with_head=True)
    texts = ["A short one.", "The other text is a little longer, and it has a comma in it."]
    result = check_model(loaded.model, [dict(row.ids) for row in Encoder(loaded, "auto", 64).encode(texts)])
    assert failures(result) == {}
    without_head = {each for each in facts_of("bert") if not each[0].endswith("logits")}
    assert {(proof.key, proof.fact) for proof in result.proofs} == without_head
    assert result.refused["logits"] == "it was loaded without a language-model head"


# Rows that are wrong in one place, and the sites whose proofs must fail.


def with_row(architecture: Architecture, attention: dict[str, Any] | None = None, **changes: Any) -> Architecture:
    [(stack, row)] = architecture.stacks.items()
    mlp = {**row.mlp, **changes.pop("mlp", {})}
    row = replace(row, attention=replace(row.attention, **(attention or {})), mlp=mlp, **changes)
    return Architecture({stack: row}, architecture.has_attention_function)


def _fused(row: AttentionRow, path: str, fused: str) -> dict[str, Any]:
    return {f"{part}_proj": Tap(f"{row.module}.{path}", part=part, fused=fused) for part in "qkv"}  # pyright: ignore[reportArgumentType]


NEOX = rows.GPT_NEOX.when_false.stacks["dec"].attention
WRONG_ROWS: dict[str, tuple[str, Architecture, set[str]]] = {
    "gemma2 without its post-norms": ("gemma2", rows.LLAMA, {"resid_mid", "resid_post", "mlp_up"}),
    "gpt2 fused head by head": (
        "gpt2",
        with_row(rows.GPT2, _fused(rows.GPT2.stacks["dec"].attention, "c_attn", "per_head")),
        {"q", "k", "v", "v_proj"},
    ),
    "gpt_neox fused one after the other": (
        "gpt_neox",
        with_row(rows.GPT_NEOX.when_false, _fused(NEOX, "query_key_value", "concat")),
        {"q", "k", "v", "v_proj"},
    ),
    "phi3 with its halves swapped": (
        "phi3",
        with_row(rows.PHI3, mlp={"mlp_up": Tap("mlp.gate_up_proj", part="first half")}),
        {"mlp_mid"},
    ),
    "values from the key projection": (
        "llama",
        with_row(rows.LLAMA, {"v_proj": Tap("self_attn.k_proj")}),
        {"v", "v_proj"},
    ),
    "the other norm before attention": (
        "llama",
        with_row(rows.LLAMA, {"attn_norm": Tap("post_attention_layernorm")}),
        {"attn_norm", "q_proj", "k_proj", "v_proj"},
    ),
    "the other norm before the MLP": (
        "llama",
        with_row(rows.LLAMA, mlp={"mlp_norm": Tap("input_layernorm")}),
        {"mlp_norm", "mlp_up"},
    ),
    "another output projection": (
        "llama",
        with_row(rows.LLAMA, {"out_proj": "self_attn.q_proj"}),
        {"attn_out", "v_proj"},
    ),
    "the gate for the up projection": (
        "llama",
        with_row(rows.LLAMA, mlp={"mlp_up": Tap("mlp.gate_proj")}),
        {"mlp_mid"},
    ),
    "another down projection": (
        "llama",
        with_row(rows.LLAMA, mlp={"mlp_down": Tap("self_attn.o_proj")}),
        {"mlp_down", "mlp_out"},
    ),
    "the middle before attention": (
        "llama",
        with_row(rows.LLAMA, mlp={"resid_mid": into("input_layernorm")}),
        {"resid_mid", "mlp_norm", "resid_post"},
    ),
    "another embedding": ("llama", with_row(rows.LLAMA, token_embed="norm"), {"token_embed"}),
    "pre-norm blocks as post-norm blocks": (
        "opt",
        rows.OPT.when_false,
        {"q_proj", "k_proj", "v_proj", "resid_mid", "mlp_up", "resid_post", "hidden", "logits"},
    ),
    "sequential blocks as parallel ones": ("gpt_neox", rows.GPT_NEOX.when_true, {"mlp_norm"}),
    "parallel blocks as sequential ones": ("gpt_neox_parallel", rows.GPT_NEOX.when_false, {"resid_mid", "resid_post"}),
    "bert without its norm after attention": ("bert", with_row(rows.BERT, {"post_norm": None}), {"resid_mid"}),
    "bert without its norm after the MLP": ("bert", with_row(rows.BERT, post_norm=None), {"resid_post"}),
}


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_a_wrong_row_fails_exactly_the_proofs_that_it_breaks(wrong: str) -> None:
    family, row, broken = WRONG_ROWS[wrong]
    model = tiny_model(family)
    result = check_model(model, two_examples(model), architecture=row)
    assert failing_sites(result) == broken
    assert not result.ok


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            with_row(rows.LLAMA, {"q_proj": Tap("self_attn.k_proj")}),
            r"what should be dec.self.q_proj has shape \(2, 2,",
        ),
        (with_row(rows.LLAMA, mlp={"mlp_up": Tap("self_attn.q_proj")}), r"what should be dec.mlp_up has shape"),
        (with_row(rows.LLAMA, final_norm="layers.0.input_layernorm"), "never showed dec.final_norm, dec.hidden"),
        (rows.GPT2, "has no module h"),
    ],
)
def test_a_row_that_cannot_fit_is_refused_by_name(row: Architecture, message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(Unsupported, match=message):
        check_model(model, two_examples(model), architecture=row)


# Mathematics that is wrong in one place, and what must notice.

Scores = Callable[[AttentionCall, int, Tensor, Span, Span], Tensor]
scores_of, pattern_of = AttentionCall.scores, AttentionCall.pattern


def wrong_scale(call: AttentionCall, example: int, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    return scores_of(call, example, heads, queries, keys) * 1.001


def without_softcap(call: AttentionCall, example: int, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    return scores_of(replace(call, softcap=None), example, heads, queries, keys)


def without_bias(call: AttentionCall, example: int, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    return scores_of(replace(call, bias=None), example, heads, queries, keys)


def neighbouring_kv_heads(call: AttentionCall, example: int, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    return scores_of(replace(call, key=call.key.roll(1, dims=1)), example, heads, queries, keys)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("gpt2", wrong_scale),
        ("gemma2", without_softcap),
        ("t5", without_bias),
        ("llama", neighbouring_kv_heads),
    ],
)
def test_wrong_scores_are_noticed(family: str, wrong: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionCall, "scores", wrong)
    model = tiny_model(family)
    result = check_model(model, two_examples(model))
    assert {proof.fact for proof in result.proofs if not proof.ok} >= {
        "equals q k^T, scaled, softcapped, biased",
        "equals the model's own eager attentions",
        "equals attn_pattern v",
    }


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"mask": None, "is_causal": False}),
        ("mistral", {"mask": None, "is_causal": True, "window": None}),
        ("modernbert", {"mask": None}),
        ("gpt_oss", {"sinks": None}),
    ],
)
def test_wrong_masks_and_sinks_are_noticed(
    family: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(call: AttentionCall, scores: Tensor, example: int, heads: Tensor, queries: Span, keys: Span) -> Tensor:
        return pattern_of(replace(call, **change), scores, example, heads, queries, keys)

    monkeypatch.setattr(AttentionCall, "pattern", wrong)
    model = tiny_model(family)
    result = check_model(model, two_examples(model))
    assert {proof.fact for proof in result.proofs if not proof.ok} >= {
        "equals the softmax of attn_scores in a mask built by hand",
        "equals the model's own eager attentions",
        "equals attn_pattern v",
    }


def test_an_observation_that_changes_the_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from traceformer.capture import attention

    untouched = attention._Observed.__call__  # pyright: ignore[reportPrivateUsage]

    def nudged(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = untouched(*args, **kwargs)
        return output * (1 + 1e-6), weights

    monkeypatch.setattr(attention._Observed, "__call__", nudged)  # pyright: ignore[reportPrivateUsage]
    model = tiny_model("gpt2")
    broken = failures(check_model(model, two_examples(model)))
    assert "dec.logits equals the model's logits when nothing is recorded" in broken
    assert "dec.hidden equals the model's own output_hidden_states" in broken


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


def test_errors_are_relative_to_the_largest_expected_value_but_at_least_to_one() -> None:
    assert error_between(torch.tensor([0.5]), torch.tensor([0.25])) == 0.25
    assert error_between(torch.tensor([101.0, 1.0]), torch.tensor([100.0, 1.0])) == pytest.approx(0.01)


def test_errors_of_other_shapes_and_of_nan_are_infinite() -> None:
    assert error_between(torch.zeros(2, 3), torch.zeros(3, 2)) == math.inf
    assert error_between(torch.tensor([math.nan]), torch.tensor([0.0])) == math.inf
    assert error_between(torch.tensor([0.0]), torch.tensor([math.nan])) == math.inf
    assert error_between(torch.tensor([math.inf]), torch.tensor([math.inf])) == math.inf


def test_tolerances_grow_with_rounding_and_with_scores_only() -> None:
    assert tolerance_of(Rounding.NONE, torch.bfloat16, 100.0) == 0
    assert tolerance_of(Rounding.SOFTMAX, torch.float32, 1.0) == 5e-6
    assert tolerance_of(Rounding.SOFTMAX, torch.float32, 1000.0) == pytest.approx(1.2e-4, rel=0.01)
    assert tolerance_of(Rounding.MODEL, torch.float32, 1000.0) == 1e-5
    assert tolerance_of(Rounding.MODEL, torch.bfloat16, 1.0) == pytest.approx(4 / 128)
    assert tolerance_of(Rounding.FLOAT32, torch.bfloat16, 1.0) == 1e-5


# The support table.


def _without_errors(page: str) -> str:
    return re.sub(r"\b(?:1e-?\d+|0)\b", "#", page)


def _errors(page: str) -> Iterator[float]:
    table = page.split("## Sites")[0]
    return (float(number) for number in re.findall(r"\b1e-?\d+\b", table))


def test_the_support_table_is_in_step_with_the_proofs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    # Rounding differs from machine to machine: the largest errors may, what they are errors of may not.
    assert _without_errors(page) == _without_errors(support_page()), "run: python -m tests.capture.proved"
    assert max(_errors(page)) <= 1e-5


def test_every_fact_has_a_column_in_the_support_table() -> None:
    assert {column_of(proof) for family in TINY for proof in proved(family).proofs} >= {"MLP", "padded = alone"}
