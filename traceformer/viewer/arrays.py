"""Which example and which arrays a query means."""

import re

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query

__all__ = ["example_asked", "number_asked", "pattern_asked"]


def example_asked(library: Library, query: Query) -> tuple[Run, int]:
    """Returns the run and the example's number that `run` and `ex` (a number or an id) name.

    Raises:
        NotFound: there is no such run.
        ExampleNotFound: there is no such example.
    """
    run = library.run(query.text("run"))
    return run, number_asked(run, query.text("ex"))


def number_asked(run: Run, example: str) -> int:
    """Returns an example's number, by its number or, where that is none, by its id.

    Pages ask by number. An id may read as the number of another example, so that numbers come first, unlike in
    `Run.row`.

    Raises:
        ExampleNotFound: there is no such example.
    """
    number = int(example) if re.fullmatch("0|[1-9][0-9]{,8}", example) else run.n
    return number if number < run.n else run.row(example)


def pattern_asked(run: Run, query: Query) -> ArraySpec:
    """Returns the patterns of the attention that `attn` names (`dec.self`).

    Raises:
        NotRecorded: the run does not hold them.
        SelectionError: there is no such attention.
    """
    return run.spec(ArrayKey.parse(f"{query.text('attn')}.attn_pattern"))
