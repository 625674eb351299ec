"""Reverse attention: which tokens led to a token, as paths backward through attention.

1. A layer's heads, or all layers', have become matrices of edge weights (`EdgeWeights`; see `flow`).
2. Self-attention and sinks are taken out if asked for, and the residual stream is put in across layers.
3. Paths are searched backward from each target: with beams, or exactly.
4. What a beam found is compared with the best paths there are, and everything is put together as a `Paths`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from traceformer.analysis.paths.beam import BeamState, LengthNorm, beam_search
from traceformer.analysis.paths.exact import best_paths
from traceformer.analysis.paths.flow import RESIDUAL_SHARE, exclude, max_flow, rollout, with_residual
from traceformer.analysis.paths.graph import Graph, Kind
from traceformer.analysis.paths.result import Certificate, Paths, format_path
from traceformer.analysis.paths.sankey import BeamPath, beams_to_sankey
from traceformer.errors import Unsupported, UsageError, check_number, check_whole
from traceformer.shapes import Bool, Float32, Int

__all__ = ["EdgeWeights", "PathOptions", "TokenRow", "search_paths", "searchable", "trace_paths"]

_SAME = 1e-9  # scores of the same path, summed in another order


@dataclass(frozen=True, slots=True)
class PathOptions:
    """How paths are searched; see `ReverseAttentionTracer.trace`.

    `agg_heads` is how heads become one matrix: `mean`, `max`, `none` for each head by itself, or a head's number;
    `search` is `beam` or `exact`, `weighting` `attention`, `rollout` or `value-norm`.

    Raises:
        UsageError: a value out of its range.
    """

    top_beam: int = 5
    top_k: int = 5
    min_attn: float = 0.0
    agg_heads: str | int = "mean"
    length_norm: str = "avg_logprob"
    stop_at_bos: bool = True
    search: str = "beam"
    weighting: str = "attention"
    exclude_self: bool = False
    exclude_sink: bool = False
    certify: bool = False
    max_flow: bool = False

    def __post_init__(self) -> None:
        for name in ("top_beam", "top_k"):
            check_whole(name, getattr(self, name), 1)
        check_number("min_attn", self.min_attn)
        if not 0 <= self.min_attn <= 1:
            raise UsageError(f"`min_attn={self.min_attn}`", hint="a number from 0 to 1")
        if isinstance(self.agg_heads, str) and self.agg_heads not in ("mean", "max", "none"):
            raise UsageError(f"no way to combine heads {self.agg_heads!r}", hint="mean, max, none, or a head's number")
        for name, choices in (("search", ("beam", "exact")), ("weighting", tuple(RESIDUAL_SHARE))):
            if getattr(self, name) not in choices:
                raise UsageError(f"no {name} {getattr(self, name)!r}", hint=" or ".join(choices))
        LengthNorm.parse(self.length_norm)

    def check(self, layer: int | Literal["all"], *, has_source: bool = False) -> None:
        """Makes sure that the options make sense in one layer, or across all of them.

        Raises:
            UsageError: they do not.
            Unsupported: they do, but there is no such search.
        """
        if layer == "all":
            if has_source:
                raise Unsupported("no paths across layers from a decoder into its source", hint="name one layer")
            if self.agg_heads == "none" or isinstance(self.agg_heads, int):
                raise UsageError(
                    "one head cannot be followed across layers",
                    why="a head has nothing to do with the head of the same number in another layer",
                    hint="max names the strongest head of every edge",
                )
        elif self.weighting == "rollout":
            raise UsageError("rollout is across layers", hint="layer all, or weighting attention")
        elif self.max_flow:
            raise UsageError("the largest flow is across layers", hint="layer all")


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """The tokens of one text.

    Attributes:
        ids: Their numbers in the vocabulary.
        texts: How they are shown.
        hex: The bytes of those that are only parts of characters.
        ends: Which of them begin or end a text.
        allowed: Which of them a path may enter; all but padding.
    """

    ids: list[int]
    texts: list[str]
    hex: list[str | None]
    ends: Bool[np.ndarray, "token"]
    allowed: Bool[np.ndarray, "token"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first(self) -> Bool[np.ndarray, "token"]:
        """Marks the first token that is not padding."""
        return np.arange(len(self)) == np.argmax(self.allowed)


@dataclass(frozen=True, slots=True, eq=False)
class EdgeWeights:
    """One layer's attention, or all layers', with heads combined.

    Attributes:
        matrices: The weights of each layer.
        layer: The layer's number, or "all".
        heads: The numbers of the heads that were combined.
        looks_ahead: Whether a query may look at later keys.
        row_sums: The smallest and the largest sum of a row, before heads were combined.
        chosen: The number of the head that each weight is of, where it was chosen per edge; -1 where there is none.
        source: The weights of cross-attention, where there is a source.
        source_chosen: The number of the head that each of these is of.
        passed: The layers without attention, in which each token stays where it is.
    """

    matrices: Float32[np.ndarray, "layer query key"]
    layer: int | Literal["all"]
    heads: tuple[int, ...]
    looks_ahead: bool = False
    row_sums: tuple[float, float] = (1.0, 1.0)
    chosen: Int[np.ndarray, "layer query key"] | None = None
    source: Float32[np.ndarray, "query source"] | None = None
    source_chosen: Int[np.ndarray, "query source"] | None = None
    passed: tuple[int, ...] = ()


def trace_paths(
    weights: Sequence[EdgeWeights],
    tokens: TokenRow,
    targets: Sequence[int],
    options: PathOptions,
    *,
    source: TokenRow | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Paths]:
    """Returns the paths that lead to each target (a position), all targets searched at once.

    Args:
        weights: One set of them; with `agg_heads="none"` one per head.
        tokens: The tokens of its queries and keys.
        targets: Where the paths begin; negative ones count from the end.
        options: How they are searched.
        source: The tokens of the source, where there is cross-attention.
        settings: What else decided the result, to be stated in it.

    Raises:
        UsageError: a target that is not there or padding, or options that make no sense together.
        Unsupported: an exact search in one layer that looks ahead.
    """
    options.check(weights[0].layer, has_source=source is not None)
    ready = [searchable(each, tokens, options, source=source) for each in weights]
    return search_paths(ready, tokens, targets, options, source=source, settings=settings)


def searchable(
    weights: EdgeWeights, tokens: TokenRow, options: PathOptions, *, source: TokenRow | None = None
) -> EdgeWeights:
    """Returns weights as they are searched: without what is taken out, and with the residual stream across layers.

    Of the options `exclude_self`, `exclude_sink` and `weighting` count. To search again with others changed, hand the
    same result to `search_paths`.
    """
    matrices, cross = weights.matrices, weights.source
    sinks = _sinks(tokens, weights.looks_ahead) if options.exclude_sink else None
    if sinks is not None or options.exclude_self:
        parts = enumerate(matrices)
        without = [
            each if n in weights.passed else exclude(each, itself=options.exclude_self, keys=sinks) for n, each in parts
        ]
        matrices = np.stack(without)
    share = RESIDUAL_SHARE[options.weighting]
    if weights.layer == "all" and share:
        matrices = np.stack([with_residual(each, share) for each in matrices])
    if cross is not None and source is not None and options.exclude_sink:
        cross = exclude(cross, itself=False, keys=source.ends)
    return replace(weights, matrices=matrices, source=cross)


def search_paths(
    weights: Sequence[EdgeWeights],
    tokens: TokenRow,
    targets: Sequence[int],
    options: PathOptions,
    *,
    source: TokenRow | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Paths]:
    """Returns what `trace_paths` does, from weights that `searchable` made with the same options.

    Raises:
        UsageError, Unsupported: as in `trace_paths`.
    """
    options.check(weights[0].layer, has_source=source is not None)
    n = len(tokens)
    for target in targets:
        if not -n <= target < n:
            raise UsageError(f"target position {target} requested", why=f"the text has tokens 0-{n - 1}")
        if not tokens.allowed[target]:
            raise UsageError(f"target position {target} requested", why="it is padding")
    targets = [target % n for target in targets]
    by_head = [_trace(each, tokens, targets, options, source, settings or {}) for each in weights]
    if options.agg_heads != "none":
        return by_head[0]
    return [_best_of_heads(results, options) for results in zip(*by_head, strict=True)]


def _trace(
    weights: EdgeWeights,
    tokens: TokenRow,
    targets: Sequence[int],
    options: PathOptions,
    source: TokenRow | None,
    settings: Mapping[str, Any],
) -> list[Paths]:
    scene = _Scene.of(weights, tokens, source, options)
    nodes = [scene.node_of(target) for target in targets]
    norm = LengthNorm.parse(options.length_norm)
    best: list[list[BeamState]] = []
    if options.search == "exact" or (options.certify and scene.graph.kind != "any"):
        best = best_paths(scene.graph, nodes, k=options.top_beam, norm=norm)
    found = best
    if options.search == "beam":
        found = beam_search(scene.graph, nodes, top_beam=options.top_beam, top_k=options.top_k, norm=norm)
    stated = {**_stated(options), **scene.stated(), **settings}
    return [
        scene.result(target, paths, best[index] if best else None, stated)
        for index, (target, paths) in enumerate(zip(targets, found, strict=True))
    ]


def _best_of_heads(heads: Sequence[Paths], options: PathOptions) -> Paths:
    """One result of the best paths of all heads, with each head's own result in `heads`."""
    numbers = [one.settings["heads"][0] for one in heads]
    every = [
        replace(beam, heads=[number] * len(beam.edge_attns))
        for number, one in zip(numbers, heads, strict=True)
        for beam in one.beams
    ]
    beams = sorted(every, key=lambda beam: -beam.score_norm)[: options.top_beam]
    first = heads[0]
    assert isinstance(first.layer, int)
    return replace(
        first,
        beams=beams,
        sankey=beams_to_sankey(beams, first.layer, by_step=first.settings["kind"] == "any"),
        paths_text=[format_path(beam) for beam in beams],
        settings={**first.settings, "heads": numbers},
        certificate=None,
        heads=list(heads),
    )


