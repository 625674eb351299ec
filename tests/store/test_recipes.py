"""Patterns made anew: the definition, spelt out with Python's own floats, and held against exact arithmetic."""

import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.core.switched import VARIANTS, needs_core, switched
from traceformer.core.library import variants
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.dtypes import decode
from traceformer.store.layout import RunLayout
from traceformer.store.rebuilding import rebuilt_of
from traceformer.store.recipes import VERSION, Bias, LayerRecipe, Recipe, Seen

PATTERN = ArrayKey("dec", "self", "attn_pattern")
WAYS = [*(name for name in variants()), "off"]


def constants() -> tuple[float, float, float]:
    """1 / ln 2, the first 32 binary digits of ln 2, and the rest of it."""
    with mpmath.workdps(60):
        whole = mpmath.log(2)
        high = math.floor(whole * 2**32) / 2**32
        return float(1 / whole), high, float(whole - high)


LOG2_E, HIGH, LOW = constants()


def power(x: float) -> float:
    x = max(x, -700.0)
    n = (x * LOG2_E + 1.5 * 2.0**52) - 1.5 * 2.0**52
    r = (x - n * HIGH) - n * LOW
    p = 1 / math.factorial(13)
    for i in range(12, -1, -1):
        p = p * r + 1 / math.factorial(i)
    return p * 2.0**n


def tangent(x: float) -> float:
    e = power(-2 * abs(x))
    return math.copysign((1 - e) / (1 + e), x)


