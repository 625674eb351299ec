"""The texts that a model is to read, and their tokens, made when they are asked for.

`tokenize` goes over all texts once, to learn their lengths; the tokens themselves are made again when they are asked
for, so that a run over millions of texts keeps four bytes of each.
"""

import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from traceformer.capture.chats import reading_chats
from traceformer.capture.encoding import Encoded, Encoder, Lengths
from traceformer.errors import Unreadable, UsageError, check_whole
from traceformer.models.dims import ModelDims
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Stack
from traceformer.texts.cells import Pair
from traceformer.texts.chats import Chat
from traceformer.texts.examples import Example, TextSource
from traceformer.texts.lazily import Lazily

__all__ = ["Part", "Rows", "Texts", "check_cut", "tokenize"]

Part: TypeAlias = tuple[list[Example], list[Encoded]]
"""Some examples, and their tokens."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What a model is to read: the examples, for an encoder-decoder what its decoder reads, and where both are cut.

    Attributes:
        source: The examples.
        targets: A target for each example; None if there are none.
        max_tokens: The longest text; "auto" for as much as the model can read.
        max_target_tokens: The longest target, its end token included.
    """

    source: TextSource
    targets: Sequence[str] | None = None
    max_tokens: int | Literal["auto"] = "auto"
    max_target_tokens: int = 64

    def __post_init__(self) -> None:
        check_cut("max_seq_len", self.max_tokens)
        check_whole("dec_max_len", self.max_target_tokens, 1)

    def stacks(self, model: LoadedModel) -> tuple[Stack, ...]:
        """Returns which stacks of a model run on them: an encoder-decoder's decoder with targets only.

        Raises:
            UsageError: there are targets, and the model is no encoder-decoder.
        """
        dims: ModelDims = model.dims
        if self.targets is not None and dims.arch != "encdec":
            raise UsageError(f"`targets` are for encoder-decoders, and {model.name} is none")
        return ("enc",) if dims.arch == "encdec" and self.targets is None else tuple(dims.stacks)


def check_cut(name: str, most: Any) -> None:
    """Makes sure that texts can be cut after so many tokens.

    Raises:
        UsageError: it is no number of at least one, nor "auto".
    """
    if not isinstance(most, str) or most != "auto":
        try:
            check_whole(name, most, 1)
        except UsageError as error:
            error.hint += ', or "auto"'
            raise


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens of texts for one model: all lengths, and any part of the tokens when it is asked for.

    `given` are the rows of a processor's batches, whose tokens are there already. `kept` are the parts that were made,
    of rows that several models read.
    """

    texts: Texts
    encoder: Encoder
    lengths: Lengths
    given: Sequence[Encoded] | None = None
    kept: dict[range, Part] | None = None

    def keeping(self) -> "Rows":
        """Returns the same rows, of which each part is made once."""
        return replace(self, kept={})

    def read_by(self, model: LoadedModel) -> "Rows":
        """Returns the same rows for another model, which has the same tokenizer and reads as much."""
        texts = self.texts
        add_special = texts.source.kind is not Chat
        encoder = Encoder(model, texts.max_tokens, texts.max_target_tokens, add_special=add_special)
        return replace(self, encoder=encoder)

    def part(self, numbers: range) -> Part:
        """Returns the examples of these numbers, and their tokens."""
        if self.kept is None:
            return self._made(numbers)
        if numbers not in self.kept:
            self.kept[numbers] = self._made(numbers)
        return self.kept[numbers]

    def _made(self, numbers: range) -> Part:
        examples = list(self.texts.source.examples[numbers.start : numbers.stop])
        if self.given is not None:
            return examples, list(self.given[numbers.start : numbers.stop])
        targets = None if self.texts.targets is None else self.texts.targets[numbers.start : numbers.stop]
        return examples, self.encoder.encode([example.reading for example in examples], targets)


def tokenize(model: LoadedModel, texts: Texts) -> Rows:
    """Returns the tokens of all texts as one model reads them; warns of those that are cut or passed over.

    Conversations are texts in the model's chat template. A text without a token, such as a zero-width space for some
    tokenizers, is passed over as a blank one is; so are pairs and words.

    Raises:
        UsageError: a limit leaves no room beside the tokenizer's special tokens; or no template for conversations.
        Unsupported: the tokenizer makes ids that the model has no embedding for.
        Unreadable: a target without a token, or no text with one; a conversation that the template refuses.
    """
    is_chat = texts.source.kind is Chat
    encoder = Encoder(model, texts.max_tokens, texts.max_target_tokens, add_special=not is_chat)
    if is_chat:
        texts = replace(
            texts, source=replace(texts.source, examples=Lazily(texts.source.examples, reading_chats(model)))
        )
    lengths = encoder.measure(Lazily(texts.source.examples, lambda example: example.reading), texts.targets)
    texts, lengths = _with_tokens(texts, lengths, encoder.input_stack)
    source = texts.source
    if lengths.truncated:
        can_read = model.dims.stacks[texts.stacks(model)[0]].n_ctx
        why = "all that the model can read" if encoder.max_tokens == can_read else '`max_seq_len="auto"` takes more'
        first = ", of a pair the longer text first" if source.kind is Pair else ""
        how = f"{encoder.max_tokens} tokens{first} ({why})"
        warnings.warn(f"texts are cut to {how}: {lengths.truncated} of {len(source.examples)}", stacklevel=2)
    if lengths.targets_truncated:
        warnings.warn(
            f"targets are cut to {encoder.max_target_tokens} tokens (`dec_max_len` takes more): "
            f"{lengths.targets_truncated} of {len(source.examples)}",
            stacklevel=2,
        )
    if source.skipped:
        warnings.warn(f"null or blank texts are passed over: {source.skipped}", stacklevel=2)
    return Rows(texts, encoder, lengths)


def _with_tokens(texts: Texts, lengths: Lengths, stack: Stack) -> tuple[Texts, Lengths]:
    """Returns the texts that have a token, and the lengths of these; warns of others."""
    kept = array("Q", (number for number, length in enumerate(lengths.tokens[stack]) if length))
    examples, targets = texts.source.examples, texts.targets
    if len(kept) == len(examples):
        return texts, lengths
    first = next(number for number, length in enumerate(lengths.tokens[stack]) if not length)
    which = f"row {examples[first].index} is {examples[first].text[:40]!r}"
    if not kept:
        raise Unreadable("no text has a token", why=which)
    warnings.warn(f"texts without a token are passed over: {len(examples) - len(kept)} ({which})", stacklevel=3)
    of_kept = {stack: array("I", (own[number] for number in kept)) for stack, own in lengths.tokens.items()}
    chosen = replace(
        texts,
        source=replace(texts.source, examples=Lazily(kept, examples.__getitem__)),
        targets=None if targets is None else [targets[number] for number in kept],
    )
    return chosen, replace(lengths, tokens=of_kept)
