"""Which attentions of a model let a query look at later keys: measured in a pass, whatever the model is called."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from traceformer.capture.batches import SquareSink, run_batches
from traceformer.capture.encoding import Encoded
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.scores import Span
from traceformer.capture.tokenizing import Rows
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack

__all__ = ["few_tokens_of", "looking_ahead", "nearest_to_few", "triangles_of"]

_ENOUGH = 8  # tokens: with fewer, all that lies ahead may have rounded to nothing


def looking_ahead(
    model: LoadedModel, rows: Sequence[Encoded], stacks: Sequence[Stack] | None = None
) -> frozenset[tuple[ArrayKey, int]]:
    """Returns the self-attention patterns, by array and layer, in which some query looks at a later key.

    Measured on the shortest of the rows that have some tokens in each stack, or else on the longest; empty for families
    whose attention cannot be observed.
    """
    number = nearest_to_few(_columns(rows))
    if number is None or not model.built.keys("attn_pattern"):
        return frozenset()
    found: set[tuple[ArrayKey, int]] = set()

    def take(spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        ahead = block.triu(diagonal=queries.start - keys.start + 1)
        if spec.key.attention == "self" and bool(ahead.any()):
            found.add((spec.key, layer))

    plan = plan_arrays(Selection(("attn_pattern",)), model.model, stacks=stacks, architecture=model.architecture)
    run_batches(model, plan, [rows[number]], [[0]], SquareSink(take))
    return frozenset(found)


def nearest_to_few(lengths: Mapping[Stack, Sequence[int]]) -> int | None:
    """Returns the number of the shortest row with some tokens in each stack, or else the longest; None without tokens.

    `lengths` has those of all rows, by stack.
    """
    shortest = [min(own) for own in zip(*lengths.values(), strict=True)]
    several = [number for number, length in enumerate(shortest) if length]
    long = [number for number in several if shortest[number] >= _ENOUGH] or several
    return min(long, key=lambda number: abs(shortest[number] - _ENOUGH), default=None)


def few_tokens_of(rows: Rows) -> list[Encoded]:
    """Returns some tokens of one text, enough to see which keys are looked at; none where there are no tokens."""
    number = nearest_to_few(rows.lengths.tokens)
    if number is None:
        return []
    [row] = rows.part(range(number, number + 1))[1]
    return [row.cut(dict.fromkeys(row.ids, _ENOUGH))]


def triangles_of(model: LoadedModel, plan: Plan, rows: Sequence[Encoded]) -> frozenset[ArrayKey]:
    """Returns the arrays of patterns in which no query looks at a later key, as one of the rows shows.

    It has to have two tokens for that, and no more than a few are run. A layer that is not recorded may look ahead.
    """
    patterns = [spec for spec in plan.arrays if spec.key.site == "attn_pattern" and spec.key.attention == "self"]
    number = nearest_to_few(_columns(rows))
    if not patterns or number is None or not model.built.has_attention_function:
        return frozenset()
    row = rows[number].cut(dict.fromkeys(rows[number].ids, _ENOUGH))
    ahead = looking_ahead(model, [row], tuple(row.ids))
    shown = [spec for spec in patterns if row.length(spec.key.stack) > 1]
    return frozenset(spec.key for spec in shown if not any((spec.key, layer) in ahead for layer in spec.layers))


def _columns(rows: Sequence[Encoded]) -> dict[Stack, list[int]]:
    """Returns the lengths of rows by stack."""
    return {stack: [row.length(stack) for row in rows] for stack in (rows[0].ids if rows else ())}
