"""Traces of random attention, one for each way in which a page draws them."""

from collections.abc import Sequence

import numpy as np

from traceformer.analysis.paths.result import TraceResult
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, trace_paths

TEXT = [
    "The",
    " quick",
    " brown",
    " fox",
    " jumps",
    " over",
    " the",
    " lazy",
    " dog",
    ",",
    " and",
    " then",
    " it",
    " sleeps",
    ".",
    "\n",
    "Later",
    " the",
    " fox",
    " comes",
]
SOURCE = ["Der", " schnelle", " braune", " Fuchs", " springt"]
HOSTILE = [
    "<img src=x onerror=document.title='hit'>",
    "</script><script>document.title='hit'</script>",
    "&lt;b&gt;\"'`",
    "--><svg onload=document.title='hit'>",
    "javascript:document.title='hit'",
    "\u202egnirts\u202c",
    "\0\x1b[31m",
]


def tokens(texts: Sequence[str], hexes: Sequence[str | None] | None = None) -> TokenRow:
    count = len(texts)
    ends = np.arange(count) == 0
    ids = list(range(100, 100 + count))
    return TokenRow(ids, list(texts), list(hexes or [None] * count), ends, np.ones(count, bool))


def attention(layers: int, queries: int, keys: int, *, causal: bool = True, seed: int = 1) -> np.ndarray:
    """Returns random patterns whose rows sum to one."""
    scores = 2.2 * np.random.default_rng(seed).normal(size=(layers, queries, keys))
    if causal:
        scores[:, np.triu(np.ones((queries, keys), bool), 1)] = -np.inf
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)


def one_layer(texts: Sequence[str] = TEXT, hexes: Sequence[str | None] | None = None, **options: object) -> TraceResult:
    weights = EdgeWeights(attention(1, len(texts), len(texts)), 5, (0, 1))
    settings = {"model": "tiny-random"}
    return trace_paths([weights], tokens(texts, hexes), [-1], PathOptions(certify=True, **options), settings=settings)[
        0
    ]  # pyright: ignore


def all_layers() -> TraceResult:
    weights = EdgeWeights(attention(6, len(TEXT), len(TEXT)), "all", (0, 1))
    options = PathOptions(top_beam=6, weighting="rollout", certify=True, max_flow=True)
    return trace_paths([weights], tokens(TEXT), [-1], options)[0]


def each_head() -> TraceResult:
    weights = [EdgeWeights(attention(1, len(TEXT), len(TEXT), seed=head), 2, (head,)) for head in (3, 7)]
    return trace_paths(weights, tokens(TEXT), [-1], PathOptions(agg_heads="none"))[0]


def encoder() -> TraceResult:
    weights = EdgeWeights(attention(1, len(TEXT), len(TEXT), causal=False), 3, (0,), looks_ahead=True)
    return trace_paths([weights], tokens(TEXT), [5], PathOptions())[0]


def into_source() -> TraceResult:
    cross = attention(1, len(TEXT), len(SOURCE), causal=False)[0] / 2
    weights = EdgeWeights(attention(1, len(TEXT), len(TEXT)) / 2, 2, (0,), source=cross)
    return trace_paths([weights], tokens(TEXT), [4], PathOptions(top_beam=6), source=tokens(SOURCE))[0]


def crowded(n_beams: int, n_tokens: int = 400) -> TraceResult:
    texts = [f" w{i}" for i in range(n_tokens)]
    weights = EdgeWeights(attention(1, n_tokens, n_tokens, seed=4), 5, (0,))
    return trace_paths([weights], tokens(texts), [-1], PathOptions(top_beam=n_beams, top_k=20))[0]


TRACES = {
    "one layer": one_layer,
    "all layers": all_layers,
    "each head": each_head,
    "encoder": encoder,
    "into a source": into_source,
}
