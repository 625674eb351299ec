"""Texts into token ids, as the model will read them, and batches of them into padded tensors."""

import hashlib
import inspect
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from traceformer.capture.attention import Span
from traceformer.errors import Unreadable, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Stack

__all__ = ["BatchInputs", "Encoded", "Encoder", "Lengths", "batches_by_length", "pad"]

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

    Raises:
        UsageError: there is no tokenizer, or a limit leaves no room beside its special tokens.
        Unsupported: the tokenizer makes ids that the model has no embedding for.
    """

    def __init__(self, loaded: LoadedModel, max_tokens: int | Literal["auto"], max_target_tokens: int) -> None:
        self._tokenizer = loaded.reader()
        self._arch = loaded.dims.arch
        self._input_stack: Stack = "dec" if self._arch == "dec" else "enc"
        n_ctx = loaded.dims.stacks[self._input_stack].n_ctx
        limits = [limit for limit in (n_ctx, max_tokens) if limit and limit != "auto"]
        self.max_tokens = min(limits) if limits else None
        n_ctx = loaded.dims.stacks["dec"].n_ctx if self._arch == "encdec" else 0
        self.max_target_tokens = min(max_target_tokens, n_ctx) if n_ctx else max_target_tokens
        special = self._tokenizer.num_special_tokens_to_add()
        for flag, limit in (("--max_seq_len", self.max_tokens), ("--dec_max_len", self.max_target_tokens)):
            if limit is not None and limit <= special:
                raise UsageError(
                    f"{flag} {limit} leaves no room for text", why=f"{special} special tokens are always added"
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
        inputs = self._tokenize(list(texts), self.max_tokens)
        labels = None if targets is None else self._tokenize(None, self.max_target_tokens, text_target=list(targets))
        if labels is not None and self._start is None:
            raise Unsupported("the model states no decoder_start_token_id", hint="set it in its config.json")
        rows: list[Encoded] = []
        for index, ids in enumerate(inputs["input_ids"]):
            all_ids: dict[Stack, list[int]] = {self._input_stack: ids}
            expected: list[int] | None = None
            if labels is not None:
                expected = labels["input_ids"][index]
                if not ids or not expected:
                    raise Unreadable(
                        f"{'the target of' if ids else ''} {texts[index][:40]!r} has no token",
                        why="an encoder-decoder cannot run on nothing",
                    )
                all_ids["dec"] = [self._start, *expected[:-1]]
            for each in all_ids.values():
                self.check(each)
            rows.append(
                Encoded(
                    all_ids,
                    {stack: self._tokenizer.convert_ids_to_tokens(each) for stack, each in all_ids.items()},
                    inputs["offset_mapping"][index] if self._tokenizer.is_fast else None,
                    expected,
                    self._is_truncated(inputs, index, texts[index]),
                    targets is not None and self._is_truncated(labels, index, targets[index]),
                )
            )
        return rows

    def _tokenize(self, texts: list[str] | None, limit: int | None, **targets: Any) -> Any:
        return self._tokenizer(
            texts,
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            return_offsets_mapping=self._tokenizer.is_fast and texts is not None,
            **targets,
        )

    def _is_truncated(self, inputs: Any, index: int, text: str) -> bool:
        if self._tokenizer.is_fast:
            return bool(inputs.encodings[index].overflowing)
        return len(self._tokenizer(text)["input_ids"]) > len(inputs["input_ids"][index])

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

    def digest(self) -> str:
        """Returns a SHA-256 of what decides the ids: the vocabulary, the special tokens and the tokenizer's rules."""
        digest = hashlib.sha256()
        if self._tokenizer.is_fast:
            digest.update(self._tokenizer.backend_tokenizer.to_str().encode())
        for token, index in sorted(self._tokenizer.get_vocab().items()):
            digest.update(f"{token}\0{index}\0".encode("utf-8", "surrogatepass"))
        digest.update(repr(sorted(self._tokenizer.special_tokens_map.items())).encode())
        return digest.hexdigest()


def batches_by_length(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Yields the indices of `rows` in batches of similar length, shortest first; a pure function of the lengths.

    Examples without a single token are left out: there is nothing to run.
    """
    order = sorted(range(len(rows)), key=lambda index: [len(ids) for ids in rows[index].ids.values()])
    order = [index for index in order if all(rows[index].ids.values())]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class BatchInputs:
    """Rows as one model's forward takes them: padded, with explicit positions where it is a decoder."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._pad_id = loaded.pad_id
        self.device = str(next(loaded.model.parameters()).device)
        self.accepted = frozenset(inspect.signature(loaded.model.forward).parameters)
        self._with_positions = loaded.dims.arch == "dec" and "position_ids" in self.accepted

    def to_run(self, rows: Sequence[Encoded]) -> tuple[dict[str, Any], dict[Stack, list[Span]]]:
        """Returns the inputs of one pass over whole rows, padded on the right, and where their true tokens are."""
        inputs, spans = pad(rows, self._pad_id, self.device, with_positions=self._with_positions)
        return inputs | ({"use_cache": False} if "use_cache" in self.accepted else {}), spans

    def to_continue(self, rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
        """Returns the inputs of `generate`: a decoder's are padded on the left, where new tokens push nothing apart."""
        return pad(rows, self._pad_id, self.device, with_positions=self._with_positions, side="left")


def pad(
    rows: Sequence[Encoded],
    pad_id: int,
    device: str,
    *,
    with_positions: bool,
    side: Literal["left", "right"] = "right",
) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
    """Returns a batch padded on one side, as a model's forward takes it, and where its true tokens are.

    `with_positions` adds explicit position ids (decoders), so that padding can never shift a position. Encoders are
    padded on the right whatever `side` says: some count positions from the left without asking the mask.
    """
    inputs: dict[str, Tensor] = {}
    spans: dict[Stack, list[Span]] = {}
    stacks = list(rows[0].ids)
    for stack in stacks:
        longest = max(row.length(stack) for row in rows)
        ids = torch.full((len(rows), longest), pad_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        spans[stack] = []
        for index, row in enumerate(rows):
            start = longest - row.length(stack) if side == "left" and stack == "dec" else 0
            span = Span(start, start + row.length(stack))
            ids[index, span.start : span.stop] = torch.tensor(row.ids[stack])
            mask[index, span.start : span.stop] = 1
            spans[stack].append(span)
        prefix = "decoder_" if stack == "dec" and len(stacks) > 1 else ""
        inputs[f"{prefix}input_ids"] = ids.to(device)
        inputs[f"{prefix}attention_mask"] = mask.to(device)
        if with_positions:
            starts = torch.tensor([span.start for span in spans[stack]])[:, None]
            inputs["position_ids"] = (torch.arange(longest) - starts).clamp(min=0).to(device)
    return inputs, spans
