"""The logit lens: what a model would say if each layer were its last.

1. `normed` puts rows of the residual stream through the model's own final norm (and projection and scale).
2. `read_out` multiplies them by the unembedding, a block of words at a time, so that neither all logits nor all of the
   unembedding is ever in memory. Each block's logits, softcapped, update what is kept of each row: the k largest, the
   sum of exponentials, and the rank of the target token, which came next.
3. Probabilities are those of the softmax over all words; entropy is in nats.
4. `Lens` holds what that gives for the layers of an example, with the texts of its tokens.

The source is nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.errors import UsageError
from traceformer.models.readout import Readout
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Float32, Int, Int64
from traceformer.sites import ArrayKey

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lens", "LensRows", "normed", "read_out"]

_WORDS = 4096
_BLOCK_BYTES = 32 << 20  # of the logits at hand


@dataclass(frozen=True, slots=True)
class LensRows:
    """What rows of the residual stream say, read out.

    Attributes:
        top_ids: The k most likely words, the likeliest first.
        top_probabilities: Theirs.
        entropy: Of all words.
        target_probability: That of the target token, which came next; NaN where none did.
        target_rank: 1 if that was the likeliest; 0 where none came.
    """

    top_ids: Int64[np.ndarray, "row k"]
    top_probabilities: Float32[np.ndarray, "row k"]
    entropy: Float32[np.ndarray, "row"]
    target_probability: Float32[np.ndarray, "row"]
    target_rank: Int64[np.ndarray, "row"]


def normed(
    residual: Float[np.ndarray, "row d_model"], readout: Readout, *, skip_norm: bool = False
) -> Float32[np.ndarray, "row d_embed"]:
    """Returns what the unembedding is multiplied with; `skip_norm` for rows that are normed already."""
    rows = residual.astype(np.float32)
    if readout.norm is not None and not skip_norm:
        if readout.norm.startswith("layer"):
            rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt(np.einsum("rd,rd->r", rows, rows) / rows.shape[1] + readout.epsilon)[:, None]
        if readout.norm_weight is not None:
            rows *= readout.norm_weight + 1 if readout.norm.endswith("plus_one") else readout.norm_weight
        if readout.norm_bias is not None:
            rows += readout.norm_bias
    if readout.project_out is not None:
        rows = rows @ readout.project_out.T
    return rows * np.float32(readout.scale)


def read_out(
    rows: Float32[np.ndarray, "row d_embed"],
    readout: Readout,
    *,
    targets: Int[np.ndarray, "row"] | None = None,
    top: int = 3,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> LensRows:
    """Returns what each row says.

    Args:
        rows: As `normed` gives them.
        readout: The model's.
        targets: The token that came next at each row, negative where none did.
        top: How many of the likeliest words to keep.
        progress: Told how many of how many blocks of words are done.

    Raises:
        UsageError: `targets` or `top` is no word of the model.
    """
    targets = np.full(len(rows), -1) if targets is None else targets
    if not 1 <= top <= readout.d_vocab or targets.max(initial=-1) >= readout.d_vocab:
        raise UsageError(f"the {top} likeliest words, and token {targets.max(initial=-1)}", why=_words_of(readout))
    tally = _Tally(rows, targets, readout, top)
    for first in range(0, readout.d_vocab, _WORDS):
        tally.add(first)
        progress(min(first + _WORDS, readout.d_vocab), readout.d_vocab)
    return tally.result()


def _words_of(readout: Readout) -> str:
    return f"the model has {readout.d_vocab} words"


class _Tally:
    """What is known of rows' logits after some blocks of words."""

    def __init__(
        self, rows: Float32[np.ndarray, "row d_embed"], targets: Int[np.ndarray, "row"], readout: Readout, top: int
    ) -> None:
        self._rows, self._targets, self._readout = rows, targets, readout
        self._top_ids = np.full((len(rows), top), readout.d_vocab, np.int64)
        self._top = np.full((len(rows), top), -np.inf, np.float32)
        # Of exponentials relative to the largest logit so far; of these times the relative logits.
        self._largest = np.full(len(rows), np.finfo(np.float32).min, np.float64)
        self._sum, self._weighted = np.zeros(len(rows)), np.zeros(len(rows))
        self._above = np.zeros(len(rows), np.int64)
        self._target_logits = self._logits_of_targets()

    def _logits_of_targets(self) -> Float32[np.ndarray, "row"]:
        logits = np.full(len(self._rows), np.nan, np.float32)
        for word in np.unique(self._targets[self._targets >= 0]).tolist():
            here = self._targets == word
            logits[here] = self._capped(self._rows[here] @ self._words(word, word + 1).T, word)[:, 0]
        return logits

    def _words(self, first: int, last: int) -> Float32[np.ndarray, "word d_embed"]:
        return self._readout.unembedding.rows(first, last)

    def _capped(self, logits: Float32[np.ndarray, "row word"], first: int) -> Float32[np.ndarray, "row word"]:
        bias, cap = self._readout.bias, self._readout.softcap
        if bias is not None:
            logits += bias[first : first + logits.shape[1]]
        if cap is not None:
            logits /= np.float32(cap)
            np.tanh(logits, out=logits)
            logits *= np.float32(cap)
        return logits

    def add(self, first: int) -> None:
        """Takes the words from `first` on, as many as a block holds."""
        words = self._words(first, min(first + _WORDS, self._readout.d_vocab))
        at_once = max(1, _BLOCK_BYTES // (4 * len(words)))
        for start in range(0, len(self._rows), at_once):
            here = slice(start, start + at_once)
            logits = self._capped(self._rows[here] @ words.T, first)
            self._add_targets(here, logits, first)
            self._add_top(here, logits, first)
            self._add_sums(here, logits)

    def _add_targets(self, here: slice, logits: Float32[np.ndarray, "row word"], first: int) -> None:
        targets, own = self._targets[here] - first, self._target_logits[here]
        inside = np.flatnonzero((targets >= 0) & (targets < logits.shape[1]))
        # The same number from another product may differ in its last bit, and would be above itself.
        logits[inside, targets[inside]] = own[inside]
        self._above[here] += np.count_nonzero(logits > own[:, None], axis=1)

    def _add_top(self, here: slice, logits: Float32[np.ndarray, "row word"], first: int) -> None:
        count = min(self._top.shape[1], logits.shape[1])
        found = np.argpartition(logits, logits.shape[1] - count, axis=1)[:, -count:]
        values = np.concatenate([self._top[here], np.take_along_axis(logits, found, axis=1)], axis=1)
        ids = np.concatenate([self._top_ids[here], found + first], axis=1)
        order = np.lexsort((ids, -values), axis=1)[:, : self._top.shape[1]]
        self._top[here] = np.take_along_axis(values, order, axis=1)
        self._top_ids[here] = np.take_along_axis(ids, order, axis=1)

    def _add_sums(self, here: slice, logits: Float32[np.ndarray, "row word"]) -> None:
        before = self._largest[here]
        largest = np.maximum(before, logits.max(axis=1))
        logits -= largest[:, None].astype(np.float32)
        powers = np.exp(logits)
        kept = np.exp(before - largest)
        weighted = np.einsum("rw,rw->r", powers, logits)
        self._weighted[here] = kept * (self._weighted[here] + (before - largest) * self._sum[here]) + weighted
        self._sum[here] = kept * self._sum[here] + powers.sum(axis=1)
        self._largest[here] = largest

    def result(self) -> LensRows:
        def probability(logits: Float32[np.ndarray, "row k"]) -> Float32[np.ndarray, "row k"]:
            return (np.exp(logits - self._largest[:, None]) / self._sum[:, None]).astype(np.float32)

        entropy = np.log(self._sum) - self._weighted / self._sum
        return LensRows(
            self._top_ids,
            probability(self._top),
            entropy.astype(np.float32),
            probability(self._target_logits[:, None])[:, 0],
            np.where(self._targets >= 0, self._above + 1, 0),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What each layer of an example says at each position; see `LensRows` for what is the same.

    Attributes:
        example_id: Which example.
        key: The array that was read: `resid_post`, `hidden`, or `lens_topk`. That one has no entropy (NaN), and the
            target is known of where it is among the likeliest; elsewhere it is as if there were none.
        layers: The model's numbers of the layers.
        positions: Positions of the example.
        tokens: The texts of the example's tokens at these positions.
        targets: The token that came next at each position, -1 where none did.
        names: The text of every token that `targets` or `top_ids` names, `#id` where it is not known.
    """

    example_id: str
    key: ArrayKey
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    targets: Int64[np.ndarray, "position"]
    names: Mapping[int, str]
    top_ids: Int64[np.ndarray, "layer position k"]
    top_probabilities: Float32[np.ndarray, "layer position k"]
    entropy: Float32[np.ndarray, "layer position"]
    target_probability: Float32[np.ndarray, "layer position"]
    target_rank: Int64[np.ndarray, "layer position"]

    def __repr__(self) -> str:
        n_layers, n_positions, k = self.top_ids.shape
        return f"Lens({self.example_id!r}: {n_layers} layers x {n_positions} positions of {self.key}, top {k})"

    def _repr_html_(self) -> str:
        return in_notebook(self)

    @property
    def target_tokens(self) -> tuple[str | None, ...]:
        """The token that came next at each position, None where none did."""
        return tuple(self.names.get(target) for target in self.targets.tolist())

    @property
    def top_tokens(self) -> list[list[list[str]]]:
        """The likeliest tokens of each layer, at each position."""
        return [[[self.names[token_id] for token_id in row] for row in layer] for layer in self.top_ids.tolist()]

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per layer, position and rank, the likeliest token first; where nothing is known, a gap."""
        import pandas as pd

        layer, position, rank = (index.reshape(-1) for index in np.indices(self.top_ids.shape))
        target_rank = pd.Series(self.target_rank[layer, position], dtype="Int64")
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[layer],
                "position": np.array(self.positions)[position],
                "token": [self.tokens[i] for i in position],
                "rank": rank + 1,
                "top_token": [self.names[token_id] for token_id in self.top_ids.reshape(-1).tolist()],
                "probability": self.top_probabilities.reshape(-1),
                "entropy": self.entropy[layer, position],
                "target_token": np.array(self.target_tokens, object)[position],
                "target_probability": self.target_probability[layer, position],
                "target_rank": target_rank.where(target_rank > 0),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over layers, and within each over positions."""
        return {
            "example_id": self.example_id,
            "array": str(self.key),
            "layers": list(self.layers),
            "positions": list(self.positions),
            "tokens": list(self.tokens),
            "targets": [
                None if token is None else {"id": target, "token": token}
                for target, token in zip(self.targets.tolist(), self.target_tokens, strict=True)
            ],
            "top_ids": self.top_ids.tolist(),
            "top_tokens": self.top_tokens,
            "top_probabilities": plain(self.top_probabilities),
            "entropy": plain(self.entropy),
            "target_probability": plain(self.target_probability),
            "target_rank": [[rank or None for rank in layer] for layer in self.target_rank.tolist()],
        }
