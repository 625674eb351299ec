"""What each screen asks for, for a file that carries the answers."""

from collections.abc import Iterator, Sequence
from typing import Any

from traceformer.store.run import Run

__all__ = ["SCREENS", "asked_by", "asked_of_run"]

SCREENS = ("overview", "head")
"""The screens that a file can carry."""

Asked = tuple[str, dict[str, Any]]


def asked_of_run(run: Run, screens: Sequence[str]) -> Iterator[Asked]:
    """Yields what screens ask for whatever example they show: resources, and their queries."""
    yield "run", {"run": run.name}


def asked_by(run: Run, row: int, screens: Sequence[str]) -> Iterator[Asked]:
    """Yields what screens ask for of one example."""
    yield "example", {"run": run.name, "ex": row}
