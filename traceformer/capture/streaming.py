"""Texts that come as a stream to a run: shard by shard, in bounded memory, with an end that is said or found.

1. T is `max_seq_len` and B what the store makes of it, or `shard_examples`: nothing depends on texts to come. The first
   shard's texts are read, the model is proved on them, and what is measured (causal patterns, equal rows) is measured
   on them.
2. Each shard takes the next B examples that have tokens. What runs together is a function of its texts alone, so
   that they are recorded as they are from a list.
3. A shard's record says where the stream stood before it, and has a digest of its examples. A run that is gone on with
   reads its first shard's examples and its last one's again, compares their digests, and reads on from there.
4. It ends with the stream, with `limit`, or with `finish`; see `store.ending`.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from traceformer.capture.batches import run_batches
from traceformer.capture.compiled import kernel_stated
from traceformer.capture.edits.session import edits_of
from traceformer.capture.encoding import Encoder
from traceformer.capture.packing import Batching, batches_by_length
from traceformer.capture.pipeline import Pipeline
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.prepared import Prepared, causal_patterns, first_batch, fitting
from traceformer.capture.proofs.first import prove_first
from traceformer.capture.proofs.fit import fitted, is_strange
from traceformer.capture.proofs.handed_on import HandedOn
from traceformer.capture.provenance import (
    model_configuration,
    model_meta,
    text_configuration,
    token_table,
    with_texts,
)
from traceformer.capture.reduced import settled
from traceformer.capture.shards import counted, refuse_endless
from traceformer.capture.streamed import Source
from traceformer.capture.tokenizing import check_cut
from traceformer.errors import CorruptRun, Unreadable, UsageError, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import Counting, OnProgress, quiet
from traceformer.sites import Selection, Stack
from traceformer.store.commits import CommitRecord, committed_shards
from traceformer.store.layout import OPEN_ENDED, SHARD_BYTES, RunLayout
from traceformer.store.objects.path import ObjectPath
from traceformer.store.place import Place, Writer
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter
from traceformer.texts.cells import IdsColumn, TextColumn
from traceformer.texts.streams.load import TextStream, open_stream
from traceformer.texts.streams.reading import SHUFFLE_BUFFER, Point, Shuffle

__all__ = ["StreamedTexts", "extract_stream", "read_stream"]

_FIRST = 8  # texts, of which some prove the row of a model whose family has none


@dataclass(frozen=True, slots=True)
class StreamedTexts:
    """A stream for a model to read: how many of its texts, all that come for None, and where these are cut."""

    stream: TextStream
    limit: int | None = None
    max_tokens: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_cut("max_seq_len", self.max_tokens)


def read_stream(
    texts: str | Path | Iterable[Any],
    *,
    targets: object = None,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    limit: int | None = None,
    max_seq_len: int | Literal["auto"] = "auto",
    dec_max_len: int = 64,
    shuffle: int | None = None,
    shuffle_buffer: int = SHUFFLE_BUFFER,
) -> StreamedTexts:
    """Returns the stream that is meant; arguments as of `record`.

    Raises:
        NotFound, Unreadable, UsageError: no such texts, or none that can be streamed.
    """
    if shuffle is not None:
        check_whole("shuffle", shuffle, 0)
        check_whole("shuffle_buffer", shuffle_buffer, 2)
    for name, value, usual in (("targets", targets, None), ("dec_max_len", dec_max_len, 64)):
        if value != usual:
            raise UsageError(f"`{name}` does not apply to a stream", why="its texts are read without targets")
    if ids_column is not None:
        if text_column is not None:
            raise UsageError("`text_column` and `ids_column`", why="a row is read as a text or as token ids")
        text_column = IdsColumn(ids_column)
    if limit is not None and limit < 1:
        raise UsageError(f"`limit={limit}` selects nothing", hint="give 1 or more")
    order = None if shuffle is None else Shuffle(shuffle, shuffle_buffer)
    return StreamedTexts(open_stream(texts, split=split, text_column=text_column, shuffle=order), limit, max_seq_len)


def extract_stream(
    model: LoadedModel,
    texts: StreamedTexts,
    selection: Selection,
    place: Place,
    *,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    progress: OnProgress = quiet,
) -> Run:
    """Returns the run of a model over a stream.

    Raises:
        UsageError, SelectionError, Unsupported: as of `extract`; or several writers, edits, or no end of a run in
            memory.
        Unreadable: a record that is none, or a damaged file; what was committed stays.
        ConfigurationChanged: the run to go on with was begun over another stream.
        RunExists, NumericError, OutOfSpace: as `record` raises them.
    """
    _refuse(model, texts, place)
    source = Source(model, texts.stream, texts.max_tokens)
    if is_strange(model):
        model = fitted(model, [each.row for each in source.fill(_FIRST)], progress)
    plan = plan_arrays(selection, model.model, stacks=_stacks(model), architecture=model.architecture)
    if plan.left_out:
        warnings.warn(f"{model.name} has no {', '.join(plan.left_out)}: left out", stacklevel=2)
    prepared = _prepared(model, plan, source, texts, place)
    batching = fitting(Batching.of(batch_size, batch_tokens, model, _longest(source.encoder)), prepared)
    plan, rows, layout = prepared.plan, prepared.rows, prepared.layout
    with HandedOn(model) as handed_on:
        first = first_batch(rows, range(len(rows.texts.source.examples)), batching)
        prove_first(model, plan, first, (texts.limit or OPEN_ENDED) * _longest(source.encoder))
    layout = place.storage.once(layout, handed_on.aliases(layout.arrays))
    stream = texts.stream
    meta = replace(
        with_texts(model_meta(model, plan), rows),
        capture=tuple(selection.capture),
        tokens=None,
        stream={"shuffle": stream.stated["shuffle"]},
        **batching.stated,
    )
    configuration = model_configuration(model, plan) | text_configuration(rows) | stream.stated | batching.stated
    configuration |= kernel_stated(layout, model.model)
    name = f"{model.name}_{stream.name}_{stream.split}_stream"
    lengths: dict[Stack, list[int]] = {stack: [most] * (texts.limit or 0) for stack, most in layout.max_tokens.items()}
    with place.open(name, layout, meta, configuration, lengths) as writer:
        counting = _record(prepared, source, batching, writer, texts, progress)
        return place.finish(writer, lambda done, of: counting.tell(f"drawing {done} of {of}"))


def _refuse(model: LoadedModel, texts: StreamedTexts, place: Place) -> None:
    if place.storage.patterns == "recipe":
        raise UsageError(
            "patterns by recipe of a stream",
            why="how they are made is seen on the longest text, and which that is nobody knows",
            hint='a list or a file, without `streaming`; or `patterns="stored"`',
        )
    if place.writer[1] > 1:
        raise UsageError(
            "several writers of one stream", why="which texts a shard holds is known once all before it were read"
        )
    if isinstance(place.folder, ObjectPath):
        raise UsageError(
            f"a stream to {place.folder}", why="its end is written on a disk", hint="`out` on a disk, then tf.sync"
        )
    if edits_of(model.model):
        raise UsageError(
            "edits and a stream",
            why="whether its texts have the positions that are edited is not known beforehand",
            hint="a list or a file, without `streaming`",
        )
    if place.folder is None and place.parent is None and texts.limit is None:
        raise UsageError(
            "a stream in memory", why="nobody knows how long it is", hint="`limit=1000` ends it; `out` puts it on disk"
        )


def _stacks(model: LoadedModel) -> tuple[Stack, ...]:
    return ("enc",) if model.dims.arch == "encdec" else tuple(model.dims.stacks)


def _longest(encoder: Encoder) -> int:
    """The most tokens that a text of the stream can have.

    Raises:
        UsageError: nobody knows.
    """
    if encoder.max_tokens is None:
        raise UsageError("how long may a text of the stream be?", hint="`max_seq_len=128` cuts what is longer")
    return encoder.max_tokens


def _prepared(model: LoadedModel, plan: Plan, source: Source, texts: StreamedTexts, place: Place) -> Prepared:
    """Returns the layout, and the first shard's texts."""
    storage, longest = place.storage, _longest(source.encoder)
    layout = RunLayout.plan(
        arch=model.dims.arch,
        arrays=plan.arrays,
        n_examples=OPEN_ENDED,
        longest=dict.fromkeys(_stacks(model), longest),
        dtype=storage.dtype,
        attn_codec=storage.attn_codec,
        rows_codec=storage.rows_codec,
        codec=storage.codec,
        shard_examples=storage.shard_examples,
    )
    if texts.max_tokens == "auto" and layout.bytes_per_shard() > SHARD_BYTES * layout.shard_examples:
        raise UsageError(
            f"texts of up to {longest} tokens, all that the model can read",
            why="a text of a stream may be that long, and would not fit into a shard",
            hint="`max_seq_len=1024` cuts what is longer",
        )
    first = source.fill(min(layout.shard_examples, texts.limit or layout.shard_examples))
    rows = source.rows(first)
    plan = settled(plan, model, rows, storage, dict.fromkeys(_stacks(model), longest))
    return Prepared(model, plan, rows, layout.packed(causal_patterns(model, plan, rows)))