def weights(layer: LayerRecipe, head: int, bias: Bias | None, query: Any, key: Any, place: int) -> list[float]:
    """One query's weights, number by number, as `store/rebuilding.py` says."""
    seen, scores = layer.seen_by(head), dict[int, float]()
    for j, row in enumerate(key.tolist()):
        far = place - j
        in_band = (seen.before is None or far <= seen.before) or (j in seen.columns and far >= 0)
        if not in_band or (seen.behind is not None and -far > seen.behind):
            continue
        if seen.part is not None and place // seen.part != j // seen.part:
            continue
        score = 0.0
        for one, other in zip(query.tolist(), row, strict=True):
            score += one * other
        score *= layer.scaling
        if layer.softcap is not None:
            score = layer.softcap * tangent(score / layer.softcap)
        if bias is not None:
            score += float(bias.table[head, j if bias.by == "key" else j - place - bias.first])
        scores[j] = score
    sink = None if layer.sinks is None else layer.sinks[head]
    peak: float = max([*scores.values(), *([] if sink is None else [sink])], default=0.0)
    lanes = [0.0] * 8
    made = {j: power(score - peak) for j, score in scores.items()}
    for j, weight in made.items():
        lanes[j % 8] += weight
    for half in (4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    total = lanes[0] + (0.0 if sink is None else power(sink - peak))
    return [made[j] * (1 / total) if j in made else 0.0 for j in range(len(key))]


def rounded(number: float, stored: str) -> float:
    """A number to the nearest of those that are stored, ties to even, by exact arithmetic."""
    digits, least = {"float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}[stored]
    if number == 0:
        return 0.0
    _, exponent = math.frexp(number)
    unit = Fraction(2) ** max(exponent - digits, least)
    return float(round(Fraction(number) / unit) * unit)  # Python rounds fractions to even


def case(seed: int, queries: int = 21, d: int = 5, heads: int = 2, spread: float = 1.5) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    query, key = ((draw.standard_normal((heads, queries, d)) * spread).astype(np.float32) for _ in range(2))
    return query, key


BIAS = {
    "key": Bias.of("key", 0, np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)),
    "distance": Bias.of("distance", -29, np.random.default_rng(1).standard_normal((2, 59)).astype(np.float32)),
}
CAUSAL = (Seen(behind=0),)
LAYERS = {
    "causal": LayerRecipe(0.447, CAUSAL),
    "both ways": LayerRecipe(0.447, (Seen(),)),
    "window": LayerRecipe(1.0, (Seen(before=3, behind=0),)),
    "window both ways": LayerRecipe(1.0, (Seen(before=4, behind=2),)),
    "softcap": LayerRecipe(0.5, CAUSAL, softcap=3.0),
    "sinks": LayerRecipe(0.5, CAUSAL, sinks=(0.25, -4.0)),
    "by distance": LayerRecipe(0.5, (Seen(),), bias=1),
    "by key": LayerRecipe(0.5, CAUSAL, bias=0),
    "columns": LayerRecipe(0.5, (Seen(2, 0, (0, 7)), Seen(0, 0, (3,)))),
    "parts": LayerRecipe(0.5, (Seen(behind=0, part=6),)),
    "far apart": LayerRecipe(900.0, CAUSAL),
    "all": LayerRecipe(2.0, (Seen(before=9, behind=0),), 5.0, (1.0, -1.0), 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_cell_is_that_of_the_definition(name: str, way: str) -> None:
    layer, biases = LAYERS[name], (BIAS["key"], BIAS["distance"])
    recipe = Recipe("float32", 1, (layer,), biases)
    bias = None if layer.bias is None else biases[layer.bias]
    query, key = case(3)
    for head in range(2):
        exact = [weights(layer, head, bias, row, key[head], place) for place, row in enumerate(query[head])]
        for stored in ("float32", "float16", "bfloat16"):
            expected = [[rounded(weight, stored) for weight in row] for row in exact]
            with switched(way):
                made = decode(rebuilt_of(recipe, 0, head, query[head], key[head], stored=stored), stored)  # pyright: ignore
                some = rebuilt_of(recipe, 0, head, query[head][5:14], key[head], first=5, stored=stored)  # pyright: ignore
            np.testing.assert_array_equal(made.astype(np.float64), expected)
            np.testing.assert_array_equal(decode(some, stored), made[5:14])  # pyright: ignore


@needs_core
@pytest.mark.parametrize(("length", "d"), [(130, 64), (33, 1), (1, 8), (64, 80)])
def test_the_compiled_core_and_numpy_make_the_same_bytes(length: int, d: int) -> None:
    layer = LayerRecipe(d**-0.5, (Seen(before=100, behind=0),), softcap=20.0, sinks=(0.5,))
    recipe = Recipe("float32", 1, (layer, LayerRecipe(d**-0.5, (Seen(),))))
    query, key = case(7, length, d, heads=1, spread=3)
    for number in range(2):
        made = set[bytes]()
        for way in (*VARIANTS, "off"):
            with switched(way):
                made.add(rebuilt_of(recipe, number, 0, query[0], key[0], stored="float16").tobytes())
        assert len(made) == 1


def test_a_weight_is_the_exact_softmax_rounded_once() -> None:
    query, key = case(11, 12, 4, heads=1, spread=2)
    made = rebuilt_of(Recipe("float32", 1, (LayerRecipe(0.5, CAUSAL),)), 0, 0, query[0], key[0], stored="float16")
    with mpmath.workdps(40):
        for place, row in enumerate(query[0].tolist()):
            products = [
                sum((Fraction(one) * Fraction(other) for one, other in zip(row, own, strict=True)), Fraction()) / 2
                for own in key[0].tolist()[: place + 1]
            ]
            powers = [mpmath.exp(mpmath.mpf(each.numerator) / each.denominator) for each in products]
            for j, each in enumerate(powers):
                exact = float(each / mpmath.fsum(powers))  # no cell here is so near a tie that a double hides it
                assert float(made[place, j]) == rounded(exact, "float16")


@pytest.mark.parametrize("way", WAYS)
def test_the_smallest_of_bfloat16_are_rounded_by_way_of_a_float(way: str) -> None:
    near_ties = [-87.59851837158203, -88.2666015625, -87.75182342529297, -91.78311157226562]
    scores = np.array([0, *near_ties, *np.linspace(-94, -86, 40)], np.float32)
    recipe = Recipe("float32", 1, (LayerRecipe(1.0, (Seen(),)),))
    with switched(way):
        made = rebuilt_of(recipe, 0, 0, np.ones((1, 1), np.float32), scores[:, None], stored="bfloat16")
    weights = [power(score) for score in scores.tolist()]  # which add up to 1
    expected = [rounded(rounded(to_odd(weight), "float32"), "bfloat16") for weight in weights]
    np.testing.assert_array_equal(decode(made, "bfloat16")[0], np.array(expected, np.float32))
    assert sum(one != rounded(weight, "bfloat16") for one, weight in zip(expected, weights, strict=True)) == 4


def to_odd(number: float) -> float:
    """The first 24 binary digits of a number, the last of them 1 where more follow."""
    mantissa, exponent = math.frexp(number)
    digits = Fraction(mantissa) * 2**24
    return math.ldexp(math.floor(digits) | (digits.denominator > 1), exponent - 24)


def test_keys_that_nothing_sees_have_no_weight_even_where_a_query_sees_none() -> None:
    layer = LayerRecipe(1.0, (Seen(before=0, behind=0, part=3),))
    query, key = case(2, 6, 3, heads=1)
    made = rebuilt_of(Recipe("float32", 1, (layer,)), 0, 0, query[0], key[0][:4])
    np.testing.assert_array_equal(made, np.eye(6, 4))


def layout(**changes: Any) -> RunLayout:
    recipe = Recipe("float32", 2, (LAYERS["columns"], LAYERS["all"]), (BIAS["key"], BIAS["distance"]))
    arrays = tuple(
        ArraySpec(PATTERN._replace(site=site), (0, 3), heads, width)
        for site, heads, width in (("q", (2, 3), 8), ("k", (1,), 8), ("attn_pattern", (2, 3), 0))
    )
    asked: dict[str, Any] = {"arch": "dec", "arrays": arrays, "n_examples": 2, "longest": {"dec": 30}}
    asked |= {"recipes": {PATTERN: recipe}, **changes}
    return RunLayout.plan(**asked)


def test_a_layout_keeps_q_and_k_as_the_recipe_says_and_no_patterns() -> None:
    own = layout()
    assert [str(spec.key) for spec in own.kept] == ["dec.self.q", "dec.self.k"]
    assert [own.stored(spec) for spec in own.arrays] == ["float32", "float32", "float16"]
    assert own.recipes[PATTERN].version == VERSION
    assert RunLayout.from_json(own.to_json()) == own
    assert "recipes" not in layout(recipes={}).to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": VERSION + 1}, "by recipe 2"),
        ({"version": True}, "by recipe True"),
        ({"stored": "float64"}, "float32, float16 or bfloat16"),
        ({"group": 0}, "which some heads share"),
        ({"group": 1}, "not of its heads"),
        ({"layers": []}, "not of its layers"),
        ({"biases": []}, "lacks a bias"),
    ],
)
def test_a_recipe_that_fits_no_array_is_refused(change: dict[str, Any], words: str) -> None:
    data = layout().to_json()
    data["recipes"][str(PATTERN)].update(change)
    with pytest.raises(ValueError, match=words):
        RunLayout.from_json(data)


@pytest.mark.parametrize(
    "change",
    [
        {"scaling": float("nan")},
        {"scaling": "1"},
        {"scaling": 10**400},
        {"scaling": 1e300},
        {"softcap": 0.0},
        {"sinks": [1.0]},
        {"sinks": [10**400, 1.0]},
        {"softcap": -(10**400)},
        {"seen": []},
        {"seen": [{"before": -1}]},
        {"seen": [{"part": 0}]},
        {"bias": -1},
    ],
)
def test_a_layer_of_a_recipe_that_is_none_is_refused(change: dict[str, Any]) -> None:
    data = layout().to_json()
    data["recipes"][str(PATTERN)]["layers"][0].update(change)
    with pytest.raises((ValueError, TypeError)):
        RunLayout.from_json(data)
