"""Prompts as one model reads them: in its chat template or as they are, checked against its context."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from traceformer.capture.chats import check_template, in_template
from traceformer.capture.encoding import Encoded, Encoder
from traceformer.errors import Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import start_token_of
from traceformer.sites import Stack
from traceformer.texts.chats import Chat
from traceformer.texts.prompts import Prompt, PromptSet
from traceformer.texts.shown import unnamed

__all__ = ["Prompts", "ReadPrompt", "complete", "read_prompts", "started"]


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model is to answer: prompts in sets, whether in its chat template, and a label for the responses."""

    sets: tuple[PromptSet, ...]
    chat: bool = False
    category: str | None = None

    @property
    def name(self) -> str:
        """What stands for the prompts in a run's name."""
        return self.sets[0].name if len(self.sets) == 1 else "all-prompt-sets"

    @property
    def has_chats(self) -> bool:
        """Whether any of them is a conversation, which is read in the chat template whatever `chat` says."""
        return any(prompt.chat is not None for each in self.sets for prompt in each.prompts)


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt of a set; `text` is what the model reads (the chat template around it), `row` its tokens."""

    prompt_set: str
    prompt: Prompt
    text: str
    row: Encoded

    @property
    def example_id(self) -> str:
        return f"{self.prompt_set}-{self.prompt.prompt_id}"


def read_prompts(model: LoadedModel, prompts: Prompts, *, max_tokens: int) -> list[ReadPrompt]:
    """Returns the prompts of all sets, tokenised, in order.

    Raises:
        UsageError: a prompt without tokens, or one that leaves no room for `max_tokens` in the model's context; a
            chat template is asked for, or needed for a conversation, and there is none.
        Unsupported: the tokenizer belongs to another model.
        Unreadable: the template refuses a conversation.
    """
    if prompts.chat and not getattr(model.tokenizer, "chat_template", None):
        raise UsageError(f"`chat` needs a chat template, and {model.name} has none", hint="`chat=False`")
    if prompts.has_chats:
        check_template(model)
    encoder = Encoder(model, "auto", max_target_tokens=64)  # there are no targets
    found: dict[str, ReadPrompt] = {}
    for name, prompt in ((each.name, prompt) for each in prompts.sets for prompt in each.prompts):
        text = prompt.text
        if prompts.chat or prompt.chat:
            chat = prompt.chat or Chat(({"role": "user", "content": prompt.text},))
            text = in_template(model, chat, f"prompt {prompt.prompt_id} of {name}", to_answer=True)
        if prompt.chat:
            prompt = replace(prompt, text=text)
        # A template brings its own special tokens.
        inputs = model.reader()(
            text, add_special_tokens=not (prompts.chat or prompt.chat), return_attention_mask=False, verbose=False
        )
        ids: list[int] = inputs["input_ids"]
        encoder.check(ids)
        _check_room(model, f"prompt {prompt.prompt_id} of {name}", len(ids), max_tokens)
        stack: Stack = "dec" if model.dims.arch == "dec" else "enc"
        row = Encoded({stack: ids}, {stack: model.tokenizer.convert_ids_to_tokens(ids)}, None)
        read = ReadPrompt(name, prompt, text, row)
        if read.example_id in found:
            raise UsageError(f"two prompts would be called {read.example_id}", hint="rename a prompt set or an id")
        found[read.example_id] = read
    return list(found.values())


def _check_room(loaded: LoadedModel, what: str, length: int, max_tokens: int) -> None:
    if not length:
        raise UsageError(f"{what} has no token")
    stacks = loaded.dims.stacks
    limit = stacks["dec"].n_ctx if loaded.dims.arch == "dec" else stacks["enc"].n_ctx
    if limit and length > limit:
        raise UsageError(f"{what} has {length} tokens", why=f"{loaded.name} can read {limit}")
    taken = length if loaded.dims.arch == "dec" else 1
    limit = stacks["dec"].n_ctx
    if limit and taken + max_tokens > limit:
        raise UsageError(
            f"{what} and its response may have {taken + max_tokens} tokens",
            why=f"{taken} of the prompt and `max_tokens={max_tokens}`, but {loaded.name} has a context of {limit}",
            hint=f"`max_tokens={limit - taken}`" if limit > taken else "a shorter prompt",
        )


def complete(loaded: LoadedModel, prompt: ReadPrompt, tokens: Sequence[int]) -> tuple[Encoded, str]:
    """Returns the whole row, prompt and response, and the response's text without special tokens.

    An encoder-decoder's decoder reads its start token first.
    """
    tokenizer = loaded.tokenizer
    if loaded.dims.arch == "dec":
        before, stack_ids = prompt.row.ids["dec"], dict[Stack, list[int]]()
    else:
        before, stack_ids = [_start_token(loaded)], dict(prompt.row.ids)
    stack_ids["dec"] = [*before, *tokens]
    # A model may have embeddings that its tokenizer has no token for.
    names: dict[Stack, list[str]] = {
        stack: [name or unnamed(i) for i, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)]
        for stack, ids in stack_ids.items()
    }
    whole = tokenizer.decode(stack_ids["dec"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    start = tokenizer.decode(before, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if not whole.startswith(start):  # a character that prompt and response share
        start, whole = "", tokenizer.decode([*tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Encoded(stack_ids, names, None), whole.removeprefix(start)


def started(loaded: LoadedModel, prompt: ReadPrompt) -> Encoded:
    """Returns a prompt with what a decoder reads of it in a pass without any response: all, or a start token."""
    if loaded.dims.arch == "dec":
        return prompt.row
    return replace(prompt.row, ids={**prompt.row.ids, "dec": [_start_token(loaded)]})


def _start_token(loaded: LoadedModel) -> int:
    """What `generate` begins with."""
    for config in (loaded.model.generation_config, loaded.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            start = getattr(config, name, None)
            if isinstance(start, int):
                return start
    if (start := start_token_of(loaded.config)) is not None:
        return start
    raise Unsupported("the model states no decoder_start_token_id", hint="set it in its generation_config.json")
