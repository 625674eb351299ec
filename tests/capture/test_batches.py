"""Blocks handed over while a model runs, against the model's own eager attentions."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from traceformer.capture.batches import SquareSink, run_batches
from traceformer.capture.encoding import Encoded
from traceformer.capture.packing import Batching, batches_by_length
from traceformer.capture.plan import plan_arrays
from traceformer.capture.scores import Span
from traceformer.models.load import load_model
from traceformer.sites import ArrayKey, ArraySpec, Selection


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_blocks_put_together_are_the_patterns_of_the_model(family: str, tiny_folder: Callable[..., Path]) -> None:
    loaded = load_model(str(tiny_folder(family)), attn_implementation="eager", device="cpu")
    random = np.random.default_rng(0)
    rows: list[Encoded] = []
    for length in (5, 0, 9, 3):
        ids: dict[Any, list[int]] = {"dec" if family == "gpt2" else "enc": random.integers(3, 99, length).tolist()}
        if family == "t5":
            ids["dec"] = random.integers(3, 99, length and 12 - length).tolist()
        rows.append(Encoded(ids, {}, None))
    plan = plan_arrays(Selection(("attn",)), loaded.model)
    seen: defaultdict[tuple[ArrayKey, int], dict[int, torch.Tensor]] = defaultdict(dict)
    ran: list[list[int]] = []

    def take(spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: torch.Tensor) -> None:
        lengths = (len(rows[example].ids[stack]) for stack in (spec.key.stack, spec.key.key_stack))
        whole = seen[spec.key, example].setdefault(layer, torch.zeros(len(spec.heads), *lengths))
        whole[:, queries.start : queries.stop, keys.start : keys.stop] = block

    run_batches(
        loaded,
        plan,
        rows,
        batches_by_length([row.lengths for row in rows], Batching(2)),
        SquareSink(take),
        lambda batch: ran.append([*batch]),
    )
    assert ran == [[3, 0], [2]]  # shortest first; the row without tokens is passed over
    for example in (0, 2, 3):
        inputs = {"input_ids": rows[example].ids.get("enc", rows[example].ids.get("dec"))}
        if family == "t5":
            inputs["decoder_input_ids"] = rows[example].ids["dec"]
        with torch.inference_mode():
            output = loaded.model(**{name: torch.tensor([ids]) for name, ids in inputs.items()}, output_attentions=True)
        own = {
            "enc.self": output.get("encoder_attentions", output.get("attentions")),
            "dec.self": output.get("decoder_attentions", output.get("attentions")),
            "dec.cross": output.get("cross_attentions"),
        }
        for spec in plan.arrays:
            for layer in spec.layers:
                expected = own[f"{spec.key.stack}.{spec.key.attention}"][layer][0]
                torch.testing.assert_close(seen[spec.key, example][layer], expected, atol=3e-6, rtol=0)
