"""Texts with responses read once more by a model: how likely each response's tokens are, and where they lie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from traceformer.capture.batches import run_batches
from traceformer.capture.derived import Traits
from traceformer.capture.encoding import Encoded
from traceformer.capture.plan import plan_arrays
from traceformer.capture.scores import Span
from traceformer.capture.sinks import Spans
from traceformer.models.loaded import LoadedModel
from traceformer.shapes import Float
from traceformer.sites import ArraySpec, Selection
from traceformer.store.run import Run

__all__ = ["Reread", "reread"]


class Reread(NamedTuple):
    """One response: how many tokens it has, and the means over these of its projection and of its log-probability."""

    n_tokens: int
    projection: float
    log_prob: float


def reread(
    model: LoadedModel, run: Run, site: str, layer: int, vector: Float[np.ndarray, "d"], *, batch_size: int
) -> list[Reread]:
    """Returns what a model makes of the responses of a generation, read in one pass each.

    Args:
        model: The model.
        run: The generation, of a model with the same tokens.
        site, layer: Where rows are projected onto the vector.
        vector: As wide as these rows.
        batch_size: Texts at a time.

    Raises:
        Unsupported: the model has no such site, or predicts no tokens.
        UsageError: the vector is of another width, or no direction.
    """
    traits = Traits({"direction": {layer: vector}}, site)
    # The decoder's alone, whichever site of it.
    selection = Selection.of("logits", layers={"dec": layer}, derived=[traits])
    plan = plan_arrays(selection, model.model, architecture=model.architecture)
    rows = _rows_of(run)
    prompts = [int(n) for n in run.tokens["n_prompt"]]
    sink = _Means(rows, prompts)
    batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    run_batches(model, plan, rows, batches, sink, prompts=prompts)
    return [
        Reread(row.length("dec") - n_prompt, sink.projection[number], sink.log_prob[number])
        for number, (row, n_prompt) in enumerate(zip(rows, prompts, strict=True))
    ]


def _rows_of(run: Run) -> list[Encoded]:
    """The tokens of a generation's texts."""
    if run.arch == "dec":
        return [Encoded({"dec": list(map(int, ids))}, {}, None) for ids in run.tokens["input_ids"]]
    both = zip(run.tokens["input_ids"], run.tokens["dec_input_ids"], strict=True)
    return [Encoded({"enc": list(map(int, ids)), "dec": list(map(int, own))}, {}, None) for ids, own in both]


class _Means:
    """Takes logits and projections of batches, and keeps each response's means."""

    def __init__(self, rows: Sequence[Encoded], prompts: Sequence[int]) -> None:
        self.projection = [float("nan")] * len(rows)
        self.log_prob = [float("nan")] * len(rows)
        self._rows, self._prompts = rows, prompts
        self._batch: Sequence[int] = ()
        self._spans: Sequence[Span] = ()

    def begin(self, rows: Sequence[int], spans: Spans) -> None:
        self._batch, self._spans = rows, spans["dec"]

    def end(self) -> None:
        pass

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        raise AssertionError(f"{spec.key} has no rows")

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        """Takes (batch, position, width), padding included."""
        for number, span, own in zip(self._batch, self._spans, rows, strict=True):
            first = span.start + self._prompts[number]
            if spec.key.site == "logits":
                ids = torch.tensor(self._rows[number].ids["dec"][self._prompts[number] :], device=own.device)
                # What is predicted at one position is the token at the next.
                predicted = own[first - 1 : span.stop - 1].float().log_softmax(-1)
                self.log_prob[number] = predicted.gather(-1, ids[:, None]).cpu().double().mean().item()
            else:
                self.projection[number] = own[first : span.stop, 0].cpu().double().mean().item()
