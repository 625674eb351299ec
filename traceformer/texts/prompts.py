"""Prompts to generate from: one on the command line, a file of them, or a prompt set that has a name.

A prompt set is the Gemma capture's JSON, `{"name", "description", "prompts": [{"id", "text", "note"}]}`. A .txt file
holds one prompt per line, named by the line's number; a .jsonl file one object with "text" per line. In place of "text"
there may be "messages", a conversation to answer, and "tools" beside them. Names and ids end up in file names, so both
are letters, digits, dots, dashes and underscores.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.filenames import MOST, is_plain, readable_name
from traceformer.plain_json import parse_json
from traceformer.texts.chats import Chat, is_chat, read_chat
from traceformer.texts.lines import Lines

__all__ = [
    "PROMPT_SETS",
    "Prompt",
    "PromptSet",
    "all_prompt_sets",
    "check_name",
    "digest_of_prompts",
    "listed_prompts",
    "load_prompt_set",
    "load_prompts",
    "one_prompt",
]

PROMPT_SETS = Path(__file__).with_name("prompt_sets")
ADHOC = "adhoc"
_KINDS = (".txt", ".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; `prompt_id` is unique within its set.

    The text of a conversation is its messages as JSON, until a model's chat template makes a text of it.
    """

    prompt_id: str
    text: str
    note: str | None = None
    chat: Chat | None = None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts that belong together, under a name that may be part of a file's."""

    name: str
    description: str
    prompts: tuple[Prompt, ...]


def check_name(name: str, what: str) -> str:
    """Returns the name, if it may become part of a file's.

    Raises:
        UsageError: it may not.
    """
    if not is_plain(name):
        raise UsageError(
            f"{what} {name!r} cannot be part of a file name",
            hint=f"use up to {MOST} letters, digits, dots, dashes and underscores",
        )
    return name


def one_prompt(text: str) -> PromptSet:
    """Returns the set of a prompt given by itself: `adhoc`, with the id 1."""
    if not text.strip():
        raise UsageError("the prompt is empty")
    if _has_half_pair(text):
        raise UsageError("the prompt is no text", why="it has half a surrogate pair: bytes that are not UTF-8")
    return PromptSet(ADHOC, "", (Prompt("1", text),))


def listed_prompts(texts: Sequence[object]) -> PromptSet:
    """Returns the set of prompts in a list, texts and conversations: `prompts`, with the ids 1, 2, ...

    Raises:
        UsageError: there is none, or one of them is empty.
        Unreadable: one is neither a text nor a conversation, or has no content.
    """
    if not texts:
        raise UsageError("no prompt", hint="a list of one at least")
    prompts = [
        one_prompt(text).prompts[0] if isinstance(text, str) else _listed_chat(text, n)
        for n, text in enumerate(texts, start=1)
    ]
    return PromptSet("prompts", "", tuple(replace(each, prompt_id=str(n)) for n, each in enumerate(prompts, start=1)))


def _listed_chat(entry: object, number: int) -> Prompt:
    if not is_chat(entry):
        raise Unreadable(
            f"prompt {number} is neither a text nor a conversation",
            why="pairs, words and token ids are recorded by `tf.record`, and not answered",
            hint='a string, or a list of objects such as {"role": "user", "content": "Hi"}',
        )
    return _chat_prompt(entry, None, f"prompt {number}", str(number))


def _chat_prompt(messages: object, tools: object, where: str, prompt_id: str, note: str | None = None) -> Prompt:
    """Returns the prompt that a conversation is: up to the answer, which is the model's to give."""
    if not is_chat(messages):
        raise Unreadable(f"{where}: no messages", hint='a list of objects such as {"role": "user", "content": "Hi"}')
    chat = read_chat(messages, tools, where, nulls_are_absent=False).to_answer()
    if not chat.messages:
        raise Unreadable(f"{where}: nothing to answer", why="all of its messages are the assistant's")
    return Prompt(prompt_id, chat.text, note, chat)


