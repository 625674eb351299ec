"""The metrics of every attention head: of a run, or of a model while it reads, when nothing is stored.

A run's patterns are read once, in parts of bounded size. A model's are reduced block by block, as they arise; what is
in memory is one batch's forward pass and a few blocks. Both give the same numbers.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, Convention, ConventionName
from traceformer.analysis.head_curves import HeadCurves, along_steps
from traceformer.analysis.head_metrics import HeadMetrics, join_heads
from traceformer.analysis.head_tally import Measurement, attention_name
from traceformer.analysis.heads import Geometry
from traceformer.analysis.visibility import Visibility, visibility_of
from traceformer.capture.workers.engine import Engine, as_engine
from traceformer.errors import UsageError, check_choice, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.heads_of_run import measured_of, measured_on
from traceformer.questions.recorded import check_asked
from traceformer.questions.recorded_heads import digest_of, without_attention
from traceformer.questions.training_texts import TrainingTexts
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack
from traceformer.store.layout import META
from traceformer.store.meta import RunMeta
from traceformer.store.run import Run
from traceformer.store.training import TrainingRuns, open_checkpoints
from traceformer.texts.cells import TextColumn, TextList
from traceformer.texts.windows import FileWindows

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.encoding import Encoded
    from traceformer.capture.packing import Batching
    from traceformer.capture.plan import Plan
    from traceformer.capture.scores import Span
    from traceformer.capture.tokenizing import Texts

__all__ = ["Reading", "batching_of", "heads", "measured_live", "reading_of"]

_SEQ_LENGTH = 1024  # the thesis's, where the model can read as much
_LIMIT = 10


@overload
def heads(
    of: Run | LoadedModel,
    texts: str | Path | TextList | FileWindows | TrainingTexts | None = ...,
    *,
    convention: ConventionName = ...,
    window: int = ...,
    examples: Sequence[int | str] | None = ...,
    limit: int | None = ...,
    split: str | None = ...,
    text_column: TextColumn | None = ...,
    ids_column: str | None = ...,
    targets: str | Path | Sequence[str] | None = ...,
    seq_length: int | None = ...,
    batch_size: int | None = ...,
    batch_tokens: int | Literal["auto"] | None = ...,
    dtype: Literal["float16", "float32"] = ...,
    engine: Engine = ...,
    progress: OnStep | None = ...,
) -> HeadMetrics: ...


@overload
def heads(
    of: TrainingRuns | str | Path,
    texts: None = ...,
    *,
    convention: ConventionName = ...,
    window: int = ...,
    examples: Sequence[int | str] | None = ...,
    limit: int | None = ...,
    progress: OnStep | None = ...,
) -> HeadCurves: ...


def heads(
    of: Run | LoadedModel | TrainingRuns | str | Path,
    texts: str | Path | TextList | FileWindows | TrainingTexts | None = None,
    *,
    convention: ConventionName = "exact",
    window: int = 8,
    examples: Sequence[int | str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    targets: str | Path | Sequence[str] | None = None,
    seq_length: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    engine: Engine = None,
    progress: OnStep | None = None,
) -> HeadMetrics | HeadCurves:
    """Returns the metrics of every head of every attention of a run, or of a model that reads texts.

        heads(run).to_frame()
        heads(load_model("byte"), ["The Eiffel Tower is in Paris.", "Rome is in Italy."])
        heads("traces/steps")    # of each checkpoint that record_checkpoints put there: HeadCurves

    Args:
        of: A run that holds patterns, or a model. Or the runs of a training's checkpoints, or their folder: then every
            metric has a number per step, and what is said of a run holds for each of them.
        texts: What a model reads: texts, the name of a data set, or a file in windows.
        convention: What entropy and sparsity mean, as in `analysis/conventions.py`.
        window: How many tokens on either side `local_mass` counts.
        examples: Of a run only these, by number or by id.
        limit: The first examples only; all of a run or of a list, 10 of a data set or a file by default.
        split: Which part of a data set.
        text_column: The column of a data set that holds the text, its words or messages, where it does not say; two for
            pairs.
        ids_column: The column that holds token ids in place of texts.
        targets: One target per text, a list or file, for the decoder of an encoder-decoder; else only its encoder runs.
        seq_length: Tokens of a window, or of a text at most; 1024, or what the model can read, by default.
        batch_size: Examples per forward pass; 4 by default.
        batch_tokens: In its place, the most tokens of a forward pass, as `record` takes them.
        dtype: What a model's patterns are rounded to first; float16 gives the numbers of a run as it is by default.
        engine: "ray" or `Ray(...)` has workers measure a run, each some of its layers: the same numbers.
        progress: Told how many of how many steps are done, after every example of every attention of a run, or after
            every batch of a model; None for a bar in a terminal or a notebook.

    Raises:
        NotRecorded: the run holds no patterns.
        ExampleNotFound: an example is not in the run.
        UsageError: a run with texts, a model without, or arguments that do not go together.
        NumericError: a pattern is not what it should be.
        NotFound, Unreadable, Unsupported: as extraction raises them.
    """
    runs = _checkpoints(of)
    if runs is None:
        check_asked(of)
    check_choice("convention", convention, CONVENTIONS)
    check_choice("dtype", dtype, ("float16", "float32"))
    rules = CONVENTIONS[convention]
    if runs is not None:
        if texts is not None:
            raise UsageError("runs and texts", why="runs have their texts", hint="one of them")
        with steps_watched("measuring", progress) as told:
            return _along_steps(runs, told, convention=convention, window=window, examples=examples, limit=limit)
    if isinstance(of, Run):
        if texts is not None:
            raise UsageError("a run and texts", why="a run has its texts", hint="one of them")
        if examples is not None and limit is not None:
            raise UsageError("the first examples, and some by name", hint="one of them")
        rows = range(of.n)[:limit] if examples is None else [of.row(example) for example in examples]
        workers = as_engine(engine)
        with steps_watched("measuring", progress) as told:
            if workers is not None:
                return measured_on(workers, of, convention, window, rows, told)
            return measured_of(of, rules, window, rows, told)
    if engine is not None:
        raise UsageError("`engine` of a model", why="workers measure runs", hint="record it first, with `engine`")
    if examples is not None:
        raise UsageError("examples of a model", why="a run has examples", hint="texts")
    if texts is None:
        raise UsageError("what shall the model read?", hint='a list of texts, or a data set such as "demo"')
    assert isinstance(of, LoadedModel)  # as was asked above
    reading = reading_of(
        of,
        texts,
        limit=limit,
        split=split,
        text_column=text_column,
        ids_column=ids_column,
        targets=targets,
        seq_length=seq_length,
    )
    with steps_watched("measuring", progress) as told:
        return measured_live(reading, rules, window, batching_of(reading, batch_size, batch_tokens), dtype, told)


def _checkpoints(of: Any) -> TrainingRuns | None:
    """The runs of a training's checkpoints that are meant; None where something else is."""
    is_folder = isinstance(of, str | Path) and Path(of).is_dir() and not (Path(of) / META).is_file()
    return open_checkpoints(of) if is_folder else of if isinstance(of, TrainingRuns) else None


