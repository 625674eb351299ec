"""Directions that tell two kinds of activations apart: fitted, and tried on examples that they were not fitted on.

1. `example_rows` makes one row of each example of a run: the mean over its tokens or its response, or its last token.
2. `fit` takes the rows of both classes, and finds a direction by one of three methods:
   `mean_diff`, the difference of the class means;
   `probe`, the weights of a logistic regression (L2, C = 1);
   `pca`, the first principal component of the differences positive[i] - negative[i] taken with both signs, as in
   Representation Engineering (Zou et al., 2023, section 3.1), where the order within each pair is random: the first
   right singular vector of the differences, which are not centred.
   All point from the negative to the positive mean. Rows are centred and divided by one number before, so that their
   mean square is 1 and C means the same for every model and layer; that turns no direction.
3. Held out, fold by fold: a direction of the other folds' rows, and the midpoint between their class means along it,
   classify the fold's rows. Rows i, i + folds, ... of both classes are fold i, so that pairs stay together.
4. The same with shuffled labels shows what that number would be if there were nothing to find.

`Direction` is what that gives for some layers, with what is known of how it was found.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from traceformer.analysis.methods import Method
from traceformer.arguments import checked
from traceformer.errors import UsageError
from traceformer.presentation import in_notebook, plain, present
from traceformer.shapes import Bool, Float, Float32, Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEWEST", "METHODS", "Direction", "Fit", "Quality", "fit", "quality"]

FEWEST = 2
_FOLDS = 5
_SHUFFLES = 10
_MOST_ITERATIONS = 10_000

Rows: TypeAlias = Float64[np.ndarray, "row d"]


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a direction tells two sets of rows apart by their projections.

    Attributes:
        accuracy: Mean of the two classes' shares of rows on the right side of the threshold, so that chance is 0.5.
        effect_size: Cohen's d, the distance of the class means in pooled standard deviations; inf where those are 0.
    """

    accuracy: float
    effect_size: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A direction fitted on all rows.

    Attributes:
        direction: Of norm 1.
        separation: The distance of the class means along it.
        threshold: The midpoint between them.
        held_out: Its quality on rows that it was not fitted on, over all folds.
        shuffled: The mean accuracy of the same with shuffled labels.
        shuffled_highest: The highest of these.
    """

    direction: Float32[np.ndarray, "d"]
    separation: float
    threshold: float
    held_out: Quality
    shuffled: float
    shuffled_highest: float

    @property
    def numbers(self) -> dict[str, float]:
        """How well it does, by names."""
        return {
            "held_out_accuracy": self.held_out.accuracy,
            "effect_size": self.held_out.effect_size,
            "shuffled_accuracy": self.shuffled,
            "shuffled_highest": self.shuffled_highest,
            "separation": self.separation,
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A trait's direction: a vector for each layer, and how it was found.

    Attributes:
        name: The trait's.
        by_layer: A vector for each layer; the only key is None where it is not said which layer it is for.
        about: How it was found, as far as that is known: method, site, position, model, model_weights, examples.
        quality: For each layer how well it does, by the names of `Fit.numbers`; empty where that is not known.
    """

    name: str
    by_layer: Mapping[int | None, Float32[np.ndarray, "d"]]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quality: Mapping[int | None, Mapping[str, float | None]] = field(
        default_factory=dict[int | None, Mapping[str, float | None]]
    )

    def __repr__(self) -> str:
        numbers = ", ".join(map(str, self.layers))
        layers = f"layer{'s' * (len(self.layers) > 1)} {numbers}" if numbers else "any layer"
        found = " at ".join(str(self.about[what]) for what in ("method", "site") if what in self.about)
        return f"Direction({self.name!r}: {f'{found}, ' if found else ''}{layers}, {self.width} wide)"

    def _repr_html_(self) -> str | None:
        return in_notebook(self) if self.quality else None

    @checked
    def save(self, path: str | Path) -> None:
        """Writes a .safetensors file with a tensor per layer, and how they were found; `project` reads it."""
        present(self, "file", path)

    @property
    def width(self) -> int:
        return len(next(iter(self.by_layer.values())))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that the vectors were made for, none where that is not said."""
        return tuple(sorted(layer for layer in self.by_layer if layer is not None))

    @property
    def best_layer(self) -> int | None:
        """The layer at which it does best on examples that it was not fitted on; None where that is not known."""
        known = [layer for layer in self.layers if self.quality.get(layer)]

        def merit(layer: int) -> tuple[float, float]:
            own = self.quality[layer]
            return own.get("held_out_accuracy") or 0.0, own.get("effect_size") or 0.0

        return max(known, key=merit, default=None)

    def at(self, layer: int | None) -> Float32[np.ndarray, "d"] | None:
        """Returns the vector to use at a layer: its own, or the only one there is, or None."""
        if len(self.by_layer) == 1:
            return next(iter(self.by_layer.values()))
        return self.by_layer.get(layer)

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per layer: the vector's norm, and how well it does."""
        import pandas as pd

        rows = [
            {"direction": self.name, "layer": layer, "norm": float(np.linalg.norm(vector))}
            | dict(self.quality.get(layer, {}))
            for layer, vector in self.by_layer.items()
        ]
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def to_json(self) -> dict[str, Any]:
        """Returns all but the vectors, of which it has the norms."""
        norms = {str(layer): float(np.linalg.norm(vector)) for layer, vector in self.by_layer.items()}
        quality = {str(layer): plain(dict(own)) for layer, own in self.quality.items()}
        return {**plain(dict(self.about)), "name": self.name, "width": self.width, "norms": norms, "quality": quality}


