"""Several recorders and several threads: one model is recorded once at a time, and other passes are left alone."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.capture.recording import Kept, batch, logits, plan, record, state_of
from traceformer.capture.recorder import Recorder
from traceformer.errors import UsageError
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArraySpec


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
