"""Each proof notices what it is there to notice: rows and mathematics that are wrong in one place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from tests.capture.proofs.facts import failing_sites, failures, two_examples
from traceformer.capture.proofs.check import check_model
from traceformer.capture.scores import AttentionCall, Span
from traceformer.errors import Unsupported
from traceformer.models.blocks import decoders as rows
from traceformer.models.blocks.encoders import BERT
from traceformer.models.families import FAMILIES
from traceformer.models.family import Architecture, AttentionRow, Tap, into
from traceformer.models.tiny import tiny_model

# Rows that are wrong in one place, and the sites whose proofs must fail.


def with_row(architecture: Architecture, attention: dict[str, Any] | None = None, **changes: Any) -> Architecture:
    [(stack, row)] = architecture.stacks.items()
    mlp = {**row.mlp, **changes.pop("mlp", {})}
    row = replace(row, attention=replace(row.attention, **(attention or {})), mlp=mlp, **changes)
    return Architecture({stack: row}, architecture.has_attention_function)


def _fused(row: AttentionRow, path: str, fused: str) -> dict[str, Any]:
    return {f"{part}_proj": Tap(f"{row.module}.{path}", part=part, fused=fused) for part in "qkv"}  # pyright: ignore[reportArgumentType]


NEOX_PARALLEL, NEOX_SEQUENTIAL = FAMILIES["gpt_neox"].architectures
NEOX = NEOX_SEQUENTIAL.stacks["dec"].attention
WRONG_ROWS: dict[str, tuple[str, Architecture, set[str]]] = {
    "gemma2 without its post-norms": ("gemma2", rows.LLAMA, {"resid_mid", "resid_post", "mlp_up"}),
    "gpt2 fused head by head": (
        "gpt2",
        with_row(rows.GPT2, _fused(rows.GPT2.stacks["dec"].attention, "c_attn", "per_head")),
        {"q", "k", "v", "v_proj"},
    ),
    "gpt_neox fused one after the other": (
        "gpt_neox",
        with_row(NEOX_SEQUENTIAL, _fused(NEOX, "query_key_value", "concat")),
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
        FAMILIES["opt"].architectures[1],
        {"q_proj", "k_proj", "v_proj", "resid_mid", "mlp_up", "resid_post", "hidden", "logits"},
    ),
    "sequential blocks as parallel ones": ("gpt_neox", NEOX_PARALLEL, {"mlp_norm"}),
    "parallel blocks as sequential ones": ("gpt_neox_parallel", NEOX_SEQUENTIAL, {"resid_mid", "resid_post"}),
    "bert without its norm after attention": ("bert", with_row(BERT, {"post_norm": None}), {"resid_mid"}),
    "bert without its norm after the MLP": ("bert", with_row(BERT, post_norm=None), {"resid_post"}),
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
        ("bloom", without_bias),
        ("deberta-v2", without_bias),
        ("falcon_new", neighbouring_kv_heads),
        ("gpt_neo", wrong_scale),
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
