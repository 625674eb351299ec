"""What xz and an n-gram model need for a text, against the same computed one token at a time."""

import lzma
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from traceformer.bytelm.baselines import ngram_bits_per_byte, ngram_probabilities, xz_bits_per_byte
from traceformer.bytelm.corpus import Span


def span(text: bytes, ends: list[int] | None = None) -> Span:
    return Span(np.frombuffer(text, np.uint8), np.array(ends or [], np.int64))


def witten_bell(train: list[int], context: tuple[int, ...], token: int) -> float:
    """The formula of Witten and Bell's method C, interpolated, straight from the counts of this one context."""
    lower = witten_bell(train, context[1:], token) if context else 1 / 257
    k = len(context)
    followers = Counter(train[i + k] for i in range(len(train) - k) if tuple(train[i : i + k]) == context)
    n, distinct = sum(followers.values()), len(followers)
    return (followers[token] + distinct * lower) / (n + distinct) if n else lower


@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_ngram_probabilities_are_those_of_the_formula(order: int) -> None:
    random.seed(order)
    train = random.choices([97, 98, 99, 256], k=120)
    held_out = random.choices([97, 98, 99, 100, 256], k=40)
    expected = [witten_bell(train, tuple(held_out[max(0, i - order) : i]), token) for i, token in enumerate(held_out)]
    found = ngram_probabilities(np.array(train), np.array(held_out), order=order)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_ngram_probabilities_of_all_tokens_sum_to_one() -> None:
    train = np.array(random.Random(1).choices(range(97, 103), k=500))
    totals: defaultdict[int, float] = defaultdict(float)
    for token in range(257):
        probabilities = ngram_probabilities(train, np.array([97, 98, 99, token]), order=3)
        totals[0] += probabilities[3]
    assert totals[0] == pytest.approx(1, abs=1e-9)


def test_a_text_that_was_trained_on_costs_less_than_one_that_was_not() -> None:
    words = random.Random(2).choices([b"tree ", b"house ", b"river "], k=2000)
    text = b"".join(words)
    seen = ngram_bits_per_byte(span(text), span(text[:500]))
    assert seen < 0.5 < 3 < ngram_bits_per_byte(span(text), span(bytes(range(128, 250))))


def test_ends_of_documents_cost_bits_but_are_no_bytes() -> None:
    train = span(b"\0ab\0ab\0ab\0", [0, 3, 6, 9])
    tokens = train.tokens(0, 10)
    bits = -np.log2(ngram_probabilities(tokens, tokens[:4], order=5)).sum()
    assert ngram_bits_per_byte(train, train.part(0, 4)) == pytest.approx(bits / 2)


def test_xz_is_what_a_file_of_the_text_compresses_to(tmp_path: Path) -> None:
    text = b" ".join(str(i).encode() for i in range(5000))
    with lzma.open(tmp_path / "text.xz", "wb", preset=9) as file:
        file.write(text)
    assert xz_bits_per_byte(span(text)) == (tmp_path / "text.xz").stat().st_size * 8 / len(text)


def test_xz_of_blocks_is_the_sum_of_the_blocks() -> None:
    text = b" ".join(str(i).encode() for i in range(5000))
    blocks = [
        xz_bits_per_byte(span(text[at : at + 4096])) * len(text[at : at + 4096]) for at in range(0, len(text), 4096)
    ]
    assert xz_bits_per_byte(span(text), block=4096) == pytest.approx(sum(blocks) / len(text))
