"""What pages ask for, by name: pure functions of a library and a query, the same for a server and for one file.

Each returns JSON, or a `Packet` of arrays. `web/src/payload.ts` states the same shapes. A page works out no number
that a result states. Errors of the library are told on the page in words.

runs         which runs there are, and what one holds
examples     an example: its tokens, and what is known of each
patterns     the pattern of a head, and what it is less than another
alignment    which tokens of an example are which of another's
paths        which tokens led to a token, searched in stored patterns
overview     what was expected at each position, and which heads an example has pictures of
thumbnails   these pictures: heads in small
heads        metrics of all heads, and heads in clusters
stream       the residual stream: norms, and active neurons
lens         the logit lens
traits       directions, and tokens projected onto them
effects      effects of interventions, beside runs
attribution  what parts of a model add to a logit
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from traceformer.errors import NotFound
from traceformer.presentation import plain
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query

__all__ = ["RESOURCES", "Answer", "Resource", "answer"]

Resource = Callable[[Library, Query], Mapping[str, Any] | Packet]

RESOURCES: Mapping[str, str] = {
    "runs": "runs",
    "run": "runs",
    "examples": "examples",
    "example": "examples",
    "matrix": "patterns",
    "row": "patterns",
    "difference": "patterns",
    "alignment": "alignment",
    "paths": "paths",
    "overview": "overview",
    "predictions": "overview",
    "thumbnails": "thumbnails",
    "heads": "heads",
    "clusters": "heads",
    "norms": "stream",
    "neurons": "stream",
    "lens": "lens",
    "directions": "traits",
    "projection": "traits",
    "effects": "effects",
    "effect": "effects",
    "attribution": "attribution",
}
"""Name of each resource -> the module of this room that has the function of that name."""


class Answer(NamedTuple):
    """What a page is sent; it asks again for what is pending."""

    body: bytes
    is_packet: bool
    is_pending: bool


def answer(library: Library, resource: str, query: Query) -> Answer:
    """Returns a resource as bytes: JSON, or the safetensors file of a packet.

    Raises:
        NotFound: there is no such resource, or not what it is asked of.
        TraceformerError: as the resource raises it.
    """
    if resource not in RESOURCES:
        raise NotFound(f"no resource {resource!r}")
    module = import_module(f"traceformer.viewer.resources.{RESOURCES[resource]}")
    found = getattr(module, resource)(library, query)
    if isinstance(found, Packet):
        return Answer(found.to_bytes(), is_packet=True, is_pending="pending" in found.about)
    body = json.dumps(plain(dict(found)), ensure_ascii=False, allow_nan=False).encode()
    return Answer(body, is_packet=False, is_pending="pending" in found)
