"""What a recorder hands over, what it does not compute, and what it does not keep."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.capture.recording import LENGTHS, SOME, Kept, batch, logits, plan, record
from tests.families import KEPT, MATRIX, mostly_slow
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import AttentionCall, Span
from traceformer.models.dims import ModelDims
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArraySpec, Selection

OUTSIDE = ("xglm",)


# What is handed over.


@pytest.mark.parametrize("family", MATRIX)
def test_every_array_has_the_shape_that_its_specification_says(family: str) -> None:
    model = tiny_model(family)
    arrays = plan(model)
    kept = record(model, arrays)
    for spec in arrays:
        longest, n_heads = max(LENGTHS[spec.key.token_stack]), len(spec.heads)
        for layer in spec.layers or (None,):
            if spec.site.is_matrix:
                assert layer is not None
                for example, length in enumerate(LENGTHS[spec.key.stack]):
                    shape = (n_heads, length, LENGTHS[spec.key.key_stack][example])
                    assert kept.squares[str(spec.key), layer, example].shape == shape
            else:
                shape = (3, n_heads, longest, spec.width) if n_heads else (3, longest, spec.width)
                assert kept.rows_of[str(spec.key), layer].shape == shape, spec
    places = {(str(spec.key), layer) for spec in arrays for layer in spec.layers or (None,)}
    assert kept.rows_of.keys() | {place[:2] for place in kept.squares} == places


@pytest.mark.parametrize("family", SOME)
def test_half_of_the_layers_and_heads_is_that_half_of_everything(family: str) -> None:
    model = tiny_model(family)
    everything = record(model, plan(model))
    layers, heads = {"enc": (1,), "dec": (0, 2)}, {"enc": (1, 2), "dec": (3,)}
    stacks = ModelDims.from_config(model.config).stacks
    chosen = {"layers": {s: layers[s] for s in stacks}, "heads": {s: heads[s] for s in stacks}}
    arrays = plan(model, "all", **chosen)
    half = record(model, arrays)
    whole = {str(spec.key): spec for spec in plan(model)}
    for spec in arrays:
        index = [whole[str(spec.key)].heads.index(head) for head in spec.heads]
        for (key, layer), rows in half.rows_of.items():
            if key == str(spec.key):
                expected = everything.rows_of[key, layer]
                assert torch.equal(rows, expected[:, index] if index else expected)
        for (key, layer, example), square in half.squares.items():
            if key == str(spec.key):
                torch.testing.assert_close(square, everything.squares[key, layer, example][index], rtol=0, atol=1e-6)
    assert half.rows_of.keys() < everything.rows_of.keys()


@pytest.mark.parametrize("family", mostly_slow(family for family in KEPT if family not in OUTSIDE))
def test_patterns_alone_are_those_recorded_with_scores(family: str) -> None:
    # Without scores, what lies above a causal diagonal is never computed.
    model = tiny_model(family)
    together, alone = (record(model, plan(model, *sites)) for sites in (("attn_scores", "attn_pattern"), ("attn",)))
    assert alone.squares
    for place, pattern in alone.squares.items():
        torch.testing.assert_close(pattern, together.squares[place], rtol=0, atol=1e-6)


def test_long_squares_come_in_blocks_of_queries_that_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from traceformer.capture import scores

    model = tiny_model("gpt2")
    whole = record(model, plan(model, "attn_scores", "attn_pattern"))
    monkeypatch.setattr(scores, "_BLOCK_BYTES", 4 * 4 * 9 * 2)  # two rows of four heads and nine keys
    in_blocks = record(model, plan(model, "attn_scores", "attn_pattern"))
    for place, square in whole.squares.items():
        torch.testing.assert_close(in_blocks.squares[place], square, rtol=0, atol=1e-6)


def test_only_the_chosen_heads_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[list[int]] = []
    scores = AttentionCall.scores

    def counted(call: AttentionCall, example: int, heads: Tensor, queries: Span, keys: Span) -> Tensor:
        computed.append(heads.tolist())
        return scores(call, example, heads, queries, keys)

    monkeypatch.setattr(AttentionCall, "scores", counted)
    model = tiny_model("gpt2")
    record(model, plan(model, "attn", layers={"dec": (0, 2)}, heads={"dec": (1, 3)}))
    assert computed == [[1, 3]] * 2 * 3


def test_examples_may_start_anywhere_in_their_rows() -> None:
    model = tiny_model("llama")
    arrays = plan(model, "attn")
    ids = torch.randint(4, 99, (1, 5), generator=torch.Generator().manual_seed(1))
    alone, moved = Kept(), Kept()
    left = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    with Recorder(model, arrays, alone) as recorder:
        recorder.run({"dec": [Span(0, 5)]}, input_ids=ids)
    with Recorder(model, arrays, moved) as recorder:
        positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])
        recorder.run({"dec": [Span(3, 8)]}, input_ids=left, attention_mask=(left > 0).long(), position_ids=positions)
    for place, pattern in alone.squares.items():
        torch.testing.assert_close(moved.squares[place], pattern, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_encoder_of_an_encoder_decoder_can_be_recorded_without_decoder_inputs(family: str) -> None:
    model = tiny_model(family)
    everything = record(model, plan(model))
    arrays = plan_arrays(Selection(("all",)), model, stacks=("enc",)).arrays
    inputs, spans = batch(model)
    kept = Kept()
    with Recorder(model, arrays, kept) as recorder:
        recorder.run({"enc": spans["enc"]}, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    for place, rows in kept.rows_of.items():
        assert torch.equal(rows, everything.rows_of[place])
    assert {key.split(".")[0] for key, _ in kept.rows_of} == {"enc"}


def test_a_recorder_can_run_many_batches() -> None:
    model = tiny_model("qwen3")
    arrays = plan(model)
    kept = [Kept(), Kept()]
    sinks = iter(kept)

    class Switching:
        current = next(sinks)

        def rows(self, *args: Any) -> None:
            self.current.rows(*args)

        def square(self, *args: Any) -> None:
            self.current.square(*args)

    sink = Switching()
    with Recorder(model, arrays, sink) as recorder:
        for seed in (0, 1):
            inputs, spans = batch(model, seed=seed)
            recorder.run(spans, **inputs)
            sink.current = next(sinks, sink.current)
    for seed in (0, 1):
        assert torch.equal(kept[seed].rows_of["dec.logits", None], logits(model, seed=seed))


# What is not computed, and not kept.


class Calls:
    """Counts the calls of a model's modules by path."""

    def __init__(self, model: nn.Module) -> None:
        self.of: Counter[str] = Counter()
        for path, module in model.named_modules():
            module.register_forward_pre_hook(self._counting(path))

    def _counting(self, path: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            self.of[path] += 1

        return count


def test_a_pass_ends_after_the_last_array_is_seen() -> None:
    model = tiny_model("llama")
    calls = Calls(model)
    record(model, plan(model, "resid_post", layers={"dec": (1,)}))
    assert (calls.of["model.layers.1.mlp"], calls.of["model.layers.2"], calls.of["lm_head"]) == (1, 0, 0)


def test_a_pass_ends_before_the_attention_output_is_computed_when_only_patterns_are_asked_for() -> None:
    model = tiny_model("llama")
    calls = Calls(model)
    record(model, plan(model, "attn", layers={"dec": (1,)}))
    assert (calls.of["model.layers.1.self_attn.q_proj"], calls.of["model.layers.1.self_attn.o_proj"]) == (1, 0)


def test_the_head_runs_for_logits_only() -> None:
    model = tiny_model("gpt2")
    calls = Calls(model)
    record(model, plan(model, "attn", "qkv", "hidden", "resid", "mlp", "norms"))
    assert calls.of["lm_head"] == 0
    record(model, plan(model, "logits"))
    assert calls.of["lm_head"] == 1


def test_nothing_that_was_handed_over_is_kept_alive() -> None:
    seen: list[weakref.ref[Tensor]] = []

    class Forgetful:
        def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
            seen.append(weakref.ref(rows))

        def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
            seen.append(weakref.ref(block))

    masks: list[weakref.ref[Tensor]] = []
    model = tiny_model("mistral")
    inputs, spans = batch(model)
    looks_ahead = AttentionCall.looks_ahead

    def noted(call: AttentionCall) -> bool:
        assert call.mask is not None
        masks.append(weakref.ref(call.mask))
        return looks_ahead.__get__(call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionCall, "looks_ahead", property(noted))
        with Recorder(model, plan(model, "attn", "qkv", "resid", "logits"), Forgetful()) as recorder:
            recorder.run(spans, **inputs)
            gc.collect()
            assert [tensor() for tensor in seen + masks] == [None] * len(seen + masks)
    assert len(seen) > 20
    assert masks


def test_what_a_sink_is_given_is_the_models_own_tensor() -> None:
    # The price of copying nothing that is not wanted: a sink that keeps a view sees it change, or keeps it all alive.
    model = tiny_model("llama")
    pointers: list[int] = []

    class Looking:
        def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
            pointers.append(rows.untyped_storage().data_ptr())

        def square(self, *_: Any) -> None:
            raise AssertionError("no squares were asked for")

    def embedded(module: nn.Module, args: Any, output: Tensor) -> None:
        pointers.append(output.untyped_storage().data_ptr())

    inputs, spans = batch(model)
    model.model.embed_tokens.register_forward_hook(embedded)
    with Recorder(model, plan(model, "token_embed"), Looking()) as recorder:
        recorder.run(spans, **inputs)
    assert pointers[0] == pointers[1]
