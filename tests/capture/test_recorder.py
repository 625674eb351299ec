"""What a recorder hands over, what it leaves untouched, and what it puts back, whatever happens."""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from traceformer.capture.attention import AttentionCall, Span
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.errors import Unsupported, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture
from traceformer.models.tiny import TINY, tiny_model
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack

LENGTHS: dict[Stack, tuple[int, ...]] = {"enc": (11, 6, 8), "dec": (9, 4, 7)}
OUTSIDE = ("gptj", "bloom", "mpt")
SOME = ("gpt2", "llama", "gemma2", "gpt_oss", "bert", "modernbert", "t5", "bart", "bloom")

pytestmark = pytest.mark.usefixtures("one_thread")


class Kept:
    """A sink that keeps copies: rows whole, squares in one piece per example."""

    def __init__(self) -> None:
        self.rows_of: dict[tuple[str, int | None], Tensor] = {}
        self.squares: dict[tuple[str, int, int], Tensor] = {}

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        assert (str(spec.key), layer) not in self.rows_of
        self.rows_of[str(spec.key), layer] = rows.clone()

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        stacks: tuple[Stack, Stack] = (spec.key.stack, spec.key.key_stack)
        whole = torch.zeros(len(spec.heads), *(LENGTHS[stack][example] for stack in stacks))
        kept = self.squares.setdefault((str(spec.key), layer, example), whole)
        kept[:, queries.start : queries.stop, keys.start : keys.stop] = block


def batch(model: nn.Module, *, seed: int = 0) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
    """Three examples of random ids, padded on the right, and where their tokens are."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    spans: dict[Stack, list[Span]] = {}
    stacks = list(ModelDims.from_config(model.config).stacks)
    for stack in stacks:
        lengths = LENGTHS[stack]
        ids = torch.randint(4, 99, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        prefix = "decoder_" if stack == "dec" and len(stacks) == 2 else ""
        inputs[f"{prefix}input_ids"] = ids.masked_fill(~mask, 0)
        inputs[f"{prefix}attention_mask"] = mask.long()
        spans[stack] = [Span(0, length) for length in lengths]
    return inputs, spans


def plan(model: Any, *capture: str, **selection: Any) -> tuple[ArraySpec, ...]:
    chosen = Selection(capture or ("all",), **selection)
    return plan_arrays(chosen, model).arrays


def record(model: Any, arrays: Sequence[ArraySpec], *, seed: int = 0) -> Kept:
    inputs, spans = batch(model, seed=seed)
    kept = Kept()
    with Recorder(model, arrays, kept) as recorder:
        recorder.run(spans, **inputs)
    return kept


def logits(model: Any, *, seed: int = 0, **flags: Any) -> Tensor:
    with torch.inference_mode():
        return model(**batch(model, seed=seed)[0], **flags).logits


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of a model that a recorder touches: training flags, hooks, the attention implementation of every config."""
    modules = list(model.modules())
    return {
        "training": [module.training for module in modules],
        "hooks": [list(module._forward_hooks) for module in modules],
        "pre-hooks": [list(module._forward_pre_hooks) for module in modules],
        "attention": [getattr(module, "config", None) and module.config._attn_implementation for module in modules],
    }


# What is handed over.


@pytest.mark.parametrize("family", TINY)
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


@pytest.mark.parametrize("family", [family for family in TINY if family not in OUTSIDE])
def test_patterns_alone_are_those_recorded_with_scores(family: str) -> None:
    # Without scores, what lies above a causal diagonal is never computed.
    model = tiny_model(family)
    together, alone = (record(model, plan(model, *sites)) for sites in (("attn_scores", "attn_pattern"), ("attn",)))
    assert alone.squares
    for place, pattern in alone.squares.items():
        torch.testing.assert_close(pattern, together.squares[place], rtol=0, atol=1e-6)


