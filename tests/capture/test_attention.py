"""Scores and patterns against plain loops, and what the observed attention function refuses to guess at."""

import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from traceformer.capture import attention
from traceformer.capture.attention import Listening, observed_name
from traceformer.capture.extract import record
from traceformer.capture.scores import AttentionCall, Span, blocks_of_queries
from traceformer.errors import Unsupported
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model

BATCH, HEADS, KV_HEADS, D_HEAD = 3, 4, 2, 5


def random_call(n_queries: int, n_keys: int, **changes: Any) -> AttentionCall:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    plain = AttentionCall(
        query=draw(BATCH, HEADS, n_queries, D_HEAD),
        key=draw(BATCH, KV_HEADS, n_keys, D_HEAD),
        value=draw(BATCH, KV_HEADS, n_keys, D_HEAD),
        mask=None,
        bias=None,
        sinks=None,
        scaling=0.3,
        softcap=None,
        is_causal=False,
        window=None,
    )
    return replace(plain, **changes)


def cell(tensor: Tensor, example: int, head: int, query: int, key: int) -> float:
    """One cell of a mask or bias whose batch and head axes may have size one."""
    return tensor[min(example, tensor.shape[0] - 1), min(head, tensor.shape[1] - 1), query, key].item()


def score_by_hand(call: AttentionCall, example: int, head: int, query: int, key: int) -> float:
    q = call.query[example, head, query].tolist()
    k = call.key[example, head * KV_HEADS // HEADS, key].tolist()
    score = call.scaling * sum(a * b for a, b in zip(q, k, strict=True))
    if call.softcap is not None:
        score = call.softcap * math.tanh(score / call.softcap)
    return score + (0.0 if call.bias is None else cell(call.bias, example, head, query, key))


def row_by_hand(call: AttentionCall, example: int, head: int, query: int, keys: Span) -> list[float]:
    """softmax over the keys that this query may look at, in Python floats, one cell at a time."""
    weights: list[float] = []
    for key in range(keys.start, keys.stop):
        score = score_by_hand(call, example, head, query, key)
        if call.mask is not None:
            masked = cell(call.mask, example, head, query, key)
            score = score + masked if call.mask.dtype != torch.bool else score if masked else -math.inf
        elif call.is_causal and (key > query or (call.window is not None and query - key >= call.window)):
            score = -math.inf
        weights.append(math.exp(score))
    sink = 0.0 if call.sinks is None else math.exp(call.sinks[head].item())
    return [weight / (sum(weights) + sink) for weight in weights]


def lower(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


CALLS = {
    "everything visible": {},
    "causal without a mask": {"is_causal": True},
    "a window without a mask": {"is_causal": True, "window": 3},
    "a boolean mask for all": {"mask": lower(8)[None, None]},
    "a boolean mask per example": {"mask": torch.stack([lower(8), lower(8).roll(1, 0) | lower(8), lower(8)])[:, None]},
    "an additive mask": {"mask": torch.zeros(8, 8).masked_fill(~lower(8), torch.finfo(torch.float32).min)[None, None]},
    "an additive mask per head": {"mask": torch.linspace(-3, 0, 4 * 64).reshape(1, 4, 8, 8)},
    "a softcap": {"softcap": 0.2},
    "a bias for all examples": {"bias": torch.linspace(-2, 2, 4 * 64).reshape(1, 4, 8, 8)},
    "a bias per example, for all heads": {"bias": torch.linspace(-2, 2, 3 * 64).reshape(3, 1, 8, 8)},
    "a softcap, then a bias": {"softcap": 0.2, "bias": torch.linspace(-2, 2, 4 * 64).reshape(1, 4, 8, 8)},
    "sinks": {"is_causal": True, "sinks": torch.tensor([-1.0, 0.0, 1.0, 2.0])},
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize(
    ("queries", "keys"), [(Span(0, 8), Span(0, 8)), (Span(2, 5), Span(1, 8)), (Span(7, 8), Span(0, 8))]
)
def test_scores_and_patterns_equal_a_loop_over_cells(what: str, queries: Span, keys: Span) -> None:
    call = random_call(8, 8, **CALLS[what])
    heads = [0, 2, 3]
    for example in range(BATCH):
        scores = call.scores(example, torch.tensor(heads), queries, keys)
        expected = [
            [[score_by_hand(call, example, h, q, k) for k in range(*keys)] for q in range(*queries)] for h in heads
        ]
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-6)
        pattern = call.pattern(scores, example, torch.tensor(heads), queries, keys)
        rows = [[row_by_hand(call, example, h, q, keys) for q in range(*queries)] for h in heads]
        np.testing.assert_allclose(pattern.numpy(), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_patterns_are_computed_in_float32_whatever_the_model_computes_in(dtype: torch.dtype) -> None:
    call = random_call(6, 6, is_causal=True)
    low = replace(call, query=call.query.to(dtype), key=call.key.to(dtype))
    again = replace(low, query=low.query.float(), key=low.key.float())
    span, heads = Span(0, 6), torch.arange(HEADS)
    pattern = low.pattern(low.scores(0, heads, span, span), 0, heads, span, span)
    assert pattern.dtype == torch.float32
    assert torch.equal(pattern, again.pattern(again.scores(0, heads, span, span), 0, heads, span, span))


def test_rows_with_a_sink_sum_to_what_the_sink_leaves() -> None:
    call = random_call(6, 6, sinks=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    heads, span = torch.arange(HEADS), Span(0, 6)
    scores = call.scores(0, heads, span, span)
    sink_share = torch.sigmoid(torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None] - scores.logsumexp(-1))
    sums = call.pattern(scores, 0, heads, span, span).sum(-1)
    torch.testing.assert_close(sums, 1 - sink_share)
    assert bool((sums < 1).all())


@given(
    start=st.integers(0, 50),
    length=st.integers(0, 5000),
    n_heads=st.integers(1, 200),
    n_keys=st.integers(0, 200_000),
)
@settings(deadline=None, max_examples=200)
def test_blocks_of_queries_cover_the_span_once_in_bounded_memory(
    start: int, length: int, n_heads: int, n_keys: int
) -> None:
    blocks = list(blocks_of_queries(Span(start, start + length), n_heads, n_keys))
    positions = [position for block in blocks for position in range(*block)]
    assert positions == list(range(start, start + length))
    largest = max((block.length for block in blocks), default=0)
    assert largest <= 1 or largest * n_heads * n_keys * 4 <= 64 << 20


@pytest.mark.parametrize(
    ("changes", "ahead"),
    [
        ({"is_causal": True}, False),
        ({"is_causal": False}, True),
        ({"mask": lower(8)[None, None]}, False),
        ({"mask": (lower(8) | (torch.arange(8) == 7))[None, None]}, True),
        ({"mask": torch.zeros(8, 8).masked_fill(~lower(8), torch.finfo(torch.float32).min)[None, None]}, False),
        ({"mask": torch.zeros(1, 1, 8, 8)}, True),
        ({"mask": torch.stack([lower(8), torch.ones(8, 8, dtype=torch.bool)])[:, None]}, True),
    ],
)
def test_a_call_knows_whether_a_query_may_look_ahead(changes: dict[str, Any], ahead: bool) -> None:
    assert random_call(8, 8, **changes).looks_ahead is ahead


# The registered function.


class Attention(nn.Module):
    """The little that the attention function asks of its module."""

    is_causal = True
    num_key_value_groups = HEADS // KV_HEADS
    training = False


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.outputs: list[Tensor] = []

    def before(self, call: AttentionCall) -> None:
        self.calls.append(call)

    def after(self, output: Tensor) -> None:
        self.outputs.append(output)


def takes_anything(module: nn.Module, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """An implementation that refuses no argument, unlike those of transformers."""
    return query.transpose(1, 2), None


AttentionInterface.register("takes_anything", takes_anything)
AttentionMaskInterface.register("takes_anything", AttentionMaskInterface()["sdpa"])


def attend(module: nn.Module, mask: Any = None, implementation: str = "sdpa", **kwargs: Any) -> Tensor:
    call = random_call(6, 6)
    function = AttentionInterface()[observed_name(implementation)]
    return function(module, call.query, call.key, call.value, mask, **kwargs)[0]


def heard(mask: Any = None, **kwargs: Any) -> AttentionCall:
    module, listener = Attention(), Heard()
    with Listening({module: listener}):
        attend(module, mask, "takes_anything", **kwargs)
    [call] = listener.calls
    return call


def test_the_output_is_that_of_the_implementation_observed() -> None:
    module, listener = Attention(), Heard()
    call = random_call(6, 6)
    plain = AttentionInterface()["sdpa"](module, call.query, call.key, call.value, None, scaling=0.3)[0]
    with Listening({module: listener}):
        output = attend(module, scaling=0.3)
    assert torch.equal(output, plain)
    assert listener.outputs[0] is output
    assert torch.equal(attend(module, scaling=0.3), plain)
    assert len(listener.calls) == 1


def test_only_calls_from_the_listening_thread_are_heard() -> None:
    module, listener = Attention(), Heard()
    outputs: list[Tensor] = []
    with Listening({module: listener}):
        thread = threading.Thread(target=lambda: outputs.append(attend(module, scaling=0.3)))
        thread.start()
        thread.join()
    assert torch.equal(outputs[0], attend(module, scaling=0.3))
    assert listener.calls == []


def test_listeners_of_other_modules_stay_when_one_leaves() -> None:
    (first, second), heard_by = (Attention(), Attention()), (Heard(), Heard())
    with Listening({first: heard_by[0]}):
        with Listening({second: heard_by[1]}):
            attend(second)
        attend(first)
        attend(second)
    assert [len(listener.calls) for listener in heard_by] == [1, 1]


def test_what_the_model_passes_decides_the_scores() -> None:
    bias = torch.zeros(1, HEADS, 6, 6)
    call = heard(scaling=0.5, softcap=3.0, s_aux=torch.zeros(HEADS), position_bias=bias, sliding_window=4)
    assert (call.scaling, call.softcap, call.window, call.is_causal) == (0.5, 3.0, 4, True)
    assert call.sinks is not None
    assert call.bias is bias


def test_the_scaling_is_one_over_the_root_of_d_head_unless_told() -> None:
    assert heard().scaling == pytest.approx(D_HEAD**-0.5)


@pytest.mark.parametrize(("given", "causal"), [({}, True), ({"is_causal": False}, False), ({"is_causal": None}, True)])
def test_being_causal_is_the_modules_unless_the_call_says_otherwise(given: dict[str, Any], causal: bool) -> None:
    assert heard(**given).is_causal is causal


@pytest.mark.parametrize(
    "harmless", [{"dropout": 0.0}, {"output_attentions": True}, {"use_cache": True}, {"alibi": None}]
)
def test_arguments_that_cannot_change_the_scores_pass(harmless: dict[str, Any]) -> None:
    assert heard(**harmless).bias is None


@pytest.mark.parametrize("unknown", ["alibi_slopes", "head_mask", "score_mod", "indexer"])
def test_an_argument_that_may_change_the_scores_is_refused(unknown: str) -> None:
    with pytest.raises(Unsupported, match=f"Attention passes {unknown} to attention"):
        heard(**{unknown: torch.ones(1)})


@pytest.mark.parametrize("mask", [torch.ones(6, 6), torch.ones(3, 6), {"full": None}])
def test_a_mask_of_another_form_is_refused(mask: Any) -> None:
    with pytest.raises(Unsupported, match=r"not a \(batch, head, query, key\) tensor"):
        heard(mask)


def test_local_attention_in_both_directions_without_a_mask_is_refused_when_the_window_can_matter() -> None:
    with pytest.raises(Unsupported, match="bidirectional local attention"):
        heard(is_causal=False, sliding_window=6)
    assert heard(is_causal=False, sliding_window=7).window == 7


def test_an_implementation_without_a_mask_function_is_refused() -> None:
    with pytest.raises(Unsupported, match="'paged_magic' cannot be observed"):
        observed_name("paged_magic")


def test_the_observed_name_keeps_the_implementations_mask() -> None:
    name = observed_name("eager")
    assert observed_name("eager") == name
    assert AttentionMaskInterface()[name] is AttentionMaskInterface()["eager"]
    assert AttentionMaskInterface()[observed_name("sdpa")] is AttentionMaskInterface()["sdpa"]


class Inherited(LlamaAttention):
    """Its forward is written in another module than it is, where the eager function lies."""


class ByAnotherName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_eager_attention_is_found_where_the_code_lies_that_calls_it() -> None:
    model: Any = tiny_model("llama")
    model.set_attn_implementation("eager")
    plain = record(load_model(model), [[5, 6, 7, 8]], "attn_pattern", dtype="float32")
    for layer in model.model.layers:
        layer.self_attn.__class__ = Inherited
    inherited = record(load_model(model), [[5, 6, 7, 8]], "attn_pattern", dtype="float32")
    np.testing.assert_array_equal(plain.attn(0, 1), inherited.attn(0, 1))
    with pytest.raises(Unsupported, match="the eager attention of ByAnotherName cannot be observed"):
        attention._implementation("eager", ByAnotherName())  # pyright: ignore[reportPrivateUsage]
