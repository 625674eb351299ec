"""Conversations as one model reads them: in its tokenizer's chat template."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from traceformer.errors import Unreadable, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.texts.chats import Chat, Message
from traceformer.texts.examples import Example

__all__ = ["check_template", "in_template", "reading_chats"]

_PROBE = "a text of one part"


def reading_chats(model: LoadedModel) -> Callable[[Example], Example]:
    """Returns what gives an example its text: its conversation in a model's chat template, whole.

    Raises:
        UsageError: there is no template.
    """
    check_template(model)

    def with_text(example: Example) -> Example:
        assert isinstance(example.parts, Chat)
        where = f"row {example.index} ({example.example_id})"
        return replace(example, text=in_template(model, example.parts, where, to_answer=False))

    return with_text


def check_template(model: LoadedModel) -> None:
    """Makes sure that there is a chat template.

    Raises:
        UsageError: there is none.
    """
    if not getattr(model.reader(), "chat_template", None):
        raise UsageError(
            f"conversations are read in a chat template, and {model.name} has none",
            hint="a model that was trained on chats; or a `text_column` that holds text",
        )


def in_template(model: LoadedModel, chat: Chat, where: str, *, to_answer: bool) -> str:
    """Returns a conversation as the model reads it, special tokens included: what `apply_chat_template` makes of it.

    A message in several parts is handed over in parts if the template takes them, and as one text otherwise.

    Args:
        model: Its tokenizer has a chat template.
        chat: The conversation.
        where: Names it in messages.
        to_answer: Whether the model is to go on as the assistant; else the conversation is complete.

    Raises:
        Unreadable: the template refuses the conversation.
    """
    messages = list(chat.messages)
    if any(isinstance(message.get("content"), list) for message in messages) and not _takes_parts(model.tokenizer):
        messages = [_in_one_part(message) for message in messages]
    try:
        return _applied(model.tokenizer, messages, tools=list(chat.tools) or None, add_generation_prompt=to_answer)
    except _REFUSALS as error:
        raise Unreadable(f"{where}: the chat template of {model.name} refuses it", why=_first_line(error)) from error


_REFUSALS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What a template, which is a program, can end in: an exception of its own, or of the values that it did not expect."""


def _applied(tokenizer: Any, messages: Sequence[Message], **how: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **how)


def _takes_parts(tokenizer: Any) -> bool:
    """Whether a text in one part comes out as that text does: most templates print the list as Python shows it."""
    whole = {"role": "user", "content": _PROBE}
    try:
        parts = _applied(tokenizer, [{**whole, "content": [{"type": "text", "text": _PROBE}]}])
        return parts == _applied(tokenizer, [whole])
    except _REFUSALS:
        return False


def _in_one_part(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": "".join(part["text"] for part in content)} if isinstance(content, list) else message


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
