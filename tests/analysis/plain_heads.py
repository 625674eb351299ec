"""Head metrics one cell at a time, straight from their definitions."""

from collections.abc import Callable, Sequence

import numpy as np

from traceformer.analysis.conventions import ConventionName

Sees = Callable[[int, int], bool]


def causal(query: int, key: int) -> bool:
    return key <= query


def everything(query: int, key: int) -> bool:
    return True


def plain_metrics(
    pattern: np.ndarray, tokens: Sequence[int] | None, sees: Sees, convention: ConventionName = "exact", window: int = 8
) -> dict[str, float]:
    """Returns every metric of one (query, key) matrix; without tokens those that need no common positions."""
    a = pattern.astype(np.float64)
    if convention != "nanochat":
        a = a / (a.sum(axis=1, keepdims=True) + (1e-9 if convention == "thesis" else 0))
    epsilon = {"exact": 0, "thesis": 1e-9, "nanochat": 1e-8}[convention]
    threshold = {"exact": 1e-4, "thesis": 1e-4, "nanochat": 0.01}[convention]
    queries, keys = a.shape
    cells = [(i, j) for i in range(queries) for j in range(keys)]
    seen = [(i, j) for i, j in cells if sees(i, j)]
    logs = {(i, j): np.log(a[i, j] + epsilon) if a[i, j] + epsilon else 0.0 for i, j in cells}
    found = {
        "entropy": -sum(a[cell] * logs[cell] for cell in cells) / queries,
        "sparsity": float(np.mean([a[cell] < threshold for cell in (seen if convention == "exact" else cells)])),
        "max_weight": float(np.mean([row.max() for row in a])),
        "first_token": _mean([row[0] for row in a]),
    }
    if tokens is None:
        return found
    duplicates = [[j for j in range(keys) if j != i and tokens[j] == tokens[i] and sees(i, j)] for i in range(queries)]
    follow = [
        [j for j in range(1, keys) if j - 1 != i and tokens[j - 1] == tokens[i] and sees(i, j)] for i in range(queries)
    ]
    coming = [
        [j for j in range(keys) if i + 1 < queries and j != i + 1 and tokens[j] == tokens[i + 1] and sees(i, j)]
        for i in range(queries)
    ]
    total = sum(a[cell] for cell in cells)
    ordered = sorted((abs(i - j), a[i, j]) for i, j in cells)
    within = np.cumsum([weight for _, weight in ordered])
    return found | {
        "distance": sum(a[i, j] * abs(i - j) for i, j in cells) / total,
        "previous_token": _mean([a[i, i - 1] for i in range(1, queries)]),
        "self": _mean([a[i, i] for i in range(queries)]),
        "duplicate_token": _mean([sum(a[i, j] for j in own) for i, own in enumerate(duplicates) if own]),
        "induction": _mean([sum(a[i, j] for j in own) for i, own in enumerate(follow) if own]),
        "retrieval": _mean([sum(a[i, j] for j in own) for i, own in enumerate(coming) if own]),
        "local_mass": sum(a[i, j] for i, j in cells if abs(i - j) <= window) / queries,
        "effective_span": float(ordered[int(np.argmax(within >= 0.9 * total * (1 - 1e-6)))][0]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def random_patterns(shape: tuple[int, ...], sees: Sees = causal, seed: int = 0) -> np.ndarray:
    """Returns patterns (.., query, key) of heads from focused to diffuse; every row sums to one."""
    scores = np.random.default_rng(seed).normal(scale=3, size=shape)
    hidden = [[not sees(i, j) for j in range(shape[-1])] for i in range(shape[-2])]
    scores[..., np.array(hidden)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