def load_prompts(path: str | Path) -> PromptSet:
    """Returns the prompts in a file: .txt, .json (a prompt set) or .jsonl.

    Raises:
        NotFound: no such file.
        Unreadable: it holds no prompts, or something else; the message says where.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in _KINDS:
        raise Unreadable(f"{path} is no prompts file", why=f"its name ends in none of {', '.join(_KINDS)}")
    if not path.is_file():
        raise NotFound(f"no prompts file {path}")
    name = readable_name(path.stem, otherwise="prompts")
    kind = path.suffix.lower()
    if kind == ".json":
        return _read_set(path, name)
    with path.open("rb") as stream:
        lines = Lines(stream, path)
        rows = [(lines.number, line.removesuffix("\n").removesuffix("\r")) for line in lines if line.strip()]
    if kind == ".txt":
        return _checked(name, "", [Prompt(str(number), line) for number, line in rows], path)
    entries = (_entry(_parse(line, f"{path}, line {n}"), f"{path}, line {n}", default_id=str(n)) for n, line in rows)
    return _checked(name, "", entries, path)


def load_prompt_set(name: str, folder: Path = PROMPT_SETS) -> PromptSet:
    """Returns a prompt set that comes with Traceformer, by its name, or one in a file of the user's.

    Raises:
        NotFound: neither a known name nor a file; the hint lists the names.
        Unreadable: as `load_prompts`.
    """
    shipped = folder / f"{name}.json"
    if is_plain(name) and shipped.is_file():
        return load_prompts(shipped)
    if Path(name).suffix.lower() in _KINDS:
        return load_prompts(name)
    known = [path.stem for path in sorted(folder.glob("*.json"))]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}" if known else "give a .json file"
    raise NotFound(f"no prompt set {name!r}", hint=hint)


def all_prompt_sets(folder: Path = PROMPT_SETS) -> tuple[PromptSet, ...]:
    """Returns every prompt set that comes with Traceformer.

    Raises:
        NotFound: there is none.
    """
    sets = tuple(load_prompts(path) for path in sorted(folder.glob("*.json")))
    if not sets:
        raise NotFound("no prompt sets come with this version", hint="`prompts` or `prompt_set` with a file")
    return sets


def digest_of_prompts(sets: Iterable[PromptSet]) -> str:
    """Returns a SHA-256 over all names, ids and texts: it differs whenever anything differs."""
    told = [[each.name, [[prompt.prompt_id, prompt.text] for prompt in each.prompts]] for each in sets]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _read_set(path: Path, name: str) -> PromptSet:
    try:
        data = _parse(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is not UTF-8", why=str(error)) from error
    if not isinstance(data, dict) or not isinstance(data.get("prompts"), list):
        raise Unreadable(f"{path} is no prompt set", hint='{"name": "...", "prompts": [{"id": 1, "text": "..."}]}')
    told, description = data.get("name", name), data.get("description", "")
    if not isinstance(told, str) or not isinstance(description, str):
        raise Unreadable(f"{path}: name and description must be strings")
    entries = (_entry(entry, f"{path}, prompt {number}") for number, entry in enumerate(data["prompts"], start=1))
    return _checked(told, description, entries, path)


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise Unreadable(f"{where}: not JSON", why=str(error)) from error


def _entry(entry: Any, where: str, default_id: str | None = None) -> Prompt:
    if not isinstance(entry, Mapping):
        raise Unreadable(f"{where}: {type(entry).__name__} where an object with text should be")
    prompt_id, text, note = entry.get("id", default_id), entry.get("text"), entry.get("note")
    if isinstance(prompt_id, bool) or not isinstance(prompt_id, int | str):
        raise Unreadable(f"{where}: the id must be a number or a string", why=f"it is {prompt_id!r}")
    if note is not None and not isinstance(note, str):
        raise Unreadable(f"{where}: the note must be a string", why=f"it is {note!r}")
    if text is None and "messages" in entry:
        return _chat_prompt(entry["messages"], entry.get("tools"), where, str(prompt_id), note)
    if not isinstance(text, str):
        raise Unreadable(f"{where}: no text", why=f"text is {text!r}")
    return Prompt(str(prompt_id), text, note)


def _checked(name: str, description: str, prompts: Iterable[Prompt], path: Path) -> PromptSet:
    found = tuple(prompts)
    if not found:
        raise Unreadable(f"{path} holds no prompts")
    try:
        check_name(name, "the prompt set's name")
        for prompt in found:
            check_name(prompt.prompt_id, "the prompt id")
    except UsageError as error:
        raise Unreadable(f"{path}: {error.message}", hint=error.hint) from error
    seen: set[str] = set()
    for prompt in found:
        if prompt.prompt_id in seen:
            raise Unreadable(f"{path}: the prompt id {prompt.prompt_id!r} occurs twice", hint="make the ids unique")
        if not prompt.text.strip():
            raise Unreadable(f"{path}: the prompt {prompt.prompt_id} is empty")
        if _has_half_pair(prompt.text):
            raise Unreadable(f"{path}: the prompt {prompt.prompt_id} has half a surrogate pair, which is no character")
        seen.add(prompt.prompt_id)
    return PromptSet(name, description, found)


def _has_half_pair(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