def _record(
    prepared: Prepared,
    source: Source,
    batching: Batching,
    writer: Writer,
    texts: StreamedTexts,
    progress: OnProgress,
) -> Counting:
    """Records shard after shard, until the stream or its limit ends; returns what was counted."""
    model, plan, rows, _ = prepared
    done = _gone_on(source, texts, writer) if isinstance(writer, RunWriter) else 0
    most, before = writer.layout.shard_examples, done
    counting = Counting(progress, max(0, (texts.limit or done) - done), lambda: writer.bytes_written)
    try:
        with Pipeline(writer) as pipeline:
            for shard in writer.pending:
                taken = source.take(most if texts.limit is None else min(most, texts.limit - done))
                if not taken.rows:
                    break
                refuse_endless(model, plan, taken.examples, taken.rows)
                sink = pipeline.open_shard({s: [row.length(s) for row in taken.rows] for s in taken.rows[0].ids})
                batches = batches_by_length([row.lengths for row in taken.rows], batching)
                numbers = range(done, done + len(taken.rows))
                run_batches(model, plan, taken.rows, batches, sink, counted(counting, taken.rows), numbers=numbers)
                pipeline.close_shard(shard, sink, token_table(rows, taken.examples, taken.rows), taken.source)
                done += len(taken.rows)
                if len(taken.rows) < most or done == texts.limit:
                    break
    except Unreadable as error:
        if isinstance(writer, RunWriter) and committed_shards(writer.folder):
            kept = f"what was committed is kept: `resume=True` once it is mended, or traceformer finish {writer.folder}"
            error.hint = "; ".join(filter(None, (error.hint, kept)))
        raise
    source.warn(done - before)
    counting.tell("finishing")
    return counting