def fit(
    positive: Float[np.ndarray, "positive d"],
    negative: Float[np.ndarray, "negative d"],
    method: Method,
    *,
    folds: int = _FOLDS,
    shuffles: int = _SHUFFLES,
    seed: int = 0,
) -> Fit:
    """Returns the direction from the negative rows to the positive ones.

    Raises:
        UsageError: fewer than two rows of a class, unequal numbers for `pca`, NaN, or no difference at all.
    """
    if method not in METHODS:
        raise UsageError(f"no method {method!r}", hint=f"choose from {' '.join(METHODS)}")
    fewest = min(len(positive), len(negative))
    if fewest < FEWEST:
        raise UsageError(f"{len(positive)} positive and {len(negative)} negative examples", why="it takes two of each")
    if method == "pca" and len(positive) != len(negative):
        raise UsageError(
            "pca pairs the positive examples with the negative ones",
            why=f"there are {len(positive)} and {len(negative)}",
            hint="as many of both, or the method mean_diff or probe",
        )
    from threadpoolctl import threadpool_limits

    rows = np.concatenate([positive, negative]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise UsageError("the activations hold NaN or inf")
    centre = rows.mean(axis=0)
    scale = float(np.sqrt(np.square(rows - centre).mean()))
    is_positive = np.arange(len(rows)) < len(positive)
    if scale == 0 or not np.any(_mean_diff(rows, is_positive)):
        raise UsageError("the positive and the negative examples have the same mean", why="they may be the same texts")
    rows, axes = _rotated((rows - centre) / scale)
    folds, random = min(folds, fewest), np.random.default_rng(seed)
    # One thread: these are many small fits, in which threads would wait for one another.
    with threadpool_limits(1, "blas"):
        own = _direction(rows, is_positive, method)
        held_out = _held_out(rows, is_positive, method, folds)
        shuffled = [_held_out(rows, random.permutation(is_positive), method, folds).accuracy for _ in range(shuffles)]
    direction = own @ axes
    return Fit(
        direction.astype(np.float32),
        float(_mean_diff(rows, is_positive) @ own) * scale,
        _midpoint(rows @ own, is_positive) * scale + float(centre @ direction),
        held_out,
        float(np.mean(shuffled)) if shuffled else np.nan,
        max(shuffled, default=np.nan),
    )


def quality(
    positive: Float[np.ndarray, "positive"], negative: Float[np.ndarray, "negative"], threshold: float
) -> Quality:
    """Returns how well projections tell the classes apart; at the threshold itself a row is negative."""
    accuracy = ((positive > threshold).mean() + (negative <= threshold).mean()) / 2
    spread = (len(positive) - 1) * positive.var(ddof=1) + (len(negative) - 1) * negative.var(ddof=1)
    pooled = np.sqrt(spread / (len(positive) + len(negative) - 2))
    difference = positive.mean() - negative.mean()
    effect = difference / pooled if pooled > 0 else np.copysign(np.inf, difference) if difference else 0.0
    return Quality(float(accuracy), float(effect))


def _rotated(rows: Rows) -> tuple[Float64[np.ndarray, "row axis"], Float64[np.ndarray, "axis d"]]:
    """Returns the rows in as few coordinates as they span, and the axes of these.

    Every method finds a direction within the span of the rows it is given, so nothing is lost, and what is fitted many
    times over is small.
    """
    if len(rows) >= rows.shape[1]:
        return rows, np.eye(rows.shape[1])
    axes = np.linalg.qr(rows.T)[0].T
    return rows @ axes.T, axes


def _held_out(rows: Rows, is_positive: Bool[np.ndarray, "row"], method: Method, folds: int) -> Quality:
    """Returns the quality over all folds; each fold's projections are counted from its own threshold."""
    projected = np.empty(len(rows))
    for held in _folds(is_positive, folds):
        direction = _direction(rows[~held], is_positive[~held], method)
        threshold = _midpoint(rows[~held] @ direction, is_positive[~held])
        projected[held] = rows[held] @ direction - threshold
    return quality(projected[is_positive], projected[~is_positive], 0.0)


def _folds(is_positive: Bool[np.ndarray, "row"], folds: int) -> Iterator[Bool[np.ndarray, "row"]]:
    own = (np.flatnonzero(is_positive), np.flatnonzero(~is_positive))
    for fold in range(folds):
        held = np.zeros(len(is_positive), bool)
        for rows in own:
            held[rows[fold::folds]] = True
        yield held


def _midpoint(projected: Float64[np.ndarray, "row"], is_positive: Bool[np.ndarray, "row"]) -> float:
    return float((projected[is_positive].mean() + projected[~is_positive].mean()) / 2)


def _direction(rows: Rows, is_positive: Bool[np.ndarray, "row"], method: Method) -> Float64[np.ndarray, "d"]:
    found = METHODS[method](rows, is_positive)
    found = found / (np.linalg.norm(found) or 1.0)  # shuffled labels may leave no difference: nothing is found then
    return found if found @ _mean_diff(rows, is_positive) >= 0 else -found


def _mean_diff(rows: Rows, is_positive: Bool[np.ndarray, "row"]) -> Float64[np.ndarray, "d"]:
    return rows[is_positive].mean(axis=0) - rows[~is_positive].mean(axis=0)


def _probe(rows: Rows, is_positive: Bool[np.ndarray, "row"]) -> Float64[np.ndarray, "d"]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=_MOST_ITERATIONS)
    return np.asarray(model.fit(rows, is_positive).coef_[0], np.float64)


def _pca(rows: Rows, is_positive: Bool[np.ndarray, "row"]) -> Float64[np.ndarray, "d"]:
    differences = rows[is_positive] - rows[~is_positive]
    return np.linalg.svd(differences, full_matrices=False)[2][0]


METHODS: Mapping[Method, Callable[[Rows, Bool[np.ndarray, "row"]], Float64[np.ndarray, "d"]]] = {
    "mean_diff": _mean_diff,
    "probe": _probe,
    "pca": _pca,
}
