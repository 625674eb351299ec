"""Conversations as they are found in data, and what of them stands before an answer."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traceformer.errors import Unreadable
from traceformer.texts.chats import Chat
from traceformer.texts.examples import TextSource
from traceformer.texts.load import load_texts
from traceformer.texts.prompts import listed_prompts, load_prompts

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "tools": None},
    {
        "messages": [
            {"role": "user", "content": "Rain in Rome?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "content": "dry"},
            {"role": "assistant", "content": "No."},
        ],
        "tools": [WEATHER],
    },
]


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


def chats_of(source: TextSource) -> list[Chat]:
    return [example.parts for example in source.examples if isinstance(example.parts, Chat)]


def test_messages_are_kept_as_they_are_found_with_their_tools(tmp_path: Path) -> None:
    source = load_texts(write(tmp_path, "a.jsonl", [*CHATS, {"messages": None, "tools": None}, {"messages": []}]))
    assert source.kind is Chat
    assert [list(chat.messages) for chat in chats_of(source)] == [row["messages"] for row in CHATS]
    assert [list(chat.tools) for chat in chats_of(source)] == [[], [WEATHER]]
    assert [e.extra["messages"] for e in source.examples] == [row["messages"] for row in CHATS]
    assert source.skipped == 2
    listed = load_texts([row["messages"] for row in CHATS])
    assert [e.extra for e in listed.examples] == [{"messages": row["messages"]} for row in CHATS]


def test_fields_that_only_other_messages_have_are_left_out_of_tables(tmp_path: Path) -> None:
    tools = [None, json.dumps([WEATHER])]  # as JSON text, since each tool has fields of its own
    table = pa.table({"messages": [row["messages"] for row in CHATS], "tools": tools})
    pq.write_table(table, tmp_path / "a.parquet")
    assert set(pq.read_table(tmp_path / "a.parquet")["messages"][0].as_py()[0]) > {"role", "content"}
    source = load_texts(tmp_path / "a.parquet")
    assert [list(chat.messages) for chat in chats_of(source)] == [row["messages"] for row in CHATS]
    assert [list(chat.tools) for chat in chats_of(source)] == [[], [WEATHER]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"messages": ["Hi"]}],
            "line 1: a list of strings where the text .* messages are objects",
        ),
        (
            [{"messages": [{"from": "human", "value": "Hi"}]}],
            "line 1: a list with a value of type dict .* messages are",
        ),
        ([{"messages": [{"role": 1, "content": "Hi"}]}], "line 1, message 0: the role is 1"),
        ([{"messages": [{"role": "user"}]}], "line 1, message 0: it has no content"),
        ([{"messages": [{"role": "user", "content": 5}]}], "message 0: a value of type int in the content; only text"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}],
            "line 1, message 0: a part of the type 'image' in the content; only text is read",
        ),
        ([CHATS[0] | {"tools": "["}], "line 1: the tools are not JSON"),
        ([CHATS[0] | {"tools": ["weather"]}], "line 1: the tools are no list of objects"),
        ([CHATS[0], {"messages": "Hi"}], "line 2: a text, where a conversation came before"),
        ([{"messages": "Hi"}, CHATS[0]], "line 2: a conversation, where a text came before"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        load_texts(write(tmp_path, "a.jsonl", rows), text_column="messages")


def test_a_prompt_is_what_stands_before_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path, "p.jsonl", [*CHATS, {"id": "x", "text": "plain"}])
    prompts = load_prompts(path).prompts
    assert [prompt.prompt_id for prompt in prompts] == ["1", "2", "x"]
    assert [prompt.chat and list(prompt.chat.messages) for prompt in prompts] == [
        CHATS[0]["messages"][:1],
        CHATS[1]["messages"][:3],
        None,
    ]
    assert prompts[1].chat is not None
    assert list(prompts[1].chat.tools) == [WEATHER]
    assert listed_prompts([CHATS[0]["messages"], "plain"]).prompts[0].chat == prompts[0].chat
    for messages, message in (("Hi", "no messages"), ([{"role": "assistant", "content": "a"}], "nothing to answer")):
        with pytest.raises(Unreadable, match=f"line 1: {message}"):
            load_prompts(write(tmp_path, "bad.jsonl", [{"messages": messages}]))
