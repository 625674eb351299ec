"""From the device to the store: bounded, asynchronous, in order.

1. `open_shard` gives a `ShardSink`, which casts what a recorder sees to the stored dtype and packs its true
   tokens into the shard's memory. On the CPU that is one pass over the data, done while it is still in cache;
   on an accelerator the packed half-size copy travels to pinned memory asynchronously and is placed by a thread.
2. `close_shard` hands the full shard to a thread that compresses and writes it while the next batches run. A model
   on the CPU needs all cores itself: there `close_shard` compresses before it returns, and the thread only writes.
3. At most one shard is being written while another is filled, and at most two batches are in flight from the
   device. An error in either thread is raised by the next call, with its cause.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from traceformer.capture.attention import Span
from traceformer.capture.passes import Spans
from traceformer.errors import NumericError
from traceformer.sites import ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.writer import RunWriter

__all__ = ["Pipeline", "ShardSink"]

_BATCHES_IN_FLIGHT = 2


class ShardSink:
    """A recorder's sink that fills one shard's memory; `begin` says which examples the next batch holds, `end` ends it.

    Attributes:
        buffer: The shard's memory.
        from_device: Whether what was seen came from an accelerator.
    """

    def __init__(self, buffer: ShardBuffer, layout: RunLayout, end: Callable[["ShardSink"], None]) -> None:
        self.buffer = buffer
        self._end = end
        self._square_root = layout.attn_codec == "sqrt8"
        self._targets = {key: _as_tensor(array, layout.dtype) for key, array in buffer.arrays.items()}
        self._slots: Sequence[int] = ()
        self._spans: Spans = {}
        self._arriving: list[tuple[Tensor, Tensor]] = []
        self._filled: set[int] = set()
        self.from_device = False

    def begin(self, slots: Sequence[int], spans: Mapping[Stack, Sequence[Span]]) -> None:
        """Says which example of the shard each row of the next batch is, and where its true tokens are."""
        self._slots, self._spans = slots, spans
        self._filled.update(slots)

    def end(self) -> None:
        """Says that the batch has been seen."""
        self._end(self)

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        stack = spec.key.token_stack
        target = self._targets[spec.key]
        if spec.site.is_per_example:
            for row, slot in zip(rows, self._slots, strict=True):
                self._place(target[slot] if layer is None else target[slot, spec.layers.index(layer)], row)
            return
        target = target if layer is None else target[spec.layers.index(layer)]
        for row, slot, span in zip(rows, self._slots, self._spans[stack], strict=True):
            first = self.buffer.offsets[stack][slot]
            part = row[..., span.start : span.stop, :]
            self._place(target[..., first : first + span.length, :], part)

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        target = self._targets[spec.key][self._slots[example], spec.layers.index(layer)]
        if target.dtype == torch.uint8:
            if not torch.isfinite(block).all():  # a byte could not show it any more
                raise NumericError(f"layer {layer} of {spec.key} is NaN", why="the model itself produced it")
            block = block.sqrt().mul_(255).round_()
        self._place(target[:, queries.start : queries.stop, keys.start : keys.stop], block)

    def _place(self, target: Tensor, source: Tensor) -> None:
        if source.device.type == "cpu":
            target.copy_(source)
            return
        self.from_device = True
        packed = source.to(target.dtype).contiguous()
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=packed.is_cuda)
        host.copy_(packed, non_blocking=packed.is_cuda)
        self._arriving.append((target, host))

    def check_filled(self) -> None:
        """Makes sure that every example with tokens was in a batch: memory is used again, and would show another's."""
        lengths = self.buffer.lengths.values()
        missing = {slot for own in lengths for slot in range(len(own)) if own[slot]} - self._filled
        assert not missing, f"examples {sorted(missing)} of a shard were never run"

    def take_arriving(self) -> list[tuple[Tensor, Tensor]]:
        """Returns, once, the copies under way from the device: (place in the shard, pinned memory)."""
        arriving, self._arriving = self._arriving, []
        return arriving


def _as_tensor(array: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """A tensor over the same memory; bfloat16 is kept as its bits in uint16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" and array.dtype == np.uint16 else tensor


class Pipeline:
    """Joins a recorder to a run's writer. Leaving the `with` block waits for what was handed over, also on an error."""

    def __init__(self, writer: RunWriter | MemoryWriter) -> None:
        self._writer = writer
        self._placer = ThreadPoolExecutor(1, thread_name_prefix="place")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._placing: deque[Future[None]] = deque()
        self._committing: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._placer.shutdown()
        self._committer.shutdown()
        if kind is None:
            self._raise_errors()

    def open_shard(self, lengths: Mapping[Stack, Sequence[int]]) -> ShardSink:
        """Returns the sink of the next shard, once there is memory for it."""
        while len(self._committing) > 1:
            self._committing.popleft().result()
        self._raise_errors()
        buffer = self._writer.buffer()
        buffer.begin(lengths)
        return ShardSink(buffer, self._writer.layout, self._end_batch)

    def _end_batch(self, sink: ShardSink) -> None:
        """Lets a batch's copies from the device finish beside the next batch."""
        self._raise_errors()
        arriving = sink.take_arriving()
        if not arriving:
            return
        ready = torch.cuda.Event() if torch.cuda.is_available() else None
        if ready is not None:
            ready.record()
        self._placing.append(self._placer.submit(_place_all, ready, arriving))
        while len(self._placing) > _BATCHES_IN_FLIGHT:
            self._placing.popleft().result()

    def close_shard(self, shard: int, sink: ShardSink, tokens: pa.Table) -> None:
        """Hands a full shard over to be written and committed."""
        sink.check_filled()
        if not sink.from_device:
            sink.buffer.compress()
        placing = list(self._placing)
        self._placing.clear()

        def commit() -> None:
            for future in placing:
                future.result()
            self._writer.commit(shard, sink.buffer, tokens)

        self._committing.append(self._committer.submit(commit))

    def _raise_errors(self) -> None:
        for future in (*self._placing, *self._committing):
            if future.done():
                future.result()


def _place_all(ready: "torch.cuda.Event | None", arriving: Sequence[tuple[Tensor, Tensor]]) -> None:
    if ready is not None:
        ready.synchronize()
    for target, host in arriving:
        target.copy_(host)
