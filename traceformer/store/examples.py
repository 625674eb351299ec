"""Which example of a run is meant: one is named by its number, which may count from the end, or by its id."""

import re
from numbers import Integral

from traceformer.errors import ExampleNotFound, SelectionError
from traceformer.store.index import RunIndex

__all__ = ["find_row", "no_example"]


def find_row(index: RunIndex, example: int | str) -> int | None:
    """Returns an example's row; None if there is no such example. Digits that are no example's id are a number.

    Raises:
        SelectionError: two examples have this id, or it is no number and no id.
    """
    if isinstance(example, bool) or not isinstance(example, str | int | Integral):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SelectionError(f"{example!r} names no example", hint="a number, or an id")
    if isinstance(example, str) and (named := index.rows_with(example)):
        if len(named) > 1:
            raise SelectionError(f"several examples have the id {example!r}", hint="name one by its number")
        return named[0]
    is_number = not isinstance(example, str) or re.fullmatch("[0-9]+", example)
    number = int(example) if is_number else None
    return number % index.n if number is not None and -index.n <= number < index.n else None


def no_example(index: RunIndex, example: int | str, *, so_far: bool) -> ExampleNotFound:
    """Returns the error that says that there is no such example, and what there is."""
    import difflib

    near = difflib.get_close_matches(str(example), index.first_ids(10_000), n=1)
    known = f"a number from 0 to {index.n - 1}, or an id" if index.n else ""
    return ExampleNotFound(
        f"no example {example!r}",
        why=f"this run holds {index.n}" + (" so far" if so_far else ""),
        hint=f"did you mean {near[0]!r}?" if near else known,
    )
