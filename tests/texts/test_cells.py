"""What a cell is, where kinds of cells meet: nulls, parts of columns and conversations beside pairs, words and ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traceformer.errors import NotFound, Unreadable
from traceformer.texts.cells import Ids, IdsColumn, Pair, TextColumn, Words, holds_ids, read_cell
from traceformer.texts.chats import Chat
from traceformer.texts.load import load_texts

SAID = [{"role": "user", "content": "Hi"}]


def write(folder: Path, rows: list[Any]) -> Path:
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "a.jsonl"


@pytest.mark.parametrize(
    ("rows", "column", "readings"),
    [
        ([None, ["a", "b"], [], [" "], ["c"]], "x.y", {1: Words(("a", "b")), 4: Words(("c",))}),
        ([None, [5, 6], "7 8", [], ""], IdsColumn("x.y"), {1: Ids((5, 6)), 2: Ids((7, 8))}),
        (
            [["a", "b"], ["", None], [None, "c"], [" ", ""], ["", "d"]],
            ("x.y", "z"),
            {0: Pair("a", "b"), 4: Pair("", "d")},
        ),
    ],
)
def test_parts_of_columns_are_read_and_nulls_and_blanks_passed_over(
    tmp_path: Path, rows: list[Any], column: TextColumn, readings: dict[int, Any]
) -> None:
    is_pair = column == ("x.y", "z")
    whole = [{"x": {"y": row[0]}, "z": row[1]} if is_pair else {"x": {"y": row}, "z": "kept"} for row in rows]
    source = load_texts(write(tmp_path, whole), text_column=column)
    assert {example.index: example.reading for example in source.examples} == readings
    assert source.skipped == len(rows) - len(readings)
    assert source.kind is type(next(iter(readings.values())))
    kept = [{"x": row["x"]} if is_pair else row for row in whole]
    assert [example.extra for example in source.examples] == [kept[index] for index in readings]


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ([{"messages": SAID}, {"messages": "a"}], None, "line 2: a text, where a conversation came before"),
        ([{"x": ["a"]}, {"x": SAID}], None, "line 2: a conversation, where a list of words came before"),
        ([{"messages": ["Hi", "Hello."]}], None, "line 1: a list of strings where the text 'messages' should be"),
        ([{"a": "b", "messages": SAID}], "a,messages", "a conversation where the text 'messages' of a pair should be"),
        ([{"a": "b", "words": ["c"]}], "a,words", "a list of words where the text 'words' of a pair should be"),
        ([{"a": {"b": [1]}}], "a.b", "a list with a value of type int .*`ids_column=a.b`, if these are token ids"),
        ([{"a": {"b": 5}}], IdsColumn("a.b"), "a value of type int where the token ids 'a.b' should be"),
        ([{"a": {}}], IdsColumn("a.b"), "line 1: nothing where the token ids 'a.b' should be"),
    ],
)
def test_what_is_of_another_kind_is_refused_with_its_place(
    tmp_path: Path, rows: list[Any], column: TextColumn | None, message: str
) -> None:
    with pytest.raises(Unreadable, match=message):
        load_texts(write(tmp_path, rows), text_column=column)


def test_a_part_of_no_column_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no column 'z'"):
        load_texts(write(tmp_path, [{"a": "b"}]), text_column="a,z.y")


def test_a_list_is_of_the_kind_of_its_first_entry_that_is_not_empty() -> None:
    assert [example.reading for example in load_texts([[], [5, 6], []]).examples] == [Ids((5, 6))]
    assert [example.reading for example in load_texts([[], ["a"]]).examples] == [Words(("a",))]
    assert [type(example.parts) for example in load_texts([[], SAID]).examples] == [Chat]


def test_an_array_in_a_list_is_refused_with_the_way_on() -> None:
    arrays: Any = (np.array([5, 6]),)
    assert not holds_ids(arrays)
    with pytest.raises(Unreadable, match="text 0: a value of type ndarray") as refused:
        read_cell(arrays[0], "text", "text 0")
    assert ".tolist()" in refused.value.hint
