"""Which tokens of two texts stand for each other, against the longest common subsequence by brute force."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.analysis.alignment import Stretch, align, partners

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
            assert len(first) >= ours + size and len(second) >= theirs + size and any(one != two for one, two in pairs)
    for positions in partners(found):
        assert all(one < two for one, two in zip(positions, positions[1:], strict=False))
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
