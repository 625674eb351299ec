"""From tensors to the shard's memory and on to the store: what is cast, packed, bounded and reported."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from traceformer.capture.pipeline import Pipeline, ShardSink
from traceformer.capture.scores import Span
from traceformer.errors import NumericError, OutOfSpace, Unsupported
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.hosts import UNKNOWN, Host
from traceformer.store.layout import RunLayout
from traceformer.store.matrices import WholeMatrices
from traceformer.store.writer import RunWriter

RESID = ArraySpec(ArrayKey("dec", None, "resid_post"), (0, 3), (), 4)
QUERY = ArraySpec(ArrayKey("dec", "self", "q"), (3,), (1, 2), 4)
PATTERN = ArraySpec(ArrayKey("dec", "self", "attn_pattern"), (3,), (1, 2))


def layout_of(n_examples: int = 3, shard_examples: int = 4, **changes: Any) -> RunLayout:
    return RunLayout.plan(
        arch="dec",
        arrays=(RESID, QUERY, PATTERN),
        n_examples=n_examples,
        longest={"dec": 5},
        shard_examples=shard_examples,
        **changes,
    )


def sink_for(layout: RunLayout, lengths: Mapping[Stack, Sequence[int]]) -> ShardSink:
    buffer = ShardBuffer(layout, compresses=False)
    buffer.begin(lengths)
    return ShardSink(buffer, layout, lambda _: None)


def kept(sink: ShardSink) -> Sequence[np.ndarray]:
    """Returns what is kept of each example's patterns: (layer, head, query, key), or (layer, head, cell)."""
    matrices = sink.buffer.matrices[PATTERN.key]
    assert isinstance(matrices, WholeMatrices)
    return matrices.kept


def test_rows_are_packed_without_padding_in_the_order_of_the_data_set() -> None:
    sink = sink_for(layout_of(), {"dec": [2, 5, 3]})
    batch = torch.randn(2, 5, 4)
    sink.begin([2, 0], {"dec": [Span(0, 3), Span(1, 3)]})  # the second row is padded on the left, too
    sink.rows(RESID, 3, batch)
    stored = sink.buffer.arrays[RESID.key]
    np.testing.assert_array_equal(stored[1, 7:10], batch[0, :3].half().numpy())
    np.testing.assert_array_equal(stored[1, 0:2], batch[1, 1:3].half().numpy())
    assert not stored[0].any()
    assert not stored[1, 2:7].any()


def test_heads_come_before_positions() -> None:
    sink = sink_for(layout_of(), {"dec": [2, 5, 3]})
    batch = torch.randn(1, 2, 5, 4)
    sink.begin([1], {"dec": [Span(0, 5)]})
    sink.rows(QUERY, 3, batch)
    np.testing.assert_array_equal(sink.buffer.arrays[QUERY.key][0, :, 2:7], batch[0].half().numpy())


@pytest.mark.parametrize("slots", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]])
@pytest.mark.parametrize("start", [0, 1])
def test_rows_of_a_batch_that_follow_each_other_in_the_shard_land_like_any_others(slots: list[int], start: int) -> None:
    lengths = [4, 4, 3]
    sink = sink_for(layout_of(), {"dec": lengths})
    rows, heads = torch.randn(3, 5, 4), torch.randn(3, 5, 12).unflatten(-1, (3, 4)).transpose(1, 2)[:, :2]
    sink.begin(slots, {"dec": [Span(start, start + lengths[slot]) for slot in slots]})
    sink.rows(RESID, 0, rows)
    sink.rows(QUERY, 3, heads)
    for row, slot in enumerate(slots):
        here = slice(sum(lengths[:slot]), sum(lengths[: slot + 1]))
        true = slice(start, start + lengths[slot])
        np.testing.assert_array_equal(sink.buffer.arrays[RESID.key][0, here], rows[row, true].half().numpy())
        np.testing.assert_array_equal(sink.buffer.arrays[QUERY.key][0, :, here], heads[row, :, true].half().numpy())


def test_squares_land_at_their_queries_and_keys() -> None:
    sink = sink_for(layout_of(attn_codec="sqrt8"), {"dec": [2, 5, 3]})
    block = torch.rand(2, 2, 4)
    sink.begin([2, 1], {"dec": [Span(0, 3), Span(0, 5)]})
    sink.square(PATTERN, 3, 1, Span(0, 2), Span(0, 2), torch.zeros(2, 2, 2))
    sink.square(PATTERN, 3, 1, Span(2, 4), Span(0, 4), block.clone())
    stored = kept(sink)[1]
    np.testing.assert_array_equal(stored[0, :, 2:4, :4], np.round(255 * np.sqrt(block.numpy())))
    assert stored.sum() == stored[0, :, 2:4, :4].sum()


@pytest.mark.parametrize("blocks", [[5], [1, 4], [2, 1, 2]])
def test_a_triangle_has_what_lies_before_each_token_in_whatever_blocks_it_comes(blocks: list[int]) -> None:
    sink = sink_for(layout_of(triangles=(PATTERN.key,)), {"dec": [2, 5, 3]})
    sink.begin([1], {"dec": [Span(0, 5)]})
    square = torch.rand(2, 5, 5).tril()
    for first, rows in zip(np.cumsum([0, *blocks]).tolist(), blocks, strict=False):
        queries, keys = Span(first, first + rows), Span(0, first + rows)
        sink.square(PATTERN, 3, 0, queries, keys, square[:, first : first + rows, : first + rows])
    cells = square.half().numpy()[:, *np.tril_indices(5)]
    np.testing.assert_array_equal(kept(sink)[1][0], cells)


