"""An extraction that is ready: which arrays of which tokens, in which batches, how they lie and what is stated.

1. `prepare_extraction` plans it, and has the model proved on what it will read first. Nothing is written.
2. `Extraction.open` begins or resumes its run, or joins one that others write, too.
3. `Extraction.record` goes shard by shard: texts are tokenised, batched by length, and run under a recorder whose sink
   is the shard's memory, which is handed over to be written while the next one is filled.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from traceformer.capture.batches import run_batches
from traceformer.capture.compiled import kernel_stated
from traceformer.capture.edits.session import check_for_texts, edits_of, unedited
from traceformer.capture.given import ProcessorBatch
from traceformer.capture.packing import Batching, batches_by_length
from traceformer.capture.pipeline import Pipeline
from traceformer.capture.plan import Plan
from traceformer.capture.prepared import first_batch, fitting, prepare
from traceformer.capture.processed import passes_of
from traceformer.capture.proofs.first import prove_first
from traceformer.capture.proofs.given import prove_given
from traceformer.capture.proofs.handed_on import HandedOn
from traceformer.capture.provenance import (
    model_configuration,
    model_meta,
    text_configuration,
    token_table,
    with_texts,
)
from traceformer.capture.shards import counted, refuse_endless
from traceformer.capture.tokenizing import Rows, Texts
from traceformer.models.loaded import LoadedModel
from traceformer.progress import Counting, OnProgress, quiet
from traceformer.sites import Selection
from traceformer.store.layout import RunLayout
from traceformer.store.meta import RunMeta
from traceformer.store.place import Place, Storage, Writer

__all__ = ["Extraction", "extraction_of", "prepare_extraction"]


@dataclass(frozen=True, slots=True)
class Extraction:
    """All that is known of an extraction before its first byte is written.

    Attributes:
        model: The model, with the row by which it is recorded.
        plan: The arrays.
        rows: The texts, and their tokens.
        layout: How both lie on disk.
        batching: Which texts share a pass.
        meta: What the run states.
        configuration: What must agree for it to be resumed.
    """

    model: LoadedModel
    plan: Plan
    rows: Rows
    layout: RunLayout
    batching: Batching
    meta: RunMeta
    configuration: Mapping[str, Any]

    def open(self, place: Place) -> Writer:
        """Returns the writer of its run; errors as `Place.open` raises them."""
        source = self.rows.texts.source
        name = f"{self.model.name}_{source.name}_{source.split}_n{self.layout.n_examples}"
        return place.open(name, self.layout, self.meta, self.configuration, self.rows.lengths.tokens)

    def n_examples(self, shards: Iterable[int]) -> int:
        return sum(len(self.layout.shard_range(shard)) for shard in shards)

    def record(self, writer: Writer, shards: Iterable[int | None], counting: Counting) -> None:
        """Records shards and commits them.

        Args:
            writer: What `open` gave.
            shards: Which, in their order. None where the next one is not known yet: what is under way is settled then.
            counting: Told after every batch.
        """
        with Pipeline(writer) as pipeline:
            for shard in shards:
                if shard is None:
                    pipeline.settle()
                else:
                    self._record_shard(pipeline, shard, counting)

    def _record_shard(self, pipeline: Pipeline, shard: int, counting: Counting) -> None:
        numbers = self.layout.shard_range(shard)
        examples, part = self.rows.part(numbers)
        refuse_endless(self.model, self.plan, examples, part)
        sink = pipeline.open_shard({stack: [row.length(stack) for row in part] for stack in part[0].ids})
        batches = (
            batches_by_length([row.lengths for row in part], self.batching)
            if self.rows.given is None
            else passes_of(part)
        )
        run_batches(self.model, self.plan, part, batches, sink, counted(counting, part), numbers=numbers)
        pipeline.close_shard(shard, sink, token_table(self.rows, examples, part))


def prepare_extraction(
    model: LoadedModel,
    texts: Texts | Rows | Sequence[ProcessorBatch],
    selection: Selection,
    storage: Storage,
    *,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    step: int | None = None,
    progress: OnProgress = quiet,
) -> Extraction:
    """Returns an extraction that is ready; arguments and errors as of `extract`, and nothing is written."""
    edits = edits_of(model.model)
    prepared = prepare(model, texts, selection, storage, progress)
    model, plan, rows, layout = prepared
    check_for_texts(model.model, rows.lengths.tokens, lambda number: rows.part(range(number, number + 1))[1][0].ids)
    batching = fitting(Batching.of(batch_size, batch_tokens, model, rows.lengths.longest_of_all), prepared)
    with unedited(model.model), HandedOn(model) as handed_on:
        first = first_batch(rows, layout.shard_range(0), batching)
        prove_first(model, plan, first, sum(rows.lengths.total.values()))
        if rows.given is not None:
            prove_given(model, rows.given[0])
            handed_on.forget()  # an image may be added between two blocks of one batch, and of none before
    if not edits:  # which may change one of two arrays that are equal without them
        layout = storage.once(layout, handed_on.aliases(layout.arrays))
    meta = replace(
        with_texts(model_meta(model, plan), rows), capture=tuple(selection.capture), step=step, **batching.stated
    )
    configuration = model_configuration(model, plan) | text_configuration(rows) | batching.stated
    configuration |= kernel_stated(layout, model.model)
    return Extraction(model, plan, rows, layout, batching, meta, configuration)


def extraction_of(load: Callable[[], LoadedModel], read: Callable[[], Texts], **asked: Any) -> Extraction:
    """Returns an extraction of a model and texts that are loaded here, by a worker; else as `prepare_extraction`."""
    return prepare_extraction(load(), read(), **asked)
