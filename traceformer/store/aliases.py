"""Each row once: which layers of token arrays are another array's, bit for bit, and where these are found.

1. `each_once` goes through the layers that may be equal (`hidden[3]`, `resid_pre[3]`, `resid_post[2]`), and asks
   whoever knows which of them are: a recording or, of stored rows, a comparison. Of equal ones the first is kept.
2. A run's layout states the others, its *aliases*, and writes what is kept only.
3. `pieces` says which parts of the kept arrays a reader's part of an array is made of.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = [
    "Aliases",
    "Lead",
    "Piece",
    "Plane",
    "Rows",
    "check_aliases",
    "each_once",
    "kept_arrays",
    "pieces",
    "planes_of",
]

Lead: TypeAlias = tuple[int | slice, ...]
"""The index of the axes before queries or tokens, without the example's: of layers, of heads, or of none."""


class Rows(NamedTuple):
    """One layer of a token array, written `dec.hidden[3]`; `layer` is None for an array without layers, `dec.embed`."""

    key: ArrayKey
    layer: int | None

    def __str__(self) -> str:
        return str(self.key) if self.layer is None else f"{self.key}[{self.layer}]"

    @classmethod
    def parse(cls, text: str) -> "Rows":
        """Returns what `str` wrote.

        Raises:
            ValueError: it is nothing of the kind; a SelectionError if there is no such array.
        """
        match = re.fullmatch(r"([a-z_.]+)(?:\[(0|[1-9][0-9]{0,9})\])?", text)
        if match is None:
            raise ValueError(f"{text!r} is no layer of an array")
        return cls(ArrayKey.parse(match[1]), None if match[2] is None else int(match[2]))


Aliases: TypeAlias = Mapping[Rows, Rows]
"""Layers of arrays that are not stored, and for each of them the stored one that it equals."""


class Piece(NamedTuple):
    """A part of a kept array: its index is `lead`, in which None makes the axis of layers that the array lacks."""

    spec: ArraySpec
    lead: tuple[int | slice | None, ...]


class Plane(NamedTuple):
    """One layer of a kept array, counted as it lies there; `layer` is None where it has no layers."""

    spec: ArraySpec
    layer: int | None


def each_once(
    arrays: Sequence[ArraySpec], depths: Mapping[Stack, int], are_equal: Callable[[Rows, Rows], bool]
) -> dict[Rows, Rows]:
    """Returns the aliases of the arrays: of equal layers the first is kept, as `_may_be_equal` orders them.

    Args:
        arrays: Those of a run.
        depths: How many blocks each stack has.
        are_equal: Whether the rows of two layers are equal bit for bit, in whatever text.
    """
    aliases: dict[Rows, Rows] = {}
    recorded = _layers_of(arrays)
    for named in (alike for stack, depth in depths.items() for alike in _may_be_equal(stack, depth)):
        kept: list[Rows] = []
        for rows in named:
            if rows in recorded:
                twin = next((one for one in kept if _fit(recorded[one], recorded[rows]) and are_equal(one, rows)), None)
                if twin is None:
                    kept.append(rows)
                else:
                    aliases[rows] = twin
    return aliases


def _may_be_equal(stack: Stack, depth: int) -> Iterator[list[Rows]]:
    """Yields the layers that are one tensor in most models: of the stream, from its beginning to its end, and of MLPs.

    Of equal ones the first is kept.
    """

    def rows(site: str, layer: int | None = None) -> Rows:
        return Rows(ArrayKey(stack, None, site), layer)

    yield [rows("resid_pre", 0), rows("embed"), rows("hidden", 0)]
    for layer in range(1, depth):
        yield [rows("resid_pre", layer), rows("resid_post", layer - 1), rows("hidden", layer)]
    yield [rows("resid_post", depth - 1), rows("final_norm"), rows("hidden", depth)]
    yield from ([rows("mlp_out", layer), rows("mlp_down", layer)] for layer in range(depth))


def _layers_of(arrays: Sequence[ArraySpec]) -> dict[Rows, ArraySpec]:
    """The layers that can be an alias or have one: of arrays with one row per token that is an activation."""
    plain = (spec for spec in arrays if spec.site.is_per_token and not spec.heads and not spec.site.holds_ids)
    return {Rows(spec.key, layer): spec for spec in plain for layer in spec.layers or (None,)}


