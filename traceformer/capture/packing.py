"""Which rows share a pass: so many of similar length, or as many as make up so many tokens with little padding.

1. Rows are taken in the order of their lengths, the shortest first.
2. `rows` of them make a batch; the last one may have fewer.
3. Bound by `tokens`, a batch takes the next row as long as, padded to the longest of them, it holds no more than that,
   and no more than so much padding. How much is sought by bisection: the most for which padding is at most 5 % of all
   tokens that are computed. Few passes are made that way, and every row of another length could have one of its own.

A plan is a pure function of lengths and bounds: never of time, nor of where a run was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from traceformer.capture.sharing import Lengths
from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.placed import input_device
from traceformer.sites import Stack

__all__ = ["MOST_PADDING", "Batching", "auto_tokens", "batches_by_length", "first_rows"]

MOST_PADDING = 0.05
"""The share of the tokens computed that may be padding where batches are bound by tokens."""

_TOKENS_OF_A_PROCESSOR = 1 << 10
_NUMBERS_ELSEWHERE = 1 << 25
_FEWEST_ELSEWHERE, _MOST_ELSEWHERE = 1 << 12, 1 << 15


@dataclass(frozen=True, slots=True)
class Batching:
    """How large a batch may be: of so many rows, or of so many tokens, padding included. One of them is None."""

    rows: int | None = None
    tokens: int | None = None

    @classmethod
    def of(
        cls,
        batch_size: int | None,
        batch_tokens: int | Literal["auto"] | None,
        model: LoadedModel,
        longest: int,
        *,
        default: int = 8,
    ) -> "Batching":
        """Returns what is meant by the two parameters of a recording.

        Args:
            batch_size: Rows; `default` if neither is given.
            batch_tokens: Tokens, or "auto" for `auto_tokens`, or for the longest row where that has more.
            model: Whose passes they are.
            longest: The tokens of the longest row, in all of its stacks.
            default: The batch size that is meant by none.

        Raises:
            UsageError: both are given, one is less than 1, or a row has more tokens than a batch may.
        """
        if batch_size is not None and batch_tokens is not None:
            raise UsageError("`batch_size` and `batch_tokens`", why="a batch is bound by one of them", hint="leave one")
        if batch_tokens is None:
            size = default if batch_size is None else batch_size
            if size < 1:
                raise UsageError(f"`batch_size={size}`", hint="give 1 or more")
            return cls(rows=size)
        if batch_tokens == "auto":
            width = max(dims.d_model for dims in model.dims.stacks.values())
            return cls(tokens=max(auto_tokens(input_device(model.model).type, width), longest))
        if not isinstance(batch_tokens, Integral):
            raise UsageError(f"`batch_tokens={batch_tokens!r}`", hint='a whole number, 1 or more, or "auto"')
        if batch_tokens < longest:
            raise UsageError(
                f"`batch_tokens={batch_tokens}`, and the longest text has {longest} tokens",
                hint=f"`batch_tokens={longest}` or more, or a `max_seq_len` that cuts it",
            )
        return cls(tokens=batch_tokens)

    @property
    def stated(self) -> dict[str, int]:
        """What a run states of it, and must agree on to be resumed."""
        return {"batch_size": self.rows} if self.rows is not None else {"batch_tokens": self.tokens or 0}


def auto_tokens(device: str, width: int) -> int:
    """Returns how many tokens a pass should have on a kind of device (cpu, cuda), by a model's width: no measurement.

    On a processor 1,024: fewer use it badly, more do not stay in its caches. Elsewhere so many that the residual
    stream, tokens times width, has 2^25 numbers, since kernels of narrow models end sooner than others are started;
    rounded down to a power of two, from 4,096 to 32,768.
    """
    if device == "cpu":
        return _TOKENS_OF_A_PROCESSOR
    fitting = 1 << (_NUMBERS_ELSEWHERE // width).bit_length() - 1
    return min(max(fitting, _FEWEST_ELSEWHERE), _MOST_ELSEWHERE)


def batches_by_length(lengths: Sequence[Lengths], batching: Batching) -> list[list[int]]:
    """Returns the numbers of rows in batches of similar length, shortest first; a pure function of the lengths.

    Rows without a single token are left out: there is nothing to run. Bound by tokens, the batches hold no more than
    these, but for a row that has more by itself, and at most `MOST_PADDING` of what they hold is padding.
    """
    order = sorted(range(len(lengths)), key=lambda number: [*lengths[number].values()])
    order = [number for number in order if all(lengths[number].values())]
    if batching.tokens is None:
        size = batching.rows or len(order)
        return [order[start : start + size] for start in range(0, len(order), size)]
    least, beyond = 0, batching.tokens
    batches, _ = _packed(order, lengths, batching.tokens, least)
    while beyond - least > 1:
        tried = (least + beyond) // 2
        more, share = _packed(order, lengths, batching.tokens, tried)
        if share <= MOST_PADDING:
            least, batches = tried, more
        else:
            beyond = tried
    return batches


def first_rows(batches: Sequence[Sequence[int]], batching: Batching) -> list[int]:
    """Returns which rows a model is proved on before it runs these batches: the first batch.

    Some batches that are bound by tokens hold one row, and others more: there it is the shortest and the longest of
    all, so that what a row is beside another one is proved in any case.
    """
    if not batches or batching.tokens is None:
        return [*batches[0]] if batches else []
    return [*dict.fromkeys((batches[0][0], batches[-1][-1]))]


def _packed(
    order: Sequence[int], lengths: Sequence[Lengths], tokens: int, padding: int
) -> tuple[list[list[int]], float]:
    """Returns batches of at most so many tokens, and of these so many padding, and the share of all that is padding."""
    batches: list[list[int]] = []
    longest: dict[Stack, int] = {}
    true = computed = all_true = all_computed = 0
    for number in order:
        own = lengths[number]
        length = sum(own.values())
        together: dict[Stack, int] = {stack: max(n, longest.get(stack, 0)) for stack, n in own.items()}
        grown = (len(batches[-1]) + 1) * sum(together.values()) if batches else 0
        if batches and grown <= tokens and grown - true - length <= padding:
            batches[-1].append(number)
            longest, true, computed = together, true + length, grown
        else:
            all_computed += computed
            batches.append([number])
            longest, true, computed = dict(own), length, length
        all_true += length
    all_computed += computed
    return batches, 1 - all_true / max(1, all_computed)
