"""The logit lens: what a model would say if each layer were its last.

1. `normed` puts rows of the residual stream through the model's own final norm (and projection and scale).
2. `read_out` multiplies them by the unembedding, a block of words at a time, so that neither all logits nor all of the
   unembedding is ever in memory. Each block's logits, softcapped, update what is kept of each row: the k largest, the
   sum of exponentials, and the rank of the token that came next.
3. Probabilities are those of the softmax over all words; entropy is in nats.
4. `run_lens` does so for the layers of a recorded example; `recorded_lens` gives what was read out while recording.

The source is nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from traceformer.analysis.run_statistics import tokens_that_came
from traceformer.errors import NotRecorded, SelectionError, Unsupported, UsageError
from traceformer.readout import Readout
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.reader import TraceStore

__all__ = ["Lens", "LensRows", "is_read_out", "normed", "read_out", "recorded_lens", "run_lens"]

_RESIDUAL = ("resid_post", "hidden")
_WORDS = 4096
_BLOCK_BYTES = 32 << 20  # of the logits at hand
_ROWS_BYTES = 256 << 20  # of the normed rows at hand


@dataclass(frozen=True, slots=True)
class LensRows:
    """What rows of the residual stream say, read out.

    Attributes:
        top_ids: The k most likely words, the likeliest first.
        top_probabilities: Theirs.
        entropy: Of all words.
        came_probability: That of the token that came next; NaN where none did.
        came_rank: 1 if that was the likeliest; 0 where none came.
    """

    top_ids: Int64[np.ndarray, "row k"]
    top_probabilities: Float32[np.ndarray, "row k"]
    entropy: Float32[np.ndarray, "row"]
    came_probability: Float32[np.ndarray, "row"]
    came_rank: Int64[np.ndarray, "row"]


def normed(
    residual: Float[np.ndarray, "row d_model"], readout: Readout, *, skip_norm: bool = False
) -> Float32[np.ndarray, "row d_embed"]:
    """Returns what the unembedding is multiplied with; `skip_norm` for rows that are normed already."""
    rows = residual.astype(np.float32)
    if readout.norm is not None and not skip_norm:
        if readout.norm == "layer":
            rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt(np.einsum("rd,rd->r", rows, rows) / rows.shape[1] + readout.epsilon)[:, None]
        if readout.norm_weight is not None:
            rows *= readout.norm_weight + 1 if readout.norm == "rms_plus_one" else readout.norm_weight
        if readout.norm_bias is not None:
            rows += readout.norm_bias
    if readout.project_out is not None:
        rows = rows @ readout.project_out.T
    return rows * np.float32(readout.scale)


def read_out(
    rows: Float32[np.ndarray, "row d_embed"],
    readout: Readout,
    *,
    came: Int[np.ndarray, "row"] | None = None,
    top: int = 3,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> LensRows:
    """Returns what each row says.

    Args:
        rows: As `normed` gives them.
        readout: The model's.
        came: The token that came next at each row, negative where none did.
        top: How many of the likeliest words to keep.
        progress: Told how many of how many blocks of words are done.

    Raises:
        UsageError: `came` or `top` is no word of the model.
    """
    came = np.full(len(rows), -1) if came is None else came
    if not 1 <= top <= readout.d_vocab or came.max(initial=-1) >= readout.d_vocab:
        raise UsageError(f"the {top} likeliest words, and token {came.max(initial=-1)}", why=_words_of(readout))
    tally = _Tally(rows, came, readout, top)
    for first in range(0, readout.d_vocab, _WORDS):
        tally.add(first)
        progress(min(first + _WORDS, readout.d_vocab), readout.d_vocab)
    return tally.result()


def _words_of(readout: Readout) -> str:
    return f"the model has {readout.d_vocab} words"


class _Tally:
    """What is known of rows' logits after some blocks of words."""

    def __init__(
        self, rows: Float32[np.ndarray, "row d_embed"], came: Int[np.ndarray, "row"], readout: Readout, top: int
    ) -> None:
        self._rows, self._came, self._readout = rows, came, readout
        self._top_ids = np.full((len(rows), top), readout.d_vocab, np.int64)
        self._top = np.full((len(rows), top), -np.inf, np.float32)
        # Of exponentials relative to the largest logit so far; of these times the relative logits.
        self._largest = np.full(len(rows), np.finfo(np.float32).min, np.float64)
        self._sum, self._weighted = np.zeros(len(rows)), np.zeros(len(rows))
        self._above = np.zeros(len(rows), np.int64)
        self._came_logits = self._logits_that_came()

    def _logits_that_came(self) -> Float32[np.ndarray, "row"]:
        logits = np.full(len(self._rows), np.nan, np.float32)
        for word in np.unique(self._came[self._came >= 0]).tolist():
            here = self._came == word
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
            self._add_came(here, logits, first)
            self._add_top(here, logits, first)
            self._add_sums(here, logits)

    def _add_came(self, here: slice, logits: Float32[np.ndarray, "row word"], first: int) -> None:
        came, own = self._came[here] - first, self._came_logits[here]
        inside = np.flatnonzero((came >= 0) & (came < logits.shape[1]))
        # The same number from another product may differ in its last bit, and would be above itself.
        logits[inside, came[inside]] = own[inside]
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
            probability(self._came_logits[:, None])[:, 0],
            np.where(self._came >= 0, self._above + 1, 0),
        )


