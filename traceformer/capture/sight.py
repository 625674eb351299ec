"""Which attentions of a model let a query look at later keys: measured in a pass, whatever the model is called."""

from collections.abc import Sequence

from torch import Tensor

from traceformer.capture.attention import Span
from traceformer.capture.batches import SquareSink, run_batches
from traceformer.capture.plan import plan_arrays
from traceformer.capture.tokenizing import Encoded
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack

__all__ = ["looking_ahead"]

_ENOUGH = 8  # tokens: with fewer, all that lies ahead may have rounded to nothing


def looking_ahead(
    model: LoadedModel, rows: Sequence[Encoded], stacks: Sequence[Stack] | None = None
) -> frozenset[tuple[ArrayKey, int]]:
    """Returns the self-attention patterns, by array and layer, in which some query looks at a later key.

    Measured on the shortest of the rows that have some tokens in each stack, or else on the longest; empty for families
    whose attention cannot be observed.
    """
    several = [row for row in rows if all(row.lengths.values())]
    if not several or not model.built.has_attention_function:
        return frozenset()
    found: set[tuple[ArrayKey, int]] = set()

    def take(spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        ahead = block.triu(diagonal=queries.start - keys.start + 1)
        if spec.key.attention == "self" and bool(ahead.any()):
            found.add((spec.key, layer))

    plan = plan_arrays(Selection(("attn_pattern",)), model.model, stacks=stacks, architecture=model.architecture)
    long = [row for row in several if min(row.lengths.values()) >= _ENOUGH] or several
    nearest = min(long, key=lambda row: abs(min(row.lengths.values()) - _ENOUGH))
    run_batches(model, plan, [nearest], [[0]], SquareSink(take))
    return frozenset(found)
