"""Batches of rows, and the one loop that runs them: every pass that is not `generate`'s own goes through here.

A sink is told which rows a batch holds before its arrays come (`begin`), and when they all have come (`end`).
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from traceformer.capture.edits.session import examples_are
from traceformer.capture.encoding import Encoded
from traceformer.capture.following import Following
from traceformer.capture.plan import Plan
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.capture.sinks import Sink, Spans
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import padding_sought
from traceformer.models.part import takes_positions
from traceformer.models.placed import input_device
from traceformer.sites import ArraySpec, Stack

__all__ = ["BatchInputs", "BatchSink", "SquareSink", "TakeSquare", "pad", "run_batches"]


class BatchSink(Sink, Protocol):
    """A recorder's sink that is told of each batch."""

    def begin(self, rows: Sequence[int], spans: Spans, /) -> None:
        """Says which row each line of the next pass is, and where its true tokens are."""
        ...

    def end(self) -> None:
        """Says that the pass is over."""
        ...


def run_batches(
    model: LoadedModel,
    plan: Plan,
    rows: Sequence[Encoded],
    batches: Iterable[Sequence[int]],
    sink: BatchSink,
    done: Callable[[Sequence[int]], None] = lambda _: None,
    *,
    numbers: Sequence[int] | None = None,
    prompts: Sequence[int] | None = None,
) -> None:
    """Runs a model over rows, batch by batch, and hands what was planned to a sink.

    Rows of a batch that would change each other's numbers run apart: see `sharing`.

    Args:
        model: The model.
        plan: What to record.
        rows: The tokens.
        batches: The numbers of the rows that share a pass.
        sink: Where arrays go.
        done: Told of the rows of each pass when it is over.
        numbers: The number of each row's text in the whole data set, for edits; rows by themselves for None.
        prompts: The tokens of each row that are a prompt, where rows are prompts and responses, for edits.

    Raises:
        Unsupported: the model never shows what is asked for.
    """
    inputs_of = BatchInputs(model)
    follows = Following(plan.recipes) if plan.recipes else None
    with Recorder(model.model, plan.arrays, sink, plan.architecture, plan.derived, follows) as recorder:
        lengths = [row.lengths for row in rows]
        for part in (part for batch in batches for part in recorder.sharing.parts(batch, lengths)):
            inputs, spans = inputs_of.to_run([rows[index] for index in part])
            sink.begin(part, spans)
            texts = [index if numbers is None else numbers[index] for index in part]
            examples_are(model.model, texts, None if prompts is None else [prompts[index] for index in part])
            recorder.run(spans, **inputs)
            sink.end()
            done(part)


class TakeSquare(Protocol):
    """What is handed each block of a matrix: see `Sink.square`; `example` is a row's number. Keep copies, not views."""

    def __call__(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None: ...


class SquareSink:
    """A sink of matrices that are reduced as they come, and never stored: blocks of an example and layer, in order."""

    def __init__(self, take: TakeSquare) -> None:
        self._take = take
        self._batch: Sequence[int] = ()

    def begin(self, rows: Sequence[int], spans: Spans) -> None:
        self._batch = rows

    def end(self) -> None:
        pass

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        raise AssertionError(f"{spec.key} is no matrix")

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        self._take(spec, layer, self._batch[example], queries, keys, block)


class BatchInputs:
    """Rows as one model's forward takes them: padded, with explicit positions where it is a decoder that takes them."""

    def __init__(self, loaded: LoadedModel) -> None:
        sought = padding_sought(loaded.model)
        self._pad_id = loaded.pad_id if sought is None else sought
        self.device = str(input_device(loaded.model))
        self.accepted = frozenset(inspect.signature(loaded.model.forward).parameters)
        self._with_positions = loaded.dims.arch == "dec" and takes_positions(loaded.model)

    def to_run(self, rows: Sequence[Encoded]) -> tuple[dict[str, Any], dict[Stack, list[Span]]]:
        """Returns the inputs of one pass over whole rows, padded on the right, and where their true tokens are.

        The rows of a processor's batch are given as they came, all of them.
        """
        given = rows[0].given
        if given is not None:
            [stack] = rows[0].ids
            assert len(rows) == len(given.spans)
            uncached = {"use_cache": False} if "use_cache" in self.accepted else {}
            return uncached | given.on(self.device), {stack: list(given.spans)}
        inputs, spans = pad(rows, self._pad_id, self.device, with_positions=self._with_positions)
        return inputs | ({"use_cache": False} if "use_cache" in self.accepted else {}), spans

    def to_continue(self, rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
        """Returns the inputs of `generate`: a decoder's are padded on the left, where new tokens push nothing apart."""
        return pad(rows, self._pad_id, self.device, with_positions=self._with_positions, side="left")


def pad(
    rows: Sequence[Encoded],
    pad_id: int,
    device: str,
    *,
    with_positions: bool,
    side: Literal["left", "right"] = "right",
) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
    """Returns a batch padded on one side, as a model's forward takes it, and where its true tokens are.

    Segment ids go in where rows have them; padding, which is never looked at, is of the first segment.
    `with_positions` adds explicit position ids (decoders), so that padding can never shift a position. Encoders are
    padded on the right whatever `side` says: some count positions from the left without asking the mask.
    """
    inputs: dict[str, Tensor] = {}
    spans: dict[Stack, list[Span]] = {}
    stacks = list(rows[0].ids)
    for stack in stacks:
        longest = max(row.length(stack) for row in rows)
        ids = torch.full((len(rows), longest), pad_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        spans[stack] = []
        for index, row in enumerate(rows):
            start = longest - row.length(stack) if side == "left" and stack == "dec" else 0
            span = Span(start, start + row.length(stack))
            ids[index, span.start : span.stop] = torch.tensor(row.ids[stack])
            mask[index, span.start : span.stop] = 1
            spans[stack].append(span)
        prefix = "decoder_" if stack == "dec" and len(stacks) > 1 else ""
        inputs[f"{prefix}input_ids"] = ids.to(device)
        inputs[f"{prefix}attention_mask"] = mask.to(device)
        if stack == stacks[0] and rows[0].types is not None:
            types = torch.zeros((len(rows), longest), dtype=torch.long)
            for index, (row, span) in enumerate(zip(rows, spans[stack], strict=True)):
                types[index, span.start : span.stop] = torch.tensor(row.types)
            inputs["token_type_ids"] = types.to(device)
        if with_positions:
            starts = torch.tensor([span.start for span in spans[stack]])[:, None]
            inputs["position_ids"] = (torch.arange(longest) - starts).clamp(min=0).to(device)
    return inputs, spans
