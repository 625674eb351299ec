"""The logit lens: what each layer would say next, for a window of positions at a time."""

from typing import Any

import numpy as np

from traceformer.analysis.lens import Lens
from traceformer.errors import ConfigurationChanged, NotFound
from traceformer.progress import OnStep
from traceformer.questions.lens import lens as read_lens
from traceformer.store.run import Run
from traceformer.texts.shown import visible
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.kept import Pending
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["lens"]

_WINDOW = 32  # positions in one answer


def lens(library: Library, query: Query) -> Packet:
    """Returns the lens of the positions from `from` on, as many as a window has; or how far it is.

    `probability` and `token` are (layer, position, rank), the likeliest first; a token is its place in `names`.
    `entropy` (in nats), `target_probability` and `target_rank` are (layer, position); NaN and 0 where not known.

    Raises:
        NotRecorded, Unsupported: the run cannot be read out.
        NotFound, ConfigurationChanged: its model is not there, or is another one now.
    """
    run, row = example_asked(library, query)
    length = run.length(row, "dec" if "dec" in run.layout.stacks else "enc")
    first = max(0, min(query.number("from", 0), length - 1))
    key = ("lens", query.text("run"), library.state(query.text("run")), row, first)
    found = library.later(key, lambda told: _read(run, row, first, length, told))
    return Packet({}, found.to_json()) if isinstance(found, Pending) else _packet(found, length)


def _read(run: Run, row: int, first: int, length: int, told: OnStep) -> Lens:
    try:
        return read_lens(run, row, positions=range(first, min(first + _WINDOW, length)), progress=told)
    except (NotFound, ConfigurationChanged) as error:
        hint = f"put the model back as it was; or, in Python, tf.lens(run, {row}, model=FOLDER)"
        raise type(error)(error.message, why=error.why, hint=hint) from error


def _packet(found: Lens, length: int) -> Packet:
    ids = sorted(found.names)
    place = np.zeros(max(ids) + 1, np.int32)
    place[ids] = np.arange(len(ids))
    about: dict[str, Any] = {
        "array": str(found.key),
        "layers": found.layers,
        "positions": found.positions,
        "length": length,
        "window": _WINDOW,
        "names": [visible(found.names[token]) for token in ids],
        "targets": [None if token is None else visible(token) for token in found.target_tokens],
        "has_entropy": bool(np.isfinite(found.entropy).any()),
    }
    arrays = {
        "probability": found.top_probabilities,
        "token": place[found.top_ids],
        "entropy": found.entropy,
        "target_probability": found.target_probability,
        "target_rank": found.target_rank.astype(np.int32),
    }
    return Packet(arrays, about)
