"""Where each head of a sparse model may look: the positions just before a query, and fixed columns.

Four kinds, and their shares of eight heads, are those of the byte-transformer thesis:

1. focused local: the 8 positions before a query (one head);
2. wider local: the 16 positions before it (two);
3. strided: the 32 positions before it, and every 8th position (three);
4. global anchors: eleven fixed fractions of the context, and every 16th position (two).

A position always sees itself, and never what comes after it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from traceformer.errors import UsageError

__all__ = ["HeadPattern", "patterns_from_json", "patterns_to_json", "thesis_patterns"]

_FRACTIONS = (0, 0.1, 0.2, 0.3, 0.382, 0.5, 0.618, 0.7, 0.8, 0.9, 1)
_SHARES = {"focused": 1, "wider": 2, "strided": 3, "anchors": 2}  # of eight heads, in the order the heads have
_TIES = ("focused", "strided", "anchors", "wider")  # who gets the next head when two kinds have the same claim


class HeadPattern(NamedTuple):
    """A query at i sees the keys i-window .. i, and those of `columns` (ascending) that do not lie ahead."""

    window: int
    columns: tuple[int, ...] = ()


def thesis_patterns(n_heads: int, n_ctx: int) -> tuple[HeadPattern, ...]:
    """Returns the pattern of each head: the four kinds in the proportion 1:2:3:2, by Adams's method of apportionment.

    The next head always goes to the kind with the largest share per head that it has; those without one come first.
    So 1, 2, 4, 6 and 8 heads get what the thesis gives them. The anchors are fractions of `n_ctx`, however long a text.
    """
    anchors = {int(fraction * (n_ctx - 1)) for fraction in _FRACTIONS}
    kinds = {
        "focused": HeadPattern(8),
        "wider": HeadPattern(16),
        "strided": HeadPattern(32, tuple(range(0, n_ctx, 8))),
        "anchors": HeadPattern(0, tuple(sorted(anchors | set(range(0, n_ctx, 16))))),
    }
    heads = dict.fromkeys(_SHARES, 0)
    for _ in range(n_heads):
        neediest = max(_TIES, key=lambda kind: _SHARES[kind] / heads[kind] if heads[kind] else float("inf"))
        heads[neediest] += 1
    return tuple(kinds[kind] for kind, count in heads.items() for _ in range(count))


def patterns_to_json(patterns: Iterable[HeadPattern]) -> list[dict[str, Any]]:
    """Returns the patterns as a config holds them."""
    return [{"window": pattern.window, "columns": list(pattern.columns)} for pattern in patterns]


def patterns_from_json(rows: Iterable[Mapping[str, Any]]) -> tuple[HeadPattern, ...]:
    """Returns the patterns that a config holds, their columns sorted and each once.

    Raises:
        UsageError: a row is not a window of at least 0 and a list of columns of at least 0.
    """
    patterns = []
    for head, row in enumerate(rows):
        window, columns = row.get("window", -1), row.get("columns", [])
        if not (_is_count(window) and isinstance(columns, list | tuple) and all(map(_is_count, columns))):
            raise UsageError(
                f"the pattern of head {head} is not a window and a list of columns, all at least 0",
                hint='write {"window": 8, "columns": [0, 64]}',
            )
        patterns.append(HeadPattern(window, tuple(sorted(set(columns)))))
    return tuple(patterns)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
