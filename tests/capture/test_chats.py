"""Conversations as a model reads them: what its own tokenizer's chat template makes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import traceformer as tf
from tests.texts.test_chats import CHATS
from traceformer.capture.chats import reading_chats
from traceformer.errors import ConfigurationChanged, Unreadable, UsageError
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.texts.load import load_texts

PLAIN = (
    "<s>{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content if m.content is not none else '' }}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
OF_PARTS = "{% for m in messages %}{% for part in m.content %}[{{ part }}]{% endfor %}{% endfor %}"
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% if not loop.last %}|{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
PARTS = [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}]}]


@pytest.fixture
def model(tiny_folder: Callable[..., Path]) -> LoadedModel:
    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    loaded.tokenizer.chat_template = PLAIN
    return loaded


def rendered(model: LoadedModel, row: dict[str, Any], **how: Any) -> tuple[str, list[int]]:
    """What the tokenizer itself makes of a conversation."""
    given = {"tools": row.get("tools"), **how}
    text = model.tokenizer.apply_chat_template(row["messages"], tokenize=False, **given)
    return text, list(model.tokenizer.apply_chat_template(row["messages"], **given)["input_ids"])


@pytest.mark.filterwarnings("ignore:texts are cut")
def test_a_recorded_conversation_is_the_templates_whole_text(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    run = tf.record(model, tmp_path / "a.jsonl", "resid", layers=[0], max_seq_len="auto")
    for row, (_, found) in zip(CHATS, run.tokens.iterrows(), strict=True):
        text, ids = rendered(model, row)
        assert found.text == text
        assert list(found.input_ids) == ids[:64]  # what the model can read
    listed = tf.record(model, [CHATS[0]["messages"]], "resid", layers=[0])
    assert listed.tokens.text[0] == rendered(model, CHATS[0])[0]


def test_a_generation_answers_what_stands_before_the_last_answer(model: LoadedModel) -> None:
    run = tf.generate(model, [CHATS[0]["messages"], "plain"], "resid", layers=[0], max_tokens=2, temperature=0)
    before = {"messages": CHATS[0]["messages"][:1]}
    text, ids = rendered(model, before, add_generation_prompt=True)
    chat, plain = (row for _, row in run.tokens.iterrows())
    assert list(chat.input_ids[: chat.n_prompt]) == ids
    assert (chat.prompt, chat.text) == (text, text + chat.response)
    assert list(plain.input_ids[: plain.n_prompt]) == model.tokenizer("plain")["input_ids"]


def test_parts_are_handed_over_where_the_template_takes_them(model: LoadedModel) -> None:
    """A template that knows strings only would print the list as Python shows it."""
    whole = [{"role": "user", "content": "abcd"}]
    for template, messages in ((PLAIN, whole), (OF_PARTS, whole), (EITHER, PARTS)):
        model.tokenizer.chat_template = template
        run = tf.record(model, [PARTS], "resid", layers=[0])
        assert run.tokens.text[0] == model.tokenizer.apply_chat_template(messages, tokenize=False)
    assert run.tokens.text[0] == "ab|cd"


def test_without_a_template_or_where_it_refuses_that_is_said(model: LoadedModel) -> None:
    model.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    examples = load_texts([CHATS[0]["messages"]]).examples
    with pytest.raises(Unreadable, match=r"row 0 \(.*\): the chat template of .* refuses it; roles must alternate"):
        reading_chats(model)(examples[0])
    with pytest.raises(Unreadable, match=r"prompt 1 of prompts: the chat template .* refuses it"):
        tf.generate(model, [CHATS[0]["messages"]])
    model.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="read in a chat template, and tiny-gpt2 has none"):
        tf.record(model, [CHATS[0]["messages"]])
    with pytest.raises(UsageError, match="read in a chat template, and tiny-gpt2 has none"):
        tf.generate(model, [CHATS[0]["messages"]])


def test_a_run_does_not_go_on_in_another_template(model: LoadedModel, tmp_path: Path) -> None:
    chats = [CHATS[0]["messages"], PARTS]

    def record(stop_after: int | None = None) -> None:
        def stop(progress: Any) -> None:
            if stop_after is not None and progress.examples_done >= stop_after:
                raise KeyboardInterrupt

        tf.record(
            model,
            chats,
            "resid",
            layers=[0],
            out=tmp_path / "run",
            shard_examples=1,
            resume=not stop_after,
            progress=stop,
        )

    with pytest.raises(KeyboardInterrupt):
        record(stop_after=1)
    model.tokenizer.chat_template = PLAIN.replace("assistant:", "assistant>")
    with pytest.raises(ConfigurationChanged, match="chat template"):
        record()