def _stated(options: PathOptions) -> dict[str, Any]:
    own = asdict(options)
    return {name: own[name] for name in own if name not in ("top_beam", "top_k", "certify", "max_flow")}


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """One set of weights as a graph, and what its nodes stand for.

    With a source its tokens are the first nodes, and all of them ends.
    """

    graph: Graph
    weights: EdgeWeights
    tokens: TokenRow
    source: TokenRow | None
    options: PathOptions

    @classmethod
    def of(cls, weights: EdgeWeights, tokens: TokenRow, source: TokenRow | None, options: PathOptions) -> "_Scene":
        across = weights.layer == "all"
        n_layers, n, _ = weights.matrices.shape
        ends = tokens.ends & options.stop_at_bos
        kind: Kind = "layers" if across else "any" if weights.looks_ahead else "causal"
        allowed, square = tokens.allowed, weights.matrices
        if weights.source is not None and source is not None:
            square, ends, allowed = cls._with_source(weights.source, square[0], source, tokens)
        elif across:
            ends = np.arange((n_layers + 1) * n) < n
        elif kind == "causal":
            ends = ends | tokens.first
        graph = Graph(square, kind, ends, allowed, options.min_attn)
        return cls(graph, weights, tokens, source if weights.source is not None else None, options)

    @staticmethod
    def _with_source(
        cross: Float32[np.ndarray, "query source"],
        own: Float32[np.ndarray, "query key"],
        source: TokenRow,
        tokens: TokenRow,
    ) -> tuple[Float32[np.ndarray, "1 node node"], Bool[np.ndarray, "node"], Bool[np.ndarray, "node"]]:
        """The square over source and target tokens, its ends (the source) and what may be entered."""
        size = len(source) + len(tokens)
        square = np.zeros((1, size, size), np.float32)
        square[0, len(source) :, : len(source)] = cross
        square[0, len(source) :, len(source) :] = own
        return square, np.arange(size) < len(source), np.concatenate([source.allowed, tokens.allowed])

    def stated(self) -> dict[str, Any]:
        """Returns what the weights say about themselves."""
        return {
            "kind": "cross" if self.source is not None else self.graph.kind,
            "heads": list(self.weights.heads),
            "row_sums": list(self.weights.row_sums),
            "residual_share": RESIDUAL_SHARE[self.options.weighting] if self.graph.kind == "layers" else None,
        }

    def node_of(self, target: int) -> int:
        """Returns the node at which paths from a target token begin: after all layers, and the whole source."""
        return self.graph.n_nodes - len(self.tokens) + target

    def result(
        self, target: int, paths: Sequence[BeamState], best: Sequence[BeamState] | None, settings: Mapping[str, Any]
    ) -> Paths:
        norm = LengthNorm.parse(self.options.length_norm)
        beams = [self._path(path, norm) for path in paths]
        layer = self.weights.layer if isinstance(self.weights.layer, int) else 0
        attribution: dict[str, list[float]] = {}
        if self.weights.layer == "all":
            attribution["rollout"] = rollout(self.weights.matrices, target).tolist()
            if self.options.max_flow:
                attribution["max_flow"] = max_flow(self.weights.matrices, target).tolist()
        return Paths(
            len(self.tokens),
            target,
            self.weights.layer,
            self.options.top_beam,
            self.options.top_k,
            self.tokens.texts,
            beams,
            beams_to_sankey(beams, layer, by_step=self.graph.kind == "any"),
            [format_path(beam) for beam in beams],
            dict(settings),
            None if best is None else _certificate(paths, best, norm),
            attribution,
            token_bytes=self.tokens.hex,
            source_tokens=None if self.source is None else self.source.texts,
            source_bytes=None if self.source is None else self.source.hex,
        )

    def _path(self, path: BeamState, norm: LengthNorm) -> BeamPath:
        nodes = np.array(path.positions)
        n_source = 0 if self.source is None else len(self.source)
        states, positions = np.divmod(nodes, self.graph.n_positions)
        in_source = nodes < n_source
        rows = [self.source if inside and self.source is not None else self.tokens for inside in in_source]
        positions = np.where(in_source, positions, positions - n_source).tolist()
        return BeamPath(
            positions,
            [row.texts[position] for row, position in zip(rows, positions, strict=True)],
            [row.ids[position] for row, position in zip(rows, positions, strict=True)],
            path.edge_attns,
            path.log_score,
            norm.score(path.log_score, path.num_edges),
            states.tolist() if self.graph.kind == "layers" else None,
            self._heads(states.tolist(), positions, in_source.tolist()),
            ["enc" if inside else "dec" for inside in in_source] if self.source is not None else None,
        )

    def _heads(self, states: Sequence[int], positions: Sequence[int], in_source: Sequence[bool]) -> list[int] | None:
        """The head of each edge, where it was chosen per edge."""
        chosen, of_source = self.weights.chosen, self.weights.source_chosen
        if chosen is None:
            return None
        heads: list[int] = []
        for i, (query, key) in enumerate(pairwise(positions)):
            if in_source[i + 1] and of_source is not None:
                heads.append(int(of_source[query, key]))
            else:
                heads.append(int(chosen[max(states[i] - 1, 0), query, key]))
        return heads


def _sinks(tokens: TokenRow, looks_ahead: bool) -> Bool[np.ndarray, "token"]:
    """The tokens that heads look at for want of anything else: special ones; where no key is later, also the first."""
    return tokens.ends if looks_ahead else tokens.ends | tokens.first


def _certificate(paths: Sequence[BeamState], best: Sequence[BeamState], norm: LengthNorm) -> Certificate:
    own = [norm.score(path.log_score, path.num_edges) for path in paths]
    top = [norm.score(path.log_score, path.num_edges) for path in best]
    found = sum(score >= top[-1] - _SAME for score in own)
    gap = max(0.0, top[0] - own[0])
    return Certificate(gap <= _SAME, min(found, len(top)), top, 0.0 if gap <= _SAME else gap)
