"""The streams of two runs compared: each layer of the one with each of the other, over the texts that both have.

1. A first pass over the texts finds the tokens of which all layers hold numbers, and each layer's mean over these.
2. Others add up what `analysis/similarity.py` needs: of every layer with itself, and of every pair. As many of these
   at a time as fit a bounded memory, which does not grow with the texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from traceformer.analysis.comparison import StreamSimilarity
from traceformer.analysis.similarity import FEWEST, Crossed, CrossTally, similarity
from traceformer.errors import NotRecorded, NumericError, UsageError
from traceformer.questions.common_texts import CommonText, CommonTexts
from traceformer.shapes import Bool, Float64
from traceformer.sites import ArrayKey, ArraySpec, expand_sites
from traceformer.store.arrays import find_numbers
from traceformer.store.run import Run

__all__ = ["StreamsAtHand", "streams_at_hand"]

_SITES = ("resid_post", "hidden", "resid_pre", "resid_mid", "final_norm", "embed")
_BYTES = 256 << 20  # of the products that are added up in one pass, and of the rows of one text
_ROWS_BYTES = 64 << 20  # of the rows that are multiplied at once
_FEWEST_ROWS, _MOST_ROWS = 256, 4096

Layer: TypeAlias = tuple[int, int | None]
"""Of which run, 0 or 1, and its number."""


class Multiplied(NamedTuple):
    """Two layers, or one twice."""

    one: Layer
    other: Layer


@dataclass(frozen=True, slots=True)
class StreamsAtHand:
    """Two arrays to compare, and in how many passes."""

    runs: tuple[Run, Run]
    specs: tuple[ArraySpec, ArraySpec]
    layers: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    texts: CommonTexts
    passes: tuple[tuple[Multiplied, ...], ...]

    @property
    def steps(self) -> int:
        """How often `measured` says that a text is done."""
        return len(self.texts.each) * (1 + len(self.passes))

    def measured(self, step: Callable[[], None]) -> StreamSimilarity:
        """Returns how alike the layers are.

        Raises:
            NumericError: fewer than 4 tokens of which all layers hold numbers.
        """
        known, means = self._means(step)
        tokens = sum(int(own.sum()) for own in known)
        if tokens < FEWEST:
            raise NumericError(f"{self.specs[0].key} of {tokens} tokens", why=f"the others are NaN; CKA takes {FEWEST}")
        crossed: dict[Multiplied, Crossed] = {}
        for own in self.passes:
            crossed |= self._crossed(own, known, means, step)
        shape = tuple(map(len, self.layers))
        found = np.full((3, *shape), np.nan)
        for i, j in np.ndindex(*shape):
            one, other = (0, self.layers[0][i]), (1, self.layers[1][j])
            alone = [crossed[Multiplied(each, each)] for each in (one, other)]
            found[:, i, j] = similarity(crossed[Multiplied(one, other)], alone[0], alone[1], tokens)
        return StreamSimilarity(
            key=self.specs[0].key,
            layers_a=self.layers[0],
            layers_b=self.layers[1],
            widths=(_width(self.specs[0]), _width(self.specs[1])),
            tokens=tokens,
            unknown=self.texts.tokens - tokens,
            cka=found[0],
            cka_biased=found[1],
            procrustes=found[2],
        )

    def _means(
        self, step: Callable[[], None]
    ) -> tuple[list[Bool[np.ndarray, "_"]], dict[Layer, Float64[np.ndarray, "_"]]]:
        """Of each text which tokens are known, and the mean of each layer over these."""
        every = [(side, layer) for side in (0, 1) for layer in self.layers[side]]
        known = [np.ones(len(text), bool) for text in self.texts.each]
        sums = {each: np.zeros(_width(self.specs[each[0]])) for each in every}
        for text, own in zip(self.texts.each, known, strict=True):
            for each in every:
                rows = self._rows(each, text)
                finite = np.isfinite(rows).all(axis=1)
                sums[each] += rows[finite].sum(axis=0)
                own &= finite
            step()
        if not all(own.all() for own in known):  # what is known of one layer may not be of another
            for each in every:
                parts = (self._rows(each, text)[own] for text, own in zip(self.texts.each, known, strict=True))
                sums[each] = sum((part.sum(axis=0) for part in parts), np.zeros_like(sums[each]))
        count = max(1, sum(int(own.sum()) for own in known))
        return known, {each: own / count for each, own in sums.items()}

    def _crossed(
        self,
        pairs: Sequence[Multiplied],
        known: Sequence[Bool[np.ndarray, "_"]],
        means: dict[Layer, Float64[np.ndarray, "_"]],
        step: Callable[[], None],
    ) -> dict[Multiplied, Crossed]:
        """What is known of some pairs after a pass over all texts."""
        tallies = {pair: CrossTally(*(len(means[layer]) for layer in pair)) for pair in pairs}
        layers = sorted({layer for pair in pairs for layer in pair}, key=str)
        at_once = _ROWS_BYTES // (8 * sum(len(means[layer]) for layer in layers))
        at_once = min(max(at_once, _FEWEST_ROWS), _MOST_ROWS)
        for rows in self._blocks(layers, known, means, at_once, step):
            for pair, tally in tallies.items():
                tally.add(rows[pair.one], rows[pair.other])
        return {pair: tally.result(nuclear=pair.one != pair.other) for pair, tally in tallies.items()}

    def _blocks(
        self,
        layers: Sequence[Layer],
        known: Sequence[Bool[np.ndarray, "_"]],
        means: dict[Layer, Float64[np.ndarray, "_"]],
        at_once: int,
        step: Callable[[], None],
    ) -> Iterator[dict[Layer, Float64[np.ndarray, "_ _"]]]:
        """Yields the centred rows of some layers, those of short texts together."""
        held: dict[Layer, list[Float64[np.ndarray, "_ _"]]] = {layer: [] for layer in layers}
        count = 0
        for text, own in zip(self.texts.each, known, strict=True):
            if own.any():
                for layer in layers:
                    held[layer].append(self._rows(layer, text)[own] - means[layer])
                count += int(own.sum())
            if count >= at_once:
                yield {layer: np.concatenate(parts) for layer, parts in held.items()}
                held, count = {layer: [] for layer in layers}, 0
            step()
        if count:
            yield {layer: np.concatenate(parts) for layer, parts in held.items()}

    def _rows(self, layer: Layer, text: CommonText) -> Float64[np.ndarray, "row d"]:
        """The rows of a layer at the tokens of a text that are compared, its heads side by side."""
        side, number = layer
        values = self.runs[side].get(text.rows[side], self.specs[side].key, number)
        rows = values if values.ndim == 2 else values.transpose(1, 0, 2).reshape(values.shape[1], -1)
        return rows[text.ends(side)].astype(np.float64)


def streams_at_hand(
    first: Run, second: Run, texts: CommonTexts, *, site: str | None, layers: Sequence[int] | None
) -> StreamsAtHand:
    """Returns what of both runs is compared: the first site that both hold, unless one is named.

    Raises:
        NotRecorded: they hold none, or not the one that is named; both are said.
        SelectionError: there is no such site, it is no activation, or a layer is not stored.
        UsageError: too few tokens.
    """
    key = _site(first, second, texts, site)
    specs = first.spec(key), second.spec(key)
    if texts.tokens < FEWEST:
        raise UsageError(f"{texts.tokens} tokens in common", why=f"CKA without bias takes {FEWEST} at least")
    chosen: list[tuple[int | None, ...]] = []
    for name, spec in zip(texts.names, specs, strict=True):
        of = f"{spec.key} of {name}"
        chosen.append(find_numbers("layer", layers, spec.layers, of=of) if spec.layers else (None,))
    return StreamsAtHand((first, second), specs, (chosen[0], chosen[1]), texts, _passes(specs, chosen, texts))


def _site(first: Run, second: Run, texts: CommonTexts, site: str | None) -> ArrayKey:
    """The array that is compared."""
    rows = [
        [
            spec.key
            for spec in run.layout.arrays
            if spec.site.is_per_token
            and not (spec.site.is_derived or spec.site.holds_ids or spec.site.is_ranked)
            and spec.key.token_stack == spec.key.stack == texts.stack
        ]
        for run in (first, second)
    ]
    both = [key for key in rows[0] if key in rows[1]]
    if site is None:
        found = next((key for name in _SITES for key in both if key.site == name), both[0] if both else None)
    elif "." in site:
        found = next((key for key in both if str(key) == site), None)
    else:
        (name, *_) = expand_sites((site,))
        found = next((key for key in both if key.site == name), None)
    if found is not None:
        return found
    held = [f"{name} holds {' '.join(map(str, own)) or 'none'}" for name, own in zip(texts.names, rows, strict=True)]
    what = "no activations that both runs hold" if site is None else f"{site} is no activation that both runs hold"
    if site is not None and site.rpartition(".")[2] in ("attn", "attn_pattern", "attn_scores"):
        held.insert(0, 'attention is compared head by head, as `parts="heads"`; streams have a row for each token')
    common = (
        f"one of {' '.join(map(str, both))}, which both hold" if both else 'record both with `capture="resid_post"`'
    )
    raise NotRecorded(what, why="; ".join(held), hint=common)


def _passes(
    specs: tuple[ArraySpec, ArraySpec], layers: Sequence[Sequence[int | None]], texts: CommonTexts
) -> tuple[tuple[Multiplied, ...], ...]:
    """All pairs of layers, in groups of which each is one pass over the texts."""
    sides = [[(side, layer) for layer in layers[side]] for side in (0, 1)]
    alone = [Multiplied(layer, layer) for own in sides for layer in own]
    pairs = [*alone, *(Multiplied(one, other) for one in sides[0] for other in sides[1])]
    widths = [_width(spec) for spec in specs]
    longest = max(map(len, texts.each))
    passes: list[tuple[Multiplied, ...]] = []
    group: list[Multiplied] = []
    for pair in pairs:
        wider = [*group, pair]
        products = 8 * sum(widths[one[0]] * widths[other[0]] for one, other in wider)
        rows = 8 * longest * sum(widths[side] for side, _ in {layer for each in wider for layer in each})
        if group and max(products, rows) > _BYTES:
            passes.append(tuple(group))
            wider = [pair]
        group = wider
    return (*passes, tuple(group))


def _width(spec: ArraySpec) -> int:
    return spec.width * max(1, len(spec.heads))
