"""Squares of one size are those parts of the matrices that numpy cuts out, each once, and what they are of is told."""

from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import SelectionError, UsageError
from traceformer.store.squares import Squares

SIZE = 20


def cut(run: TraceStore, square: tuple[int, ...], site: str = "attn_pattern", size: int = SIZE) -> np.ndarray:
    """Returns what a square must hold, out of the whole matrix, by its length, example, start, layer and head."""
    _, example, start, layer, head = square
    whole = runs.expected(run.layout, run.spec(site), example)[runs.LAYERS.index(layer), runs.HEADS.index(head)]
    part = whole[start : start + size, start : start + size]
    return np.pad(part, [(0, size - len(part))] * 2)


def singly(batches: list[Squares]) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    return [(values, tuple(map(int, where))) for batch in batches for values, *where in zip(*batch, strict=True)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("crop", ["first", "random"])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("site", ["attn_pattern", "attn_scores"])
def test_squares_are_what_numpy_cuts_out(decoder: TraceStore, shuffle: bool, crop: str, pad: bool, site: str) -> None:
    batches = [*decoder.stream(site, batch_tokens=7 * SIZE, shuffle=shuffle, seed=2, size=SIZE, crop=crop, pad=pad)]
    found = singly(batches)
    lengths = {example: runs.lengths(decoder.layout, example)["dec"] for example in range(decoder.n)}
    used = [example for example, length in lengths.items() if pad or length >= SIZE]
    assert 0 < len(used) - sum(lengths[example] < SIZE for example in used) < decoder.n  # some are shorter
    assert {len(batch.values) for batch in batches[:-1]} == {7}
    told = [(example, layer, head) for _, (_, example, _, layer, head) in found]
    everything = [(example, layer, head) for example in used for layer in runs.LAYERS for head in runs.HEADS]
    assert sorted(told) == everything
    assert (told == everything) is not shuffle
    for values, where in found:
        length, example, start, *_ = where
        assert length == min(SIZE, lengths[example])
        assert start == 0 or (crop == "random" and start + SIZE <= lengths[example])
        assert np.array_equal(values, cut(decoder, where, site))
    starts = {where[2] for _, where in found}
    assert (len(starts) > 1) == (crop == "random")


def test_the_mask_says_what_is_the_texts(decoder: TraceStore) -> None:
    squares = next(decoder.stream("attn", 4, 1000 * 30, head=2, size=30, pad=True))
    assert squares.mask.sum(1).tolist() == squares.lengths.tolist()
    for values, mask in zip(squares.values, squares.mask, strict=True):
        assert not values[~mask].any()
        assert not values[:, ~mask].any()


def test_layers_and_heads_are_chosen_as_elsewhere(decoder: TraceStore) -> None:
    one = next(decoder.stream("attn", 4, 10**6, head=[3, 0], size=9))
    assert {*one.layers.tolist()} == {4}
    assert one.heads[:2].tolist() == [3, 0]
    both = next(decoder.stream("attn", "1,4", 10**6, head="2", size=9))
    assert np.array_equal(np.unique(both.layers), [1, 4])
    assert np.array_equal(np.unique(both.heads), [2])


def test_random_crops_are_others_in_each_epoch_and_the_same_again(decoder: TraceStore) -> None:
    data = decoder.training_data("attn", 4, 1000, head=0, size=5, crop="random", seed=1)
    starts = [
        dict(zip(one.examples.tolist(), one.starts.tolist(), strict=True)) for e in (0, 1, 0) for one in data.batches(e)
    ]
    assert starts[0] == starts[2] != starts[1]


def test_in_memory_it_is_the_same(decoder: TraceStore, encoder_decoder: TraceStore) -> None:
    stored = next(decoder.stream("attn", 4, 10**6, head=0, size=9, dtype="stored"))
    assert stored.values.dtype == np.float16
    looking_both_ways = next(encoder_decoder.stream("enc.self.attn_pattern", 1, 10**6, head=2, size=9))
    assert np.triu(looking_both_ways.values[0], 1).any()
    assert np.array_equal(
        looking_both_ways.values[0], encoder_decoder.attn(int(looking_both_ways.examples[0]), 1, 2, side="enc")[:9, :9]
    )


@pytest.mark.parametrize(
    ("chosen", "error", "says"),
    [
        ({"size": 500}, SelectionError, "the longest of 11 texts has"),
        ({"size": 0}, UsageError, "size"),
        ({"size": 8.5}, (UsageError, TypeCheckError), "size"),
        ({"size": 8, "crop": "last"}, (UsageError, TypeCheckError), "last"),
        ({"size": 8, "head": 1}, SelectionError, "heads 0,2-3"),
        ({"size": 8, "layer": [1, 2]}, SelectionError, "layer 2 requested"),
        ({"size": 8, "site": "resid_mid"}, SelectionError, "no .query, key. matrix"),
        ({"size": 8, "site": "attn_out"}, SelectionError, "no .query, key. matrix"),
        ({"size": 8, "dtype": "half"}, (SelectionError, TypeCheckError), "half"),
        ({"size": 8, "seed": -1}, UsageError, "seed"),
        ({"size": None}, SelectionError, "with a size stream"),
        ({"size": None, "site": "resid_mid", "pad": True}, SelectionError, "say their size"),
        ({"size": None, "site": "resid_mid", "layer": [1, 4]}, SelectionError, "rows are of one"),
    ],
)
def test_what_cannot_be_meant_is_refused(decoder: TraceStore, chosen: dict[str, object], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        decoder.training_data(**{"site": "attn", **chosen})


def test_squares_of_two_texts_are_refused(encoder_decoder: TraceStore) -> None:
    with pytest.raises(SelectionError, match="of two texts"):
        encoder_decoder.stream("dec.cross.attn_pattern", size=8)
