"""Pairs of texts: from lists, files and the sets in the package."""

import json
from pathlib import Path

import pytest

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.cells import Ids
from traceformer.texts.contrasts import PAIR_SETS, Contrast, load_contrasts


def test_a_file_holds_texts_or_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"id": "x", "clean": "a b", "corrupt": "a c", "answer": " d", "wrong": " e", "more": 1},
        {"clean": [1, 2], "corrupt": [1, 3], "answer": 4},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = [Contrast("a b", "a c", " d", " e", "x"), Contrast(Ids((1, 2)), Ids((1, 3)), 4, None, "1")]
    assert load_contrasts(path) == both
    assert load_contrasts(rows) == both


@pytest.mark.parametrize("name", PAIR_SETS)
def test_a_set_has_fifty_pairs_of_different_texts(name: str) -> None:
    pairs = load_contrasts(name)
    assert len(pairs) == len({pair.clean for pair in pairs}) == len({pair.name for pair in pairs}) == 50
    for pair in pairs:
        assert isinstance(pair.clean, str)
        assert isinstance(pair.corrupt, str)
        assert len(pair.clean.split()) == len(pair.corrupt.split())
        assert pair.clean != pair.corrupt
        assert pair.answer != pair.wrong


def test_the_end_of_a_repeat_is_continued_in_the_clean_text_alone() -> None:
    for pair in load_contrasts("repeats"):
        word, end, other = pair.clean[:24], pair.clean[24:], pair.corrupt[24:]
        assert word[: len(end) + 1] == end + pair.answer
        assert pair.corrupt[:24] == word
        assert word[word.index(other[-1]) + 1] == pair.wrong
        assert not any(a == b for a, b in zip(end, other, strict=True))


def test_who_is_given_something_is_named_once() -> None:
    for pair in load_contrasts("indirect_object"):
        assert isinstance(pair.answer, str)
        assert isinstance(pair.wrong, str)
        assert pair.clean.count(pair.answer.strip()) == pair.corrupt.count(pair.wrong.strip()) == 1
        assert pair.clean.count(pair.wrong.strip()) == pair.corrupt.count(pair.answer.strip()) == 2


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean 'repeats'"):
        load_contrasts("repeat")
    with pytest.raises(UsageError, match="no pair"):
        load_contrasts([])
    with pytest.raises(Unreadable, match="pair 0: corrupt is nothing"):
        load_contrasts([{"clean": "a"}])
    with pytest.raises(Unreadable, match=r"clean is \['a'\]"):
        load_contrasts([{"clean": ["a"], "corrupt": "b"}])
    with pytest.raises(Unreadable, match=r"answer is 1\.5"):
        load_contrasts([{"clean": "a", "corrupt": "b", "answer": 1.5}])
    (tmp_path / "x.jsonl").write_text('{"clean": "a", "corrupt": "b"}\n{"clean": ""}\n')
    with pytest.raises(Unreadable, match="line 2: clean is nothing"):
        load_contrasts(tmp_path / "x.jsonl")
