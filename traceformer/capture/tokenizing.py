"""Texts into token ids, as the model will read them.

`tokenize` goes over all texts once, to learn their lengths; the tokens themselves are made again when they are asked
for, so that a run over millions of texts keeps four bytes of each.
"""

import hashlib
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

from traceformer.capture.chats import ChatTexts
from traceformer.errors import Unreadable, Unsupported, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Stack
from traceformer.texts.examples import Example, TextSource

__all__ = ["Encoded", "Encoder", "Lengths", "Rows", "Texts", "tokenize", "tokenizer_digest"]

_AT_ONCE = 1000  # texts tokenised in one call while measuring lengths


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example's tokens, in every stack that runs; `labels` are what a decoder's targets say comes next."""

    ids: Mapping[Stack, list[int]]
    tokens: Mapping[Stack, list[str]]
    offsets: list[tuple[int, int]] | None
    labels: list[int] | None = None
    truncated: bool = False
    target_truncated: bool = False

    def length(self, stack: Stack) -> int:
        return len(self.ids[stack])


@dataclass(slots=True)
class Lengths:
    """What tokenising everything once found out: each example's tokens per stack (4 bytes each), how many were cut."""

    tokens: dict[Stack, "array[int]"] = field(default_factory=dict[Stack, "array[int]"])
    truncated: int = 0
    targets_truncated: int = 0

    @property
    def longest(self) -> dict[Stack, int]:
        return {stack: max(lengths) for stack, lengths in self.tokens.items()}

    @property
    def mean(self) -> dict[Stack, float]:
        return {stack: sum(lengths) / len(lengths) for stack, lengths in self.tokens.items()}

    @property
    def total(self) -> dict[Stack, int]:
        return {stack: sum(lengths) for stack, lengths in self.tokens.items()}


