"""Texts to a run.

1. `record` takes what a person writes (names, lists, files) and makes values of it: a model, texts, a selection, a
   place.
2. `extract` has it prepared (`extraction`), and goes shard by shard.
3. When every shard is committed the run is finished: compacted, sealed by a manifest and renamed.

The store keeps the data set's order, and batches are a pure function of the texts, how large a batch may be and the
shard size, so that a run that was interrupted anywhere resumes to the same bytes.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from traceformer.capture.batches import run_batches
from traceformer.capture.derived import LensTopK, Traits
from traceformer.capture.edits.session import check_resumed, edits_of, unedited, warn_of_untouched
from traceformer.capture.extraction import extraction_of, prepare_extraction
from traceformer.capture.given import Batches, ProcessorBatch, batches_in
from traceformer.capture.packing import Batching, batches_by_length
from traceformer.capture.prepared import fitting, prepare
from traceformer.capture.proofs.handed_on import HandedOn
from traceformer.capture.shards import tokens_of
from traceformer.capture.streaming import StreamedTexts, extract_stream, read_stream
from traceformer.capture.tokenizing import Rows, Texts
from traceformer.capture.topk import AttentionTopK
from traceformer.capture.workers.driving import record_on
from traceformer.capture.workers.engine import Engine, Ray, as_engine, check_apart
from traceformer.errors import UsageError
from traceformer.models.load import as_loaded, load_model
from traceformer.models.loaded import LoadedModel
from traceformer.progress import Counting, OnProgress, quiet, watched
from traceformer.sites import Numbers, Selection, Stack
from traceformer.store.names import AttnCodec, Dtype, RowsCodec
from traceformer.store.objects.path import as_path
from traceformer.store.place import Place, Storage
from traceformer.store.recipes import Patterns
from traceformer.store.run import Run
from traceformer.store.sizes import estimated_bytes, estimated_files
from traceformer.texts.cells import IdsColumn, TextColumn
from traceformer.texts.load import Texts as AskedTexts
from traceformer.texts.load import load_targets, load_texts
from traceformer.texts.streams.load import is_stream
from traceformer.texts.streams.reading import SHUFFLE_BUFFER

__all__ = ["Estimate", "asked_texts", "estimate", "extract", "extract_on", "read_texts", "record"]


def record(
    model: str | Path | LoadedModel,
    texts: AskedTexts | Batches | Iterable[Any],
    capture: str | Iterable[str] | Selection = "attn resid",
    *,
    layers: Numbers | Mapping[Stack, Numbers] = None,
    heads: Numbers | Mapping[Stack, Numbers] = None,
    hidden_layers: Numbers = None,
    project: Traits | None = None,
    lens_top_k: int | None = None,
    store_topk: int | None = None,
    targets: str | Path | Sequence[str] | None = None,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    limit: int | None = None,
    max_seq_len: int | Literal["auto"] = "auto",
    dec_max_len: int = 64,
    out: str | Path | None = None,
    dtype: Dtype = "float16",
    codec: Literal["none", "zstd", "lz4"] = "none",
    attn_codec: AttnCodec = "exact",
    patterns: Patterns = "stored",
    rows_codec: RowsCodec = "exact",
    shard_examples: int | None = None,
    keep_duplicates: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    thumbnails: bool = False,
    streaming: bool | None = None,
    shuffle: int | None = None,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    num_shards: int = 1,
    shard_index: int = 0,
    engine: Engine = None,
    progress: OnProgress | None = None,
) -> Run:
    """Returns a run of a model over texts: everything selected, exactly as the unmodified forward pass computed it.

        run = tf.record("byte", ["The Eiffel Tower is in Paris.", "Rome is in Italy."])
        run.attn(0, layer=2, head=3)    # (query, key)

    Without `out` the run lives in memory, and `run.save(path)` keeps it.

    Args:
        model: A model that `load_model` gave, or what it takes: a name or a folder.
        texts: A list, or any iterable, of strings, of pairs of strings (tuples), of texts in words (lists of strings),
            or of conversations (lists of messages, read in the model's chat template); the name of a data set (`demo`,
            `ud_ewt`, `hf:NAME`); or a file or folder of texts. Of a model that also sees or hears, what its processor
            returns (`input_ids`, `pixel_values`, ...), or a list of that: each batch goes to the model as it is, in a
            pass of its own, and each of its rows is an example, whose tokens' `kind` is text, image, audio or video.
        capture: Groups (attn qkv hidden resid mlp norms internals logits heads all) and sites, in one string or
            several. `heads` are head metrics, a row for each text and head.
        layers: The model's own numbers, for both stacks or by stack; all for None.
        heads: Likewise.
        hidden_layers: Which entries of `hidden`.
        project: Trait vectors; what rows come to along them is recorded, too.
        lens_top_k: The k likeliest next tokens after each layer are recorded, too.
        store_topk: In place of patterns the k largest keys of each query are stored, and what all others have together.
        targets: One target per text, for the decoder of an encoder-decoder; without them only its encoder runs.
        split: Which part of a data set.
        text_column: The column that holds the text, its words, or the messages of a chat, where a data set does not
            say; two for pairs of texts; `answer.text` for a part of a column.
        ids_column: The column that holds token ids in place of texts, which then need no tokenizer.
        limit: The first texts only.
        max_seq_len: Where texts are cut; "auto" is what the model can take.
        dec_max_len: Where targets are cut.
        out: The run's folder, or its place in a bucket, `s3://bucket/name`.
        dtype: How values are stored.
        codec: Compression of token arrays.
        attn_codec: small takes a fifth less for patterns, and twice as long; sqrt8 stores them in one byte per cell,
            with an error of up to 0.004.
        patterns: recipe stores q and k as the model has them in place of patterns, and how these follow from them; they
            are made anew when they are read, the same on every machine.
        rows_codec: q8 stores activations in 0.53 of float16's bytes: in a byte each, to 0.4 % of the largest of 32
            neighbours, and massive channels exactly.
        shard_examples: Texts per shard; the store chooses for None.
        keep_duplicates: Store rows that are equal to another array's (`hidden[3]` is `resid_pre[3]`) once more.
        resume: Go on with an interrupted run of the same configuration.
        overwrite: Replace a finished run that is in the way.
        thumbnails: Draw all heads in small once the run is finished, and keep that beside it: the viewer need not.
        streaming: Read texts as they come, in bounded memory: from files of any number and size (`texts` may be a
            pattern such as `shards/*.tar`), from the Hub without a download, or from an iterable. What is longer than
            `max_seq_len` is cut. The run ends with the stream, with `limit`, or with `finish`, and goes on at the text
            where it stopped. None streams what has no length, such as a generator.
        shuffle: A seed: so many texts of a stream at a time come in an order by it.
        shuffle_buffer: How many.
        batch_size: Texts per forward pass; 8 by default.
        batch_tokens: In its place, the most tokens of a forward pass, padding included, which is at most 5 % of what is
            computed: texts of similar length are packed, within a shard. "auto" goes by the model and its device.
        num_shards: How many processes share the work: each makes the same call, but for `shard_index`, with one `out`.
            Whoever ends last finishes the run.
        shard_index: Which of them this is, from 0.
        engine: "ray" or `Ray(...)` has workers record it, each of which loads the model and reads the texts.
        progress: Told how far it is; a bar is shown in a terminal or notebook for None.

    Raises:
        NotFound, Unreadable: a model, data set or file that is not there, or not what it should be.
        UsageError, SelectionError, Unsupported: what is asked for makes no sense for this model.
        RunExists, ConfigurationChanged: `out` is taken, or was begun differently.
        NumericError: a value that the stored dtype cannot hold; what was committed stays.
        OutOfSpace: the disk or the memory is too small; what was committed stays.
    """
    derived = (*([] if project is None else [project]), *([] if lens_top_k is None else [LensTopK(lens_top_k)]))
    selection = Selection.of(
        () if derived and capture == "attn resid" else capture,
        layers=layers,
        heads=heads,
        hidden_layers=hidden_layers,
        derived=(*derived, *([] if store_topk is None else [AttentionTopK(store_topk)])),
    )
    place = Place(
        folder=None if out is None else as_path(out),
        resume=resume,
        overwrite=overwrite,
        writer=(shard_index, num_shards),
        storage=Storage(dtype, codec, attn_codec, shard_examples, keep_duplicates, patterns, rows_codec),
        thumbnails=thumbnails,
    )
    place.check()
    reading: dict[str, Any] = {
        **{"targets": targets, "split": split, "text_column": text_column, "ids_column": ids_column, "limit": limit},
        **{"max_seq_len": max_seq_len, "dec_max_len": dec_max_len},
    }
    streamed: dict[str, Any] = {"streaming": streaming, "shuffle": shuffle}
    batches = batches_in(texts)
    if batches is not None:
        _refuse_of_batches(
            {
                **reading,
                **streamed,
                "shuffle_buffer": None if shuffle_buffer == SHUFFLE_BUFFER else shuffle_buffer,
                "batch_size": batch_size,
                "batch_tokens": batch_tokens,
                "engine": engine,
            }
        )
    streamed["shuffle_buffer"] = shuffle_buffer
    workers = as_engine(engine)
    if workers is not None:
        load = partial(load_model, check_apart(model), with_head=selection.needs_head)
        read = partial(listed_texts, texts, **reading, **streamed)
        with watched(progress) as shown:
            return extract_on(
                workers, load, read, selection, place, batch_size=batch_size, batch_tokens=batch_tokens, progress=shown
            )
    asked: Any = asked_texts(texts, **reading, **streamed) if batches is None else batches
    with watched(progress) as shown:
        loaded = as_loaded(model, with_head=selection.needs_head)
        return extract(
            loaded, asked, selection, place, batch_size=batch_size, batch_tokens=batch_tokens, progress=shown
        )


def asked_texts(
    texts: Any, *, streaming: bool | None, shuffle: int | None, shuffle_buffer: int, **reading: Any
) -> Texts | StreamedTexts:
    """Returns the texts that are meant, listed or as a stream; arguments as of `record`.

    Raises:
        NotFound, Unreadable, UsageError: no such texts, or none that can be streamed.
    """
    if shuffle is None and shuffle_buffer != SHUFFLE_BUFFER:
        why = "it says how many texts are put in an order at a time"
        raise UsageError("`shuffle_buffer` without `shuffle`", why=why, hint="`shuffle=0`, or another seed, too")
    if is_stream(texts) if streaming is None else streaming:
        return read_stream(texts, **reading, shuffle=shuffle, shuffle_buffer=shuffle_buffer)
    if shuffle is not None:
        raise UsageError("`shuffle` is of streams", hint="`streaming=True`")
    return read_texts(texts, **reading)


def listed_texts(texts: Any, **reading: Any) -> Texts:
    """Returns the texts that are meant, for workers, who must know which of them each shard holds.

    Raises:
        UsageError: they are a stream; and as `asked_texts` raises them.
    """
    asked = asked_texts(texts, **reading)
    if isinstance(asked, StreamedTexts):
        raise UsageError(
            "several workers of one stream", why="which texts a shard holds is known once all before it were read"
        )
    return asked


def _refuse_of_batches(given: Mapping[str, Any]) -> None:
    """Refuses what says how texts are read, of batches that were made of them already."""
    for name, value in given.items():
        if value not in (None, "auto", 64):
            raise UsageError(f"`{name}` does not apply to a processor's batch", why="it is recorded as it is")


def read_texts(
    texts: AskedTexts,
    targets: str | Path | Sequence[str] | None = None,
    *,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    limit: int | None = None,
    max_seq_len: int | Literal["auto"] = "auto",
    dec_max_len: int = 64,
) -> Texts:
    """Returns the texts that are meant; arguments as of `record`. Of targets, the line of each text's row counts.

    Raises:
        NotFound, Unreadable, UsageError: no such texts, or fewer targets than texts.
    """
    if ids_column is not None:
        if text_column is not None:
            raise UsageError("`text_column` and `ids_column`", why="a row is read as a text or as token ids")
        text_column = IdsColumn(ids_column)
    source = load_texts(texts, split=split, limit=limit, text_column=text_column)
    lines = None if targets is None else load_targets(targets, source.examples[-1].index + 1)
    chosen = None if lines is None else [lines[example.index] for example in source.examples]
    return Texts(source, chosen, max_seq_len, dec_max_len)


def extract(
    model: LoadedModel,
    texts: Texts | Rows | StreamedTexts | Sequence[ProcessorBatch],
    selection: Selection,
    place: Place,
    *,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    step: int | None = None,
    progress: OnProgress = quiet,
) -> Run:
    """Returns the run of a model over texts, over their tokens, or over batches of its processor.

    `step` is how many steps of its training the model has behind it, where that is told.
    While other writers are still at work it is unfinished.

    Raises:
        UsageError, SelectionError, Unsupported: as `plan_arrays`, `tokenize`, `Batching.of` and `prove_first` raise
            them; nothing is written.
        RunExists, ConfigurationChanged, NumericError, OutOfSpace: as `record` does.
    """
    if isinstance(texts, StreamedTexts):
        bounds: dict[str, Any] = {"batch_size": batch_size, "batch_tokens": batch_tokens}
        return extract_stream(model, texts, selection, place, progress=progress, **bounds)
    if place.resume:
        check_resumed(edits_of(model.model))
    extraction = prepare_extraction(
        model,
        texts,
        selection,
        place.storage,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        step=step,
        progress=progress,
    )
    if place.is_done_by_others:
        return place.finished(extraction.layout, extraction.configuration)
    with extraction.open(place) as writer:
        pending = writer.pending
        counting = Counting(progress, extraction.n_examples(pending), lambda: writer.bytes_written)
        extraction.record(writer, writer.claims(), counting)
        if len(pending) == extraction.layout.n_shards:
            warn_of_untouched(model.model)
        counting.tell("finishing")
        return place.finish(writer, lambda done, of: counting.tell(f"drawing {done} of {of}"))


def extract_on(
    engine: Ray,
    load: Callable[[], LoadedModel],
    read: Callable[[], Texts],
    selection: Selection,
    place: Place,
    *,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    progress: OnProgress = quiet,
) -> Run:
    """Returns the run that the workers of an engine have recorded together: byte for byte that of one process.

    Args:
        engine: Which workers.
        load: Loads the model; called by each worker, so that it can be pickled.
        read: Reads the texts, likewise.
        selection: What is recorded.
        place: Where the run goes: to a folder that all workers share.
        batch_size, batch_tokens, progress: As of `extract`.

    Raises:
        UsageError: the run goes to memory, or is shared in another way, too; and as `extract` raises it.
        SelectionError, Unsupported, RunExists, ConfigurationChanged, NumericError, OutOfSpace: as `extract` does.
        TraceformerError: workers die again and again.
    """
    prepare = partial(
        extraction_of,
        load,
        read,
        selection=selection,
        storage=place.storage,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
    )
    return record_on(engine, prepare, place, progress)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take: bytes before compression, files, and seconds by the pace of one batch."""

    examples: int
    tokens: int
    bytes: int
    files: int
    seconds: float
    left_out: tuple[str, ...]


