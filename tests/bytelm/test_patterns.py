"""Where heads may look: against loops over all pairs, and the figures of the byte-transformer thesis's code."""

import json

import pytest

from traceformer.bytelm.patterns import HeadPattern, patterns_from_json, patterns_to_json, thesis_patterns
from traceformer.errors import UsageError


def cells(pattern: HeadPattern, length: int) -> set[tuple[int, int]]:
    """The pairs of a query and a key that a pattern allows, from its definition."""
    columns = set(pattern.columns)
    return {(i, j) for i in range(length) for j in range(i + 1) if i - j <= pattern.window or j in columns}


def reference(kind: str, length: int, n_ctx: int) -> set[tuple[int, int]]:
    """What the byte-transformer thesis allows a kind of head, cut to the causal part, and each position itself."""
    anchors = {int(r * (n_ctx - 1)) for r in (0, 0.1, 0.2, 0.3, 0.382, 0.5, 0.618, 0.7, 0.8, 0.9, 1)}
    allowed = {
        "focused": lambda i, j: abs(i - j) <= 8,
        "wider": lambda i, j: abs(i - j) <= 16,
        "strided": lambda i, j: abs(i - j) <= 32 or j % 8 == 0,
        "anchors": lambda i, j: j in anchors or j % 16 == 0,
    }[kind]
    return {(i, j) for i in range(length) for j in range(i + 1) if allowed(i, j) or i == j}


KINDS = ("focused", "wider", "wider", "strided", "strided", "strided", "anchors", "anchors")


@pytest.mark.parametrize(("length", "n_ctx"), [(200, 200), (100, 1024), (128, 128), (40, 7)])
def test_eight_heads_are_those_of_the_byte_transformer_thesis(length: int, n_ctx: int) -> None:
    patterns = thesis_patterns(8, n_ctx)
    assert len(patterns) == 8
    for pattern, kind in zip(patterns, KINDS, strict=True):
        expected = reference(kind, min(length, n_ctx), n_ctx)
        assert cells(pattern, min(length, n_ctx)) == expected, kind


def test_densities_are_those_counted_in_the_original() -> None:
    # Its global anchors let a position see itself only where a column is; the others are left out of the count here.
    patterns, length = thesis_patterns(8, 1024), 1024
    found = []
    for head in (0, 1, 3, 6):
        seen = cells(patterns[head], length)
        if patterns[head].window == 0:
            seen -= {(i, i) for i in set(range(length)) - set(patterns[head].columns)}
        found.append(round(len(seen) / length**2, 4))
    assert found == [0.0088, 0.0165, 0.0907, 0.0361]


@pytest.mark.parametrize(
    ("n_heads", "counts"),
    [(1, (1, 0, 0, 0)), (2, (1, 0, 1, 0)), (4, (1, 1, 1, 1)), (6, (1, 1, 2, 2)), (8, (1, 2, 3, 2))]
    + [(8 * n, (n, 2 * n, 3 * n, 2 * n)) for n in (2, 4)],
)  # fmt: skip
def test_heads_are_shared_out_as_in_the_original(n_heads: int, counts: tuple[int, ...]) -> None:
    assert counted(n_heads) == counts


@pytest.mark.parametrize("n_heads", range(1, 41))
def test_no_share_is_off_by_a_head_or_more(n_heads: int) -> None:
    found = counted(n_heads)
    assert sum(found) == n_heads
    assert all(abs(n - n_heads * share / 8) < 1 for n, share in zip(found, (1, 2, 3, 2), strict=True))


def counted(n_heads: int) -> tuple[int, ...]:
    names = dict(zip(thesis_patterns(8, 512), KINDS, strict=True))
    found = [names[pattern] for pattern in thesis_patterns(n_heads, 512)]
    assert found == sorted(found, key=KINDS.index)  # heads of a kind are side by side, in this order
    return tuple(found.count(kind) for kind in dict.fromkeys(KINDS))


def test_anchors_are_fractions_of_the_context_and_not_of_the_text() -> None:
    assert {102, 204, 306, 390, 511, 632, 716, 818, 920, 1023} < set(thesis_patterns(8, 1024)[-1].columns)
    assert {51, 102, 153, 195, 255, 315, 357, 408, 459, 511} < set(thesis_patterns(8, 512)[-1].columns)


def test_patterns_survive_json() -> None:
    patterns = thesis_patterns(6, 300)
    assert patterns_from_json(json.loads(json.dumps(patterns_to_json(patterns)))) == patterns
    assert patterns_from_json([{"window": 3}, {"window": 0, "columns": [9, 2, 2]}]) == ((3, ()), (0, (2, 9)))


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"window": -1},
        {"window": 2.5},
        {"window": True},
        {"window": 1, "columns": [-3]},
        {"window": 1, "columns": "0"},
    ],
)
def test_a_pattern_that_is_none_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="pattern of head 1"):
        patterns_from_json([{"window": 1, "columns": []}, row])
