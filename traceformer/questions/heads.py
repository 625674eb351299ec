"""The head metrics of a run: every pattern is read once, in parts of bounded size."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Int32

from traceformer.analysis.choices import HeadConvention
from traceformer.analysis.head_tally import HeadMetrics, Measurement
from traceformer.analysis.heads import Geometry
from traceformer.analysis.visibility import visibility_of
from traceformer.errors import NotRecorded
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import TraceStore

__all__ = ["run_heads"]

_AT_ONCE = 32 << 20  # bytes that are read together


def run_heads(
    store: TraceStore,
    *,
    convention: HeadConvention = "valid",
    window: int = 8,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> dict[ArrayKey, HeadMetrics]:
    """Returns the metrics of every attention that the run holds patterns of.

    Args:
        store: The run.
        convention: `valid` or `thesis`, as in `heads.py`.
        window: How far `local_mass` reaches on either side.
        limit: The first examples only.
        progress: Told after every example of every attention how many of how many are done.

    Raises:
        NotRecorded: it holds no patterns.
        NumericError, Unsupported: a pattern is not what it should be.
    """
    specs = [spec for spec in store.layout.arrays if spec.key.site == "attn_pattern"]
    if not specs:
        raise NotRecorded("this run holds no attention patterns", hint="traceformer extract --capture attn")
    ids = store.ids[:limit]
    done, total = 0, len(ids) * len(specs)
    found: dict[ArrayKey, HeadMetrics] = {}
    for spec in specs:
        aligned = spec.key.attention == "self"
        tokens = _tokens(store, spec.key) if aligned else None
        sights = {layer: visibility_of(store.meta, spec.key, layer) for layer in spec.layers}
        with Measurement(spec.layers, spec.heads, convention=convention, window=window) as measurement:
            for example_id in ids:
                queries, keys = (store.length(example_id, stack) for stack in (spec.key.stack, spec.key.key_stack))
                own = None if tokens is None else tokens[store.row(example_id)]
                geometries = {sight: Geometry(queries, keys, sight, aligned, own) for sight in sights.values()}
                size = len(spec.layers) * len(spec.heads) * queries * keys * store.layout.itemsize(spec)
                for layer, head in _parts(spec, size, one_sight=len(geometries) == 1):
                    measurement.add(
                        partial(store.get, example_id, spec.key, layer, head),
                        geometries[sights[spec.layers[0] if layer is None else layer]],
                        layer=layer,
                        head=head,
                    )
                done += 1
                progress(done, total)
            found[spec.key] = measurement.metrics()
    return found


def _parts(spec: ArraySpec, size: int, *, one_sight: bool) -> list[tuple[int | None, int | None]]:
    """The (layer, head) to read at a time: all of them, or one layer, or one head, as much as a bounded part holds."""
    if size <= _AT_ONCE and one_sight:
        return [(None, None)]
    if size // len(spec.layers) <= _AT_ONCE:
        return [(layer, None) for layer in spec.layers]
    return [(layer, head) for layer in spec.layers for head in spec.heads]


def _tokens(store: TraceStore, key: ArrayKey) -> list[Int32[np.ndarray, "position"]] | None:
    """The token ids of every example, where the run has them."""
    column = "dec_input_ids" if key.stack == "dec" and store.arch == "encdec" else "input_ids"
    if column not in store.tokens:
        return None
    return [np.asarray(ids, np.int32) for ids in store.tokens[column]]
