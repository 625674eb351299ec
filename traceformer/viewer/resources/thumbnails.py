"""Heads in small: some thumbnails of an example's atlas."""

from traceformer.questions.thumbnails import thumbnails as thumbnails_of
from traceformer.viewer.arrays import example_asked, pattern_asked
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["thumbnails"]


def thumbnails(library: Library, query: Query) -> Packet:
    """Returns the thumbnails of the heads `from` to before `to` of an attention, as `overview` groups them."""
    run, row = example_asked(library, query)
    heads = range(query.number("from"), query.number("to"))
    return Packet({"pixels": thumbnails_of(run, row, pattern_asked(run, query), heads)})
