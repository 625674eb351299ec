"""CoNLL-U against its specification, the `conllu` package, and sentences whose text is known beforehand."""

import io
from pathlib import Path
from typing import Any

import conllu as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.errors import Unreadable
from traceformer.texts.conllu import COLUMNS, read_sentences
from traceformer.texts.lines import Lines

SPECIAL_CASES = """\
# newdoc id = doc
# sent_id = 1
# text = "Dámelo ya", cannot: gonna du.
1\t"\t"\tPUNCT\t``\t_\t2\tpunct\t_\tSpaceAfter=No
2-4\tDámelo\t_\t_\t_\t_\t_\t_\t_\t_
2\tDa\tdar\tVERB\t_\tMood=Imp|Number=Sing\t0\troot\t_\tSpaceAfter=No
3\tme\tyo\tPRON\t_\tCase=Acc,Dat\t2\tiobj\t_\t_
4\tlo\tél\tPRON\t_\t_\t2\tobj\t_\t_
4.1\tempty\t_\t_\t_\t_\t_\t_\t0:root\t_
5\tya\tya\tADV\tRB\t_\t2\tadvmod\t_\tSpaceAfter=No
6\t"\t"\tPUNCT\t''\t_\t2\tpunct\t_\tSpaceAfter=No
7\t,\t,\tPUNCT\t,\t_\t2\tpunct\t_\t_
8-9\tcannot\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No|Gloss==x
8\tcan\tcan\tAUX\tMD\t_\t2\taux\t_\t_
9\tnot\tnot\tPART\tRB\t_\t8\tadvmod\t_\t_
10\t:\t:\tPUNCT\t:\t_\t2\tpunct\t_\t_
11-12\tgonna\t_\t_\t_\t_\t_\t_\t_\t_
11\tgon\tgo\tVERB\tVBG\t_\t2\tdep\t_\t_
12\tna\tto\tPART\tTO\t_\t11\tmark\t_\t_
13-14\tdu\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
13\tde\tde\tADP\t_\t_\t15\tcase\t_\t_
14\tle\tle\tDET\t_\t_\t15\tdet\t_\t_
15\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

# sent_id = 2
0.1\tpro\t_\tPRON\t_\t_\t_\t_\t_\t_
1\t10 000\t10000\tNUM\tCD\t_\t0\troot\t_\tSpacesAfter=\\s\\s
2\t_\t_\tSYM\t_\t_\t1\tpunct\t_\tSpaceAfter=Nope
3\t  \t_\tX\t_\t_\t_\tdep\t_\tSpaceAfter=No
"""


def read(text: str) -> list[dict[str, Any]]:
    return list(read_sentences(Lines(io.BytesIO(text.encode()), Path("a.conllu"))))


def test_text_is_that_of_the_surface_tokens() -> None:
    first, second = read(SPECIAL_CASES)
    assert first["text"] == '"Dámelo ya", cannot: gonna du.'
    assert second["text"] == "10 000 _   "
    assert [row["sent_id"] for row in (first, second)] == ["1", "2"]
    assert tuple(first) == COLUMNS


def test_words_of_a_multiword_token_have_their_part_of_it_or_all_of_it() -> None:
    row = read(SPECIAL_CASES)[0]
    found = [row["text"][start:end] for start, end in row["word_offsets"]]
    assert found == ['"', "Dámelo", "Dámelo", "Dámelo", "ya", '"', ",", "can", "not", ":", "gon", "na", "du", "du", "."]
    assert row["words"][1:4] == ["Da", "me", "lo"]


def test_annotations_agree_with_the_conllu_package() -> None:
    for row, sentence in zip(read(SPECIAL_CASES), reference.parse(SPECIAL_CASES), strict=True):
        words = sentence.filter(id=lambda number: isinstance(number, int))[: len(row["words"])]
        if row["sent_id"] == "2":  # the package takes the double space of word 3 for a column's end
            words = words[:2]
        for column, name in (("words", "form"), ("upos", "upos"), ("xpos", "xpos"), ("deprel", "deprel")):
            assert row[column][: len(words)] == [word[name] for word in words]
        assert row["head"][: len(words)] == [word["head"] for word in words]
        assert [dict(pair.split("=") for pair in feats.split("|")) if feats else None for feats in row["feats"]][
            : len(words)
        ] == [word["feats"] for word in words]


# What a form may hold: anything but tabs and line ends; text without edge spaces so that both readings agree.
FORMS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1, max_size=6)


@st.composite
def sentences(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A sentence's text, the same in CoNLL-U, and its words; multiword tokens are cut anywhere."""
    tokens = draw(st.lists(FORMS, min_size=1, max_size=8))
    lines, words, text = [], list[str](), ""
    for position, form in enumerate(tokens):
        space = draw(st.booleans())
        misc = draw(st.sampled_from(["_", "Gloss=a|b"] if space else ["SpaceAfter=No", "Gloss=a|SpaceAfter=No"]))
        parts = [form]
        if len(form) > 1 and draw(st.booleans()):
            cut = draw(st.integers(1, len(form) - 1))
            parts = [form[:cut], form[cut:]]
            lines.append(f"{len(words) + 1}-{len(words) + 2}\t{form}" + "\t_" * 7 + f"\t{misc}")
        for part in parts:
            words.append(part)
            own = misc if len(parts) == 1 else draw(st.sampled_from(["_", "SpaceAfter=No"]))
            lines.append(f"{len(words)}\t{part}\t_\tX\t_\t_\t0\troot\t_\t{own}")
        if draw(st.booleans()):
            lines.append(f"{len(words)}.1\tgone" + "\t_" * 8)
        text += form + (" " if space and position < len(tokens) - 1 else "")
    return text, "\n".join(lines) + "\n\n", words


@given(st.lists(sentences(), min_size=1, max_size=3))
def test_any_sentence_comes_back_from_its_tokens(drawn: list[tuple[str, str, list[str]]]) -> None:
    rows = read("".join(lines for _, lines, _ in drawn))
    for (text, _, words), row in zip(drawn, rows, strict=True):
        assert row["text"] == text
        assert row["words"] == words
        assert [text[start:end] for start, end in row["word_offsets"]] == words


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("1 a a X _ _ 0 root _ _", "line 1: not CoNLL-U; a token has 10 columns"),
        ("1\ta\ta\tX\t_\t_\t0\troot\t_", "here are 9"),
        ("1\ta\ta\tX\t_\t_\t0\troot\t_\t_\n3\ta\ta\tX\t_\t_\t0\troot\t_\t_", "line 2.*token 3 follows token 1"),
        ("x\ta\ta\tX\t_\t_\t0\troot\t_\t_", "'x' is no token number"),
        ("1\ta\ta\tX\t_\t_\tone\troot\t_\t_", "the head 'one' is no number"),
        ("1\ta\ta\tX\t_\t_\t7\troot\t_\t_", "the head 7 lies beyond"),
        ("1-2\tab\t_\t_\t_\t_\t_\t_\t_\t_\n1\ta\ta\tX\t_\t_\t0\troot\t_\t_", "1-2 goes beyond"),
        ("2-1\tab\t_\t_\t_\t_\t_\t_\t_\t_", "token 2-1 follows token 0"),
        ("1-2\tab" + "\t_" * 8 + "\n1-3\tab" + "\t_" * 8, "overlaps"),
    ],
)
def test_what_is_not_conllu_is_refused_with_its_line(lines: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read(lines)
