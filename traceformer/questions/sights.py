"""Which keys the queries of a run see: measured in its patterns, with the windows that the run states."""

from traceformer.analysis.visibility import Visibility, looks_ahead, visibility_of
from traceformer.sites import ArraySpec
from traceformer.store.run import Run

__all__ = ["sights_of"]

_ENOUGH = 8  # tokens: with fewer, all that lies ahead may have rounded to nothing


def sights_of(run: Run, spec: ArraySpec) -> dict[int, Visibility]:
    """Returns, by layer, which keys a query of these patterns sees; one example is read.

    Not what its stack or its model is called says whether it sees later ones, but whether it looks at them there.
    """
    facts, key = run.about.attention, spec.key
    if key.attention == "cross":
        return {layer: visibility_of(facts, key, layer, ahead=True) for layer in spec.layers}
    lengths = {example: run.length(example, key.stack) for example in run.ids}
    long = [example for example, length in lengths.items() if length >= _ENOUGH] or [*lengths]
    if not long:
        return {layer: visibility_of(facts, key, layer, ahead=False) for layer in spec.layers}
    nearest = min(long, key=lambda example: abs(lengths[example] - _ENOUGH))
    return {
        layer: visibility_of(facts, key, layer, ahead=looks_ahead(run.get(nearest, key, layer)))
        for layer in spec.layers
    }