def test_long_squares_come_in_blocks_of_queries_that_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from traceformer.capture import attention

    model = tiny_model("gpt2")
    whole = record(model, plan(model, "attn_scores", "attn_pattern"))
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 4 * 4 * 9 * 2)  # two rows of four heads and nine keys
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


# What is put back, whatever happens.


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
    model = tiny_model("gptj").train()
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


# Several recorders, several threads.


@pytest.mark.parametrize("other", ["the model", "its base model"])
def test_two_recorders_on_one_model_are_refused(other: str) -> None:
    model = tiny_model("gpt2")
    before = state_of(model)
    second = model if other == "the model" else model.base_model
    arrays = plan(model, "attn", "resid")
    with Recorder(model, arrays, Kept()):
        with pytest.raises(UsageError, match="already being recorded"), Recorder(second, arrays, Kept()):
            pass
        inside = state_of(model)
    assert state_of(model) == before != inside
    assert record(model, arrays).squares.keys()


def test_a_model_that_shares_its_config_with_one_being_recorded_is_refused() -> None:
    model = tiny_model("gpt2")
    twin = transformers.GPT2LMHeadModel(model.config)
    assert twin.config is model.config
    with (
        Recorder(model, plan(model, "attn"), Kept()),
        pytest.raises(UsageError, match="shares its config"),
        Recorder(twin, plan(twin, "attn"), Kept()),
    ):
        pass
    assert model.config._attn_implementation == "sdpa"
    assert record(twin, plan(twin, "attn")).squares.keys()


def in_another_thread(work: Callable[[], Any]) -> Any:
    """Returns what the work returns, done in a thread of its own."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join()
    [result] = done
    return result


@pytest.mark.parametrize("family", ["gpt2", "nanochat", "t5"])
def test_a_pass_of_another_thread_is_neither_recorded_nor_changed(family: str) -> None:
    model = tiny_model(family)
    plain, expected = logits(model, seed=5), record(model, plan(model))
    others: list[Tensor] = []

    class Interrupted(Kept):
        def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
            super().rows(spec, layer, rows)
            if len(self.rows_of) % 10 == 1:
                others.append(in_another_thread(lambda: logits(model, seed=5)))

    kept = Interrupted()
    inputs, spans = batch(model)
    with Recorder(model, plan(model), kept) as recorder:
        others.append(in_another_thread(lambda: logits(model, seed=5)))
        recorder.run(spans, **inputs)
    assert len(others) > 5
    assert all(torch.equal(other, plain) for other in others)
    assert kept.rows_of.keys() == expected.rows_of.keys()
    assert all(torch.equal(rows, expected.rows_of[place]) for place, rows in kept.rows_of.items())
    assert all(torch.equal(square, expected.squares[place]) for place, square in kept.squares.items())


def test_two_threads_record_two_models() -> None:
    models = {family: tiny_model(family) for family in ("gpt2", "bert")}
    expected = {family: record(model, plan(model)) for family, model in models.items()}
    together: dict[str, list[Kept]] = {family: [] for family in models}
    start = threading.Barrier(2)

    def work(family: str) -> None:
        start.wait()
        for _ in range(5):
            together[family].append(record(models[family], plan(models[family])))

    threads = [threading.Thread(target=work, args=(family,)) for family in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for family, runs in together.items():
        assert len(runs) == 5
        for kept in runs:
            same: Mapping[Any, Tensor] = expected[family].rows_of
            assert kept.rows_of.keys() == same.keys()
            assert all(torch.equal(rows, same[place]) for place, rows in kept.rows_of.items())
            assert all(torch.equal(square, expected[family].squares[place]) for place, square in kept.squares.items())


def test_attention_that_bypasses_the_attention_function_is_refused_before_anything_runs() -> None:
    model = tiny_model("gpt2", reorder_and_upcast_attn=True)
    before = state_of(model)
    with pytest.raises(Unsupported, match="bypasses the attention function"):
        record(model, plan(model, "attn"))
    assert state_of(model) == before
    assert record(model, plan(model, "resid")).rows_of.keys()
