"""Logits split into parts, against norms written down one after the other."""

from typing import Any

import numpy as np
import pytest

from traceformer.analysis.logit_split import Addition, Part, Split, explained, split
from traceformer.models.block_weights import NormWeights
from traceformer.models.family import Norm

WIDTH = 12
KINDS: tuple[Norm, ...] = ("layer", "layer_plus_one", "layer_bare", "rms", "rms_plus_one", "rms_bare")


def plain(norm: NormWeights | None, row: np.ndarray) -> np.ndarray:
    """Returns a row behind a norm, as its paper has it."""
    if norm is None:
        return row
    own = row - row.mean() if norm.kind.startswith("layer") else row
    own = own / np.sqrt(np.mean(own**2) + norm.epsilon)
    if norm.weight is not None:
        own = own * (norm.weight.astype(np.float64) + ("plus_one" in norm.kind))
    return own if norm.bias is None else own + norm.bias


def random_norm(kind: Norm, draw: np.random.Generator, *, biased: bool) -> NormWeights:
    weight, bias = (draw.normal(size=WIDTH).astype(np.float32) for _ in range(2))
    bare = kind.endswith("bare")
    return NormWeights(kind, None if bare else weight, bias if biased and not bare else None, 1e-5)


def blocks(draw: np.random.Generator, **norms: Any) -> list[Addition]:
    """Two layers of an attention with three heads and a bias, and an MLP."""
    made: list[Addition] = []
    for layer in range(2):
        heads = (*(Part("head", layer, head, "self") for head in range(3)), Part("bias", layer, None, "self"))
        made.append(Addition(layer, "self", heads, draw.normal(size=(4, WIDTH)), **norms))
        after = {"norm_of_stream": norms["norm_of_stream"]} if "norm_of_stream" in norms else {}
        made.append(Addition(layer, None, (Part("mlp", layer),), draw.normal(size=(1, WIDTH)), **after))
    return made


def forward(embed: np.ndarray, additions: list[Addition]) -> np.ndarray:
    stream = embed.astype(np.float64)
    for each in additions:
        stream = plain(each.norm_of_stream, stream + plain(each.norm_of_sum, each.outputs.sum(axis=0)))
    return stream


def whole(value: Split) -> float:
    return float(value.contributions.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["norm_of_sum", "norm_of_stream", "nowhere"])
def test_parts_add_up_to_the_logit_through_every_norm(kind: Norm, where: str) -> None:
    draw = np.random.default_rng(0)
    norms = {} if where == "nowhere" else {where: random_norm(kind, draw, biased=True)}
    embed, additions, final = draw.normal(size=WIDTH), blocks(draw, **norms), random_norm(kind, draw, biased=True)
    direction = draw.normal(size=WIDTH)
    last = forward(embed, additions)
    logit = float(plain(final, last) @ direction) + 0.25
    value = split(embed, additions, last, final, direction, 0.25)
    assert value.total == pytest.approx(logit, abs=1e-12)
    assert whole(value) == pytest.approx(logit, abs=1e-12)
    assert value.parts[0] == Part("embed")
    assert value.parts[-1] == Part("bias")
    assert abs(value.total - whole(value)) < explained(value, ["float32"], "float32")


def test_a_part_counts_by_what_the_frozen_norm_makes_of_it() -> None:
    draw = np.random.default_rng(1)
    embed, additions, final = draw.normal(size=WIDTH), blocks(draw), random_norm("layer", draw, biased=False)
    direction, last = draw.normal(size=WIDTH), forward(embed, additions)
    value = split(embed, additions, last, final, direction, None)
    head = additions[2].outputs[1]
    expected = (head - head.mean()) / np.sqrt(last.var() + 1e-5) * final.weight @ direction
    assert value.contributions[value.parts.index(Part("head", 1, 1, "self"))] == pytest.approx(expected, abs=1e-12)
    assert head @ value.directions[1, "self"] == pytest.approx(expected, abs=1e-12)


def test_rounding_explains_what_storing_leaves_and_no_lost_part() -> None:
    draw = np.random.default_rng(2)
    for _ in range(50):
        embed, additions, final = draw.normal(size=WIDTH), blocks(draw), random_norm("rms", draw, biased=False)
        direction, last = draw.normal(size=WIDTH), forward(embed, additions)
        stored = [
            Addition(each.layer, each.attention, each.parts, each.outputs.astype(np.float16).astype(np.float64))
            for each in additions
        ]
        value = split(embed.astype(np.float16), stored, last.astype(np.float16), final, direction, None)
        left = abs(value.total - whole(value))
        assert 0 < left < explained(value, ["float16"], "float32")
        lost = split(embed, additions[:-1], last, final, direction, None)
        assert abs(lost.total - whole(lost)) > explained(lost, ["float32"], "float32")


def test_parts_are_called_by_their_places() -> None:
    names = {
        "embed": Part("embed"),
        "L2H5": Part("head", 2, 5, "self"),
        "L2H5 cross": Part("head", 2, 5, "cross"),
        "L2 cross attn": Part("attn", 2, None, "cross"),
        "L2 MLP": Part("mlp", 2),
        "L2 W_O bias": Part("bias", 2, None, "self"),
        "unembedding bias": Part("bias"),
        "L2 norm bias behind MLP": Part("norm", 2),
        "L2 norm bias behind self attn": Part("norm", 2, None, "self"),
        "final norm bias": Part("norm"),
    }
    assert {str(part): part for part in names.values()} == names
