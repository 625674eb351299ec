"""The residual stream: how long its rows are, and which neurons are most active."""

from typing import Any

import numpy as np

from traceformer.errors import NotRecorded, SelectionError
from traceformer.shapes import Float, Float32
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["neurons", "norms"]

_NEURONS = 12


def norms(library: Library, query: Query) -> Packet:
    """Returns `norms` (layer, token): the L2 norm of each row of an array, computed in float64.

    Raises:
        SelectionError: the array has no single row per token and layer.
    """
    run, row = example_asked(library, query)
    spec = run.spec(ArrayKey.parse(query.text("array")))
    if not spec.layers or not spec.site.is_per_token or spec.heads:
        raise SelectionError(f"{spec.key} has no single row per token and layer", hint="such as dec.resid_post")
    found = np.stack([_norms(run.get(row, spec.key, layer)) for layer in spec.layers])
    return Packet({"norms": found}, {"array": str(spec.key), "layers": spec.layers, "meaning": spec.site.meaning})


def _norms(rows: Float[np.ndarray, "token d"]) -> Float32[np.ndarray, "token"]:
    wide = rows.astype(np.float64)
    return np.sqrt(np.einsum("td,td->t", wide, wide)).astype(np.float32)


def neurons(library: Library, query: Query) -> dict[str, Any]:
    """Returns the most active neurons of a layer at a position: those farthest from 0 before the down projection.

    Raises:
        NotRecorded: the run holds no activations of MLPs.
        SelectionError: the position is not in the example.
    """
    run, row = example_asked(library, query)
    spec, layer, position = _neurons_of(run, query.text("stack")), query.number("layer"), query.number("q")
    rows = run.get(row, spec.key, layer)
    if not 0 <= position < len(rows):
        raise SelectionError(f"position {position} requested", why=f"this example has positions 0-{len(rows) - 1}")
    values = rows[position]
    order = np.argsort(-np.abs(values), kind="stable")[:_NEURONS]
    return {
        "array": str(spec.key),
        "meaning": spec.site.meaning,
        "count": spec.width,
        "neurons": [{"neuron": int(neuron), "value": float(values[neuron])} for neuron in order],
    }


def _neurons_of(run: Run, stack: str) -> ArraySpec:
    for site in ("mlp_mid", "mlp_act"):
        spec = run.layout.spec(ArrayKey.parse(f"{stack}.{site}"))
        if spec is not None:
            return spec
    raise NotRecorded("this run holds no activations of MLPs", hint='`capture="mlp_mid"` when it is recorded')