class Encoder:
    """Tokenises for one model: its tokenizer's own special tokens, truncated on the right.

    Args:
        loaded: the model and its tokenizer.
        max_tokens: the longest text, or "auto"; never more than the model can read.
        max_target_tokens: the longest target of an encoder-decoder, its end token included.
        add_special: whether texts get special tokens; those in a chat template have theirs.

    Raises:
        UsageError: there is no tokenizer, or a limit leaves no room beside its special tokens.
        Unsupported: the tokenizer makes ids that the model has no embedding for.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        max_tokens: int | Literal["auto"],
        max_target_tokens: int,
        *,
        add_special: bool = True,
    ) -> None:
        self.tokenizer = loaded.reader()
        self.arch = loaded.dims.arch
        self.input_stack: Stack = "dec" if self.arch == "dec" else "enc"
        n_ctx = loaded.dims.stacks[self.input_stack].n_ctx
        limits = [limit for limit in (n_ctx, max_tokens) if limit and limit != "auto"]
        self.max_tokens = min(limits) if limits else None
        n_ctx = loaded.dims.stacks["dec"].n_ctx if self.arch == "encdec" else 0
        self.max_target_tokens = min(max_target_tokens, n_ctx) if n_ctx else max_target_tokens
        self._add_special = add_special
        special = self.tokenizer.num_special_tokens_to_add()
        room = {
            "max_seq_len": (self.max_tokens, special if add_special else 0),
            "dec_max_len": (self.max_target_tokens, special),
        }
        for name, (limit, n) in room.items():
            if limit is not None and limit <= n:
                raise UsageError(
                    f"`{name}={limit}` leaves no room for text", why=f"{n} special tokens are always added"
                )
        self._n_embeddings = int(loaded.model.get_input_embeddings().weight.shape[0])  # pyright: ignore
        self._start: Any = getattr(loaded.config, "decoder_start_token_id", None)

    def encode(self, texts: Sequence[str], targets: Sequence[str] | None = None) -> list[Encoded]:
        """Returns the tokens of each text, and of its target's decoder inputs and labels.

        Decoder inputs are the labels shifted right, [start, y0 .. y(n-2)] for labels y0 .. y(n-1), as the model
        was trained.
        """
        if not texts:
            return []
        inputs = self._tokenize(list(texts), self.max_tokens, add_special_tokens=self._add_special)
        labels = None if targets is None else self._tokenize(None, self.max_target_tokens, text_target=list(targets))
        if labels is not None and self._start is None:
            raise Unsupported("the model states no decoder_start_token_id", hint="set it in its config.json")
        rows: list[Encoded] = []
        for index, ids in enumerate(inputs["input_ids"]):
            all_ids: dict[Stack, list[int]] = {self.input_stack: ids}
            expected: list[int] | None = None
            if labels is not None:
                expected = labels["input_ids"][index]
                if not expected:
                    raise Unreadable(
                        f"the target of {texts[index][:40]!r} has no token", why="a decoder cannot run on nothing"
                    )
                all_ids["dec"] = [self._start, *expected[:-1]]
            for each in all_ids.values():
                self.check(each)
            rows.append(
                Encoded(
                    all_ids,
                    {stack: self.tokenizer.convert_ids_to_tokens(each) for stack, each in all_ids.items()},
                    inputs["offset_mapping"][index] if self.tokenizer.is_fast else None,
                    expected,
                    self._is_truncated(inputs, index, texts[index], add_special=self._add_special),
                    targets is not None and self._is_truncated(labels, index, targets[index], add_special=True),
                )
            )
        return rows

    def _tokenize(self, texts: list[str] | None, limit: int | None, **more: Any) -> Any:
        return self.tokenizer(
            texts,
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            return_offsets_mapping=self.tokenizer.is_fast and texts is not None,
            **more,
        )

    def _is_truncated(self, inputs: Any, index: int, text: str, *, add_special: bool) -> bool:
        if self.tokenizer.is_fast:
            return bool(inputs.encodings[index].overflowing)
        whole = self.tokenizer(text, add_special_tokens=add_special)["input_ids"]
        return len(whole) > len(inputs["input_ids"][index])

    def check(self, ids: Sequence[int]) -> None:
        """Makes sure that the model has an embedding for every id.

        Raises:
            Unsupported: it has not.
        """
        if ids and max(ids) >= self._n_embeddings:
            raise Unsupported(
                f"the tokenizer makes token id {max(ids)}, but the model has only {self._n_embeddings} embeddings",
                why="this tokenizer belongs to another model",
                hint="put the model's own tokenizer files in its folder",
            )

    def measure(self, texts: Sequence[str], targets: Sequence[str] | None = None) -> Lengths:
        """Returns the lengths of all examples, tokenising them in slices; no token is kept."""
        lengths = Lengths()
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            for row in self.encode(texts[part], None if targets is None else targets[part]):
                lengths.truncated += row.truncated
                lengths.targets_truncated += row.target_truncated
                for stack in row.ids:
                    lengths.tokens.setdefault(stack, array("I")).append(row.length(stack))
        return lengths


def tokenizer_digest(tokenizer: Any) -> str:
    """Returns a SHA-256 of what decides the ids: the vocabulary, the special tokens and the tokenizer's rules."""
    digest = hashlib.sha256()
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for token, index in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\0{index}\0".encode("utf-8", "surrogatepass"))
    digest.update(repr(sorted(tokenizer.special_tokens_map.items())).encode())
    return digest.hexdigest()


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

    def stacks(self, model: LoadedModel) -> tuple[Stack, ...]:
        """Returns which stacks of a model run on them: an encoder-decoder's decoder with targets only.

        Raises:
            UsageError: there are targets, and the model is no encoder-decoder.
        """
        dims: ModelDims = model.dims
        if self.targets is not None and dims.arch != "encdec":
            raise UsageError(f"`targets` are for encoder-decoders, and {model.name} is none")
        return ("enc",) if dims.arch == "encdec" and self.targets is None else tuple(dims.stacks)


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens of texts for one model: all lengths, and any part of the tokens when it is asked for."""

    texts: Texts
    encoder: Encoder
    lengths: Lengths

    def part(self, numbers: range) -> tuple[list[Example], list[Encoded]]:
        """Returns the examples of these numbers, and their tokens."""
        examples = list(self.texts.source.examples[numbers.start : numbers.stop])
        targets = None if self.texts.targets is None else self.texts.targets[numbers.start : numbers.stop]
        return examples, self.encoder.encode([example.text for example in examples], targets)


def tokenize(model: LoadedModel, texts: Texts) -> Rows:
    """Returns the tokens of all texts as one model reads them; warns of those that are cut or passed over.

    Conversations are texts in the model's chat template. A text without a token, such as a zero-width space for some
    tokenizers, is passed over as a blank one is.

    Raises:
        UsageError: a limit leaves no room beside the tokenizer's special tokens; or no template for conversations.
        Unsupported: the tokenizer makes ids that the model has no embedding for.
        Unreadable: a target without a token, or no text with one; a conversation that the template refuses.
    """
    encoder = Encoder(model, texts.max_tokens, texts.max_target_tokens, add_special=not texts.source.is_chat)
    if texts.source.is_chat:
        texts = replace(texts, source=replace(texts.source, examples=ChatTexts(model, texts.source.examples)))
    lengths = encoder.measure(_TextsOf(texts.source.examples), texts.targets)
    texts, lengths = _with_tokens(texts, lengths, encoder.input_stack)
    source = texts.source
    if lengths.truncated:
        can_read = model.dims.stacks[texts.stacks(model)[0]].n_ctx
        why = "all that the model can read" if encoder.max_tokens == can_read else '`max_seq_len="auto"` takes more'
        warnings.warn(
            f"texts are cut to {encoder.max_tokens} tokens ({why}): {lengths.truncated} of {len(source.examples)}",
            stacklevel=2,
        )
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
        source=replace(texts.source, examples=_Chosen(examples, kept)),
        targets=None if targets is None else [targets[number] for number in kept],
    )
    return chosen, replace(lengths, tokens=of_kept)


class _Chosen(Sequence[Example]):
    """Some of the examples, by their numbers."""

    def __init__(self, examples: Sequence[Example], numbers: "array[int]") -> None:
        self._examples = examples
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return _Chosen(self._examples, self._numbers[index])
        return self._examples[self._numbers[index]]


class _TextsOf(Sequence[str]):
    """The texts of some examples, made when they are looked at."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [example.text for example in self._examples[index]]
        return self._examples[index].text