def _along_steps(runs: TrainingRuns, progress: OnStep, **options: Any) -> HeadCurves:
    tables: dict[int, HeadMetrics] = {}
    for number, step in enumerate(runs.steps):
        shown = _of_all(progress, number, len(runs))
        tables[step] = heads(runs.run(step), progress=shown, **options)
    return along_steps(tables, str(runs.folder))


def _of_all(progress: OnStep, number: int, count: int) -> OnStep:
    return lambda done, of: progress(number * of + done, count * of)


def reading_of(
    model: LoadedModel,
    texts: str | Path | TextList | FileWindows | TrainingTexts,
    *,
    limit: int | None = None,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    targets: str | Path | Sequence[str] | None = None,
    seq_length: int | None = None,
) -> "Reading":
    """Returns what a model is to read, as tokens, and which patterns it has then; arguments and errors of `heads`."""
    for name, value in (("seq_length", seq_length), ("limit", limit)):
        if value is not None:
            check_whole(name, value, 1)
    length = seq_length or _SEQ_LENGTH
    if isinstance(texts, FileWindows | TrainingTexts):
        of_data_sets = {"split": split, "text_column": text_column, "ids_column": ids_column, "targets": targets}
        for name, given in of_data_sets.items():
            if given is not None:
                raise UsageError(f"`{name}` goes with a data set", why="a file in windows is one long text")
        return _windows(model, texts, seq_length, limit or _LIMIT)
    from traceformer.capture.extract import read_texts

    is_list = not isinstance(texts, str | Path)
    asked = read_texts(
        texts,
        targets,
        split=split,
        text_column=text_column,
        ids_column=ids_column,
        limit=limit or (None if is_list else _LIMIT),
        max_seq_len=length,
        dec_max_len=length,
    )
    return _texts(model, asked, is_list)


class Reading(NamedTuple):
    """Whose patterns to measure, the tokens to read, what `meta.json` would say, the texts' name and their digest."""

    model: LoadedModel
    plan: "Plan"
    rows: "Sequence[Encoded]"
    meta: "RunMeta"
    source: str
    texts: str | None


