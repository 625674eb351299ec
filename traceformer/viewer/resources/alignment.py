"""Which tokens of an example are which of another's, of the same run or of another one."""

from typing import Any, NamedTuple

import numpy as np

from traceformer.analysis.alignment import Stretch, align, partners
from traceformer.questions.vocabulary import shown_tokens
from traceformer.shapes import Int64
from traceformer.sites import Stack
from traceformer.store.run import Run
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query

__all__ = ["Aligned", "alignment", "alignment_of"]


class Aligned(NamedTuple):
    """Two texts, token by token."""

    stretches: list[Stretch]
    positions: tuple[Int64[np.ndarray, "pair"], Int64[np.ndarray, "pair"]]


def alignment(library: Library, query: Query) -> dict[str, Any]:
    """Returns for each stack that both runs have which tokens of `run`, `ex` are which of `run2`, `ex2`."""
    first = example_asked(library, query)
    names = {name: query.values.get(f"{name}2", query.text(name)) for name in ("run", "ex")}
    second = example_asked(library, Query(names))
    both: list[Stack] = [stack for stack in first[0].layout.stacks if stack in second[0].layout.stacks]
    return {
        "stacks": {
            stack: [stretch._asdict() for stretch in alignment_of(library, first, second, stack).stretches]
            for stack in both
        }
    }


def alignment_of(library: Library, first: tuple[Run, int], second: tuple[Run, int], stack: Stack) -> Aligned:
    """Returns the alignment of two examples in a stack, worked out once."""

    def work_out() -> Aligned:
        stretches = align(*(tuple(shown_tokens(run, row, stack)) for run, row in (first, second)))
        return Aligned(stretches, partners(stretches))

    return library.once(("alignment", *first, *second, stack), work_out)
