"""The heads of two runs compared: where each looks, against where another does, over the texts that both have.

Patterns are read some queries at a time, so that no more than a bounded part of them is in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from traceformer.analysis.comparison import HeadDistances
from traceformer.analysis.divergence import all_total_variations, in_pieces, pattern_distances
from traceformer.errors import NotRecorded, SelectionError
from traceformer.questions.common_texts import CommonText, CommonTexts
from traceformer.shapes import Float, Float64
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.arrays import find_numbers, shortened
from traceformer.store.run import Run

__all__ = ["HeadsAtHand", "heads_at_hand"]

_CELLS = 4 << 20  # of patterns that are compared at once

Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class HeadsAtHand:
    """Two arrays of patterns to compare."""

    runs: tuple[Run, Run]
    specs: tuple[ArraySpec, ArraySpec]
    layers: tuple[tuple[int, ...], tuple[int, ...]]
    numbers: tuple[tuple[int, ...], tuple[int, ...]]
    texts: CommonTexts
    all_pairs: bool

    @property
    def steps(self) -> int:
        """How often `measured` says that a text, or a layer of one, is done."""
        return len(self.texts.each) * len(self._groups())

    def measured(self, step: Callable[[], None]) -> HeadDistances:
        """Returns how far apart the heads are, as means over the queries that hold numbers in all that is compared."""
        heads = [
            tuple((layer, head) for layer in layers for head in numbers)
            for layers, numbers in zip(self.layers, self.numbers, strict=True)
        ]
        rest = any(run.about.attention.sinks for run in self.runs)
        sums: list[Float64[np.ndarray, "..."]] = []
        counts: list[int] = []
        for layers in self._groups():
            total, bits, count = self._group(layers, step, rest=rest)
            sums.append(np.stack([total, bits]) if bits is not None else total[None])
            counts.append(count)
        means = [own / count if count else np.full_like(own, np.nan) for own, count in zip(sums, counts, strict=True)]
        found = means[0] if self.all_pairs else np.concatenate(means, axis=1)
        fewest = min(counts)
        return HeadDistances(
            key=self.specs[0].key,
            heads_a=heads[0],
            heads_b=heads[1],
            queries=fewest,
            unknown=self.texts.tokens - fewest,
            all_pairs=self.all_pairs,
            total_variation=found[0],
            jensen_shannon=None if self.all_pairs else found[1],
        )

    def _groups(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """The layers that are read together: all of them where all pairs are compared, else one by one."""
        if self.all_pairs:
            return (self.layers,)
        return tuple(((layer,), (layer,)) for layer in self.layers[0])

    def _group(
        self, layers: tuple[tuple[int, ...], tuple[int, ...]], step: Callable[[], None], *, rest: bool
    ) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "head"] | None, int]:
        """Total variation and bits of these layers' heads, added up over queries, and how many these were."""
        sizes = [len(own) * len(numbers) for own, numbers in zip(layers, self.numbers, strict=True)]
        total = np.zeros(sizes if self.all_pairs else sizes[0])
        bits = None if self.all_pairs else np.zeros(sizes[0])
        count = 0
        for text in self.texts.each:
            for first, second in self._parts(text, layers, sum(sizes)):
                known = np.isfinite(first).all(axis=(0, 2)) & np.isfinite(second).all(axis=(0, 2))
                first, second = first[:, known], second[:, known]
                count += int(known.sum())
                if bits is None:
                    total += all_total_variations(first, second, rest=rest)
                else:
                    variation, divergence = pattern_distances(first, second, rest=rest)
                    total += variation.sum(axis=1)
                    bits += divergence.sum(axis=1)
            step()
        return total, bits, count

    def _parts(
        self, text: CommonText, layers: tuple[tuple[int, ...], tuple[int, ...]], n_heads: int
    ) -> Iterator[tuple[Float[np.ndarray, "head query key"], Float[np.ndarray, "other query key"]]]:
        """Yields the patterns of both runs, some of the queries of a text at a time."""
        keys = max(run.length(row, self.texts.stack) for run, row in zip(self.runs, text.rows, strict=True))
        at_once = max(1, _CELLS // max(1, n_heads * keys))
        for first in range(0, len(text), at_once):
            part = slice(first, first + at_once)
            yield self._read(0, text, layers[0], part), self._read(1, text, layers[1], part)

    def _read(
        self, side: int, text: CommonText, layers: Sequence[int], part: slice
    ) -> Float[np.ndarray, "head query key"]:
        """The heads of some layers, layer by layer, at some of the queries; keys are pieces of the text."""
        queries, spec = text.ends(side)[part], self.specs[side]
        rows = slice(int(queries[0]), int(queries[-1]) + 1)
        places = [spec.heads.index(head) for head in self.numbers[side]]
        found = np.concatenate(
            [self.runs[side].get(text.rows[side], spec.key, layer, queries=rows)[places] for layer in layers]
        )[:, queries - rows.start]
        pieces = text.pieces.of_first if side == 0 else text.pieces.of_second
        return found if pieces is None else in_pieces(found, pieces, len(text))


def heads_at_hand(
    first: Run,
    second: Run,
    texts: CommonTexts,
    *,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    all_pairs: bool,
) -> HeadsAtHand:
    """Returns which heads are compared: those of the same layer and number, or each with all of the other run.

    Raises:
        NotRecorded: a run holds no patterns.
        SelectionError: a layer or a head is not stored, or no head has the same layer and number in both.
    """
    key = ArrayKey(texts.stack, "self", "attn_pattern")
    specs: list[ArraySpec] = []
    for name, run in zip(texts.names, (first, second), strict=True):
        spec = run.layout.spec(key)
        if spec is None:
            held = " ".join(str(each.key) for each in run.layout.arrays)
            why = run.about.why_no_patterns or f"it holds {held}"
            raise NotRecorded(f"{name} holds no attention patterns", why=why, hint='record it with `capture="attn"`')
        specs.append(spec)
    chosen: list[list[tuple[int, ...]]] = []
    for what, wanted in (("layer", layers), ("head", heads)):
        stored = [getattr(spec, f"{what}s") for spec in specs]
        if wanted is None and not all_pairs:
            common = [number for number in stored[0] if number in stored[1]]
            if not common:
                own = " and ".join(
                    f"those of {name} are {shortened(each)}" for name, each in zip(texts.names, stored, strict=True)
                )
                why = own.replace("those", f"the {what}s", 1)
                hint = "`all_pairs=True` compares each head with all"
                raise SelectionError(f"no {what} has the same number in both runs", why=why, hint=hint)
            chosen.append([tuple(common)] * 2)
        else:
            pairs = zip(texts.names, stored, strict=True)
            chosen.append([find_numbers(what, wanted, own, of=f"{key} of {name}") for name, own in pairs])
    (a, b), (own, other) = chosen
    return HeadsAtHand((first, second), (specs[0], specs[1]), (a, b), (own, other), texts, all_pairs)
