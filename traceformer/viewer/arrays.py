"""Which example and which arrays a query means."""

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query

__all__ = ["example_asked", "pattern_asked"]


def example_asked(library: Library, query: Query) -> tuple[Run, int]:
    """Returns the run and the example's number that `run` and `ex` (a number or an id) name.

    Raises:
        NotFound: there is no such run.
        ExampleNotFound: there is no such example.
    """
    run = library.run(query.text("run"))
    return run, run.row(query.text("ex"))


def pattern_asked(run: Run, query: Query) -> ArraySpec:
    """Returns the patterns of the attention that `attn` names (`dec.self`).

    Raises:
        NotRecorded: the run does not hold them.
        SelectionError: there is no such attention.
    """
    return run.spec(ArrayKey.parse(f"{query.text('attn')}.attn_pattern"))
