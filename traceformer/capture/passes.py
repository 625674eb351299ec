"""One forward pass under observation: what it has yet to show, and where its true tokens are.

A pass comes in two kinds. One that the recorder makes itself ends as soon as everything has been seen, and goes to
a `Sink` with one span of true tokens per row. One that `generate` makes beside a cache is a part of a growing
sequence: it runs to its end, and goes to a `GrowingSink`, which is told the columns that the pass adds.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from traceformer.capture.compiled import ExamplePatterns, PatternReduction, PatternSink, compiled_patterns
from traceformer.capture.scores import AttentionCall, OwnMask, Span, blocks_of_queries
from traceformer.capture.sharing import Sharing
from traceformer.capture.sinks import Follows, GrowingSink, ReducedRows, Reduction, Sink, Spans, TakesSquares
from traceformer.errors import Unsupported
from traceformer.shapes import Int64
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = ["AttentionListener", "EverythingSeen", "ForwardPass", "Growth", "Wanted"]


@dataclass(frozen=True, slots=True, eq=False)  # found by identity: hashing an ArraySpec anew costs microseconds
class Wanted:
    """One layer of one array, made once per recorder."""

    spec: ArraySpec
    layer: int | None
    _heads: dict[torch.device, Tensor] = field(default_factory=dict[torch.device, Tensor], repr=False)

    def heads_on(self, device: torch.device) -> Tensor:
        """Returns the numbers of the heads on a device; kept, since making them anew would wait for it."""
        if device not in self._heads:
            with torch.inference_mode(False):
                self._heads[device] = torch.tensor(self.spec.heads, device=device)
        return self._heads[device]

    @property
    def of_other_stack(self) -> bool:
        """True for keys and values of cross-attention: the encoder's, the same in every pass of the decoder."""
        return self.spec.key.token_stack != self.spec.key.stack


@dataclass(slots=True)
class Growth:
    """Sequences that grow pass by pass; `seen` are each stack's columns before the pass, `columns` those it adds."""

    sink: GrowingSink
    sharing: Sharing
    seen: dict[Stack, int] = field(default_factory=dict[Stack, int])
    columns: dict[Stack, Span] = field(default_factory=dict[Stack, Span])

    def begin(self, stack: Stack, length: int) -> None:
        seen = self.seen.get(stack, 0)
        if seen and length != 1:
            same = self.sharing.is_one_side(seen, seen + 1)
            raise Unsupported(
                f"the model runs its whole context again {'for every token' if same else f'after {seen} tokens'}",
                why=f"it was given {length} tokens at once, so it has no cache"
                if same
                else "its rotary frequencies change there, and what it chose tokens from before is computed anew",
                hint="`replay=True` records the finished text in one pass" if same else "a smaller `max_tokens`",
            )
        self.columns[stack] = Span(seen, seen + length)
        self.seen[stack] = seen + length
        self.sink.begin(stack, self.columns[stack])

    def newest(self, cached: Tensor, stack: Stack) -> Tensor:
        """The pass's own part of (batch, head, column, d_head): a static cache is padded, a window keeps the last."""
        stop = min(cached.shape[2], self.columns[stack].stop)
        return cached[:, :, stop - self.columns[stack].length : stop]


class EverythingSeen(BaseException):
    """Ends a forward pass that has shown all it was to show. No model code catches a BaseException."""


