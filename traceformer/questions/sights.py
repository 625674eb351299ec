"""Which keys the queries of a run see: measured in its patterns, with the windows that the run states."""

from traceformer.analysis.visibility import Visibility, looks_ahead, visibility_of
from traceformer.sites import ArraySpec
from traceformer.store.run import Run

__all__ = ["sights_of"]

_AT_ONCE = 8 << 20  # cells
_ENOUGH = 8  # tokens: with fewer, all that lies ahead may have rounded to nothing


def sights_of(run: Run, spec: ArraySpec) -> dict[int, Visibility]:
    """Returns, by layer, which keys a query of these patterns sees; one example is read.

    Not what its stack or its model is called says whether it sees later ones, but whether it looks at them there.
    """
    facts, key = run.about.attention, spec.key
    if key.attention == "cross":
        return {layer: visibility_of(facts, key, layer, ahead=True) for layer in spec.layers}
    if run.layout.is_triangle(spec):  # which holds nothing that lies ahead
        return {layer: visibility_of(facts, key, layer, ahead=False) for layer in spec.layers}
    lengths = {example: run.length(example, key.stack) for example in run.ids}
    long = [example for example, length in lengths.items() if length >= _ENOUGH] or [*lengths]
    if not long:
        return {layer: visibility_of(facts, key, layer, ahead=False) for layer in spec.layers}
    nearest = min(long, key=lambda example: abs(lengths[example] - _ENOUGH))
    return {
        layer: visibility_of(facts, key, layer, ahead=_looks_ahead(run, spec, nearest, layer)) for layer in spec.layers
    }


def _looks_ahead(run: Run, spec: ArraySpec, example: str, layer: int) -> bool:
    """Whether a query of an example looks at a later key, read some rows at a time."""
    queries, keys = (run.length(example, stack) for stack in (spec.key.stack, spec.key.key_stack))
    step = max(1, _AT_ONCE // max(1, len(spec.heads) * keys))
    return any(
        looks_ahead(run.get(example, spec.key, layer, queries=slice(first, first + step)), first)
        for first in range(0, queries, step)
    )
