"""From the device to the store: bounded, asynchronous, in order.

1. `open_shard` gives a `ShardSink`, which casts what a recorder sees to the stored dtype and packs its true
   tokens into the shard's memory; matrices are compressed at once. On the CPU that is done while the data is still in
   cache. An accelerator casts, packs triangles and looks for inf and NaN itself; what it has made of a batch then
   crosses over beside the next one (`crossing`), and is placed and compressed by threads.
   Rows that the run keeps for two arrays are placed when they are first seen. If they are seen again, at another spot
   of the model, they are compared with what was placed, bit for bit as it is stored.
2. `close_shard` hands the full shard to a thread that writes it while the next batches run, and compresses rows where
   that was asked for. A model on the CPU needs all cores itself: there `close_shard` does it before it returns.
3. At most one shard is being written while another is filled, and what is in flight from a device has a fixed size. An
   error in any thread is raised by the next call, with its cause.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from traceformer.capture.compiled import ExamplePatterns, cast, is_made
from traceformer.capture.crossing import Crossing, Way, cores, in_parts, looks_ahead, packed
from traceformer.capture.hosts import host_here, warn_of_another_host
from traceformer.capture.scores import Span
from traceformer.capture.spots import seen_twice
from traceformer.core.library import core
from traceformer.errors import NumericError, Unsupported
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.aliases import Rows
from traceformer.store.buffer import ShardBuffer
from traceformer.store.layout import RunLayout
from traceformer.store.made import Batch, Together, one_by_one
from traceformer.store.matrices import refuse_ahead
from traceformer.store.names import Stored
from traceformer.store.place import Writer

__all__ = ["Pipeline", "ShardSink"]

_DTYPES: Mapping[Stored, torch.dtype] = {
    "float16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "sqrt8": torch.uint8,
}


class _Stretch(NamedTuple):
    """Rows of a batch whose true tokens lie one behind the other in the shard, too: `n_rows` from `first` on.

    `span` is where each of them has its true tokens, `slot` where the first one's go.
    """

    first: int
    n_rows: int
    span: Span
    slot: int

    def of(self, rows: Tensor) -> Tensor:
        """Returns their part of a batch, (row[, head], token, width)."""
        return rows.narrow(0, self.first, self.n_rows).narrow(-2, self.span.start, self.span.length)

    def within(self, target: Tensor) -> Tensor:
        """Returns their part of a layer of the shard's memory, ([head,] slot, width), with the same axes."""
        part = target.narrow(-2, self.slot, self.n_rows * self.span.length)
        apart = part.view(*part.shape[:-2], self.n_rows, self.span.length, part.shape[-1])
        return apart.movedim(-3, 0)


