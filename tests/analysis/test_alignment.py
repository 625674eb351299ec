"""Which tokens of two texts stand for each other, against the longest common subsequence by brute force."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.analysis.alignment import Stretch, align, partners, pieces_by_characters, pieces_from_start

TEXTS = st.lists(st.sampled_from("abc"), max_size=9)


def test_a_word_that_was_replaced_keeps_its_place() -> None:
    first = ["The", " capital", " of", " France", " is", " Paris", "."]
    second = ["The", " capital", " of", " Italy", " is", " Rome", "."]
    same = [(stretch.first, stretch.second, stretch.size) for stretch in align(first, second) if stretch.same]
    assert same == [(0, 0, 3), (4, 4, 1), (6, 6, 1)]
    assert partners(align(first, second))[0].tolist() == list(range(7))


def test_words_that_were_put_in_have_no_counterpart() -> None:
    first, second = ["The", " dog", " ran"], ["The", " big", " dog", " ran"]
    assert align(first, second) == [Stretch(0, 0, 1, same=True), Stretch(1, 2, 2, same=True)]
    assert [each.tolist() for each in partners(align(first, second))] == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(("first", "second"), [([], []), ([], ["a"]), (["a", "b"], ["c"])])
def test_texts_without_a_common_token_are_not_aligned(first: list[str], second: list[str]) -> None:
    assert align(first, second) == []


def test_one_token_instead_of_another_stands_at_its_place() -> None:
    assert align(["a"], ["b"]) == [Stretch(0, 0, 1, same=False)]


@given(TEXTS, TEXTS)
def test_stretches_are_in_order_and_what_they_say(first: list[str], second: list[str]) -> None:
    found = align(first, second)
    for ours, theirs, size, same in found:
        assert (first[ours : ours + size] == second[theirs : theirs + size]) or not same
        if not same:
            pairs = zip(first[ours : ours + size], second[theirs : theirs + size], strict=True)
            assert len(first) >= ours + size
            assert len(second) >= theirs + size
            assert any(one != two for one, two in pairs)
    for positions in partners(found):
        assert all(one < two for one, two in pairwise(positions))
    same = sum(stretch.size for stretch in found if stretch.same)
    assert same <= longest_common(first, second)
    assert same == len(first) or first != second


@given(TEXTS, st.integers(0, 9), st.integers(0, 3))
def test_taking_tokens_out_leaves_the_others_aligned(text: list[str], start: int, count: int) -> None:
    shorter = text[:start] + text[start + count :]
    assert sum(stretch.size for stretch in align(text, shorter) if stretch.same) == len(shorter)


def longest_common(first: list[str], second: list[str]) -> int:
    """Returns the length of the longest common subsequence: all of one text's are tried."""
    for size in range(len(first), 0, -1):
        if any(is_within([first[at] for at in chosen], second) for chosen in combinations(range(len(first)), size)):
            return size
    return 0


def is_within(part: list[str], text: list[str]) -> bool:
    rest = iter(text)
    return all(token in rest for token in part)


def spans(*tokens: str, text: str) -> np.ndarray:
    """Where each of the tokens, one after the other, stands in a text; an empty one stands for no text."""
    found, at = [], 0
    for token in tokens:
        start = text.index(token, at) if token else 0
        found.append((start, start + len(token)))
        at = start + len(token) if token else at
    return np.array(found, np.int64)


def test_tokens_that_end_at_the_same_character_end_a_piece() -> None:
    text = "unhappy dogs run"
    first = spans("", "un", "happy", "dogs", "run", text=text)
    second = spans("unhap", "py", " do", "gs", " run", "", text=text)
    found = pieces_by_characters(first, second)
    assert (found.first.tolist(), found.second.tolist()) == ([2, 3, 4], [1, 3, 4])
    assert found.of_first is not None
    assert found.of_second is not None
    assert found.of_first.tolist() == [3, 0, 0, 1, 2]
    assert found.of_second.tolist() == [0, 0, 1, 1, 2, 3]


def test_a_character_of_several_tokens_ends_with_the_last() -> None:
    bytes_of_it = np.array([[0, 1], [0, 1], [0, 1], [1, 2]])
    whole = np.array([[0, 1], [1, 2]])
    found = pieces_by_characters(bytes_of_it, whole)
    assert (found.first.tolist(), found.second.tolist()) == ([2, 3], [0, 1])
    assert found.of_first is not None
    assert found.of_first.tolist() == [0, 0, 0, 1]


@given(st.lists(st.integers(1, 4), max_size=8), st.lists(st.integers(1, 4), max_size=8))
def test_pieces_are_what_lies_between_common_ends(first: list[int], second: list[int]) -> None:
    ends = [np.cumsum(sizes, dtype=np.int64) for sizes in (first, second)]
    offsets = [np.stack([own - sizes, own], axis=1) for own, sizes in zip(ends, (first, second), strict=True)]
    offsets = [own.reshape(-1, 2).astype(np.int64) for own in offsets]
    found = pieces_by_characters(*offsets)
    common = sorted({*ends[0].tolist()} & {*ends[1].tolist()})
    for own, places, of_tokens in zip(ends, found[:2], found[2:], strict=True):
        assert own[places].tolist() == common
        assert of_tokens is not None
        assert of_tokens.tolist() == [sum(end > each for each in common) for end in own.tolist()]


def test_texts_have_what_they_begin_with_in_common() -> None:
    first, second = np.array([5, 6, 7, 8]), np.array([5, 6, 9])
    found = pieces_from_start(first, second)
    assert found.first.tolist() == found.second.tolist() == [0, 1]
    assert found.of_first is not None
    assert found.of_first.tolist() == [0, 1, 2, 2]
    assert pieces_from_start(first, first.copy())[2:] == (None, None)
    assert pieces_from_start(first, second[2:]).first.tolist() == []
