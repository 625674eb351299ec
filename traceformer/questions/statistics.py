"""The statistics of a run: all it holds, gone through layer by layer and, within a layer, example by example.

No more than one layer of one shard is in memory at a time, beside the token table.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, Convention, ConventionName
from traceformer.analysis.run_statistics import (
    AttentionStatistics,
    ExampleLogits,
    LayerStatistics,
    LogitSummary,
    RunStatistics,
)
from traceformer.analysis.statistics import (
    AttentionTally,
    HeadStatistics,
    ValueStatistics,
    ValueTally,
    logit_statistics,
)
from traceformer.capture.workers.engine import Engine, Ray, as_engine
from traceformer.errors import NotRecorded, Unsupported, UsageError, check_choice
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.recorded import Texts, recorded
from traceformer.questions.sights import sights_of
from traceformer.shapes import Float, Int
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run

__all__ = ["statistics", "targets_of"]

_AT_ONCE = 64 << 20  # cells of a layer of patterns that are read together
_ROWS_AT_ONCE = 8 << 20


def statistics(
    of: Run | LoadedModel,
    texts: Texts | None = None,
    *,
    examples: Sequence[str | int] | None = None,
    capture: str = "attn resid",
    convention: ConventionName = "exact",
    top: int = 5,
    each: Callable[[ExampleLogits], None] = lambda _: None,
    engine: Engine = None,
    progress: OnStep | None = None,
) -> RunStatistics:
    """Returns the statistics of a run, or of a model that reads texts; of token ids there are none.

        statistics(run).to_frame()
        statistics(load_model("byte"), ["Rome is in Italy."], capture="attn logits")

    What the convention says nothing about (activations and logits, in the thesis's) is left out, with a warning.

    Args:
        of: A run, or a model.
        texts: What a model reads.
        capture: What of a model is looked at; of a run all that it holds.
        examples: Which examples, by number or by id; all of them for None.
        convention: What entropy, sparsity and std mean, as in `analysis/conventions.py`.
        top: How many of the most likely tokens `each` is told.
        each: Told what the logits of each example say, position by position, since that grows with the run.
        engine: "ray" or `Ray(...)` has workers go through a run, each through some of its layers: the same numbers.
        progress: Told after every example of every layer how many of how many are done; None for a bar in a terminal
            or a notebook.

    Raises:
        ExampleNotFound: an example is not in the run.
        NotRecorded: the run holds ids, or what was made of patterns, and nothing else.
        Unsupported: the convention says nothing about all that the run holds.
        NumericError: a query's attention adds up to nothing.
    """
    check_choice("convention", convention, CONVENTIONS)
    workers = as_engine(engine)
    if workers is not None and not isinstance(of, Run):
        raise UsageError("`engine` of a model", why="workers read runs", hint="record it first, with `engine`")
    store, rules = recorded(of, texts, capture), CONVENTIONS[convention]
    example_ids = None if examples is None else tuple(store.example_id(example) for example in examples)
    specs = [spec for spec in store.layout.arrays if not spec.site.holds_ids and not spec.site.is_of_patterns]
    if not specs:
        names = " ".join(str(spec.key) for spec in store.layout.arrays)
        hint = 'record it with `capture="attn resid"`'
        raise NotRecorded("there is nothing to take statistics of", why=f"this run holds {names}", hint=hint)
    left_out: tuple[str, ...] = ()
    if rules.sparse_value is None:
        left_out = tuple(str(spec.key) for spec in specs if spec.key.site != "attn_pattern")
        specs = [spec for spec in specs if spec.key.site == "attn_pattern"]
        silent = f"the {convention} convention says nothing about activations and logits"
        if not specs:
            raise Unsupported(silent, why="this run holds no attention patterns", hint='`convention="exact"`')
        if left_out:
            warnings.warn(f"{silent}: {', '.join(left_out)} left out", stacklevel=2)
    parts = [(str(spec.key), layer) for spec in specs for layer in _layers(spec)]
    ids = store.ids if example_ids is None else example_ids
    with steps_watched("analyzing", progress) as told:
        if workers is None:
            total, done = len(parts) * len(ids), 0

            def step() -> None:
                nonlocal done
                done += 1
                told(done, total)

            measure = partial(_measured, store, example_ids, rules, top, each, step)
            found = [measure(part) for part in parts]
        else:
            found = _measured_on(workers, store, example_ids, convention, top, each, parts, told)
    of_layer = dict(zip(parts, found, strict=True))
    attention: list[AttentionStatistics] = []
    activations: list[LayerStatistics] = []
    logits: list[LogitSummary] = []
    for spec in specs:
        of_spec: tuple[Any, ...] = tuple(of_layer[str(spec.key), layer] for layer in _layers(spec))
        if spec.key.site == "attn_pattern":
            attention.append(AttentionStatistics(spec.key, spec.layers, spec.heads, of_spec))
        elif spec.key.site == "logits":
            logits += of_spec
        else:
            activations.append(LayerStatistics(spec.key, spec.layers, of_spec))
    return RunStatistics(
        str(store.folder or store.name), convention, ids, tuple(attention), tuple(activations), tuple(logits), left_out
    )


def _layers(spec: ArraySpec) -> tuple[int | None, ...]:
    return (None,) if spec.key.site == "logits" else spec.layers or (None,)


def _measured(
    store: Run,
    example_ids: Sequence[str] | None,
    rules: Convention,
    top: int,
    each: Callable[[ExampleLogits], None],
    step: Callable[[], None],
    part: tuple[str, int | None],
) -> HeadStatistics | ValueStatistics | LogitSummary:
    """Returns what is said of one layer of an array, which is gone through example by example."""
    key, layer = part
    spec = next(spec for spec in store.layout.arrays if str(spec.key) == key)

    def examples() -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
        for example_id, values in _read(store, spec, layer, example_ids):
            if 0 not in values.shape:
                yield example_id, values
            step()

    if spec.key.site == "logits":
        return _summary(store, spec.key, examples(), rules, top, each)
    if spec.key.site == "attn_pattern":
        assert layer is not None, "patterns are of layers"
        [sight] = sights_of(store, replace(spec, layers=(layer,))).values()
        tally: AttentionTally | ValueTally = AttentionTally(len(spec.heads), rules, sight)
        if _is_long(store, spec):
            for example in store.ids if example_ids is None else example_ids:
                tally.add_rows(_rows(store, spec, layer, example), store.length(example, spec.key.stack))
                step()
            return tally.result()
    else:
        tally = ValueTally(rules)
    for _, values in examples():
        tally.add(values)
    return tally.result()


def _measured_on(
    engine: Ray,
    store: Run,
    example_ids: Sequence[str] | None,
    convention: ConventionName,
    top: int,
    each: Callable[[ExampleLogits], None],
    parts: Sequence[tuple[str, int | None]],
    told: OnStep,
) -> list[HeadStatistics | ValueStatistics | LogitSummary]:
    """Returns the same of all parts, each gone through by one worker."""
    measure = partial(_measured_apart, str(store.on_disk().folder.absolute()), example_ids, convention, top)
    found: list[HeadStatistics | ValueStatistics | LogitSummary] = []
    for of_part, of_examples in engine.map(measure, parts):
        for example in of_examples:
            each(example)
        found.append(of_part)
        told(len(found), len(parts))
    return found


def _measured_apart(
    folder: str, example_ids: Sequence[str] | None, convention: ConventionName, top: int, part: tuple[str, int | None]
) -> tuple[HeadStatistics | ValueStatistics | LogitSummary, list[ExampleLogits]]:
    of_examples: list[ExampleLogits] = []
    rules, store = CONVENTIONS[convention], Run(Path(folder))
    return _measured(store, example_ids, rules, top, of_examples.append, lambda: None, part), of_examples


def _read(
    store: Run, spec: ArraySpec, layer: int | None, example_ids: Sequence[str] | None
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    if example_ids is None:
        return store.head(spec.key, layer)
    return ((example_id, store.get(example_id, spec.key, layer)) for example_id in example_ids)


def _is_long(store: Run, spec: ArraySpec) -> bool:
    """Whether one layer of an example's patterns may be too much to be read at once."""
    tokens = store.layout.max_tokens
    return len(spec.heads) * tokens[spec.key.stack] * tokens[spec.key.key_stack] > _AT_ONCE


def _rows(store: Run, spec: ArraySpec, layer: int, example: str) -> Iterator[Float[np.ndarray, "head _ key"]]:
    """Yields an example's patterns, some queries after the other."""
    queries, keys = (store.length(example, stack) for stack in (spec.key.stack, spec.key.key_stack))
    step = max(1, _ROWS_AT_ONCE // max(1, len(spec.heads) * keys)) if keys else 0
    for first in range(0, queries, step or 1):
        if keys:
            yield store.get(example, spec.key, layer, queries=slice(first, first + step))


def _summary(
    store: Run,
    key: ArrayKey,
    examples: Iterator[tuple[str, Float[np.ndarray, "..."]]],
    convention: Convention,
    top: int,
    each: Callable[[ExampleLogits], None],
) -> LogitSummary:
    values = ValueTally(convention)
    positions = target_positions = first = 0
    entropy = probability = log_probability = 0.0
    targets = targets_of(store)
    for example_id, logits in examples:
        values.add(logits)
        of_example = targets(example_id)
        found = logit_statistics(logits, of_example, convention, top=min(top, logits.shape[1]))
        each(ExampleLogits(key, example_id, of_example, found))
        known = ~np.isnan(found.entropy)
        there = ~np.isnan(found.target_probability)
        positions += int(known.sum())
        target_positions += int(there.sum())
        entropy += float(found.entropy[known].sum())
        probability += float(found.target_probability[there].sum())
        with np.errstate(divide="ignore"):  # a token of probability 0 makes the perplexity infinite
            log_probability += float(np.log(found.target_probability[there]).sum())
        first += int((found.target_rank == 1).sum())
    count = target_positions or np.nan
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(-log_probability / count))
    return LogitSummary(
        key,
        positions,
        values.result(),
        entropy / (positions or np.nan),
        target_positions,
        probability / count,
        first / count,
        perplexity,
    )


def targets_of(store: Run) -> Callable[[str], Int[np.ndarray, "position"]]:
    """Returns for an example's id the token that each row of logits speaks about.

    A decoder's row speaks about the next token (beside an encoder that is its label, where there are labels), an
    encoder's about the token at its own place.
    """
    labelled = store.arch == "enc" or "dec_labels" in store.columns
    names = {"enc": "input_ids", "dec": "input_ids", "encdec": "dec_labels" if labelled else "dec_input_ids"}

    def targets(example_id: str) -> Int[np.ndarray, "position"]:
        ids = np.asarray(store.table_of([example_id]).column(names[store.arch])[0].as_py(), np.int64)
        return ids if labelled else np.append(ids[1:], -1)

    return targets