def test_a_later_token_that_is_looked_at_after_all_stops_the_recording() -> None:
    sink = sink_for(layout_of(triangles=(PATTERN.key,)), {"dec": [2, 5, 3]})
    sink.begin([1], {"dec": [Span(0, 5)]})
    square = torch.rand(2, 5, 5).tril()
    square[1, 2, 4] = 2**-20  # small, but more than nothing in float16
    with pytest.raises(Unsupported, match=r"layer 3 of dec\.self\.attn_pattern looks at a later token"):
        sink.square(PATTERN, 3, 0, Span(0, 5), Span(0, 5), square)


def test_bfloat16_is_kept_as_its_bits() -> None:
    sink = sink_for(layout_of(dtype="bfloat16"), {"dec": [2, 5, 3]})
    batch = torch.tensor([[[1.0, -2.5, 3.14159, 1e30]]])
    sink.begin([0], {"dec": [Span(0, 1)]})
    sink.rows(RESID, 0, batch)
    bits = batch.numpy().view(np.uint32)[0, 0]
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even
    np.testing.assert_array_equal(sink.buffer.arrays[RESID.key][0, 0], rounded)


class FullDisk(RunWriter):
    """A writer whose first commit finds the disk full, once the test lets it look."""

    def __init__(self, layout: RunLayout) -> None:  # not a run on disk
        self.layout = layout
        self.go = threading.Event()

    def buffer(self) -> ShardBuffer:
        return ShardBuffer(self.layout)

    @property
    def last_host(self) -> Host:
        return UNKNOWN

    def commit(self, *_: Any) -> None:
        self.go.wait(30)
        raise OutOfSpace("the disk is full")


def run_through(pipeline: Pipeline) -> ShardSink:
    """A shard of three examples of one token, all of them run."""
    sink = pipeline.open_shard({"dec": [1, 1, 1]})
    sink.begin([0, 1, 2], {"dec": [Span(0, 1)] * 3})
    for example in range(3):
        sink.square(PATTERN, 3, example, Span(0, 1), Span(0, 1), torch.ones(2, 1, 1))
    return sink


def test_an_error_while_writing_stops_the_next_call() -> None:
    layout = layout_of()
    writer = FullDisk(layout)
    calls = 0

    def record_on_and_on() -> None:
        nonlocal calls
        with Pipeline(writer) as pipeline:
            pipeline.close_shard(0, run_through(pipeline), pa.table({}))
            sink = pipeline.open_shard({"dec": [1, 1, 1]})
            writer.go.set()
            while (calls := calls + 1) < 1000:
                sink.end()
                threading.Event().wait(0.01)

    with pytest.raises(OutOfSpace, match="disk is full"):
        record_on_and_on()
    assert calls < 1000


def test_what_a_cpu_saw_is_compressed_before_its_next_pass() -> None:
    layout = layout_of(codec="zstd")
    writer = FullDisk(layout)
    pipeline = Pipeline(writer)
    sink = run_through(pipeline)
    pipeline.close_shard(0, sink, pa.table({}))
    assert list(sink.buffer.compressed) == [layout.path_of(RESID), layout.path_of(QUERY)]
    writer.go.set()
    with pytest.raises(OutOfSpace), pipeline:
        pass


def test_an_error_in_the_last_shard_is_raised_on_leaving() -> None:
    layout = layout_of()
    writer = FullDisk(layout)
    writer.go.set()
    with pytest.raises(OutOfSpace), Pipeline(writer) as pipeline:
        pipeline.close_shard(0, run_through(pipeline), pa.table({}))


def test_a_shard_with_an_example_that_was_never_run_is_not_stored() -> None:
    layout = layout_of()
    with Pipeline(FullDisk(layout)) as pipeline:
        sink = pipeline.open_shard({"dec": [1, 0, 1]})
        sink.begin([0], {"dec": [Span(0, 1)]})
        with pytest.raises(AssertionError, match=r"examples \[2\] of a shard were never run"):
            pipeline.close_shard(0, sink, pa.table({}))


def test_sqrt8_never_turns_nan_into_a_number() -> None:
    sink = sink_for(layout_of(attn_codec="sqrt8"), {"dec": [2, 5, 3]})
    sink.begin([0], {"dec": [Span(0, 2)]})
    with pytest.raises(NumericError, match=r"layer 3 of dec\.self\.attn_pattern is NaN"):
        sink.square(PATTERN, 3, 0, Span(0, 2), Span(0, 2), torch.full((2, 2, 2), torch.nan))


def test_shards_reach_the_store_in_order_with_two_buffers(tmp_path: Path) -> None:
    layout = layout_of(n_examples=8, shard_examples=2)
    with RunWriter.create(tmp_path / "run", layout, {}, digest={"test": 1}) as writer:
        with Pipeline(writer) as pipeline:
            for shard in range(4):
                sink = pipeline.open_shard({"dec": [1, 2]})
                sink.begin([0, 1], {"dec": [Span(0, 1), Span(0, 2)]})
                for spec in (RESID, QUERY):
                    shape = (2, 2, 2, 4) if spec.heads else (2, 2, 4)
                    for layer in spec.layers:
                        sink.rows(spec, layer, torch.full(shape, float(shard)))
                for example, length in enumerate((1, 2)):
                    square = torch.ones(2, length, length)
                    sink.square(PATTERN, 3, example, Span(0, length), Span(0, length), square)
                sink.end()
                ids = pa.table({"example_id": [f"{shard}-0", f"{shard}-1"], "n_tokens": [1, 2]})
                pipeline.close_shard(shard, sink, ids)
        assert writer.pending == []
        assert writer.bytes_written > 0
