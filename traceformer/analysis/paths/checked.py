"""A result that came from a file, held against what its fields are said to be and against itself.

1. Every field has the type of its annotation: whole numbers are no floats and no booleans, numbers are finite.
2. A path has one edge fewer than tokens; what goes along with its tokens has as many entries.
3. The target is one of the tokens; links lead from node to node of the diagram, on paths that there are.
4. The settings that a page puts into words are such as there are, and none nests deep.
5. All text is Unicode, without halves of a character.
"""

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from traceformer.analysis.paths.flow import RESIDUAL_SHARE
from traceformer.analysis.paths.sankey import BeamPath, SankeyData

__all__ = ["check_bytes", "check_diagram", "check_path", "check_settings", "check_types"]

_DEEPEST = 20


def check_types(value: object, kind: Any, where: str) -> None:
    """Finds out whether a value, and all that it holds, is what an annotation says.

    Raises:
        TypeError: it is not; the message says where.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Union, types.UnionType):
        if not any(_is(value, each, where) for each in inner):
            raise TypeError(f"{where} is {_short(value)}")
    elif origin is Literal:
        if value not in inner:
            raise TypeError(f"{where} is {_short(value)}")
    elif is_dataclass(kind):
        if not isinstance(value, cast(type, kind)):
            raise TypeError(f"{where} is {_short(value)}")
        hints = get_type_hints(kind)
        for field in fields(kind):
            check_types(getattr(value, field.name), hints[field.name], f"{where}.{field.name}")
    elif origin is list:
        if not isinstance(value, list):
            raise TypeError(f"{where} is {_short(value)}")
        for number, each in enumerate(cast(list[object], value)):
            check_types(each, inner[0], f"{where}[{number}]")
    elif origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{where} is {_short(value)}")
        for name, each in cast(dict[str, object], value).items():
            check_types(each, inner[1], f"{where}[{name!r}]")
    elif not _is_plain(value, kind):
        raise TypeError(f"{where} is {_short(value)}")


def _is(value: object, kind: Any, where: str) -> bool:
    try:
        check_types(value, kind, where)
    except TypeError:
        return False
    return True


def _is_plain(value: object, kind: Any) -> bool:
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        return False
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return kind is float and isinstance(value, float) and math.isfinite(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def check_path(path: BeamPath, where: str) -> None:
    """Finds out whether a path has an entry for each of its tokens, and one for each edge.

    Raises:
        TypeError: it has not.
    """
    count = len(path.positions)
    beside: Mapping[str, Sequence[object] | None] = {
        **{"tokens": path.tokens, "token_ids": path.token_ids, "states": path.states, "stacks": path.stacks},
    }
    edges: Mapping[str, Sequence[object] | None] = {"edge_attns": path.edge_attns, "heads": path.heads}
    wanted = dict.fromkeys(beside, count) | dict.fromkeys(edges, count - 1)
    for name, own in (beside | edges).items():
        if own is not None and len(own) != wanted[name]:
            raise TypeError(f"{where} has {count} positions, but {len(own)} {name}")
    if not count:
        raise TypeError(f"{where} has no positions")


def check_diagram(diagram: SankeyData, paths: Sequence[BeamPath], *, across_layers: bool) -> None:
    """Finds out whether every token of a path is a node, and links lead from node to node on paths that there are.

    Raises:
        TypeError: one does not.
    """
    by_step = any(node.step is not None for node in diagram.nodes)
    places: dict[str, _Node] = {}
    for node in diagram.nodes:
        level = node.step if by_step else node.layer if across_layers else None
        if (by_step and level is None) or (level is not None and level < 0):
            raise TypeError(f"the node {node.id!r} is in no column")
        places[node.id] = (node.position, node.stack, level)
    routes = [_route(path, by_step=by_step, across_layers=across_layers) for path in paths]
    known = {*places.values()}
    for number, route in enumerate(routes):
        if not known.issuperset(route) and (known or len(route) > 1):
            raise TypeError(f"path {number} runs through tokens that are no nodes")
    for link in diagram.links:
        if not {link.source, link.target} <= places.keys():
            raise TypeError(f"a link leads from {link.source!r} to {link.target!r}, which are no nodes")
        for beam in link.beam_indices:
            if not 0 <= beam < len(routes) or places[link.target] not in routes[beam][:-1]:
                raise TypeError(f"a link is on path {beam}, which does not lead there")


_Node = tuple[int, str | None, int | None]


def _route(path: BeamPath, *, by_step: bool, across_layers: bool) -> list[_Node]:
    count = len(path.positions)
    levels = range(count) if by_step else path.states if across_layers else None
    return [*zip(path.positions, path.stacks or [None] * count, levels or [None] * count, strict=True)]


def check_settings(settings: Mapping[str, object]) -> None:
    """Finds out whether the settings that decide what weights mean have values that there are, where they are stated.

    Raises:
        TypeError: one has not.
    """
    _check_depth(settings, _DEEPEST)
    kinds: Mapping[str, Any] = {"weighting": str, "agg_heads": str | int, "heads": list[int]}
    for name, kind in kinds.items():
        if name in settings:
            check_types(settings[name], kind, f"settings[{name!r}]")
    weighting = settings.get("weighting", "attention")
    if weighting not in RESIDUAL_SHARE:
        raise TypeError(f"no weighting {weighting!r}; there are {', '.join(RESIDUAL_SHARE)}")


def _check_depth(value: object, most: int) -> None:
    if not most:
        raise TypeError(f"settings nest deeper than {_DEEPEST} levels")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for each in cast(Iterable[object], inner):
        _check_depth(each, most - 1)


def check_bytes(hexes: Sequence[str | None]) -> None:
    """Finds out whether the bytes of tokens are hexadecimal digits.

    Raises:
        TypeError: some are not.
    """
    for own in hexes:
        try:
            bytes.fromhex(own or "")
        except ValueError as error:
            raise TypeError(f"the bytes of a token are {own!r}") from error
