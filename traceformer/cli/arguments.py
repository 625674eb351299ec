"""What the arguments --example, --head and numbers may be."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import Parameter, Token

from traceformer.errors import SelectionError

if TYPE_CHECKING:
    from traceformer.store.run import Run

__all__ = ["count", "find_example", "parse_head"]


def count(metavar: str, *, least: int = 1) -> Parameter:
    """Returns a parameter of whole numbers from `least`, or of the word that its metavar names: `N|auto`."""
    # cyclopts itself would round 1.5 without a word.
    word = metavar.partition("|")[2]

    def converter(_: object, tokens: Sequence[Token]) -> int | str:
        text = tokens[0].value
        if word and text == word:
            return text
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"it takes a whole number from {least}" + (f", or {word}" if word else ""))
        return int(text)

    return Parameter(metavar=metavar, show_choices=False, converter=converter, n_tokens=1)


def find_example(run: "Run", name: str | None) -> str:
    """Returns the id of the example that `--example` names by id or by number, the first one for None.

    Raises:
        ExampleNotFound: neither an id nor a number of this run's.
    """
    return run.example_id(0 if name is None else name)


def parse_head(layer: int | None, head: str | None) -> tuple[int | None, int | None]:
    """Returns layer and head numbers from `--layer 5 --head 3`, `--head L5H3`, or parts of them.

    Raises:
        SelectionError: `head` is neither a number nor such as L5H3, or the layer is given twice and differs.
    """
    if head is None:
        return layer, None
    match = re.fullmatch(r"(?:[Ll](\d+))?[Hh]?(\d+)", head)
    if not match:
        raise SelectionError(f"cannot read the head {head!r}", hint="--head L5H3, or --layer 5 --head 3")
    if match[1] is None:
        return layer, int(match[2])
    if layer not in (None, int(match[1])):
        raise SelectionError(f"--layer {layer} and --head {head} name different layers", hint=f"--head {head} alone")
    return int(match[1]), int(match[2])
