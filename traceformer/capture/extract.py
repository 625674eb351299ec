"""Texts to a run: what `traceformer extract` does.

1. `prepare` finds texts and model and plans the run; nothing is written yet. `estimate` stops here.
2. `extract` goes shard by shard: tokenise the shard, batch it by length, run each batch under a recorder whose
   sink is the shard's memory, and hand the shard over to be written while the next one is filled.
3. When every shard is committed the run is finished: compacted, sealed by a manifest and renamed.

The store keeps the data set's order, and batches are a pure function of the texts, the batch size and the shard
size, so that a run that was interrupted anywhere resumes to the same bytes.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from traceformer.capture.passes import Sink
from traceformer.capture.pipeline import Pipeline
from traceformer.capture.prepare import ExtractRequest, Prepared, prepare
from traceformer.capture.provenance import configuration, describe, token_table
from traceformer.capture.recorder import Recorder
from traceformer.capture.tokenizing import BatchInputs, batches_by_length
from traceformer.errors import UsageError
from traceformer.store.layout import RunLayout
from traceformer.store.locks import (
    final_folder,
    find_unfinished,
    refuse_existing,
    timestamped_folder,
    unfinished_folder,
)
from traceformer.store.meta import RunMeta
from traceformer.store.writer import RunWriter

__all__ = ["RUNS", "Estimate", "ExtractRequest", "Progress", "estimate", "extract", "open_run", "record"]

RUNS = Path("traces")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an extraction is; `seconds` and the counts are of this process, since it began to run."""

    examples_done: int
    examples_total: int
    tokens_done: int
    bytes_written: int
    seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take: bytes before compression, files, and seconds by the pace of one batch."""

    examples: int
    tokens: int
    bytes: int
    files: int
    seconds: float
    left_out: tuple[str, ...]


def extract(request: ExtractRequest, progress: Callable[[Progress], None] | None = None) -> Path:
    """Returns the folder of the finished run (of the unfinished one while other writers are still at work).

    Raises:
        NotFound, Unreadable, UsageError, Unsupported: as `prepare` raises them; nothing is written.
        RunExists: a finished run is in the way.
        ConfigurationChanged: the run to resume was begun with another model, selection, text or setting.
        NumericError: a value that the stored dtype cannot hold; what was committed stays.
        OutOfSpace: the disk is full; what was committed stays.
    """
    if request.writer[1] > 1 and request.out_dir is None:
        raise UsageError("several writers need to know their common run", hint="give all of them the same --out_dir")
    if request.out_dir is not None:
        # Before the model is loaded, not after.
        refuse_existing(final_folder(request.out_dir), request.overwrite, request.resume)
    report = progress or (lambda _: None)
    report(Progress(0, 0, 0, 0, 0.0, "loading"))
    return record(prepare(request), report)


def record(prepared: Prepared, progress: Callable[[Progress], None] | None = None) -> Path:
    """Returns the run's folder, like `extract`, when texts and model are already at hand."""
    request, source = prepared.request, prepared.source
    name = f"{prepared.loaded.name}_{source.name}_{source.split}_n{prepared.layout.n_examples}"
    with open_run(
        request.out_dir or timestamped_folder(RUNS, name),
        prepared.layout,
        partial(describe, prepared),
        digest=configuration(prepared),
        find=request.out_dir is None,
        resume=request.resume,
        overwrite=request.overwrite,
        writer=request.writer,
    ) as writer:
        _record_shards(prepared, writer, progress or (lambda _: None))
        return writer.finish()