@dataclass(frozen=True, slots=True)
class Lens:
    """What each layer of an example says at each position; see `LensRows` for what is the same.

    Attributes:
        key: The array that was read: `resid_post`, `hidden`, or `lens_topk`. That one has no entropy (NaN), and the
            token that came is known of where it is among the likeliest; elsewhere it is as if none had come.
        layers: The model's numbers of the layers.
        positions: Positions of the example.
        came: The token that came next at each position, -1 where none did.
    """

    key: ArrayKey
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    came: Int64[np.ndarray, "position"]
    top_ids: Int64[np.ndarray, "layer position k"]
    top_probabilities: Float32[np.ndarray, "layer position k"]
    entropy: Float32[np.ndarray, "layer position"]
    came_probability: Float32[np.ndarray, "layer position"]
    came_rank: Int64[np.ndarray, "layer position"]


def run_lens(
    store: TraceStore,
    example_id: str,
    readout: Readout,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int = 3,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Lens:
    """Returns what the layers of a recorded example say.

    Args:
        store: A run of a decoder, or of an encoder-decoder with targets.
        example_id: An example of it.
        readout: The run's model's.
        layers: The model's numbers; all that are stored for None.
        positions: Positions of the example; all for None.
        top: How many of the likeliest words to keep.
        progress: Told how many of how many words are done, each counted once for every group of rows.

    Raises:
        NotRecorded: the run holds no residual stream.
        SelectionError: a layer is not stored, or a position is not in the example.
        Unsupported: an encoder, which predicts no next token.
        UsageError: the readout is another model's.
    """
    spec = _residual_of(store)
    if spec.width != readout.d_model:
        raise UsageError(f"a readout of width {readout.d_model}", why=f"{spec.key} is {spec.width} wide")
    # `hidden` begins with the embedding: entry i + 1 is what layer i left, and the last one is behind the final norm.
    first = 1 if spec.key.site == "hidden" else 0
    stored = tuple(number - first for number in spec.layers if number >= first)
    chosen, where, came = _part_of(store, example_id, spec, stored, layers, positions)
    last = store.meta["dims"]["dec"]["n_layers"] - 1

    def residual(number: int, places: Int64[np.ndarray, "place"]) -> Float32[np.ndarray, "place d_embed"]:
        layer = chosen[number]
        stream = store.get(example_id, spec.key, layer + first)[places]
        return normed(stream, readout, skip_norm=first == 1 and layer == last)

    total, at_once = len(chosen) * len(where), max(1, _ROWS_BYTES // (4 * spec.width))
    parts: list[LensRows] = []
    for start in range(0, total, at_once):
        # Rows are counted layer by layer, position by position within each.
        stop = min(start + at_once, total)
        numbers = range(start // len(where), -(-stop // len(where)))
        pieces = [slice(max(0, start - n * len(where)), stop - n * len(where)) for n in numbers]
        parts.append(
            read_out(
                np.concatenate([residual(n, where[piece]) for n, piece in zip(numbers, pieces, strict=True)]),
                readout,
                came=np.concatenate([came[piece] for piece in pieces]),
                top=top,
                progress=lambda done, of: progress(len(parts) * of + done, -(-total // at_once) * of),
            )
        )
    found = {name: np.concatenate([getattr(part, name) for part in parts]) for name in LensRows.__slots__}
    shape = (len(chosen), len(where))
    return Lens(
        spec.key,
        chosen,
        tuple(where.tolist()),
        came,
        **{name: values.reshape(*shape, *values.shape[1:]) for name, values in found.items()},
    )


def is_read_out(store: TraceStore) -> bool:
    """Returns whether a run holds the likeliest tokens of each layer, and no residual stream to read all from."""
    return _first_of(store, _RESIDUAL) is None and _first_of(store, ("lens_topk",)) is not None


def recorded_lens(
    store: TraceStore,
    example_id: str,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int | None = None,
) -> Lens:
    """Returns what the layers of an example said while it was recorded; arguments as of `run_lens`.

    Raises:
        NotRecorded: the run holds no likeliest tokens, or fewer than `top` of them.
        SelectionError: a layer is not stored, or a position is not in the example.
    """
    ids = store.spec("lens_topk")
    if top is not None and not 1 <= top <= ids.width:
        raise NotRecorded(
            f"the {top} likeliest tokens",
            why=f"this run holds {ids.width} of each layer",
            hint="`lens_top_k` to record",
        )
    chosen, where, came = _part_of(store, example_id, ids, ids.layers, layers, positions)
    place = np.ix_([ids.layers.index(layer) for layer in chosen], where.tolist())
    all_ids = store.get(example_id, ids.key)[place].astype(np.int64)
    probabilities = store.get(example_id, ids.key._replace(site="lens_topk_prob"))[place].astype(np.float32)
    is_came = (all_ids == came[:, None]) & (came >= 0)[:, None]
    there = is_came.any(axis=-1)
    return Lens(
        ids.key,
        chosen,
        tuple(where.tolist()),
        came,
        all_ids[..., :top],
        probabilities[..., :top],
        np.full(there.shape, np.nan, np.float32),
        np.where(there, (probabilities * is_came).sum(axis=-1), np.float32(np.nan)),
        np.where(there, is_came.argmax(axis=-1) + 1, 0),
    )


def _part_of(
    store: TraceStore,
    example_id: str,
    spec: ArraySpec,
    stored: Sequence[int],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> tuple[tuple[int, ...], Int64[np.ndarray, "position"], Int64[np.ndarray, "position"]]:
    """Returns the layers and positions that are meant, and what came after these."""
    chosen = _chosen("layer", layers, stored, f"this run holds layers {_listed(stored)} of {spec.key}")
    length = store.length(example_id, "dec")
    places = _chosen("position", positions, range(length), f"this example has positions 0-{length - 1}")
    where = np.asarray(places, np.int64)
    return chosen, where, tokens_that_came(store)(example_id)[where]


def _first_of(store: TraceStore, sites: Sequence[str]) -> ArraySpec | None:
    found = (store.layout.spec(ArrayKey("dec", None, site)) for site in sites)
    return next((spec for spec in found if spec is not None), None)


def _residual_of(store: TraceStore) -> ArraySpec:
    if store.arch == "enc":
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    found = _first_of(store, _RESIDUAL)
    if found is not None:
        return found
    raise NotRecorded(
        "this run holds no residual stream of a decoder",
        why=f"it holds {' '.join(str(spec.key) for spec in store.layout.arrays)}",
        hint='record it with `capture="resid_post"`',
    )


def _chosen(what: str, wanted: Sequence[int] | None, available: Sequence[int], why: str) -> tuple[int, ...]:
    chosen = tuple(available if wanted is None else wanted)
    missing = [number for number in chosen if number not in available]
    if missing or not chosen:
        raise SelectionError(f"{what} {_listed(missing) or 'nothing'} requested", why=why)
    return chosen


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
