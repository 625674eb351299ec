"""Prompts files: what is read, exactly as it stands there, and what is refused, with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.prompts import (
    PROMPT_SETS,
    Prompt,
    PromptSet,
    all_prompt_sets,
    check_name,
    digest_of_prompts,
    listed_prompts,
    load_prompt_set,
    load_prompts,
    one_prompt,
)


def write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def set_of(*prompts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "single_trait", "description": "one trait each", "prompts": list(prompts), **more}


def test_a_prompt_set_is_the_gemma_captures(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json", set_of({"id": 1, "text": " Why? \n", "note": "curious"}, {"id": "b", "text": "x"})
    )
    assert load_prompts(path) == PromptSet(
        "single_trait", "one trait each", (Prompt("1", " Why? \n", "curious"), Prompt("b", "x", None))
    )


def test_a_set_without_a_name_is_called_like_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "my set.json", {"prompts": [{"id": 1, "text": "x"}]})
    assert load_prompts(path).name == "my-set"


def test_a_txt_file_has_one_prompt_per_line_named_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffone\r\n\n  two \u2028 three\nfour".encode())
    assert load_prompts(path).prompts == (Prompt("1", "one"), Prompt("3", "  two \u2028 three"), Prompt("4", "four"))


def test_a_jsonl_file_has_one_object_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", b'{"text": "one"}\n\n{"id": "z", "text": "two", "note": "n"}\n')
    assert load_prompts(path).prompts == (Prompt("1", "one"), Prompt("z", "two", "n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "is no prompt set"),
        (b'{"prompts": {}}', "is no prompt set"),
        (b'{"prompts": []}', "holds no prompts"),
        (b'{"prompts": ["x"]}', "prompt 1: str where an object"),
        (b'{"name": 3, "prompts": [{"id": 1, "text": "x"}]}', "must be strings"),
        (b'{"prompts": [{"text": "x"}]}', "prompt 1: the id must be"),
        (b'{"prompts": [{"id": true, "text": "x"}]}', "the id must be"),
        (b'{"prompts": [{"id": 1.5, "text": "x"}]}', "the id must be"),
        (b'{"prompts": [{"id": 1, "text": "x"}, {"id": 2}]}', "prompt 2: no text"),
        (b'{"prompts": [{"id": 1, "text": ["x"]}]}', "no text"),
        (b'{"prompts": [{"id": 1, "text": " \\n"}]}', "the prompt 1 is empty"),
        (b'{"prompts": [{"id": 1, "text": "x", "note": 5}]}', "the note must be"),
        (b'{"prompts": [{"id": 1, "text": "x"}, {"id": "1", "text": "y"}]}', "'1' occurs twice"),
        (b'{"prompts": [{"id": "../1", "text": "x"}]}', "cannot be part of a file name"),
        (b'{"prompts": [{"id": "..", "text": "x"}]}', "cannot be part of a file name"),
        (b'{"name": "a/b", "prompts": [{"id": 1, "text": "x"}]}', "the prompt set's name 'a/b' cannot"),
        (b'{"prompts": [{"id": 1, "text": "\\ud800"}]}', "half a surrogate pair"),
    ],
)
def test_a_malformed_set_is_refused_and_says_where(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=message):
        load_prompts(write(tmp_path / "set.json", content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"one\ntw\xff", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\nno', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}', "line 2: no text"),
        ("a.csv", b"text\nx", "is no prompts file"),
    ],
)
def test_a_malformed_file_of_another_kind_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=message):
        load_prompts(write(tmp_path / name, content))


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no prompts file"):
        load_prompts(tmp_path / "none.txt")


def test_a_named_set_is_found_by_name_and_one_in_a_file_by_its_path(tmp_path: Path) -> None:
    for name in ("dynamic", "baseline"):
        write(tmp_path / f"{name}.json", set_of({"id": 1, "text": name}, name=name))
    assert load_prompt_set("dynamic", tmp_path).prompts == (Prompt("1", "dynamic"),)
    assert load_prompt_set(str(tmp_path / "baseline.json")).name == "baseline"
    assert [each.name for each in all_prompt_sets(tmp_path)] == ["baseline", "dynamic"]
    with pytest.raises(NotFound) as caught:
        load_prompt_set("dynamics", tmp_path)
    assert caught.value.hint == "did you mean dynamic?"
    with pytest.raises(NotFound) as caught:
        load_prompt_set("xyz", tmp_path)
    assert caught.value.hint == "there are baseline, dynamic"
    with pytest.raises(NotFound):
        load_prompt_set("../dynamic", tmp_path / "deeper")


COUNTS = {"adversarial": 8, "baseline": 5, "dynamic": 8, "multi_trait": 10, "real_world": 10, "single_trait": 10}


@pytest.mark.parametrize("name", COUNTS)
def test_the_gemma_captures_sets_come_with_the_package(name: str) -> None:
    data = json.loads((PROMPT_SETS / f"{name}.json").read_text(encoding="utf-8"))
    assert list(data) == ["name", "description", "prompts"]
    assert (data["name"], bool(data["description"])) == (name, True)
    assert [list(each) for each in data["prompts"]] == [["id", "text", "note"]] * COUNTS[name]
    assert [each["id"] for each in data["prompts"]] == list(range(1, COUNTS[name] + 1))
    assert all(each["note"].strip() for each in data["prompts"])
    assert len({each["text"] for each in data["prompts"]}) == COUNTS[name]
    assert [each.text for each in load_prompt_set(name).prompts] == [each["text"] for each in data["prompts"]]


def test_the_sets_that_come_are_the_gemma_captures() -> None:
    assert [each.name for each in all_prompt_sets()] == sorted(COUNTS)


def test_no_named_sets_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no prompt sets"):
        all_prompt_sets(tmp_path)


def test_a_prompt_given_by_itself_is_ad_hoc() -> None:
    assert one_prompt("Why?") == PromptSet("adhoc", "", (Prompt("1", "Why?"),))
    with pytest.raises(UsageError, match="the prompt is empty"):
        one_prompt(" \n")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\\b", "ä", "a\n"])
def test_names_that_are_no_part_of_a_file_name_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be part of a file name"):
        check_name(name, "the category")


def test_the_digest_differs_when_an_id_a_name_or_a_text_differs() -> None:
    sets = (
        PromptSet("a", "", (Prompt("1", "x"), Prompt("2", "y"))),
        PromptSet("b", "", (Prompt("1", "x"), Prompt("2", "y"))),
        PromptSet("a", "", (Prompt("1", "x"), Prompt("3", "y"))),
        PromptSet("a", "", (Prompt("1", "x"), Prompt("2", "z"))),
        PromptSet("a", "", (Prompt("2", "y"), Prompt("1", "x"))),
    )
    assert len({digest_of_prompts((each,)) for each in sets}) == len(sets)
    assert digest_of_prompts(sets[:1]) == digest_of_prompts((PromptSet("a", "d", sets[0].prompts),))


def test_prompts_in_a_list_are_numbered_and_none_is_refused() -> None:
    assert [(each.prompt_id, each.text) for each in listed_prompts(["a", "b"]).prompts] == [("1", "a"), ("2", "b")]
    with pytest.raises(UsageError, match="no prompt"):
        listed_prompts([])
    with pytest.raises(UsageError, match="the prompt is empty"):
        listed_prompts(["a", " "])


@pytest.mark.parametrize("entry", [[5, 6], ("a", "b"), ["a", "b"]], ids=["ids", "a pair", "words"])
def test_what_can_be_recorded_but_not_answered_is_refused_as_what_it_is(entry: Any) -> None:
    with pytest.raises(Unreadable, match="prompt 2 is neither a text nor a conversation"):
        listed_prompts(["a", entry])
