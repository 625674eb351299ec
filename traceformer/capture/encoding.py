"""Texts, pairs of texts, lists of words and token ids into the tokens that a model will read."""

import hashlib
import inspect
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from traceformer.capture.given import Given
from traceformer.errors import Unreadable, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel, n_embeddings_of
from traceformer.models.part import start_token_of, text_config
from traceformer.sites import Stack
from traceformer.texts.cells import Ids, Pair, Reading, Words
from traceformer.texts.shown import unnamed

__all__ = ["Encoded", "Encoder", "Lengths", "tokenizer_digest"]

_AT_ONCE = 1000  # texts tokenised in one call while measuring lengths


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example's tokens, in every stack that runs; `labels` are what a decoder's targets say comes next.

    `offsets` are characters of the example's `text`, also where that is put together from a pair or from words. Of a
    pair, `sequences` says which text each token is of (0, 1, or None for one of the tokenizer's own), and `types` are
    the segment ids that the model is given, if it knows any. `words` says which word each token is of.
    Of a row of a processor's batch, `given` is that batch, and `kinds` says what each token stands for.
    """

    ids: Mapping[Stack, list[int]]
    tokens: Mapping[Stack, list[str]]
    offsets: list[tuple[int, int]] | None
    labels: list[int] | None = None
    truncated: bool = False
    target_truncated: bool = False
    types: list[int] | None = None
    sequences: list[int | None] | None = None
    words: list[int | None] | None = None
    kinds: list[str] | None = None
    given: Given | None = None

    def length(self, stack: Stack) -> int:
        return len(self.ids[stack])

    @property
    def lengths(self) -> dict[Stack, int]:
        return {stack: len(ids) for stack, ids in self.ids.items()}

    def cut(self, most: Mapping[Stack, int]) -> "Encoded":
        """Returns what a model is given of the first tokens, at most so many of each stack."""
        types = None if self.types is None else self.types[: most[next(iter(self.ids))]]
        return replace(self, ids={stack: ids[: most[stack]] for stack, ids in self.ids.items()}, types=types)


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
    def longest_of_all(self) -> int:
        """The most tokens of an example, in all of its stacks."""
        return max(map(sum, zip(*self.tokens.values(), strict=True)))

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
        self._loaded = loaded
        self._name = loaded.name
        segments = getattr(text_config(loaded.config), "type_vocab_size", 0) or 0
        takes_types = "token_type_ids" in inspect.signature(loaded.model.forward).parameters
        self._has_segments = segments > 1 and takes_types
        self.arch = loaded.dims.arch
        self.input_stack: Stack = "dec" if self.arch == "dec" else "enc"
        n_ctx = loaded.dims.stacks[self.input_stack].n_ctx
        limits = [limit for limit in (n_ctx, max_tokens) if limit and limit != "auto"]
        self.max_tokens = min(limits) if limits else None
        n_ctx = loaded.dims.stacks["dec"].n_ctx if self.arch == "encdec" else 0
        self.max_target_tokens = min(max_target_tokens, n_ctx) if n_ctx else max_target_tokens
        self._add_special = add_special
        special = 0 if loaded.tokenizer is None else loaded.tokenizer.num_special_tokens_to_add()
        for name, limit, n in (
            ("max_seq_len", self.max_tokens, special if add_special else 0),
            ("dec_max_len", self.max_target_tokens, special),
        ):
            if limit is not None and limit <= n:
                raise UsageError(
                    f"`{name}={limit}` leaves no room for text", why=f"{n} special tokens are always added"
                )
        self._n_embeddings = n_embeddings_of(loaded.model)
        self._start = start_token_of(loaded.config)

    @property
    def tokenizer(self) -> Any:
        """The model's; it is an error to ask for it where there is none."""
        return self._loaded.reader()

    def encode(self, texts: Sequence[Reading], targets: Sequence[str] | None = None) -> list[Encoded]:
        """Returns the tokens of each text, and of its target's decoder inputs and labels; texts are all of one kind.

        A pair is what `tokenizer(first, second)` makes of it, words what `tokenizer(words, is_split_into_words=True)`
        does. Decoder inputs are the labels shifted right, [start, y0 .. y(n-2)] for labels y0 .. y(n-1), as the model
        was trained. A text without a token has an empty row.

        Raises:
            Unreadable: a target has no token, and its text has one.
            Unsupported: words, and a tokenizer that does not say which word a token is of, or that runs them together.
            UsageError: there is no room for a pair beside its special tokens.
        """
        if not texts:
            return []
        ids = [each.ids for each in texts if isinstance(each, Ids)]
        rows = [self._of_ids(each) for each in ids] if ids else self._of_texts(texts)
        return rows if targets is None else self._with_targets(rows, texts, targets)

    def _of_texts(self, texts: Sequence[Reading]) -> list[Encoded]:
        inputs = self._tokenize(texts, self.max_tokens)
        is_pair, has_words = isinstance(texts[0], Pair), isinstance(texts[0], Words)
        types = inputs.get("token_type_ids") if is_pair and self._has_segments else None
        rows: list[Encoded] = []
        for index, (ids, text) in enumerate(zip(inputs["input_ids"], texts, strict=True)):
            self.check(ids)
            rows.append(
                Encoded(
                    {self.input_stack: ids},
                    {self.input_stack: self.tokenizer.convert_ids_to_tokens(ids)},
                    self._offsets(inputs, index, text) if self.tokenizer.is_fast else None,
                    truncated=self._is_truncated(inputs, index, text, add_special=self._add_special),
                    types=None if types is None else types[index],
                    sequences=inputs.sequence_ids(index) if is_pair and self.tokenizer.is_fast else None,
                    words=inputs.word_ids(index) if has_words else None,
                )
            )
        return rows

    def _with_targets(self, rows: Sequence[Encoded], texts: Sequence[Reading], targets: Sequence[str]) -> list[Encoded]:
        """The rows with what a decoder reads and is to say."""
        if self._start is None:
            raise Unsupported("the model states no decoder_start_token_id", hint="set it in its config.json")
        labels = self._tokenize(None, self.max_target_tokens, text_target=list(targets))
        whole: list[Encoded] = []
        for index, (row, expected) in enumerate(zip(rows, labels["input_ids"], strict=True)):
            if row.length(self.input_stack) and not expected:
                raise Unreadable(
                    f"the target of {_text_of(texts[index])[:40]!r} has no token", why="a decoder cannot run on nothing"
                )
            read = [self._start, *expected[:-1]]
            self.check(read)
            whole.append(
                replace(
                    row,
                    ids={**row.ids, "dec": read},
                    tokens={**row.tokens, "dec": self.tokenizer.convert_ids_to_tokens(read)},
                    labels=expected,
                    target_truncated=self._is_truncated(labels, index, targets[index], add_special=True),
                )
            )
        return whole

    def _of_ids(self, ids: Sequence[int]) -> Encoded:
        """A text that came as token ids: as it is, but for what is too long."""
        strays = [each for each in ids if not 0 <= each < self._n_embeddings]
        if strays:
            raise UsageError(
                f"token id {strays[0]} requested, but {self._name} has ids 0-{self._n_embeddings - 1}",
                why=f"it stands in the text {' '.join(map(str, ids[:8]))}{' ..' if len(ids) > 8 else ''}",
            )
        kept, tokenizer = list(ids[: self.max_tokens]), self._loaded.tokenizer
        named = [None] * len(kept) if tokenizer is None else tokenizer.convert_ids_to_tokens(kept)
        tokens = [unnamed(each) if name is None else name for each, name in zip(kept, named, strict=True)]
        stack = self.input_stack
        return Encoded({stack: kept}, {stack: tokens}, None, truncated=len(kept) < len(ids))

    def _tokenize(self, texts: Sequence[Reading] | None, limit: int | None, **targets: Any) -> Any:
        return self.tokenizer(
            *([None] if texts is None else self._given(texts)),
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            return_offsets_mapping=self.tokenizer.is_fast and texts is not None,
            is_split_into_words=texts is not None and isinstance(texts[0], Words),
            add_special_tokens=texts is None or self._add_special,
            **targets,
        )

    def _given(self, texts: Sequence[Reading]) -> list[list[Any]]:
        """Texts as a tokenizer takes them: a list of them, or a list of firsts and one of seconds."""
        if isinstance(texts[0], Pair):
            special = self.tokenizer.num_special_tokens_to_add(pair=True)
            if self.max_tokens is not None and self.max_tokens <= special:
                why = f"{special} special tokens are always added to a pair"
                raise UsageError(f"`max_seq_len={self.max_tokens}` leaves no room for text", why=why)
            return list(map(list, zip(*texts, strict=True)))
        if isinstance(texts[0], Words):
            return [[[self._before_words + word for word in of.words] for of in texts if isinstance(of, Words)]]
        return [list(texts)]

    @cached_property
    def _before_words(self) -> str:
        """What keeps words apart: byte-level tokenizers write each without the space before it, as if at the start.

        transformers no longer refuses that where it was not told `add_prefix_space=True`; a space before each word
        gives the ids that it gives then.
        """
        if not self.tokenizer.is_fast:
            raise Unsupported(
                f"the tokenizer of {self._name} does not say which word a token is of",
                why="it is not a fast one",
                hint="join each text's words with spaces",
            )
        for before in ("", " "):
            ids = self.tokenizer([before + "a"] * 2, is_split_into_words=True, add_special_tokens=False)["input_ids"]
            if " " in self.tokenizer.decode(ids).strip():
                return before
        raise Unsupported(
            f"the tokenizer of {self._name} runs words together",
            why="a text without spaces is not what was meant",
            hint="join each text's words as the model should read them",
        )

    def _offsets(self, inputs: Any, index: int, text: Reading) -> list[tuple[int, int]]:
        """Where each token lies in the example's text; the tokenizer counts from the start of its part of it."""
        own: list[tuple[int, int]] = inputs["offset_mapping"][index]
        if isinstance(text, str | Ids):
            return own
        parts = inputs.sequence_ids(index) if isinstance(text, Pair) else inputs.word_ids(index)
        strings = text if isinstance(text, Pair) else text.words
        before = 0 if isinstance(text, Pair) else len(self._before_words)
        starts = [*accumulate((len(string) + 1 for string in strings), initial=-before)]
        return [
            (0, 0) if part is None else (max(starts[part] + start, 0), max(starts[part] + stop, 0))
            for part, (start, stop) in zip(parts, own, strict=True)
        ]

    def _is_truncated(self, inputs: Any, index: int, text: Reading, *, add_special: bool) -> bool:
        if self.tokenizer.is_fast:
            return bool(inputs.encodings[index].overflowing)
        given = text if isinstance(text, Pair) else (text,)
        whole = self.tokenizer(*given, add_special_tokens=add_special)
        return len(whole["input_ids"]) > len(inputs["input_ids"][index])

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

    def measure(self, texts: Sequence[Reading], targets: Sequence[str] | None = None) -> Lengths:
        """Returns the lengths of all examples, tokenising them in slices; no token is kept."""
        lengths = Lengths()
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            for row in self.encode(list(texts[part]), None if targets is None else targets[part]):
                lengths.truncated += row.truncated
                lengths.targets_truncated += row.target_truncated
                for stack in row.ids:
                    lengths.tokens.setdefault(stack, array("I")).append(row.length(stack))
        return lengths


def _text_of(text: Reading) -> str:
    return text if isinstance(text, str) else text.text


def tokenizer_digest(tokenizer: Any) -> str:
    """Returns a SHA-256 of what decides the ids: the vocabulary, the special tokens and the tokenizer's rules.

    Without a tokenizer it is that of nothing.
    """
    digest = hashlib.sha256()
    if tokenizer is None:
        return digest.hexdigest()
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for token, index in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\0{index}\0".encode("utf-8", "surrogatepass"))
    digest.update(repr(sorted(tokenizer.special_tokens_map.items())).encode())
    return digest.hexdigest()
