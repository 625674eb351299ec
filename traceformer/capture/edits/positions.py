"""Which tokens of a text are meant: numbers, slices, masks, or words.

Positions count from a text's first token; negative ones from the end of the text, in a generation from the end of the
prompt. There "prompt" and "response" are what was read and what was written. Any other text means the tokens that
contain it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from traceformer.errors import SelectionError, UsageError

__all__ = ["NAMED", "Position", "as_positions", "meant", "tokens_with", "told"]

Position: TypeAlias = int | slice | range | str | Sequence[int] | Sequence[bool] | np.ndarray | None
"""One, a slice, several, a mask of booleans (one per token), "last", "prompt", "response", a word, or None for all."""

NAMED = ("last", "prompt", "response")


def as_positions(position: Position) -> Position:
    """Returns a position as it is kept: numpy's numbers and masks as tuples.

    Raises:
        UsageError: it is nothing that a position can be.
    """
    if position is None or isinstance(position, str | range):
        return position
    if isinstance(position, slice):
        ends = (position.start, position.stop, position.step)
        if position.step != 0 and all(each is None or isinstance(each, int | np.integer) for each in ends):
            return slice(*(None if each is None else int(each) for each in ends))
    given: Any = position.tolist() if isinstance(position, np.ndarray | np.generic) else position
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        entries = tuple(each.item() if isinstance(each, np.generic) else each for each in given)
        if entries and all(isinstance(each, bool) for each in entries):
            return entries
        if entries and all(isinstance(each, int) and not isinstance(each, bool) for each in entries):
            return entries
    raise UsageError(
        f"`position={position!r}`", hint='a number, a slice, a list of numbers or of booleans, "last", or a word'
    )


def told(position: Position) -> Any:
    """Returns a position as JSON has it."""
    if isinstance(position, slice):
        return {"start": position.start, "stop": position.stop, "step": position.step}
    return list(position) if isinstance(position, tuple | range) else position


def meant(position: Position, at: Tensor, length: int, *, grows: bool, find: Callable[[str], Sequence[int]]) -> Tensor:
    """Returns which columns of a text are meant, boolean.

    Args:
        position: What a person wrote.
        at: Each column's position in the text, -1 for padding.
        length: The tokens of the text, or of the prompt where it grows.
        grows: Whether tokens may follow.
        find: Returns the positions of the tokens that contain a word.

    Raises:
        SelectionError: there is no such token.
    """
    real = at >= 0
    if position is None:
        return real
    if isinstance(position, str):
        if position == "prompt":
            return real & (at < length)
        if position == "response":
            return at >= length
        if position == "last":
            return at == length - 1
        return torch.isin(at, torch.tensor(list(find(position))))
    if isinstance(position, slice):
        start, stop, step = position.indices(length)
        is_open = grows and position.stop is None and step > 0
        return torch.isin(at, torch.arange(start, max(length, int(at.max()) + 1) if is_open else stop, step))
    if isinstance(position, tuple) and isinstance(position[0], bool):
        if len(position) != length:
            raise SelectionError(f"a mask of {len(position)} positions", why=f"the text has {length} tokens")
        return torch.isin(at, torch.tensor([number for number, is_meant in enumerate(position) if is_meant]))
    numbers = [position] if isinstance(position, int) else [int(each) for each in position]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    for number in numbers:
        if number < -length or (number >= length and not grows):
            raise SelectionError(
                f"position {number}", why=f"the text has {length} tokens", hint=f"{-length} to {length - 1}"
            )
    return torch.isin(at, torch.tensor([number + length if number < 0 else number for number in numbers]))


def tokens_with(word: str, ids: Sequence[int], tokenizer: Any, *, name: str = "position") -> list[int]:
    """Returns the positions of the tokens that contain a word, of which there must be one occurrence.

    Args:
        word: Any text.
        ids: The tokens of a text.
        tokenizer: Theirs.
        name: What the parameter is called that named the word.

    Raises:
        SelectionError: there is none, or there are several.
    """

    def decoded(n: int) -> str:
        return tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)

    text = decoded(len(ids))
    n_times = text.count(word) if word else 0
    if n_times != 1:
        raise SelectionError(
            f"`{name}={word!r}`",
            why=f"the text has it {n_times} times" if n_times else "the text does not have it",
            hint="more of the words around it, or positions by number" if n_times else f"it reads {text[:80]!r}",
        )
    first = text.index(word)
    ends = [len(decoded(n)) for n in range(len(ids) + 1)]
    return [n for n in range(len(ids)) if ends[n + 1] > first and ends[n] < first + len(word)]
