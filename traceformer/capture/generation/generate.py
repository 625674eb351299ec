"""Prompts to a run: what `traceformer generate` does.

1. `prepare_generation` reads the prompts, loads the model and plans the run; nothing is written yet.
2. A shard is one batch. `generate` runs it with a recorder around it, or, for a replay, runs it plainly and records
   one pass over each finished text. Lengths are known then, and the rows go to the shard, which is written while
   the next batch runs.
3. When every shard is committed the run is finished, as an extraction's is.

Batches follow the order of the prompts and batch k is seeded with seed + k, so that an interrupted run resumes to
the same responses.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from traceformer.capture.extract import RUNS, Progress, open_run
from traceformer.capture.generation.described import (
    Generated,
    describe_generation,
    generation_configuration,
    generation_table,
    source_name,
)
from traceformer.capture.generation.prepare import (
    DEFAULT_CAPTURE,
    GenerateRequest,
    PreparedGeneration,
    prepare_generation,
)
from traceformer.capture.generation.prompts import complete
from traceformer.capture.generation.respond import Responder, Responses
from traceformer.capture.generation.sampling import Sampling
from traceformer.capture.pipeline import Pipeline, ShardSink
from traceformer.capture.recorder import Recorder
from traceformer.capture.tokenizing import BatchInputs, Encoded
from traceformer.models.loaded import LoadedModel
from traceformer.store.locks import final_folder, refuse_existing, timestamped_folder
from traceformer.store.writer import RunWriter

__all__ = [
    "DEFAULT_CAPTURE",
    "GenerateRequest",
    "Generated",
    "Progress",
    "Sampling",
    "generate",
    "record_generation",
]


def generate(
    request: GenerateRequest,
    progress: Callable[[Progress], None] | None = None,
    *,
    loaded: LoadedModel | None = None,
    on_text: Callable[[str], None] | None = None,
    on_response: Callable[[Generated], None] | None = None,
) -> Path:
    """Returns the folder of the finished run.

    Args:
        loaded: the model, where it is at hand already.
        on_text: given the text of a lone prompt's response as it is made.
        on_response: given each response when it is complete.

    Raises:
        NotFound, Unreadable, UsageError, Unsupported: as `prepare_generation` raises them; nothing is written.
        RunExists: a finished run is in the way.
        ConfigurationChanged: the run to resume was begun with another model, prompt or setting.
        NumericError: logits that are no numbers, or a value that the stored dtype cannot hold; what was committed
            stays.
        OutOfSpace: the disk is full; what was committed stays.
    """
    if request.out_dir is not None:
        # Before the model is loaded, not after.
        refuse_existing(final_folder(request.out_dir), request.overwrite, request.resume)
    report = progress or (lambda _: None)
    report(Progress(0, 0, 0, 0, 0.0, "loading"))
    return record_generation(prepare_generation(request, loaded), report, on_text=on_text, on_response=on_response)


def record_generation(
    prepared: PreparedGeneration,
    progress: Callable[[Progress], None] | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    on_response: Callable[[Generated], None] | None = None,
) -> Path:
    """Returns the run's folder, like `generate`, when prompts and model are already at hand."""
    request = prepared.request
    name = f"{prepared.loaded.name}_{source_name(prepared)}_generated_n{prepared.layout.n_examples}"
    with open_run(
        request.out_dir or timestamped_folder(request.experiment or RUNS, name),
        prepared.layout,
        partial(describe_generation, prepared),
        digest=generation_configuration(prepared),
        find=request.out_dir is None,
        resume=request.resume,
        overwrite=request.overwrite,
    ) as writer:
        _Generation(prepared, writer, progress or (lambda _: None), on_text, on_response).run()
        return writer.finish()


class _Generation:
    """The loop over batches, and how far it is."""

    def __init__(
        self,
        prepared: PreparedGeneration,
        writer: RunWriter,
        report: Callable[[Progress], None],
        on_text: Callable[[str], None] | None,
        on_response: Callable[[Generated], None] | None,
    ) -> None:
        self._prepared = prepared
        self._writer = writer
        self._report = report
        self._on_response = on_response or (lambda _: None)
        self._responder = Responder(prepared.loaded, prepared.request.sampling, on_step=self._step, on_text=on_text)
        self._inputs = BatchInputs(prepared.loaded)
        self._pending = list(writer.pending)
        self._total = sum(len(prepared.layout.shard_range(shard)) for shard in self._pending)
        self._started, self._examples, self._tokens = time.perf_counter(), 0, 0

    def run(self) -> None:
        with Pipeline(self._writer, self._prepared.layout) as pipeline:
            for shard in self._pending:
                self._shard(shard, pipeline)
        self._tell("finishing")

    def _shard(self, shard: int, pipeline: Pipeline) -> None:
        prepared, seed, before = self._prepared, self._prepared.request.seed + shard, self._tokens
        prompts = prepared.batch(shard)
        responses = self._respond(shard, seed)
        each = prepared.request.sampling.num_return_sequences
        done: list[Generated] = []
        rows: list[Encoded] = []
        for number, tokens in enumerate(responses.tokens):
            prompt = prompts[number // each]
            row, text = complete(prepared.loaded, prompt, tokens)
            rows.append(row)
            name = prompt.example_id if each == 1 else f"{prompt.example_id}-{number % each}"
            done.append(Generated(prompt, number % each, tokens, text, seed, name))
        sink = pipeline.open_shard({stack: [row.length(stack) for row in rows] for stack in rows[0].ids})
        if responses.memory is None:
            self._replay(rows, sink, pipeline)
        else:
            sink.begin(range(len(rows)), responses.spans)
            responses.memory.pour(sink, responses.spans)
            pipeline.end_batch(sink)
        pipeline.close_shard(shard, sink, generation_table(prepared, shard, done, rows))
        self._examples += len(rows)
        self._tokens = before + sum(len(tokens) for tokens in responses.tokens)  # without padding and lost beams
        for response in done:
            self._on_response(response)
        self._tell("generating")

    def _respond(self, shard: int, seed: int) -> Responses:
        prepared = self._prepared
        prompts = [prompt.row for prompt in prepared.batch(shard)]
        if prepared.is_replay:
            return self._responder.plain(prompts, seed)
        return self._responder.observed(prompts, seed, prepared.plan, getattr(torch, prepared.layout.dtype))

    def _replay(self, rows: Sequence[Encoded], sink: ShardSink, pipeline: Pipeline) -> None:
        """Records one pass over each finished text, in batches of as many as there are prompts in one."""
        size, plan = self._prepared.request.batch_size, self._prepared.plan
        with Recorder(self._prepared.loaded.model, plan.arrays, sink, derived=plan.derived) as recorder:
            for start in range(0, len(rows), size):
                inputs, spans = self._inputs.to_run(rows[start : start + size])
                sink.begin(range(start, min(start + size, len(rows))), spans)
                recorder.run(spans, **inputs)
                pipeline.end_batch(sink)

    def _step(self, tokens: int) -> None:
        self._tokens += tokens
        self._tell("generating")

    def _tell(self, message: str) -> None:
        elapsed = time.perf_counter() - self._started
        self._report(Progress(self._examples, self._total, self._tokens, self._writer.bytes_written, elapsed, message))