class ShardSink:
    """A recorder's sink that fills one shard's memory; `begin` says which examples the next batch holds, `end` ends it.

    Attributes:
        buffer: The shard's memory.
        from_device: Whether what was seen came from an accelerator.
    """

    def __init__(
        self,
        buffer: ShardBuffer,
        layout: RunLayout,
        end: Callable[["ShardSink"], None],
        together: Together = one_by_one,
        way: Way | None = None,
    ) -> None:
        self.buffer = buffer
        self._layout, self._end, self._together, self._way = layout, end, together, way
        self._triangles = {spec.key for spec in layout.kept if layout.is_triangle(spec)}
        stored = {spec.key: layout.held(spec) for spec in layout.kept}
        self._targets = {key: _as_tensor(array, stored[key]) for key, array in buffer.arrays.items()}
        self._layers = {
            Rows(spec.key, layer): self._targets[spec.key].select(int(spec.site.is_per_example), index)
            for spec in layout.kept
            if not spec.site.is_matrix
            for index, layer in enumerate(spec.layers)
        }
        self._kept = layout.aliases
        self._twice = seen_twice(layout.aliases)
        self._at_one_spot = layout.aliases.keys() - self._twice.values()
        self._seen_once: dict[Rows, list[Tensor]] = {}
        self._dtypes = {spec.key: _DTYPES[layout.stored(spec)] for spec in layout.arrays if spec.site.is_matrix}
        self._block = torch.empty(0)
        self._slots: Sequence[int] = ()
        self._stretches: Mapping[Stack, Sequence[_Stretch]] = {}
        self._filled: set[int] = set()
        self.from_device = False

    def begin(self, slots: Sequence[int], spans: Mapping[Stack, Sequence[Span]]) -> None:
        """Says which example of the shard each row of the next batch is, and where its true tokens are."""
        self._slots = slots
        self._stretches = {
            stack: _stretches([int(offsets[slot]) for slot in slots], spans[stack])
            for stack, offsets in self.buffer.offsets.items()
        }
        self._filled.update(slots)

    def end(self) -> None:
        """Says that the batch has been seen."""
        self._end(self)

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        seen = Rows(spec.key, layer)
        if seen in self._at_one_spot:  # with what is kept: the same tensor
            return
        kept = self._kept.get(seen, seen)
        target = self._targets[kept.key] if kept.layer is None else self._layers[kept]
        if spec.site.is_per_example:
            places = [(target[slot], row) for row, slot in zip(rows, self._slots, strict=True)]
        else:
            stretches = self._stretches[spec.key.token_stack]
            places = [(stretch.within(target), stretch.of(rows)) for stretch in stretches]
        before = self._seen_once.pop(kept, None)
        if before is not None:
            for placed, (_, source) in zip(before, places, strict=True):
                self._compare(kept, placed, source)
            return
        is_seen_again = kept in self._twice
        placed = [self._place(kept.key, target, source, is_seen_again) for target, source in places]
        if is_seen_again:
            self._seen_once[kept] = placed

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        if self._crosses(block):
            self.squares(spec, layer, range(example, example + 1), queries, keys, block[None])
            return
        dtype = self._dtypes[spec.key]
        if dtype == torch.uint8:
            _refuse_nan_if(spec, layer, not torch.isfinite(block).all())  # a byte could not show it any more
            block = block.sqrt().mul_(255).round_()
        assert keys.start == 0, "keys count from an example's first one"
        take = partial(self.buffer.matrices[spec.key].take, self._slots[example], spec.layers.index(layer))
        take(queries.start, _as_array(self._cast(block, dtype)))

    def squares_at_once(self, like: Tensor) -> int:
        return self._crossing.capacity if self._crosses(like) else 0

    def squares(self, spec: ArraySpec, layer: int, examples: range, queries: Span, keys: Span, blocks: Tensor) -> None:
        """Has rows of squares cross over as they are stored, packed if that is all that is stored of them."""
        assert keys.start == 0, "keys count from an example's first one"
        crossing, matrices, number = self._crossing, self.buffer.matrices[spec.key], spec.layers.index(layer)
        dtype, slots, pool = self._dtypes[spec.key], [self._slots[example] for example in examples], self._way_over.pool
        if dtype == torch.uint8:
            crossing.ask(~torch.isfinite(blocks).all(), partial(_refuse_nan_if, spec, layer))
            blocks = blocks.sqrt().mul_(255).round_()
        blocks, first, is_triangle = blocks.to(dtype), queries.start, spec.key in self._triangles
        if is_triangle:
            crossing.ask(looks_ahead(blocks, first), lambda ahead: refuse_ahead(spec, layer) if ahead else None)

        def take(host: Tensor, is_finite: bool, first: int, n_rows: int) -> list[Future[Any]]:
            underway: list[Future[Any]] = []
            for slot, block in zip(slots, _as_array(host), strict=True):
                if is_triangle:
                    underway += matrices.take_cells(slot, number, first, n_rows, block, is_finite, pool)
                else:
                    matrices.take(slot, number, first, block)
            return underway

        at_once = max(1, crossing.capacity // (blocks[..., :1, :].numel() * blocks.itemsize))
        for part in blocks.split(at_once, dim=-2):
            n_rows = part.shape[-2]
            own = packed(part, first) if is_triangle else part
            crossing.put(own, dtype, partial(take, first=first, n_rows=n_rows))
            first += n_rows

    def makes_patterns(self, spec: ArraySpec, *, ahead: bool) -> bool:
        return not self.from_device and is_made(self._layout, spec) and not (ahead and self._layout.is_triangle(spec))

    def patterns(self, spec: ArraySpec, layer: int, made: Sequence[ExamplePatterns]) -> None:
        there = core()
        assert there is not None
        if made:
            slots, calls = [self._slots[own.example] for own in made], [own.call for own in made]
            batch = Batch(there, made[0].heads, slots, calls, torch.get_num_threads(), self._together)
            self.buffer.matrices[spec.key].make(spec.layers.index(layer), batch)

    def _cast(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a block of a matrix in the dtype that is stored, in memory that is used again."""
        if self._block.dtype != dtype or self._block.numel() < block.numel():
            self._block = torch.empty(block.numel(), dtype=dtype)
        return self._block[: block.numel()].view(block.shape).copy_(block)

    def _place(self, key: ArrayKey, target: Tensor, source: Tensor, is_seen_again: bool) -> Tensor:
        """Has the numbers stored; returns them as they are, if they are seen again: in the shard's memory, or there."""
        if not self._crosses(source):
            if cast(target, source):
                self.buffer.found_finite(key, source.numel())
                return target
            return target.copy_(source)

        def place(target: Tensor, host: Tensor, is_finite: bool) -> None:
            target.copy_(host)
            if is_finite:
                self.buffer.found_finite(key, host.numel())

        source = source.to(target.dtype, copy=True) if is_seen_again else source
        for into, part in in_parts((target, source), self._crossing.capacity // target.itemsize):
            self._crossing.put(part, target.dtype, partial(place, into))
        return source

    def _compare(self, kept: Rows, placed: Tensor, source: Tensor) -> None:
        """Has the recording stop if what is seen now would not be stored as what was placed."""
        again = source.to(placed)
        if _is_here(placed):
            if not torch.equal(_bits(placed), _bits(again)):
                _refuse(kept, self._twice[kept])
            return
        differs = (_bits(placed) != _bits(again)).any()
        self._crossing.ask(differs, lambda yes: _refuse(kept, self._twice[kept]) if yes else None)

    def _crosses(self, tensor: Tensor) -> bool:
        """Whether a tensor's numbers come the way of a device's; then all of the shard's do that come after."""
        self.from_device = self.from_device or not _is_here(tensor)
        return self.from_device

    @property
    def _way_over(self) -> Way:
        if self._way is None:
            self._way = Way()
        return self._way

    @property
    def _crossing(self) -> Crossing:
        return self._way_over.crossing

    def check_filled(self) -> None:
        """Makes sure that every example with tokens was in a batch: memory is used again, and would show another's."""
        lengths = self.buffer.lengths.values()
        missing = {slot for own in lengths for slot in range(len(own)) if own[slot]} - self._filled
        assert not missing, f"examples {sorted(missing)} of a shard were never run"


def _stretches(slots: Sequence[int], spans: Sequence[Span]) -> list[_Stretch]:
    """Returns the stretches of a batch whose rows' true tokens are at these spans, and go to these slots on."""
    found: list[_Stretch] = []
    for row, (slot, span) in enumerate(zip(slots, spans, strict=True)):
        last = found[-1] if found else None
        if last is not None and last.span == span and last.slot + last.n_rows * span.length == slot:
            found[-1] = last._replace(n_rows=last.n_rows + 1)
        else:
            found.append(_Stretch(row, 1, span, slot))
    return found


def _as_tensor(array: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """A tensor over the same memory; bfloat16 is kept as its bits in uint16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" and array.dtype == np.uint16 else tensor


def _is_here(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _as_array(block: Tensor) -> np.ndarray[Any, Any]:
    return (block.view(torch.uint16) if block.dtype == torch.bfloat16 else block).numpy()


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view({2: torch.int16, 4: torch.int32}[numbers.itemsize])


def _refuse_nan_if(spec: ArraySpec, layer: int, is_nan: bool) -> None:
    if is_nan:
        raise NumericError(f"layer {layer} of {spec.key} is NaN", why="the model itself produced it")


def _refuse(kept: Rows, alias: Rows) -> NoReturn:
    raise Unsupported(
        f"{alias} is not {kept} here, bit for bit",
        why="before the first batch it was, so that one of them was to be stored for both: something between these "
        "blocks changes it in some texts only",
        hint="`keep_duplicates=True` stores both",
    )


class Pipeline:
    """Joins a recorder to a run's writer. Leaving the `with` block waits for what was handed over, also on an error."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._way = Way()
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._makers = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="patterns")
        self._committing: deque[Future[None]] = deque()
        self._host = host_here()

    def __enter__(self) -> Self:
        warn_of_another_host(self._writer.last_host, self._host)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._way.close()
        self._committer.shutdown()
        self._makers.shutdown()
        if kind is None:
            self._raise_errors()

    def open_shard(self, lengths: Mapping[Stack, Sequence[int]]) -> ShardSink:
        """Returns the sink of the next shard, once there is memory for it."""
        while len(self._committing) > 1:
            self._committing.popleft().result()
        self._raise_errors()
        buffer = self._writer.buffer()
        buffer.begin(lengths)
        return ShardSink(buffer, self._writer.layout, self._end_batch, self._all_at_once, self._way)

    def _all_at_once(self, works: Sequence[Callable[[], None]]) -> None:
        """Does several things while the model waits, one of them on its own thread."""
        others = [self._makers.submit(work) for work in works[1:]]
        try:
            works[0]()
        finally:
            wait(others)
        for other in others:
            other.result()

    def _end_batch(self, sink: ShardSink) -> None:
        """Lets what a device has made of a batch cross over beside the next batch."""
        self._way.crossing.send()
        self._raise_errors()

    def close_shard(
        self, shard: int, sink: ShardSink, tokens: pa.Table, source: Mapping[str, Any] | None = None
    ) -> None:
        """Hands a full shard over to be written and committed; of a stream with where its texts came from."""
        sink.check_filled()
        if not sink.from_device:
            sink.buffer.compress()
        self._way.crossing.send()
        underway = self._way.crossing.underway()

        def commit() -> None:
            for future in underway:
                future.result()
            if sink.from_device:
                sink.buffer.cores = cores()
            self._writer.commit(shard, sink.buffer, tokens, self._host, source)

        self._committing.append(self._committer.submit(commit))

    def settle(self) -> None:
        """Waits until all shards that were handed over are committed.

        Raises:
            NumericError, OutOfSpace: as `RunWriter.commit` does.
        """
        while self._committing:
            self._committing.popleft().result()

    def _raise_errors(self) -> None:
        self._way.crossing.raise_errors()
        for future in self._committing:
            if future.done():
                future.result()