def estimate(request: ExtractRequest) -> Estimate:
    """Returns what the run would take; records one batch, writes nothing."""
    prepared = prepare(request)
    layout = prepared.layout
    _, rows = prepared.shard(layout.n_shards // 2)
    batches = list(batches_by_length(rows, prepared.batch_size))
    batch = batches[len(batches) // 2] if batches else []
    seconds = 0.0
    if batch:
        run = BatchInputs(prepared.loaded)
        with _recorder(prepared, _Nowhere(layout.dtype)) as recorder:
            for _ in range(2):  # the first pass is slower: memory and kernels are being set up
                started = time.perf_counter()
                inputs, spans = run.to_run([rows[index] for index in batch])
                recorder.run(spans, **inputs)
                seconds = time.perf_counter() - started
        tokens = sum(rows[index].length(stack) for index in batch for stack in rows[index].ids)
        seconds *= sum(prepared.lengths.total.values()) / tokens
    return Estimate(
        layout.n_examples,
        sum(prepared.lengths.total.values()),
        layout.estimate_bytes(prepared.lengths.tokens),
        layout.estimate_files(),
        seconds,
        prepared.plan.left_out,
    )


def open_run(
    folder: Path,
    layout: RunLayout,
    meta_of: Callable[[str], RunMeta],
    *,
    digest: dict[str, Any],
    find: bool,
    resume: bool,
    overwrite: bool,
    writer: tuple[int, int] = (0, 1),
) -> RunWriter:
    """Returns the writer of a run that will be `folder`, begun or resumed.

    With `find`, the run to resume is the newest unfinished one beside `folder` that has the same digest.
    """
    begin = partial(RunWriter.create, overwrite=overwrite)
    if resume:
        unfinished = find_unfinished(folder.parent, digest) if find else folder
        if unfinished is not None and unfinished_folder(unfinished).exists():
            folder, begin = unfinished, partial(RunWriter.resume, overwrite=overwrite)
        else:
            warnings.warn("nothing to resume: starting anew", stacklevel=2)
    return begin(folder, layout, meta_of(folder.name), digest=digest, writer=writer)


def _recorder(prepared: Prepared, sink: Sink) -> Recorder:
    return Recorder(prepared.loaded.model, prepared.plan.arrays, sink, derived=prepared.plan.derived)


class _Nowhere:
    """A sink that casts as a real one does, and forgets."""

    def __init__(self, dtype: str) -> None:
        self._dtype = getattr(torch, dtype)

    def rows(self, spec: Any, layer: int | None, rows: torch.Tensor) -> None:
        rows.to(torch.int32 if spec.site.holds_ids else self._dtype)

    def square(self, spec: Any, layer: int, example: int, queries: Any, keys: Any, block: torch.Tensor) -> None:
        block.to(self._dtype)


def _record_shards(prepared: Prepared, writer: RunWriter, report: Callable[[Progress], None]) -> None:
    batches = BatchInputs(prepared.loaded)
    pending = list(writer.pending)
    total = sum(len(prepared.layout.shard_range(shard)) for shard in pending)
    started, examples_done, tokens_done = time.perf_counter(), 0, 0
    with Pipeline(writer, prepared.layout) as pipeline:
        for shard in pending:
            examples, rows = prepared.shard(shard)
            sink = pipeline.open_shard({stack: [row.length(stack) for row in rows] for stack in rows[0].ids})
            # The recorder is made anew for each shard, since it belongs to one sink.
            with _recorder(prepared, sink) as recorder:
                for batch in batches_by_length(rows, prepared.batch_size):
                    inputs, spans = batches.to_run([rows[index] for index in batch])
                    sink.begin(batch, spans)
                    recorder.run(spans, **inputs)
                    pipeline.end_batch(sink)
                    examples_done += len(batch)
                    tokens_done += sum(rows[index].length(stack) for index in batch for stack in rows[index].ids)
                    elapsed = time.perf_counter() - started
                    report(Progress(examples_done, total, tokens_done, writer.bytes_written, elapsed, "recording"))
            pipeline.close_shard(shard, sink, token_table(prepared, examples, rows))
    elapsed = time.perf_counter() - started
    report(Progress(total, total, tokens_done, writer.bytes_written, elapsed, "finishing"))