@dataclass(slots=True)
class ForwardPass:
    """The pass at hand: what it has yet to show, its rows and columns, and where its true tokens are."""

    sink: Sink | None
    growth: Growth | None = None
    pending: set[Wanted] = field(default_factory=set[Wanted])
    spans: Spans = field(default_factory=dict[Stack, Sequence[Span]])
    batch: int = 0
    columns: Mapping[Stack, int] = field(default_factory=dict[Stack, int])
    tokens: Mapping[Stack, Sequence[Int64[np.ndarray, "_"]]] = field(default_factory=dict[Stack, Any])
    finished: set[Stack] = field(default_factory=set[Stack])
    thread: int = 0
    mask: Tensor | OwnMask | None = None
    mask_looks_ahead: bool = True

    def begin(
        self,
        wanted: frozenset[Wanted],
        spans: Spans,
        columns: Mapping[Stack, int],
        tokens: Mapping[Stack, Sequence[Int64[np.ndarray, "_"]]] | None = None,
    ) -> None:
        """Begins a pass; `tokens` are those of its rows, for what is made of patterns and asks for them."""
        self._begin(wanted, len(next(iter(spans.values()))))
        self.spans, self.columns, self.tokens = spans, columns, tokens or {}
        self.finished.clear()

    def begin_growing(self, wanted: frozenset[Wanted], growth: Growth, stack: Stack, columns: int, batch: int) -> None:
        """Begins a pass of one stack that adds columns to every row of a batch."""
        growth.begin(stack, columns)
        self._begin(wanted, batch)
        self.columns = {which: added.length for which, added in growth.columns.items()}
        self.finished = {other for other in growth.seen if other != stack}

    def _begin(self, wanted: frozenset[Wanted], batch: int) -> None:
        self.pending, self.batch, self.thread = set(wanted), batch, threading.get_ident()

    def end(self) -> list[Wanted]:
        """Returns what was not seen. Nothing of the model's is kept alive between passes."""
        unseen = list(self.pending)
        self.pending.clear()
        self.mask = None
        return unseen

    @property
    def is_observed(self) -> bool:
        """False between passes, and for passes that another thread makes with the same model."""
        return bool(self.pending) and threading.get_ident() == self.thread

    def looks_ahead(self, call: AttentionCall) -> bool:
        """As the call says; asked once per mask, since the layers of a model share theirs."""
        mask = call.mask
        if mask is None:
            return call.looks_ahead
        if mask is not self.mask:
            self.mask, self.mask_looks_ahead = mask, call.looks_ahead
        return self.mask_looks_ahead

    def take(self, wanted: Wanted, rows: Tensor) -> None:
        """Hands (batch, position, width) or (batch, head, position, width) over, the selected heads of it."""
        spec, layer = wanted.spec, wanted.layer
        if spec.heads and max(spec.heads) < rows.shape[1] and spec.heads != tuple(range(rows.shape[1])):
            rows = rows.index_select(1, wanted.heads_on(rows.device))
        if rows.shape[-1] != spec.width or (spec.heads and rows.shape[1] != len(spec.heads)):
            raise Unsupported(
                f"what should be {spec.key} has shape {tuple(rows.shape)}",
                why=f"{len(spec.heads) or 'no'} heads of width {spec.width} were expected",
                hint="its architecture row names another module; run `traceformer check` on the model",
            )
        sink = self.sink if self.growth is None else self.growth.sink
        assert sink is not None
        sink.rows(spec, layer, rows)
        self.seen(wanted)

    def seen(self, wanted: Wanted) -> None:
        self.pending.discard(wanted)
        if not self.pending and self.growth is None:
            raise EverythingSeen


_TENSORS = {"q": "query", "k": "key", "v": "value"}


