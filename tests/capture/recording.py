"""One batch of random ids, recorded: what a recorder hands over, kept, and all of a model that it touches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.families import KEPT, mostly_slow
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.models.dims import ModelDims
from traceformer.sites import ArraySpec, Selection, Stack

LENGTHS: dict[Stack, tuple[int, ...]] = {"enc": (11, 6, 8), "dec": (9, 4, 7)}
SOME = ("gpt2", "llama", "gemma2", "gpt_oss", "bert", "modernbert", "t5", "bart", "bloom")
ONE_OF_A_KIND = (*SOME, "gpt_neox_parallel", "opt_post_norm", "mixtral", "nanochat")
ALL_MOSTLY_SLOW = mostly_slow(KEPT, ONE_OF_A_KIND)
"""Those that are kept proved, for tests that take long: in the fast set one of a kind, in the slow set the others."""


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