def _fit(one: ArraySpec, other: ArraySpec) -> bool:
    return (one.width, one.key.token_stack) == (other.width, other.key.token_stack)


def check_aliases(aliases: Aliases, arrays: Sequence[ArraySpec]) -> None:
    """Makes sure that each alias is a layer of a run's arrays, and is another one's that is kept and like it.

    Raises:
        ValueError: one is not.
    """
    recorded = _layers_of(arrays)
    for rows, one in aliases.items():
        unknown = [str(each) for each in (rows, one) if each not in recorded]
        if unknown:
            raise ValueError(f"its aliases name {unknown[0]}, of which it has no rows")
        if one in aliases or not _fit(recorded[rows], recorded[one]):
            raise ValueError(f"{rows} cannot be {one}, which is {'an alias' if one in aliases else 'of another size'}")


def kept_arrays(arrays: Sequence[ArraySpec], aliases: Aliases) -> dict[ArrayKey, ArraySpec]:
    """Returns what is stored of the arrays: each with the layers that are no aliases, and none without a layer left."""
    found: dict[ArrayKey, ArraySpec] = {}
    for spec in arrays:
        layers = tuple(layer for layer in spec.layers if Rows(spec.key, layer) not in aliases)
        if layers == spec.layers and Rows(spec.key, None) not in aliases:
            found[spec.key] = spec
        elif layers:
            found[spec.key] = replace(spec, layers=layers)
    return found


def pieces(spec: ArraySpec, lead: Lead, aliases: Aliases, kept: Mapping[ArrayKey, ArraySpec]) -> list[Piece]:
    """Returns the parts of kept arrays that make up `lead` of an array, in order; several of them along the layers."""
    if kept.get(spec.key) is spec:
        return [Piece(spec, lead)]
    wanted, *rest = lead if spec.layers and lead else (slice(None), *lead)
    if isinstance(wanted, int) or not spec.layers:
        layer = spec.layers[wanted] if isinstance(wanted, int) else None
        key, own = aliases.get(Rows(spec.key, layer), Rows(spec.key, layer))
        return [Piece(kept[key], (*_index(kept[key], own), *rest))]
    places = [aliases.get(Rows(spec.key, layer), Rows(spec.key, layer)) for layer in spec.layers[wanted]]
    found: list[Piece] = []
    for key, group in itertools.groupby(places, key=lambda rows: rows.key):
        for first, count in _stretches([i for rows in group for i in _index(kept[key], rows.layer)]):
            found.append(Piece(kept[key], (slice(first, first + count), *rest)))
        if not kept[key].layers:
            found.append(Piece(kept[key], (None, *rest)))
    return found


def planes_of(pieces: Sequence[Piece]) -> tuple[list[Plane], Lead]:
    """Returns the layers that parts of kept arrays are made of, and the index of these planes that gives the parts."""
    planes: list[Plane] = []
    shows_layers, rest = False, pieces[0].lead
    for spec, lead in pieces:
        first, *others = lead or (slice(None),)
        if spec.layers:
            assert first is not None  # that makes the axis of an array without one
            wanted = range(len(spec.layers))[first]
            planes += [Plane(spec, layer) for layer in ([wanted] if isinstance(wanted, int) else wanted)]
            shows_layers, rest = not isinstance(wanted, int), tuple(others)
        else:
            planes.append(Plane(spec, None))
            shows_layers, rest = first is None, tuple(others) if first is None else lead
    return planes, (slice(None) if shows_layers else 0, *(part for part in rest if part is not None))


def _index(spec: ArraySpec, layer: int | None) -> tuple[int, ...]:
    """The index of a layer's rows in a kept array: none where the array is these rows."""
    return () if layer is None else (spec.layers.index(layer),)


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields where numbers that follow each other begin, and how many they are."""
    for _, group in itertools.groupby(enumerate(numbers), key=lambda each: each[1] - each[0]):
        own = [number for _, number in group]
        yield own[0], len(own)
