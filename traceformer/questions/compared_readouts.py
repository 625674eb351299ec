"""What two runs predict, compared: the model's own logits where they are stored, or its head on what is.

Of a run without logits the last layer's residual stream is put through the model's own final norm and unembedding,
which are read from its folder; the model is not run. Rows are compared some at a time, words in blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from traceformer.analysis.comparison import Apart, ReadoutDivergence
from traceformer.analysis.divergence import WordLogits, divergences
from traceformer.analysis.lens import normed
from traceformer.analysis.lens_tally import capped
from traceformer.errors import ConfigurationChanged, NotFound, NotRecorded, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import Readout
from traceformer.questions.common_texts import CommonText, CommonTexts
from traceformer.questions.model_of_run import open_readout_of
from traceformer.questions.vocabulary import shown_tokens
from traceformer.shapes import Float32, Float64, Int64
from traceformer.sites import ArrayKey
from traceformer.store.run import Run

__all__ = ["ModelAtHand", "ReadoutsAtHand", "readouts_at_hand"]

_BYTES = 64 << 20  # of what is at hand of each run
_FEWEST, _MOST = 64, 1024  # rows
_NAMED = 10  # tokens at which both differ most

ModelAtHand: TypeAlias = str | Path | LoadedModel | None


class Source(NamedTuple):
    """Where predictions come from: stored logits, or an array that the model's own head reads.

    Attributes:
        layer: The layer to read, None where the array has none.
        readout: None for stored logits.
        is_normed: Whether the rows are behind the final norm.
    """

    key: ArrayKey
    layer: int | None
    readout: Readout | None
    is_normed: bool
    width: int
    n_words: int

    @property
    def named(self) -> str:
        return str(self.key) if self.layer is None else f"{self.key} of the last layer"

    def rows(self, run: Run, row: int) -> Float32[np.ndarray, "token d"]:
        """What is held of a text: logits, or what the unembedding is multiplied with."""
        values = run.get(row, self.key, self.layer)
        if self.readout is None:
            return values.astype(np.float32, copy=False)
        return normed(values, self.readout, skip_norm=self.is_normed)

    def logits(self, rows: Float32[np.ndarray, "row d"]) -> WordLogits:
        """Returns what gives the logits of these rows."""
        readout = self.readout
        if readout is None:
            return lambda start, stop: rows[:, start:stop]

        return lambda start, stop: capped(rows @ readout.unembedding.rows(start, stop).T, readout, start)


class _Block(NamedTuple):
    """Some rows of both runs, and which text and which position of A each is."""

    rows: list[Float32[np.ndarray, "row _"]]
    texts: Int64[np.ndarray, "row"]
    positions: Int64[np.ndarray, "row"]


@dataclass(frozen=True, slots=True)
class ReadoutsAtHand:
    """Two sources of predictions to compare."""

    runs: tuple[Run, Run]
    sources: tuple[Source, Source]
    texts: CommonTexts

    @property
    def steps(self) -> int:
        """How often `measured` says that a text is done."""
        return len(self.texts.each)

    def measured(self, step: Callable[[], None]) -> ReadoutDivergence:
        """Returns how far apart the predictions are."""
        n_texts, n_words = len(self.texts.each), self.sources[0].n_words
        longest = 1 + max(int(text.pieces.first.max(initial=-1)) for text in self.texts.each)
        sums = np.zeros((4, n_texts)), np.zeros((4, longest))
        apart: list[tuple[float, float, int, int]] = []
        for block in self._blocks(step):
            logits = [source.logits(rows) for source, rows in zip(self.sources, block.rows, strict=True)]
            forward, backward, same = divergences(logits[0], logits[1], len(block.texts), n_words)
            known = np.isfinite(forward) & np.isfinite(backward)
            rows = np.stack([known.astype(float), forward, backward, same.astype(float)])[:, known]
            for total, places in zip(sums, (block.texts[known], block.positions[known]), strict=True):
                for own, values in zip(total, rows, strict=True):
                    np.add.at(own, places, values)
            places = (each[known].tolist() for each in (block.texts, block.positions))
            apart += zip(rows[1].tolist(), rows[2].tolist(), *places, strict=True)
            apart = sorted(apart, key=lambda each: -each[0])[:_NAMED]
        tokens = int(sums[0][0].sum())
        means = sums[0].sum(axis=1)[1:] / (tokens or np.nan)
        return ReadoutDivergence(
            sources=(self.sources[0].named, self.sources[1].named),
            tokens=tokens,
            unknown=self.texts.tokens - tokens,
            kl_ab=float(means[0]),
            kl_ba=float(means[1]),
            same_top=float(means[2]),
            examples=tuple(text.example_id for text in self.texts.each),
            of_text=_means(sums[0]),
            of_position=_means(sums[1]),
            most_apart=tuple(self._apart(each) for each in apart),
        )

    def _apart(self, found: tuple[float, float, int, int]) -> Apart:
        forward, backward, number, position = found
        text = self.texts.each[number]
        token = shown_tokens(self.runs[0], text.rows[0], self.texts.stack)[position].text
        return Apart(text.example_id, position, token, forward, backward)

    def _blocks(self, step: Callable[[], None]) -> Iterator[_Block]:
        """Yields rows of both, as many at a time as a bounded memory holds; those of short texts together."""
        at_once = min(max(_BYTES // (4 * max(source.width for source in self.sources)), _FEWEST), _MOST)
        held: list[_Block] = []
        for number, text in enumerate(self.texts.each):
            rows = [self._rows(side, text) for side in (0, 1)]
            for first in range(0, len(text), at_once):
                part = slice(first, first + at_once)
                positions = text.pieces.first[part]
                held.append(_Block([own[part] for own in rows], np.full(len(positions), number), positions))
                if sum(len(each.positions) for each in held) >= at_once:
                    yield _together(held)
                    held = []
            step()
        if held:
            yield _together(held)

    def _rows(self, side: int, text: CommonText) -> Float32[np.ndarray, "piece d"]:
        return self.sources[side].rows(self.runs[side], text.rows[side])[text.ends(side)]


def _together(blocks: list[_Block]) -> _Block:
    rows = [np.concatenate([block.rows[side] for block in blocks]) for side in (0, 1)]
    return _Block(rows, *(np.concatenate([block[i] for block in blocks]) for i in (1, 2)))


def _means(sums: Float64[np.ndarray, "4 place"]) -> dict[str, Any]:
    tokens = sums[0]
    with np.errstate(invalid="ignore"):
        means = sums[1:] / tokens
    return {"tokens": tokens.astype(np.int64), **dict(zip(("kl_ab", "kl_ba", "same_top"), means, strict=True))}


def readouts_at_hand(
    first: Run, second: Run, texts: CommonTexts, models: tuple[ModelAtHand, ModelAtHand]
) -> ReadoutsAtHand:
    """Returns where the predictions of both runs come from.

    Raises:
        NotRecorded: a run holds neither logits nor the residual stream of its last layer.
        NotFound, ConfigurationChanged: a model is needed, and is not there, or is another one.
        Unsupported: an encoder without stored logits; a family whose readout is not known.
        UsageError: other vocabularies.
    """
    if not texts.same_tokens:
        why = "their tokens are not the same: what one predicts is no token of the other"
        raise UsageError("predictions of other vocabularies", why=why)
    sources = [
        _source(side, run, model, texts) for side, (run, model) in enumerate(zip((first, second), models, strict=True))
    ]
    one, other = (source.n_words for source in sources)
    if one != other:
        raise UsageError(
            "predictions of other vocabularies", why=f"{texts.names[0]} has {one} words, {texts.names[1]} {other}"
        )
    return ReadoutsAtHand((first, second), (sources[0], sources[1]), texts)


def _source(side: int, run: Run, model: ModelAtHand, texts: CommonTexts) -> Source:
    stack, name = texts.stack, texts.names[side]
    logits = run.layout.spec(ArrayKey(stack, None, "logits"))
    if logits is not None:
        return Source(logits.key, None, None, False, logits.width, logits.width)
    last = run.about.dims_of(stack).n_layers
    held = " ".join(str(spec.key) for spec in run.layout.arrays)
    for site, layer in (("resid_post", (last or 0) - 1), ("hidden", last), ("final_norm", None)):
        spec = run.layout.spec(ArrayKey(stack, None, site))
        if spec is None or (layer is not None and layer not in spec.layers):
            continue
        if stack == "enc":
            why = "an encoder has no head that predicts a next token"
            raise Unsupported(f"what {name} predicts, without logits", why=why, hint='`capture="logits"`')
        readout = _readout(run, model, "ab"[side])
        if readout.d_model != spec.width:
            raise UsageError(f"a readout of width {readout.d_model}", why=f"{spec.key} is {spec.width} wide")
        return Source(spec.key, layer, readout, site != "resid_post", readout.unembedding.shape[1], readout.d_vocab)
    raise NotRecorded(
        f"{name} holds neither logits nor the last layer's residual stream",
        why=f"it holds {held}",
        hint='record it with `capture="logits"`',
    )


def _readout(run: Run, model: ModelAtHand, which: str) -> Readout:
    """The readout of a run's model; what is said of `model` is said of the parameter of that run."""
    try:
        return open_readout_of(run, model)
    except (NotFound, ConfigurationChanged) as error:
        hint = error.hint.replace("`model=", f"`model_{which}=")
        raise type(error)(error.message, why=error.why, hint=hint) from error
