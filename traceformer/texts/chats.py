"""Conversations: lists of messages, each with a role and what was said, and the tools that could be called.

They become text in a model's own chat template, which only the model's tokenizer has; until then they are as they were
found, and are written as JSON wherever a text must stand for them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeGuard

from traceformer.errors import Unreadable
from traceformer.plain_json import parse_json

__all__ = ["Chat", "Message", "is_chat", "read_chat"]

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation: its messages in order, and the tools that the model is told of, as JSON schemas."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The conversation as JSON: the messages, with the tools beside them if there are any."""
        value = {"messages": self.messages, "tools": self.tools} if self.tools else self.messages
        return json.dumps(value, ensure_ascii=False, default=str)

    def to_answer(self) -> "Chat":
        """Returns what stands before the answer: without the assistant's messages at the end, if it ends in any."""
        n = len(self.messages)
        while n and self.messages[n - 1]["role"] == "assistant":
            n -= 1
        return replace(self, messages=self.messages[:n])


def is_chat(value: object) -> TypeGuard[Sequence[Message]]:
    """Returns whether a value is meant as messages: a list of objects that have roles."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def read_chat(messages: Sequence[Any], tools: object, where: str, *, nulls_are_absent: bool) -> Chat:
    """Returns the conversation that a row holds.

    Args:
        messages: What `is_chat` is true of.
        tools: A list of JSON schemas, or that as JSON text; or nothing.
        where: Names the row in messages.
        nulls_are_absent: Whether a null may stand for a field that a message does not have, as in tables whose
            messages all have the same fields. `content` stays, null or not.

    Raises:
        Unreadable: a role that is no name, or content that is no text.
    """
    found = tuple(_present(message) if nulls_are_absent else message for message in messages)
    for number, message in enumerate(found):
        _check(message, f"{where}, message {number}")
    return Chat(found, _read_tools(tools, where, nulls_are_absent=nulls_are_absent))


def _check(message: Message, where: str) -> None:
    role, content = message["role"], message.get("content")
    if not isinstance(role, str):
        raise Unreadable(f"{where}: the role is {role!r}", hint="such as user or assistant")
    if content is None and "content" not in message and not message.get("tool_calls"):
        raise Unreadable(f"{where}: it has no content", hint='"content", or "tool_calls"')
    if content is None or isinstance(content, str):
        return
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
            what = f"a part of the type {kind!r}" if isinstance(kind, str) else f"a value of type {type(part).__name__}"
            raise Unreadable(f"{where}: {what} in the content", why="only text is read")


def _read_tools(tools: object, where: str, *, nulls_are_absent: bool) -> tuple[Mapping[str, Any], ...]:
    if isinstance(tools, str):
        try:
            tools = parse_json(tools) if tools.strip() else None
        except ValueError as error:
            raise Unreadable(f"{where}: the tools are not JSON", why=str(error)) from None
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Unreadable(f"{where}: the tools are no list of objects", hint="JSON schemas, as transformers takes them")
    return tuple(_without_nulls(tool) if nulls_are_absent else tool for tool in tools)


def _present(message: Message) -> Message:
    return {name: _without_nulls(value) for name, value in message.items() if value is not None or name == "content"}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
