"""Effects of interventions: folders that `patch` and `ablate` wrote beside runs, and the numbers of one."""

from dataclasses import asdict
from typing import Any

import numpy as np

from traceformer.analysis.effects import Effects, mean_over_pairs
from traceformer.errors import TraceformerError
from traceformer.shapes import Float64
from traceformer.texts.shown import visible
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["effect", "effects"]

Json = dict[str, Any]


def effects(library: Library, query: Query) -> Json:
    """Returns which effects there are, each with what was done, or with what is wrong with it."""
    return {"effects": [_row(library, name) for name in library.effects()]}


def _row(library: Library, name: str) -> Json:
    try:
        found = library.open_effects(name)
    except TraceformerError as error:
        return {"name": name, "problem": str(error)}
    return {"name": name, "problem": "", "pairs": len(found.pairs), **_done(found)}


def _done(found: Effects) -> Json:
    about = found.about
    return {
        "verb": about.verb,
        "model": about.model,
        "how": about.how,
        "sites": list(about.sites),
        "metric": about.metric,
        "over": [axis.name for axis in found.axes],
    }


def effect(library: Library, query: Query) -> Packet:
    """Returns `values` over the axes of effects: the mean over pairs, or those of the pair that `pair` numbers.

    Beside them lie `exact`, where values are estimates of which some were measured; and of the mean `spread`, the
    standard deviation over pairs, and `pairs`, how many have each cell.

    Raises:
        NotFound: there are no such effects.
        CorruptRun: they are damaged, or not finished.
        SelectionError: there are fewer pairs.
    """
    found = library.open_effects(query.text("name"))
    number = query.text("pair", "mean")
    chosen = found if number == "mean" else found.pair(query.number("pair"))
    arrays: dict[str, Any] = {"values": _narrow(chosen.values)}
    if "exact" in chosen.by_pair:
        arrays["exact"] = _narrow(mean_over_pairs(chosen.by_pair["exact"]))
    if number == "mean":
        arrays |= {"spread": _narrow(chosen.spread), "pairs": chosen.n_pairs.astype(np.int32)}
    about = {
        **_done(found),
        "kind": found.kind,
        "pair": None if number == "mean" else query.number("pair"),
        "axes": [
            {"name": axis.name, "numbers": axis.numbers, "labels": [visible(own) if own else "" for own in axis.labels]}
            for axis in found.axes
        ],
        "pairs": [
            {"name": name, "clean": float(clean), "corrupt": float(corrupt)}
            for name, clean, corrupt in zip(found.pairs, found.clean, found.corrupt, strict=True)
        ],
        "agreement": asdict(chosen.agreement) if "exact" in chosen.by_pair else None,
        "way": found.about.way,
        "compared": found.about.compared,
        "error": found.about.error,
        "position": found.about.position,
        "align": found.about.align,
    }
    return Packet(arrays, about)


def _narrow(values: Float64[np.ndarray, "*cell"]) -> Any:
    return values.astype(np.float32)
