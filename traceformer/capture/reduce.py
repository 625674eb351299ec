"""Patterns that are reduced while the model runs, and never stored."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from traceformer.capture.attention import Span
from traceformer.capture.recorder import Recorder
from traceformer.capture.tokenizing import BatchInputs, Encoded, batches_by_length
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArraySpec

__all__ = ["TakeSquare", "reduce_squares"]


class TakeSquare(Protocol):
    """What is handed each block of a matrix: see `Sink.square`; `example` is a row's number. Keep copies, not views."""

    def __call__(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None: ...


def reduce_squares(
    loaded: LoadedModel,
    arrays: Sequence[ArraySpec],
    rows: Sequence[Encoded],
    take: TakeSquare,
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> None:
    """Runs the model over all rows, shortest first, and hands over their scores or patterns block by block.

    The blocks of one example and layer come in order. What is in memory is one batch's forward pass and one block.

    Args:
        loaded: The model.
        arrays: The matrices to hand over; layers and heads are the model's own numbers.
        rows: The examples' tokens; those without any are passed over.
        take: Is handed the blocks.
        batch_size: Rows per forward pass.
        progress: Told after every batch how many of how many rows are done.

    Raises:
        Unsupported: the model never shows what is asked for.
    """
    inputs_of, done = BatchInputs(loaded), 0
    sink = _SquareSink(take)
    with Recorder(loaded.model, arrays, sink) as recorder:
        for batch in batches_by_length(rows, batch_size):
            sink.examples = batch
            inputs, spans = inputs_of.to_run([rows[index] for index in batch])
            recorder.run(spans, **inputs)
            done += len(batch)
            progress(done, len(rows))


class _SquareSink:
    """A recorder's sink for matrices; `examples` are the rows of the batch at hand."""

    def __init__(self, take: TakeSquare) -> None:
        self._take = take
        self.examples: Sequence[int] = ()

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        raise AssertionError(f"{spec.key} is no matrix")

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        self._take(spec, layer, self.examples[example], queries, keys, block)