def measured_live(
    reading: Reading,
    convention: Convention,
    window: int,
    batching: "Batching",
    dtype: str,
    progress: OnStep,
) -> HeadMetrics:
    """Returns the metrics of every head of a model while it reads."""
    import torch

    from traceformer.capture.batches import SquareSink, run_batches
    from traceformer.capture.edits.session import unedited
    from traceformer.capture.packing import batches_by_length, first_rows
    from traceformer.capture.proofs.first import prove_first
    from traceformer.capture.sight import looking_ahead

    loaded = reading.model
    batches = batches_by_length([row.lengths for row in reading.rows], batching)
    ahead = looking_ahead(loaded, reading.rows, tuple(reading.rows[0].ids) if reading.rows else None)
    sights = {
        (spec.key, layer): visibility_of(reading.meta.attention, spec.key, layer, ahead=(spec.key, layer) in ahead)
        for spec in reading.plan.arrays
        for layer in spec.layers
    }

    @lru_cache(
        maxsize=3 * max(map(len, batches), default=0)
    )  # those of the batch at hand, which all of its layers share
    def geometry(key: ArrayKey, sight: Visibility, example: int) -> Geometry:
        queries, keys = (reading.rows[example].ids[stack] for stack in (key.stack, key.key_stack))
        aligned = key.attention == "self"
        return Geometry(len(queries), len(keys), sight, aligned, np.asarray(queries, np.int32) if aligned else None)

    with ExitStack() as stack:
        measurements = {
            spec.key: stack.enter_context(
                Measurement(attention_name(spec.key), spec.layers, spec.heads, convention=convention, window=window)
            )
            for spec in reading.plan.arrays
        }

        def take(spec: ArraySpec, layer: int, example: int, queries: "Span", keys: "Span", block: "Tensor") -> None:
            copy: Any = block.to(getattr(torch, dtype), copy=True)
            measurements[spec.key].add(
                copy.numpy() if copy.device.type == "cpu" else copy,
                geometry(spec.key, sights[spec.key, layer], example),
                layer=layer,
                first=queries.start,
                stop=queries.stop,
            )

        done = 0

        def told(batch: Sequence[int]) -> None:
            nonlocal done
            done += len(batch)
            progress(done, len(reading.rows))

        tokens = sum(sum(row.lengths.values()) for row in reading.rows)
        with unedited(loaded.model):
            prove_first(
                loaded, reading.plan, [reading.rows[number] for number in first_rows(batches, batching)], tokens
            )
        run_batches(loaded, reading.plan, reading.rows, batches, SquareSink(take), told)
        tables = [measurement.metrics() for measurement in measurements.values()]
    without, model = without_attention(reading.plan.arrays, reading.meta), loaded.source_and_adapter
    return join_heads(tables, source=reading.source, model=model, texts=reading.texts, without=without)


def batching_of(reading: Reading, batch_size: int | None, batch_tokens: int | Literal["auto"] | None) -> "Batching":
    from traceformer.capture.packing import Batching

    longest = max((sum(row.lengths.values()) for row in reading.rows), default=0)
    return Batching.of(batch_size, batch_tokens, reading.model, longest, default=4)


def _texts(loaded: LoadedModel, texts: "Texts", is_list: bool) -> Reading:
    """The texts as an extraction reads them."""
    from traceformer.capture.tokenizing import tokenize

    stacks, source = texts.stacks(loaded), texts.source
    tokenized = tokenize(loaded, texts)
    _, rows = tokenized.part(range(len(tokenized.texts.source.examples)))
    name = f"{len(rows)} texts" if is_list else f"{source.dataset} {source.split}"
    return _reading(loaded, rows, stacks, name, digest_of([example.text for example in source.examples]))


def _windows(loaded: LoadedModel, texts: FileWindows | TrainingTexts, length: int | None, count: int) -> Reading:
    """Consecutive windows of one long text; an encoder-decoder reads them with its encoder."""
    from traceformer.capture.encoding import Encoded
    from traceformer.capture.windows import check_length, file_windows

    stack: Stack = "dec" if loaded.dims.arch == "dec" else "enc"
    length = length or min(_SEQ_LENGTH, loaded.dims.stacks[stack].n_ctx or _SEQ_LENGTH)
    if isinstance(texts, FileWindows):
        rows = file_windows(loaded, texts.path, length, count, texts.part)
    else:
        check_length(loaded, length)
        span = texts.corpus.validation
        starts = range(0, len(span) - length + 1, length)[:count]
        windows = [span.tokens(start, start + length).tolist() for start in starts]
        tokens = loaded.reader().convert_ids_to_tokens
        rows = [Encoded({stack: ids}, {stack: tokens(ids)}, offsets=None) for ids in windows]
    parts = [np.asarray(row.ids[stack], np.int64).tobytes() for row in rows]
    return _reading(loaded, rows, (stack,), str(texts), digest_of(parts))


def _reading(
    loaded: LoadedModel, rows: "Sequence[Encoded]", stacks: tuple[Stack, ...], source: str, texts: str | None
) -> Reading:
    """All patterns of these stacks."""
    from traceformer.capture.plan import plan_arrays
    from traceformer.capture.proofs.fit import fitted
    from traceformer.capture.provenance import model_meta

    loaded = fitted(loaded, rows)
    plan = plan_arrays(Selection(("attn_pattern",)), loaded.model, stacks=stacks, architecture=loaded.architecture)
    return Reading(loaded, plan, rows, model_meta(loaded, plan), source, texts)
