"""Pairs of texts as one model reads them: token ids, the token that should follow, and whose positions are whose.

1. Both texts become token ids, as they would when they are recorded. Nothing is cut: what is too long is refused.
2. `answer` and `wrong` become the token that follows the clean text, as the tokenizer has it behind that text.
3. Positions of both texts are matched one to one if they are of equal length, else by the rule that is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from traceformer.capture.edits.metrics import Metric
from traceformer.capture.encoding import Encoder
from traceformer.errors import UsageError, check_choice
from traceformer.models.loaded import LoadedModel, n_embeddings_of
from traceformer.texts.cells import Ids, Reading
from traceformer.texts.contrasts import Contrast
from traceformer.texts.shown import pieces_named, pieces_of_text

__all__ = ["Align", "AnswerToken", "PairOfIds", "ReadText", "read_pairs", "read_text"]

Align: TypeAlias = Literal["end"]
"""How positions of a clean and a corrupt text of unequal length are matched: counted from their ends."""

AnswerToken: TypeAlias = Literal["only", "first"]
"""Whether an answer of several tokens is refused, or stands for its first one."""


@dataclass(frozen=True, slots=True)
class ReadText:
    """One text: its token ids, and each token as it is shown."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class PairOfIds:
    """A pair as a model reads it; `answer` and `wrong` are token ids, None where no metric needs them."""

    name: str
    clean: ReadText
    corrupt: ReadText
    answer: int | None
    wrong: int | None


def read_text(encoder: Encoder, text: Reading) -> ReadText:
    """Returns a text as the model reads it.

    Raises:
        UsageError: it has no token, or more than the model can read.
    """
    (row,) = encoder.encode([text])
    stack = encoder.input_stack
    shown = text if isinstance(text, str) else text.text
    if row.truncated:
        raise UsageError(f"a text of more than {encoder.max_tokens} tokens", why=f"it begins {shown[:40]!r}")
    names = row.tokens[stack]
    pieces = pieces_of_text(names, row.offsets, text) if isinstance(text, str) else pieces_named(names)
    if not pieces:
        raise UsageError("a text without a token", why=f"it is {shown[:40]!r}")
    return ReadText(tuple(row.ids[stack]), tuple(piece.text for piece in pieces))


def read_pairs(
    model: LoadedModel,
    pairs: Sequence[Contrast],
    metric: Metric,
    *,
    align: Align | None = None,
    answer_token: AnswerToken = "only",
    can_align: bool = True,
) -> list[PairOfIds]:
    """Returns the pairs as the model reads them.

    Args:
        model: Whose tokenizer reads them; of token ids none is needed.
        pairs: The pairs.
        metric: What will be looked at: it says whether pairs need an answer, and a wrong one.
        align: How positions of texts of unequal length are matched; None refuses these.
        answer_token: Whether an answer of several tokens is refused, or stands for its first one.
        can_align: Whether who asks could match texts of unequal length at all.

    Raises:
        UsageError: texts of unequal length; an answer that is missing, of several tokens, or the same as the wrong one.
    """
    if align is not None:
        check_choice("align", align, ("end",))
    check_choice("answer_token", answer_token, ("only", "first"))
    encoder = Encoder(model, "auto", 64)
    return [_read_pair(model, encoder, pair, metric, align, answer_token, can_align) for pair in pairs]


def _read_pair(
    model: LoadedModel,
    encoder: Encoder,
    pair: Contrast,
    metric: Metric,
    align: Align | None,
    answer_token: AnswerToken,
    can_align: bool,
) -> PairOfIds:
    clean, corrupt = read_text(encoder, pair.clean), read_text(encoder, pair.corrupt)
    if len(clean) != len(corrupt):
        lengths = f"the clean text of pair {pair.name} has {len(clean)} tokens, the corrupt one {len(corrupt)}"
        if align is None:
            why = "which position is which cannot be known"
            hint = "texts of equal length" + ', or `align="end"` counts from their ends' * can_align
            raise UsageError(lengths, why=why, hint=hint)
        if "targets" in metric.needs:
            raise UsageError(lengths, why=f"{metric.name} compares position with position", hint="another metric")
    tokens: dict[str, int | None] = {"answer": None, "wrong": None}
    for name, given in (("answer", pair.answer), ("wrong", pair.wrong)):
        if name in metric.needs:
            tokens[name] = _token_behind(model, pair, name, given, metric, answer_token)
    if tokens["answer"] is not None and tokens["answer"] == tokens["wrong"]:
        why = f"{pair.answer!r} and {pair.wrong!r} begin with the same token" * (pair.answer != pair.wrong)
        raise UsageError(f"the right and the wrong answer of pair {pair.name} are one token", why=why)
    return PairOfIds(pair.name, clean, corrupt, tokens["answer"], tokens["wrong"])


def _token_behind(
    model: LoadedModel,
    pair: Contrast,
    name: str,
    given: str | int | None,
    metric: Metric,
    answer_token: AnswerToken,
) -> int:
    """The token id of an answer."""
    if given is None:
        instead = (
            "" if metric.name == "log_prob" else ', or `metric="log_prob"`' if name == "wrong" else ', or `metric="kl"`'
        )
        raise UsageError(
            f"pair {pair.name} has no {name}", why=f"the metric {metric.name} needs one", hint=f"`{name}`{instead}"
        )
    if isinstance(given, int):
        count = n_embeddings_of(model.model)
        if not 0 <= given < count:
            raise UsageError(f"{name} of pair {pair.name} is token {given}", why=f"the model has tokens 0-{count - 1}")
        return given
    ids = _behind(model.reader(), pair.clean, given)
    if not ids:
        raise UsageError(f"{name} of pair {pair.name} has no token", why=f"it is {given!r}")
    if len(ids) > 1 and answer_token == "only":
        raise UsageError(
            f"{name} of pair {pair.name}, {given!r}, is {len(ids)} tokens",
            why=f"{model.name} reads it as {' '.join(map(repr, model.reader().convert_ids_to_tokens(ids)))}",
            hint='an answer of one token, or `answer_token="first"` takes the first of them',
        )
    return ids[0]


def _behind(tokenizer: Any, text: str | Ids, more: str) -> list[int]:
    """The tokens that follow a text's own when `more` is written behind it."""
    alone: list[int] = tokenizer(more, add_special_tokens=False)["input_ids"]
    if not isinstance(text, str):
        return alone
    before: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    both: list[int] = tokenizer(text + more, add_special_tokens=False)["input_ids"]
    # Where the text's last token would be another one, nothing can be told from both.
    return both[len(before) :] if both[: len(before)] == before else alone
