"""Patterns by recipe: what a run states of patterns that it does not hold, so that they are made anew of q and k.

A recipe is exact: two readers make the same cells of it, bit for bit, on any machine (`rebuilding` says how). What one
states has a version, which rises when a cell could come out otherwise.
"""

import base64
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from traceformer.shapes import Bool, Float32
from traceformer.sites import ArrayKey, ArraySpec

__all__ = [
    "VERSION",
    "Bias",
    "LayerRecipe",
    "Operand",
    "Patterns",
    "Recipe",
    "Seen",
    "check_recipes",
    "operands_of",
]

VERSION = 1

Operand: TypeAlias = Literal["float32", "float16", "bfloat16"]
"""What q and k are stored as: what loses nothing of them."""
Patterns: TypeAlias = Literal["stored", "recipe"]
"""Whether patterns are stored cell by cell, or by recipe."""

_MOST = 1 << 40


@dataclass(frozen=True, slots=True)
class Seen:
    """Which keys a query sees.

    Attributes:
        before: How many before its own place at most; None for all.
        behind: How many behind it at most; None for all, 0 where no query looks ahead.
        columns: Places that all queries behind them see, too.
        part: Of how many tokens a part of the text has; a query sees keys of its own part alone. None for no parts.
    """

    before: int | None = None
    behind: int | None = None
    columns: tuple[int, ...] = ()
    part: int | None = None

    def allowed(self, queries: range, keys: int) -> Bool[np.ndarray, "query key"]:
        """Returns where these queries may look."""
        rows, columns = np.asarray(queries)[:, None], np.arange(keys)
        distance = rows - columns
        seen = np.ones(distance.shape, np.bool_)
        if self.before is not None:
            seen &= distance <= self.before
        if self.columns:
            seen |= np.isin(columns, self.columns) & (distance >= 0)
        if self.behind is not None:
            seen &= -distance <= self.behind
        if self.part is not None:
            seen &= rows // self.part == columns // self.part
        return seen

    @property
    def is_band(self) -> bool:
        """Whether what is seen is told by how far it is off alone."""
        return not self.columns and self.part is None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Seen":
        numbers = [data.get(name) for name in ("before", "behind", "part")]
        columns = tuple(data.get("columns", ()))
        if not all(_is_count(number) for number in (*columns, *(each for each in numbers if each is not None))):
            raise ValueError("what queries see is no number of keys")
        if numbers[2] == 0:
            raise ValueError("a text has no parts of 0 tokens")
        return cls(numbers[0], numbers[1], columns, numbers[2])


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to scores by where query and key are.

    Attributes:
        by: `distance` if it depends on how far the key is behind the query, `key` if on the key's place alone.
        first: The smallest distance, or 0.
        heads: How many heads there are.
        values: Of each head the numbers from there on, as float32, little endian, in base64.
    """

    by: Literal["distance", "key"]
    first: int
    heads: int
    values: str

    @classmethod
    def of(cls, by: Literal["distance", "key"], first: int, values: Float32[np.ndarray, "head place"]) -> "Bias":
        return cls(by, first, len(values), base64.b64encode(values.astype("<f4").tobytes()).decode("ascii"))

    @property
    def table(self) -> Float32[np.ndarray, "head place"]:
        """The numbers."""
        return _table(self.values, self.heads)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Bias":
        bias = cls(data["by"], data["first"], data["heads"], data["values"])
        if bias.by not in ("distance", "key") or not _is_count(bias.heads) or not bias.heads:
            raise ValueError("a bias is by distance or by key, of some heads")
        if type(bias.first) is not int or not -_MOST < bias.first <= 0 or (bias.by == "key" and bias.first):
            raise ValueError(f"a bias begins at {bias.first!r}")
        if not np.isfinite(bias.table).all():
            raise ValueError("a bias is no number")
        return bias

    def covers(self, queries: int, keys: int) -> bool:
        """Whether there are numbers for all cells of a text so long."""
        places = self.table.shape[1]
        if self.by == "key":
            return keys <= places
        return self.first <= 1 - queries and keys - 1 < self.first + places


@lru_cache(16)
def _table(values: str, heads: int) -> Float32[np.ndarray, "head place"]:
    table = np.frombuffer(base64.b64decode(values, validate=True), "<f4").astype(np.float32)
    if not table.size or table.size % heads:
        raise ValueError("a bias has not as many numbers for each head")
    table.flags.writeable = False
    return table.reshape(heads, -1)


@dataclass(frozen=True, slots=True)
class LayerRecipe:
    """How one layer's patterns follow from its q and k.

    Attributes:
        scaling: What products are multiplied by.
        seen: Which keys are seen: by all heads, or by each that is recorded, in their order.
        softcap: What scores are capped to.
        sinks: Of each head the score of a key that has no weight.
        bias: Which of the recipe's biases is added.
    """

    scaling: float
    seen: tuple[Seen, ...]
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None
    bias: int | None = None

    def seen_by(self, head: int) -> Seen:
        """Returns what a head sees, by its number among those that are recorded."""
        return self.seen[head if len(self.seen) > 1 else 0]

    def to_json(self) -> dict[str, Any]:
        stated = {"scaling": self.scaling, "seen": [each.to_json() for each in self.seen]}
        others = {"softcap": self.softcap, "sinks": self.sinks and [*self.sinks], "bias": self.bias}
        return stated | {name: value for name, value in others.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayerRecipe":
        softcap, sinks, bias = data.get("softcap"), data.get("sinks"), data.get("bias")
        numbers = [data["scaling"], *(() if softcap is None else [softcap]), *(sinks or ())]
        if not all(map(_is_number, numbers)) or softcap == 0:
            raise ValueError("scaling, softcap and sinks are numbers")
        if abs(data["scaling"]) >= _MOST:  # so that no score of numbers that are stored is infinite
            raise ValueError(f"products are multiplied by {data['scaling']!r}")
        if bias is not None and not _is_count(bias):
            raise ValueError("a bias is told by its number")
        seen = tuple(Seen.from_json(each) for each in data["seen"])
        return cls(
            float(data["scaling"]),
            seen,
            None if softcap is None else float(softcap),
            None if sinks is None else tuple(map(float, sinks)),
            bias,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the patterns of one array follow from the q and k of the same attention.

    Attributes:
        stored: What these are stored as.
        group: How many heads share the keys of one.
        layers: Of each layer of the array.
        biases: What layers add to scores.
        version: That of the definition.
    """

    stored: Operand
    group: int
    layers: tuple[LayerRecipe, ...]
    biases: tuple[Bias, ...] = ()
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "stored": self.stored,
            "group": self.group,
            "layers": [layer.to_json() for layer in self.layers],
            **({"biases": [asdict(bias) for bias in self.biases]} if self.biases else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Returns the recipe that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none, or one of a later version.
        """
        if type(data["version"]) is not int or not 1 <= data["version"] <= VERSION:
            raise ValueError(f"its patterns are by recipe {data['version']!r}; this version knows up to {VERSION}")
        if data["stored"] not in get_args(Operand) or not _is_count(data["group"]) or not data["group"]:
            raise ValueError("a recipe is of q and k in float32, float16 or bfloat16, which some heads share")
        layers = tuple(LayerRecipe.from_json(each) for each in data["layers"])
        biases = tuple(Bias.from_json(each) for each in data.get("biases", ()))
        return cls(data["stored"], data["group"], layers, biases, data["version"])


def operands_of(key: ArrayKey) -> tuple[ArrayKey, ArrayKey]:
    """Returns the arrays that patterns are made of."""
    return key._replace(site="q"), key._replace(site="k")


def check_recipes(recipes: Mapping[ArrayKey, Recipe], arrays: Sequence[ArraySpec]) -> None:
    """Makes sure that each recipe is of patterns of these arrays, and that these have what it needs.

    Raises:
        ValueError: one is not.
    """
    specs = {spec.key: spec for spec in arrays}
    for key, recipe in recipes.items():
        spec, (query, keys) = specs.get(key), (specs.get(each) for each in operands_of(key))
        if spec is None or key.site != "attn_pattern" or query is None or keys is None:
            raise ValueError(f"a recipe of {key} lacks patterns, q or k")
        if query.layers != spec.layers or keys.layers != spec.layers or len(recipe.layers) != len(spec.layers):
            raise ValueError(f"the recipe of {key} is not of its layers")
        shared = tuple(dict.fromkeys(head // recipe.group for head in spec.heads))
        if query.heads != spec.heads or not set(shared) <= set(keys.heads) or query.width != keys.width:
            raise ValueError(f"the recipe of {key} is not of its heads")
        for layer in recipe.layers:
            sizes = {len(layer.seen), *(() if layer.sinks is None else [len(layer.sinks)])} - {len(spec.heads)}
            if sizes - {1} or (layer.sinks is not None and len(layer.sinks) != len(spec.heads)):
                raise ValueError(f"the recipe of {key} is not of its {len(spec.heads)} heads")
            if layer.bias is not None:
                bias = recipe.biases[layer.bias] if layer.bias < len(recipe.biases) else None
                if bias is None or bias.heads != len(spec.heads):
                    raise ValueError(f"the recipe of {key} lacks a bias")


def _is_number(number: object) -> bool:
    """Whether it is a number that a double holds."""
    return isinstance(number, int | float) and type(number) is not bool and abs(number) <= sys.float_info.max


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < _MOST
