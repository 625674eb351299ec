"""What can be read off the activations of a run by planes: linear probes of a label, layer by layer."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import numpy as np

from traceformer.analysis.logistic import PRECISE, ROUGH, Regression, Scaling, correct_by_text, fit_all, scaling_of
from traceformer.analysis.methods import Position
from traceformer.analysis.probe_controls import (
    control_labels,
    draws_of,
    held_out_texts,
    hits_of_kinds,
    random_rows,
    resampled,
    shuffled,
)
from traceformer.analysis.probes import Fitted, Probe, Probes, Scores
from traceformer.errors import UsageError, check_choice, check_number, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, quiet, steps_watched
from traceformer.questions.probe_labels import Labels, TokenLabels, labels_of, token_kinds
from traceformer.questions.probe_rows import ProbeRows, rows_spec
from traceformer.questions.recorded import Texts, check_asked, recorded
from traceformer.shapes import Bool, Float64, Int32, Int64
from traceformer.sites import ArraySpec
from traceformer.store.arrays import find_numbers
from traceformer.store.run import Run

__all__ = ["fit_probe"]

_SHOWN_PASSES = 100  # what a place counts for in a bar, whose passes nobody knows before


def fit_probe(
    run: Run | LoadedModel,
    labels: TokenLabels,
    *,
    texts: Texts | None = None,
    site: str = "resid_post",
    layers: str | int | Iterable[int] | None = None,
    heads: str | int | Iterable[int] | None = None,
    offset: int = 0,
    position: Position = "mean",
    penalty: float = 1.0,
    held_out: float = 0.25,
    draws: int = 1,
    seed: int = 0,
    limit: int | None = None,
    name: str | None = None,
    progress: OnStep | None = None,
) -> Probes:
    """Returns a linear probe of a label at each layer, and what it reaches on texts that it was not fitted on.

        fit_probe(run, "upos").to_frame()
        fit_probe(run, lambda token: token in "aeiou", layers=2, name="vowel")

    A probe is a multinomial logistic regression of standardised rows: over weights W and a bias b it minimises the sum
    over rows of -log softmax(W x + b)[label] + penalty / 2 * |W|^2, as scikit-learn's LogisticRegression(C=1 / penalty)
    behind a StandardScaler. All rows count, in memory that does not grow with them: they are read once for each pass.
    Whole texts are held out, never rows. Beside each probe stand those of controls, on the same rows: shuffled labels;
    for labels of tokens a control task, which has a random label for each kind of token (Hewitt and Liang, 2019); and
    the label itself on rows of random signs.

    Args:
        run: A run, or a model.
        labels: A column of the token table, with a value for each text, each token, or each word; an array with a
            label for each text or each token of all texts; a mapping from texts' ids or numbers to a label, or to one
            for each token; or a function of a token as it is shown. Null, NaN and None are no labels.
        texts: What a model reads.
        site: Where to look for it, a site with a row for each token.
        layers: Which layers; all that are stored by default.
        heads: Of sites with heads, which have a probe each, or "all"; by default all are one row, side by side.
        offset: How many places behind a row's own token that is whose label is asked for: 1 for the next token, -1 for
            the previous one.
        position: What stands for a text, where the label is of texts: the mean over its tokens, its last token, or the
            mean over its response.
        penalty: On half the squared norm of the weights.
        held_out: The share of texts that are held out; of labels of texts, of each class.
        draws: How often the labels of each control are drawn, whose accuracies are averaged.
        seed: Of the split, of controls and of intervals.
        limit: The first texts of the run, all by default.
        name: What to call the label; the column's name by default.
        progress: Told how much is done; a bar is shown in a terminal or notebook for None.

    Raises:
        NotRecorded: the run does not hold the site or the column; the hint names what it holds.
        SelectionError: a layer or a head is not stored.
        UsageError: labels that are not of this run's texts or tokens, of one class, or of as many as there are rows.
        NumericError: a labelled row is NaN or infinite.
    """
    _check_settings(offset, position, penalty, held_out, draws, seed, limit)
    check_asked(run)
    if isinstance(run, LoadedModel) or texts is not None:
        run = recorded(run, texts, site.rpartition(".")[2])
    spec = rows_spec(run, site)
    places = _places(run, spec, layers, heads)
    lengths = run.lengths(spec.key.token_stack)
    found = labels_of(run, labels, spec.key.token_stack, name).shifted(offset, lengths)
    found = found.among(range(min(limit or run.n, run.n)), lengths)
    found.check()
    split = _split(run, found, spec, held_out=held_out, draws=draws, seed=seed)
    from threadpoolctl import threadpool_limits

    # Each thread multiplies for itself: those that the library would add to each of them only wait for one another.
    with steps_watched("probing", progress) as told, threadpool_limits(1, "blas"):
        fitted = [
            _fitted(run, spec, place, split, position, penalty, _part(told, i, len(places) + 1))
            for i, place in enumerate(places)
        ]
        random = _of_random_rows(split, _width_of(spec, places), penalty, seed)
        told(_SHOWN_PASSES * (len(places) + 1), _SHOWN_PASSES * (len(places) + 1))
    unfinished = [place for place, own in zip(places, fitted, strict=True) if not own.converged]
    if unfinished:
        warnings.warn(f"the probes of {unfinished} were not at their minimum after 1000 passes", stacklevel=2)
    return _told(run, spec, split, fitted, random, offset, position, penalty, held_out, draws, seed)


def _check_settings(
    offset: int, position: str, penalty: float, held_out: float, draws: int, seed: int, limit: int | None
) -> None:
    check_choice("position", position, get_args(Position))
    check_number("penalty", penalty)
    check_number("held_out", held_out)
    check_whole("offset", offset)
    check_whole("draws", draws, 1)
    check_whole("seed", seed, 0)
    if limit is not None:
        check_whole("limit", limit, 2)
    if penalty <= 0:
        why = "without it the weights of classes that are apart have no bounds"
        raise UsageError(f"`penalty={penalty}`", why=why, hint="a number above 0")
    if not 0 < held_out < 1:
        raise UsageError(f"`held_out={held_out}`", hint="a share of the texts, between 0 and 1")


_Place = tuple[int | None, int | None]


def _places(
    run: Run, spec: ArraySpec, layers: str | int | Iterable[int] | None, heads: str | int | Iterable[int] | None
) -> list[_Place]:
    """Each layer and head that has a probe."""
    of = str(spec.key)
    no_layers = layers is None and not spec.layers
    chosen = (None,) if no_layers else find_numbers("layer", layers, spec.layers, of=of)
    if heads is None:
        return [(layer, None) for layer in chosen]
    stored = _heads(run, spec)
    # Of keys and values each is probed once, by the first of the heads that read it.
    all_heads = stored[:: len(stored) // max(1, len(spec.heads)) or 1]
    own = all_heads if heads == "all" and stored else find_numbers("head", heads, stored, of=of)
    return [(layer, head) for layer in chosen for head in own]


def _heads(run: Run, spec: ArraySpec) -> tuple[int, ...]:
    """The attention heads that an array is of: of keys and values, those that read what it has."""
    dims = run.about.dims_of(spec.key.stack).at(spec.layers)
    if "kv_head" not in spec.site.axes or not dims.n_kv_heads or not dims.n_heads:
        return spec.heads
    group = dims.n_heads // dims.n_kv_heads
    return tuple(own * group + i for own in spec.heads for i in range(group))


class _Split:
    """The labels of all probes of a run: the true ones, then those of controls, of training rows and of held-out ones.

    Attributes:
        labels: The label, with the classes that training rows have.
        is_train: Which of all tokens, or texts, have a label and are fitted on.
        is_held: Which have one and are held out.
        train: For each labelling, the classes of training rows.
        held: For each labelling, those of held-out rows; -2 where no training row has the class.
        texts: For each held-out row, the number of its text among those held out.
        totals: How many held-out rows each of these texts has.
        train_texts: How many texts training rows are in.
        counts: How many training rows each class has.
        by_token: What the most frequent class of each kind of token reaches.
        draws: How many labellings each control has.
    """

    def __init__(
        self,
        labels: Labels,
        text_of: Int32[np.ndarray, "row"],
        kinds: Int64[np.ndarray, "row"] | None,
        held: Bool[np.ndarray, "text"],
        draws: int,
        seed: int,
    ) -> None:
        """Splits labelled rows by `held`, which says of each text with labels whether it is held out.

        Args:
            labels: The labels.
            text_of: Each labelled row's text, numbered among those that have labels.
            kinds: Each labelled row's kind of token.
            held: Which texts are held out.
            draws: How many labellings each control has.
            seed: What they are drawn by.
        """
        labelled = labels.codes >= 0
        is_held = held[text_of]
        codes = labels.codes[labelled]
        present, number = np.unique(codes[~is_held]), np.full(len(labels.classes), -2, np.int32)
        number[present] = np.arange(len(present))
        codes = number[codes]
        self.labels = labels
        self.classes = tuple(labels.classes[i] for i in present.tolist())
        self.is_train, self.is_held = labelled.copy(), labelled.copy()
        self.is_train[labelled], self.is_held[labelled] = ~is_held, is_held
        self.counts = np.bincount(codes[~is_held], minlength=len(present))
        self.train_texts, self.draws = int((~held).sum()), draws
        of_held = np.cumsum(held) - 1
        self.texts = of_held[text_of[is_held]].astype(np.int32)
        self.totals = np.bincount(self.texts, minlength=int(held.sum()))
        self.by_token: float | None = None
        labellings = [codes]
        labellings += [shuffled(codes, is_held, draws_of(seed, "shuffled", draw)) for draw in range(draws)]
        if kinds is not None:
            kinds = np.unique(kinds, return_inverse=True)[1].astype(np.int32)
            shares = self.counts / self.counts.sum()
            labellings += [control_labels(kinds, shares, draws_of(seed, "control", draw)) for draw in range(draws)]
            self.by_token = float(hits_of_kinds(codes, kinds, is_held, int(self.counts.argmax())).mean())
        self.train = [own[~is_held] for own in labellings]
        self.held = [own[is_held] for own in labellings]

    @property
    def majority(self) -> float:
        """The share of held-out rows that have the most frequent class of training rows."""
        return float((self.held[0] == self.counts.argmax()).mean())


def _split(run: Run, found: Labels, spec: ArraySpec, *, held_out: float, draws: int, seed: int) -> _Split:
    stack = spec.key.token_stack
    lengths = run.lengths(stack)
    labelled = found.codes >= 0
    rows = np.flatnonzero(labelled)
    text = rows if found.of == "text" else np.searchsorted(np.cumsum(lengths), rows, side="right")
    own, text_of = np.unique(text, return_inverse=True)
    if len(own) < 2:
        raise UsageError("one text has labels", why="whole texts are held out", hint="labels in several texts")
    kinds_of_texts = found.codes[labelled] if found.of == "text" else None
    held = held_out_texts(len(own), held_out, seed, kinds_of_texts)
    kinds = token_kinds(run, stack)[labelled] if found.of == "token" else None
    split = _Split(found, text_of.astype(np.int32), kinds, held, draws, seed)
    if len(split.classes) < 2:
        why = f"all {len(split.train[0])} rows of the {split.train_texts} others are of one class"
        hint = "another `seed`, or a smaller share of `held_out` texts"
        raise UsageError(f"all other classes of {found.name} are in texts that are held out", why=why, hint=hint)
    return split


class _Fit:
    """What was fitted at one place: the scaling, all regressions, and how many rows of each text each has right."""

    def __init__(
        self,
        place: _Place,
        scaling: Scaling,
        regressions: Sequence[Regression],
        correct: Int64[np.ndarray, "regression text"],
    ) -> None:
        self.place, self.scaling, self.regressions, self.correct = place, scaling, regressions, correct

    @property
    def converged(self) -> bool:
        return all(regression.converged for regression in self.regressions)


def _fitted(
    run: Run, spec: ArraySpec, place: _Place, split: _Split, position: Position, penalty: float, progress: OnStep
) -> _Fit:
    stands = None if split.labels.of == "token" else position
    train = ProbeRows(run, spec, *place, stands, split.is_train)
    scaling = scaling_of(train)
    ends = [PRECISE, *[ROUGH] * (len(split.train) - 1)]
    regressions = fit_all(train, split.train, scaling, penalty=penalty, tolerances=ends, progress=progress)
    held = ProbeRows(run, spec, *place, stands, split.is_held)
    correct = correct_by_text(held, regressions, split.held, scaling, split.texts, len(split.totals))
    return _Fit(place, scaling, regressions, correct)


def _of_random_rows(split: _Split, width: int, penalty: float, seed: int) -> float:
    """The accuracy of a probe of the label on rows of random signs."""
    n_train, n_held = len(split.train[0]), len(split.held[0])

    def train() -> Iterator[np.ndarray]:
        return random_rows(n_train, width, seed, "training rows")

    def held() -> Iterator[np.ndarray]:
        return random_rows(n_held, width, seed, "held-out rows")

    scaling = scaling_of(train)
    regressions = fit_all(train, split.train[:1], scaling, penalty=penalty, tolerances=[ROUGH])
    correct = correct_by_text(held, regressions, split.held[:1], scaling, split.texts, len(split.totals))
    return float(correct.sum() / n_held)


def _width_of(spec: ArraySpec, places: Sequence[_Place]) -> int:
    return spec.width * (max(1, len(spec.heads)) if places[0][1] is None else 1)


def _part(progress: OnStep, number: int, of: int) -> OnStep:
    if progress is quiet:
        return quiet

    def told(passes: int, _: int) -> None:
        progress(number * _SHOWN_PASSES + min(passes, _SHOWN_PASSES - 1), of * _SHOWN_PASSES)

    return told


def _told(
    run: Run,
    spec: ArraySpec,
    split: _Split,
    fitted: Sequence[_Fit],
    random: float,
    offset: int,
    position: Position,
    penalty: float,
    held_out: float,
    draws: int,
    seed: int,
) -> Probes:
    n_scores = len(split.train)
    correct = np.concatenate([own.correct for own in fitted])
    hits: Float64[np.ndarray, "score"] = correct.sum(axis=1) / split.totals.sum()
    drawn = resampled(correct, split.totals, seed)
    with_control = split.labels.of == "token"
    probes: list[Probe] = []
    for i, own in enumerate(fitted):
        here = slice(i * n_scores, (i + 1) * n_scores)
        true = own.regressions[0]
        probes.append(
            Probe(
                *own.place,
                true.weights,
                true.bias,
                own.scaling.mean,
                own.scaling.scale,
                Scores.of(hits[here], drawn[:, here], draws, with_control=with_control),
                max(regression.passes for regression in own.regressions),
                own.converged,
            )
        )
    about = Fitted(
        label=split.labels.name,
        of=split.labels.of,
        offset=offset,
        run=run.name,
        model=run.about.model_and_adapter,
        model_weights=run.about.model_weights,
        site=str(spec.key),
        position=None if with_control else position,
        train_rows=len(split.train[0]),
        train_texts=split.train_texts,
        rows=len(split.held[0]),
        texts=len(split.totals),
        majority=split.majority,
        by_token=split.by_token,
        random=random,
        penalty=float(penalty),
        held_out=float(held_out),
        draws=draws,
        seed=seed,
    )
    return Probes(split.classes, tuple(split.counts.tolist()), tuple(probes), about)