class AttentionListener:
    """Hands what one attention module's calls show to the sink of the pass."""

    def __init__(
        self,
        observed: ForwardPass,
        wanted: Sequence[Wanted],
        derived: Mapping[ArrayKey, Any] | None = None,
        follows: Follows | None = None,
    ) -> None:
        """Hears calls for `wanted`; `derived` gives what those of it are made by that are made of patterns.

        `follows` is told of the calls of patterns that it follows, which are not computed.
        """
        here = {each.spec.key.site: each for each in wanted}
        self._pass = observed
        made_by = {} if derived is None else derived
        self._reduced = {made_by[each.spec.key]: each for each in wanted if each.spec.key in made_by}
        self._made = [each for each in wanted if each.spec.key in made_by]
        self._tensors = [here[site] for site in ("q", "k", "v") if site in here]
        self._matrices = [here[site] for site in ("attn_scores", "attn_pattern") if site in here]
        self._follows, self._followed = follows, list[Wanted]()
        if follows is not None:
            self._followed = [each for each in self._matrices if follows.follows(each.spec.key)]
            self._matrices = [each for each in self._matrices if each not in self._followed]
        self._outputs = [here[site] for site in ("z",) if site in here]

    def _pending(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        return [each for each in wanted if each in self._pass.pending]

    def before(self, call: AttentionCall) -> None:
        growth = self._pass.growth
        for wanted in self._pending(self._tensors):
            tensor: Tensor = getattr(call, _TENSORS[wanted.spec.key.site])
            if growth is not None and not wanted.of_other_stack:
                tensor = growth.newest(tensor, wanted.spec.key.stack)
            self._pass.take(wanted, tensor)
        for wanted in self._pending(self._followed):
            self._follow(call, wanted)
        squares, made = self._pending(self._matrices), self._pending(self._made)
        if made and growth is not None:
            raise Unsupported(
                f"{made[0].spec.key} of a text that is being generated",
                why="it is made of a whole text's patterns",
                hint="record the finished texts with tf.record",
            )
        if squares or made:
            if growth is None:
                self._squares(call, {wanted.spec.key.site: wanted.spec for wanted in squares}, (*squares, *made))
            else:
                self._grow(call, squares[0], growth)
        for wanted in squares:
            self._pass.seen(wanted)

    def _follow(self, call: AttentionCall, wanted: Wanted) -> None:
        assert self._follows is not None
        assert wanted.layer is not None
        if self._pass.growth is not None:
            raise Unsupported(
                "patterns by recipe of a text that is being generated",
                why="they are made of a whole text's q and k",
                hint="record the finished texts with tf.record",
            )
        key = wanted.spec.key
        self._follows.follow(
            call, wanted.spec, wanted.layer, self._pass.spans[key.stack], self._pass.spans[key.key_stack]
        )
        self._pass.seen(wanted)

    def after(self, output: Tensor) -> None:
        """Takes the attention function's output, (batch, position, head, d_head)."""
        for wanted in self._pending(self._outputs):
            self._pass.take(wanted, output.transpose(1, 2))

    def _squares(self, call: AttentionCall, specs: Mapping[str, ArraySpec], all_wanted: Sequence[Wanted]) -> None:
        wanted = all_wanted[0]
        key, layer = wanted.spec.key, wanted.layer
        assert layer is not None
        rows, columns = self._pass.spans[key.stack], self._pass.spans[key.key_stack]
        of_pass = ReducedRows(rows, columns, self._pass.columns[key.stack], self._pass.tokens.get(key.stack))
        reductions = [
            reduced.begin(layer, of_pass) for reduced, each in self._reduced.items() if each in self._pass.pending
        ]
        triangle = "attn_scores" not in specs and not self._pass.looks_ahead(call)
        make = _Squares(call, specs, wanted, list(zip(rows, columns, strict=True)), triangle)
        assert self._pass.sink is not None
        if not make.by_the_core(self._pass.sink, reductions):
            make.by_torch(self._pass.sink, reductions)
        made = {key: array for reduction in reductions for key, array in reduction.arrays().items()}
        for each in all_wanted:
            if each.spec.key in made:
                self._pass.take(each, made[each.spec.key])

    def _grow(self, call: AttentionCall, wanted: Wanted, growth: Growth) -> None:
        """Hands over the patterns of the pass's own queries, all rows at once, with their keys in their true places.

        A full cache holds every column so far, a sliding window the last ones; a static cache is padded behind them.
        """
        spec, layer = wanted.spec, wanted.layer
        assert layer is not None
        columns, seen = growth.columns[spec.key.stack], growth.columns[spec.key.key_stack].stop
        held = min(call.key.shape[2], seen)
        if call.mask is None and call.key.shape[2] > seen and not call.is_causal:
            raise Unsupported("a padded cache without an attention mask", hint="leave cache_implementation alone")
        evicted = seen - held
        chosen = wanted.heads_on(call.query.device)
        triangle = spec.key.stack == spec.key.key_stack and columns.start == 0 and not self._pass.looks_ahead(call)
        rows = Span(0, columns.length)
        for queries in blocks_of_queries(rows, len(spec.heads) * call.query.shape[0], held, chosen.device):
            keys = Span(0, min(held, queries.stop) if triangle else held)
            block = call.pattern(call.scores(None, chosen, queries, keys), None, chosen, queries, keys)
            here = queries.counted_from(-columns.start)
            growth.sink.squares(spec, layer, here, keys.counted_from(-evicted), block)


class _Squares(NamedTuple):
    """Scores and patterns of one call, made and handed over.

    Attributes:
        call: Of what they are made.
        specs: What is stored, by the site.
        wanted: One of what is wanted, stored or not: its layer and heads.
        spans: Where the queries and keys of each row are.
        triangle: Whether no query looks at a later key, so that these cells need not be made.
    """

    call: AttentionCall
    specs: Mapping[str, ArraySpec]
    wanted: Wanted
    spans: Sequence[tuple[Span, Span]]
    triangle: bool

    def by_the_core(self, sink: Sink, reductions: Sequence[Reduction]) -> bool:
        """Has the compiled core make the patterns, and returns True, if it and all who take them do so."""
        if "attn_scores" in self.specs or (self.triangle and any(rows != columns for rows, columns in self.spans)):
            return False
        takers: list[Callable[[Sequence[ExamplePatterns]], None]] = []
        for spec in self.specs.values():
            if not isinstance(sink, PatternSink) or not sink.makes_patterns(spec, ahead=not self.triangle):
                return False
            takers.append(partial(sink.patterns, spec, self._layer))
        for reduction in reductions:
            if not isinstance(reduction, PatternReduction) or not reduction.makes_patterns():
                return False
            takers.append(reduction.patterns)
        made = compiled_patterns(self.call, self.wanted.spec.heads, ahead=not self.triangle)
        if made is None:
            return False
        there = [(example, *own) for example, own in enumerate(self.spans) if all(span.length for span in own)]
        examples = [made.of(*each) for each in there]
        for take in takers:
            take(examples)
        return True

    def by_torch(self, sink: Sink, reductions: Sequence[Reduction]) -> None:
        """Makes them in blocks of queries."""
        n_heads, chosen = len(self.wanted.spec.heads), self.wanted.heads_on(self.call.query.device)
        most = 0
        if isinstance(sink, TakesSquares) and not reductions and not isinstance(self.call.mask, OwnMask):
            most = sink.squares_at_once(self.call.query) // (4 * n_heads)
        for examples in _alike(self.spans, most):
            rows, columns = self.spans[examples.start]
            for queries in blocks_of_queries(rows, n_heads * len(examples), columns.length, chosen.device):
                visible = Span(columns.start, queries.stop) if self.triangle else columns
                here, there = queries.counted_from(rows.start), visible.counted_from(columns.start)
                which = examples.start if len(examples) == 1 else slice(examples.start, examples.stop)
                block = self.call.scores(which, chosen, queries, visible)
                if "attn_scores" in self.specs:
                    self._hand_over(sink, "attn_scores", examples, here, there, block)
                if "attn_pattern" in self.specs or reductions:
                    block = self.call.pattern(block, which, chosen, queries, visible)
                if "attn_pattern" in self.specs:
                    self._hand_over(sink, "attn_pattern", examples, here, there, block)
                for reduction in reductions:
                    reduction.take(examples.start, here, there, block)

    @property
    def _layer(self) -> int:
        assert self.wanted.layer is not None
        return self.wanted.layer

    def _hand_over(self, sink: Sink, site: str, examples: range, queries: Span, keys: Span, block: Tensor) -> None:
        spec = self.specs[site]
        if len(examples) == 1:
            sink.square(spec, self._layer, examples.start, queries, keys, block)
        else:
            assert isinstance(sink, TakesSquares)
            sink.squares(spec, self._layer, examples, queries, keys, block)


def _alike(spans: Sequence[tuple[Span, Span]], most: int) -> Iterator[range]:
    """Yields examples that follow each other, have the same spans, and at most so many cells together, or one alone."""
    start = 0
    for stop in range(1, len(spans) + 1):
        queries, keys = spans[start]
        fits = (stop + 1 - start) * queries.length * keys.length <= most
        if stop == len(spans) or spans[stop] != spans[start] or not fits:
            yield range(start, stop)
            start = stop