def _gone_on(source: Source, texts: StreamedTexts, writer: RunWriter) -> int:
    """Returns how many examples are committed, and has the source read on behind them.

    Raises:
        ConfigurationChanged: the stream is another one than the run was begun with.
        CorruptRun: a record is missing, or does not say what its texts were.
        UsageError: more examples are committed than are asked for.
    """
    shards = committed_shards(writer.folder)
    if not shards:
        return 0
    first, last = (CommitRecord.read(writer.folder, shard) for shard in (shards[0], shards[-1]))
    if shards != list(range(len(shards))) or first.source is None or last.source is None:
        raise CorruptRun(f"{writer.folder} has lost commit records", hint="traceformer verify lists the damage")
    done = last.shard * writer.layout.shard_examples + len(last.examples)
    if texts.limit is not None and done > texts.limit:
        raise UsageError(
            f"`limit={texts.limit}`, and {done} examples are committed",
            hint=f"traceformer finish {writer.folder} ends the run with these",
        )
    source.compare(source.fill(len(first.examples))[: len(first.examples)], first, writer.folder)
    if last.shard:
        source.go_to(Point.from_json(dict(last.source["point"])))
    source.compare(source.fill(len(last.examples))[: len(last.examples)], last, writer.folder)
    source.take(len(last.examples))
    source.forget()
    if not writer.pending and texts.limit is not None and done < texts.limit:
        warnings.warn(f"the stream had ended after {done} examples: the run ends there", stacklevel=4)
    return done
