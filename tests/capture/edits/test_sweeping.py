"""Sweeps against a plain loop: hooks of torch on whole passes, one cell at a time."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import traceformer as tf
from traceformer.capture.edits import sweeping
from traceformer.capture.edits.started import WAYS, Passes
from traceformer.capture.edits.sweeping import batches_of
from traceformer.models.tiny import tiny_model


@pytest.fixture(autouse=True)
def short_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of tests are short, and would be read from their first token on in one batch."""
    monkeypatch.setattr(sweeping, "_PER_PASS", 0)


IDS = np.random.default_rng(0).integers(5, 90, size=(2, 7)).tolist()


def difference(logits: Tensor) -> float:
    return float(logits[0, -1, 5] - logits[0, -1, 7])


def plain_patches(model: Any, blocks: Any, clean: list[int], corrupt: list[int]) -> np.ndarray:
    """What a user would write: (layer, position), of what enters each block."""
    entering: list[Tensor] = []
    texts = [torch.tensor([ids]) for ids in (clean, corrupt)]
    with torch.inference_mode():
        hooks = [block.register_forward_pre_hook(lambda _, args: entering.append(args[0].clone())) for block in blocks]
        best = difference(model(texts[0]).logits)
        for hook in hooks:
            hook.remove()
        worst = difference(model(texts[1]).logits)
        metric = np.zeros((len(blocks), len(clean)))
        for layer, position in np.ndindex(metric.shape):

            def put(_: Any, args: Any, layer: int = layer, position: int = position) -> Any:
                rows = args[0].clone()
                rows[:, position] = entering[layer][:, position]
                return (rows, *args[1:])

            hook = blocks[layer].register_forward_pre_hook(put)
            metric[layer, position] = difference(model(texts[1]).logits)
            hook.remove()
    return (metric - worst) / (best - worst)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patching_the_stream_equals_a_loop_of_whole_passes(family: str) -> None:
    model = tiny_model(family)
    blocks = model.base_model.h if family == "gpt2" else model.base_model.layers
    found = tf.patch(tf.load_model(model), *IDS, answer=5, wrong=7)
    assert found.about.way == WAYS["positions"]
    np.testing.assert_allclose(found.values, plain_patches(model, blocks, *IDS), atol=1e-5)
    # A model that is left as it was has neither hooks nor forwards of ours.
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


SITES = {
    "resid_pre": ("layer", "position"),
    "resid_mid": ("layer", "position"),
    "attn_out": ("layer", "position"),
    "z": ("layer", "head", "position"),
    "q": ("layer", "head"),
    "k": ("head", "position"),
    "v": ("layer", "head"),
    "attn_pattern": ("layer", "query", "key"),
}


@pytest.mark.parametrize("site", SITES)
def test_every_way_gives_the_same(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tf.load_model(tiny_model("gpt2"))
    fast = tf.patch(model, *IDS, answer=5, wrong=7, site=site, over=SITES[site])
    assert fast.about.way == WAYS["positions"]
    monkeypatch.setattr(Passes, "untouched", whole_only(Passes.untouched))
    slow = tf.patch(model, *IDS, answer=5, wrong=7, site=site, over=SITES[site])
    assert slow.about.way == WAYS["whole"]
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-5)
    assert np.nanmax(np.abs(fast.values)) > 0.01


def whole_only(untouched: Any) -> Any:
    return lambda self, ids, at, **_: untouched(self, ids, at, way="whole")


@pytest.mark.parametrize(
    ("family", "way"), [("bert", "layers"), ("t5", "whole"), ("whisper", "layers"), ("gemma3_text", "positions")]
)
def test_a_family_is_patched_in_the_way_that_is_right_for_it(family: str, way: Any) -> None:
    model = tf.load_model(tiny_model(family, **({"sliding_window": 64} if way == "positions" else {})))
    found = tf.patch(model, *IDS, answer=5, wrong=7)
    assert found.about.way == WAYS[way]
    assert found.about.compared == (0 if way == "whole" else 3)
    assert found.about.error < 1e-4


def test_a_window_that_is_shorter_than_the_text_has_no_prefix() -> None:
    model = tf.load_model(tiny_model("gemma3_text", sliding_window=4))
    assert tf.patch(model, *IDS, answer=5, wrong=7).about.way == WAYS["layers"]


def test_a_way_that_does_not_give_the_same_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tf.load_model(tiny_model("gpt2"))
    right = tf.patch(model, *IDS, answer=5, wrong=7)
    filled = Passes._filled

    def off(self: Passes, *args: Any) -> Any:
        cache = filled(self, *args)
        cache.layers[-1].values = cache.layers[-1].values + 0.1
        return cache

    monkeypatch.setattr(Passes, "_filled", off)
    found = tf.patch(model, *IDS, answer=5, wrong=7)
    assert found.about.way == WAYS["layers"]
    np.testing.assert_allclose(found.values, right.values, atol=1e-5)


def cost(parts: Sequence[range], firsts: Sequence[int], length: int) -> int:
    return sum(len(part) * (length - firsts[part.start]) + sweeping._PER_PASS for part in parts)


def cuts(count: int) -> Any:
    for where in product((False, True), repeat=count - 1):
        ends = [i + 1 for i, cut in enumerate(where) if cut] + [count]
        yield [range(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("per_pass", [0, 10])
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_rows_are_cut_into_batches_where_that_costs_least(per_pass: int, firsts: list[int], batch_size: int) -> None:
    sweeping._PER_PASS = per_pass  # the fixture undoes it
    firsts, length = sorted(firsts), 31
    found = batches_of(firsts, length, batch_size)

    def fits(part: range) -> bool:
        tokens = len(part) * (length - firsts[part.start])
        return len(part) == 1 or (tokens <= batch_size * length and len(part) <= 4 * batch_size)

    allowed = [parts for parts in cuts(len(firsts)) if all(map(fits, parts))]
    assert found in allowed
    assert cost(found, firsts, length) == min(cost(parts, firsts, length) for parts in allowed)
