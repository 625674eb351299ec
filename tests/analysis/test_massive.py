"""Massive activations, counted one entry at a time."""

import numpy as np
import pytest

from traceformer.analysis.massive import TIMES_MEDIAN, MassiveTally
from traceformer.errors import NumericError

TOKENS = (["<s>", "a", "b", "a"], ["<s>", "b", "."])


def streams() -> list[dict[int, np.ndarray]]:
    random = np.random.default_rng(0)
    made = [{layer: random.normal(size=(len(tokens), 50)) for layer in (0, 2)} for tokens in TOKENS]
    made[0][2][0, 7] = -2000  # the first token's
    made[1][2][2, 7] = 300
    return made


def test_counts_are_those_of_a_loop() -> None:
    tally = MassiveTally((0, 2))
    for rows, tokens in zip(streams(), TOKENS, strict=True):
        for layer, own in rows.items():
            tally.add(layer, own, tokens)
    found = tally.result()
    counts: dict[tuple[int, int], int] = {}
    by_token: dict[tuple[str, bool], list[int]] = {}
    largest = {0: 0.0, 2: 0.0}
    for rows, tokens in zip(streams(), TOKENS, strict=True):
        for layer, own in rows.items():
            median = sorted(abs(value) for value in own.flat)[own.size // 2 - 1 : own.size // 2 + 1]
            middle = sum(median) / 2
            for position, token in enumerate(tokens):
                own_counts = by_token.setdefault((token, position == 0), [0, 0, 0])
                for value in own[position]:
                    times = abs(value) / middle
                    largest[layer] = max(largest[layer], times)
                    own_counts[0] += 1
                    for number, least in enumerate(TIMES_MEDIAN):
                        own_counts[1 + number] += times > least
                        counts[layer, number] = counts.get((layer, number), 0) + (times > least)
    assert [tuple(row) for row in found.over.tolist()] == [(counts[layer, 0], counts[layer, 1]) for layer in (0, 2)]
    assert found.largest.tolist() == pytest.approx([largest[0], largest[2]])
    assert found.entries.tolist() == [350, 350]
    wanted = {place: (n, tuple(over)) for place, (n, *over) in by_token.items() if over[0]}
    assert {(text, first): (n, over) for text, first, n, over in found.tokens} == wanted
    assert [text for text, *_ in found.tokens] == ["<s>", "."]  # the most massive first
    assert found.to_frame()["over_1000"].tolist() == [0, 1 / 350]
    assert found.tokens_frame().iloc[0]["first"]
    assert found.to_json()["tokens"][1]["token"] == "."


def test_rows_that_a_run_lacks_do_not_count_and_silence_is_an_error() -> None:
    tally = MassiveTally((1,))
    tally.add(1, np.vstack([np.full(4, np.nan), [1, 1, 1, 500]]), ["?", "x"])
    found = tally.result()
    assert (found.entries.tolist(), found.over.tolist()) == ([4], [[1, 0]])
    with pytest.raises(NumericError, match="median"):
        tally.add(1, np.zeros((1, 4)), ["x"])
    assert repr(found) == "MassiveActivations(1 layers, up to 500 times the median)"
