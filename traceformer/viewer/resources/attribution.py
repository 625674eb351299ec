"""Attribution of a logit: what each head, MLP and bias of a run's model adds to it at one position."""

from typing import Any

import numpy as np

from traceformer.analysis.attribution import Attribution
from traceformer.questions.attribute import attribute
from traceformer.sites import ArrayKey
from traceformer.store.run import Run
from traceformer.texts.shown import visible
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.kept import Pending
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["attribution"]

_OF_SOURCES = ("attn_pattern", "v")


def attribution(library: Library, query: Query) -> Packet:
    """Returns `contributions` (part) to the logit of the token `to` at the position `q`; or how far that is.

    Without `to` it is the likeliest next token's. Where `layer` and `head` are said, `sources` is what this head of
    self-attention adds by way of each token.

    Raises:
        NotRecorded, Unsupported: the run does not hold what it takes; the hint says what to record.
        NotFound, ConfigurationChanged: its model is not there, or is another one now.
        UsageError: there is no such token.
        SelectionError: nor such a position or head.
        NumericError: the parts do not add up to the logit.
    """
    run, row = example_asked(library, query)
    to, against = query.text("to", "") or None, query.text("against", "") or None
    position = query.number("q", -1)
    heads = [(query.number("layer"), query.number("head"))] if query.text("head", "") and _has_sources(run) else []

    def read(_: Any) -> Attribution:
        return attribute(run, row, to=to, against=against, position=position, by_source=heads)

    state = library.state(query.text("run"))
    found = library.later(("attribution", query.text("run"), state, row, to, against, position, *heads), read)
    return Packet({}, found.to_json()) if isinstance(found, Pending) else _packet(found, run)


def _has_sources(run: Run) -> bool:
    return all(run.layout.spec(ArrayKey("dec", "self", site)) is not None for site in _OF_SOURCES)


def _packet(found: Attribution, run: Run) -> Packet:
    arrays = {"contributions": found.contributions.astype(np.float32)}
    source = next((part for part in found.sources if part.attention == "self"), None)
    if source is not None:
        arrays["sources"] = found.sources[source].astype(np.float32)
    about = {
        "position": found.position,
        "to": visible(found.to.text),
        "against": None if found.against is None else visible(found.against.text),
        "is_likeliest": found.is_likeliest,
        "total": found.total,
        "remainder": found.remainder,
        "explained": found.explained,
        "softcap": found.softcap,
        "sums": found.sums(),
        "parts": [{"part": str(part), **part._asdict()} for part in found.parts],
        "source": None if source is None else str(source),
        "has_sources": _has_sources(run),
    }
    return Packet(arrays, about)