def estimate(
    model: LoadedModel,
    texts: Texts | StreamedTexts,
    selection: Selection,
    place: Place,
    *,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
) -> Estimate:
    """Returns what the run would take; records one batch, writes nothing.

    Raises:
        UsageError: the texts are a stream.
    """
    if isinstance(texts, StreamedTexts):
        raise UsageError("an estimate of a stream", why="how many texts will come is not known")
    prepared = prepare(model, texts, selection, place.storage)
    model, plan, rows, layout = prepared
    batching = fitting(Batching.of(batch_size, batch_tokens, model, rows.lengths.longest_of_all), prepared)
    _, part = rows.part(layout.shard_range(layout.n_shards // 2))
    batches = batches_by_length([row.lengths for row in part], batching)
    tokens, seconds = sum(rows.lengths.total.values()), 0.0
    if batches:
        batch = batches[len(batches) // 2]
        with unedited(model.model), HandedOn(model) as handed_on:
            run_batches(model, plan, part, [batch], _Nowhere(layout.dtype))
        layout = place.storage.once(layout, handed_on.aliases(layout.arrays))
        started = time.perf_counter()  # the first pass was slower: memory and kernels were being set up
        run_batches(model, plan, part, [batch], _Nowhere(layout.dtype))
        seconds = (time.perf_counter() - started) * tokens / tokens_of(part, batch)
    return Estimate(
        layout.n_examples,
        tokens,
        estimated_bytes(layout, rows.lengths.tokens),
        estimated_files(layout),
        seconds,
        plan.left_out,
    )


class _Nowhere:
    """A sink that casts as a real one does, and forgets."""

    def __init__(self, dtype: str) -> None:
        self._dtype = getattr(torch, dtype)

    def begin(self, batch: Any, spans: Any) -> None:
        pass

    def end(self) -> None:
        pass

    def rows(self, spec: Any, layer: int | None, rows: torch.Tensor) -> None:
        rows.to(torch.int32 if spec.site.holds_ids else self._dtype)

    def square(self, spec: Any, layer: int, example: int, queries: Any, keys: Any, block: torch.Tensor) -> None:
        block.to(self._dtype)
