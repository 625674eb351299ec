"""What an extraction knows before its first byte is written: the arrays, of which tokens, and how both lie on disk."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from traceformer.capture.edits.session import edits_of, unedited
from traceformer.capture.encoding import Encoded
from traceformer.capture.given import ProcessorBatch
from traceformer.capture.packing import Batching, batches_by_length, first_rows
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.processed import rows_in_shard, rows_of, text_alone
from traceformer.capture.proofs.fit import fitted, is_strange
from traceformer.capture.recipes import by_recipe
from traceformer.capture.reduced import LONG, settled
from traceformer.capture.sight import nearest_to_few, triangles_of
from traceformer.capture.tokenizing import Rows, Texts, tokenize
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import runs_alone
from traceformer.progress import OnProgress, quiet
from traceformer.sites import ArrayKey, Selection
from traceformer.store.layout import RunLayout
from traceformer.store.place import Storage

__all__ = ["Prepared", "causal_patterns", "first_batch", "fitting", "prepare"]

_FIRST = 8  # texts, of which some prove the row of a model whose family has none


class Prepared(NamedTuple):
    """All that is known before the first byte is written: which arrays, of which tokens, and how both are laid out.

    The model has the row by which it is recorded.
    """

    model: LoadedModel
    plan: Plan
    rows: Rows
    layout: RunLayout


def prepare(
    model: LoadedModel,
    texts: Texts | Rows | Sequence[ProcessorBatch],
    selection: Selection,
    storage: Storage,
    progress: OnProgress = quiet,
) -> Prepared:
    """Returns all that is known before the first byte is written: arrays, tokens, and how both lie on disk."""
    if isinstance(texts, Texts):
        rows, asked = None, texts
    else:
        rows = texts if isinstance(texts, Rows) else rows_of(model, texts)
        asked = rows.texts
    if is_strange(model):
        rows = rows or tokenize(model, asked)
        _, first = rows.part(range(min(_FIRST, len(rows.texts.source.examples))))
        with unedited(model.model):
            model = fitted(model, first if rows.given is None else text_alone(first), progress)
    plan = plan_arrays(selection, model.model, stacks=asked.stacks(model), architecture=model.architecture)
    if plan.left_out:
        warnings.warn(f"{model.name} has no {', '.join(plan.left_out)}: left out", stacklevel=3)
    rows = rows or tokenize(model, asked)
    plan = settled(plan, model, rows, storage, rows.lengths.longest)
    if storage.patterns == "recipe":
        plan = by_recipe(plan, model, rows)
    layout = RunLayout.plan(
        arch=model.dims.arch,
        arrays=plan.arrays,
        n_examples=len(rows.texts.source.examples),
        longest=rows.lengths.longest,
        mean=rows.lengths.mean,
        dtype=storage.dtype,
        attn_codec=storage.attn_codec,
        rows_codec=storage.rows_codec,
        codec=storage.codec,
        shard_examples=storage.shard_examples,
        triangles=causal_patterns(model, plan, rows),
        recipes=plan.recipes,
    )
    if rows.given is not None:
        layout = replace(layout, shard_examples=rows_in_shard(rows.given, layout.shard_examples))
    return Prepared(model, plan, rows, layout)


def causal_patterns(model: LoadedModel, plan: Plan, rows: Rows) -> frozenset[ArrayKey]:
    """Returns the patterns in which no query of a text of a few tokens looks at a later one."""
    if rows.given is not None:  # an image may look at all of itself
        return frozenset()
    are_edited = any(edit.site in ("attn_scores", "attn_pattern") for edit in edits_of(model.model))
    if are_edited or not any(spec.key.site == "attn_pattern" for spec in plan.arrays):
        return frozenset()
    number = nearest_to_few(rows.lengths.tokens)
    with unedited(model.model):
        return triangles_of(model, plan, [] if number is None else rows.part(range(number, number + 1))[1])


def first_batch(rows: Rows, numbers: range, batching: Batching) -> list[Encoded]:
    """Returns the shortest and the longest text of those that the model is proved on, or the only one."""
    lengths = rows.lengths.tokens
    batches = batches_by_length(
        [{stack: own[number] for stack, own in lengths.items()} for number in numbers], batching
    )
    chosen = first_rows(batches, batching)
    ends = dict.fromkeys((chosen[0], chosen[-1])) if chosen else ()
    first = [row for end in ends for row in rows.part(numbers[end : end + 1])[1]]
    return first if rows.given is None else text_alone(first)


def fitting(batching: Batching, prepared: Prepared) -> Batching:
    """Returns which texts share a pass: they lie within one shard, and the model's output must bear company."""
    model, plan, rows, layout = prepared
    of_classes = any(spec.key.site == "class_logits" for spec in plan.arrays)
    if of_classes and runs_alone(model.model):
        return Batching(rows=1)
    if any(spec.site.is_of_patterns for spec in plan.arrays) and rows.lengths.longest_of_all > LONG:
        return Batching(rows=1)
    return batching if batching.rows is None else Batching(rows=min(batching.rows, layout.shard_examples))
