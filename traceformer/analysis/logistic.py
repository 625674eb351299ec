"""Multinomial logistic regressions over rows that are read again in every pass: what grows with their number is labels.

1. A first pass finds the columns' means and standard deviations (of the population; 1 for a column that is constant),
   with which rows are standardised from then on, and the products of all columns.
2. A regression minimises, over weights W (class, d) and a bias b (class),

       sum over rows of -log softmax(W x + b)[label]  +  penalty / 2 * |W|^2

   which is the objective of scikit-learn's `LogisticRegression(C=1 / penalty)`. Of two classes only the second has
   weights, as there.
3. L-BFGS does (Nocedal and Wright, "Numerical Optimization", 2006, algorithm 7.4), from W = 0 and the logarithms of the
   classes' shares. Each direction begins with an inverse of the Hessian as it were if what the rows are and how sure
   the predictions are had nothing to do with each other:

       mean over rows of (diag(p) - p p^T)  (x)  X^T X  +  penalty

   At the start that is the Hessian itself. Its factors' eigenvectors make it diagonal. So columns that move together,
   as those of a residual stream do, cost no further passes.
4. Regressions over the same rows share each pass: one product with their rows, and one back.
5. A regression ends when the norm of its gradient, in float64, is at most 0.0001 (or what is asked for), or as much of
   a penalty below 1. The penalty makes the objective strongly convex in the weights: their distance from where they
   belong has a norm of about 0.0001 at most then, and each by itself is several times nearer. It also ends where
   float64 sees no descent.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from traceformer.progress import OnStep, quiet
from traceformer.shapes import Bool, Float, Float64, Int32, Int64

__all__ = ["PRECISE", "ROUGH", "Blocks", "Regression", "Scaling", "correct_by_text", "fit_all", "scaling_of"]

Blocks: TypeAlias = Callable[[], Iterator[Float[np.ndarray, "row d"]]]
"""What gives all rows once more, in the same order, some at a time."""

Found = TypeVar("Found")

_ROWS = 2048  # rows that are looked at together
_WIDEST = 2048  # columns, up to which all products are made
_REMEMBERED = 10  # steps that a direction is made of
PRECISE, ROUGH = 1e-4, 0.1  # norms of a gradient at the end; of labels, and of those of controls
_MOST_PASSES = 1000
_ENOUGH, _NOISE, _SHORTEST = 1e-4, 1e-12, 1e-6
_EPSILON = np.finfo(np.float64).eps


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """How rows are standardised, and the products of columns that are: `axes @ diag(products) @ axes.T` is X^T X.

    Of more than 2,048 columns only the products of each with itself are known, and `axes` is None.
    """

    n_rows: int
    mean: Float64[np.ndarray, "d"]
    scale: Float64[np.ndarray, "d"]
    products: Float64[np.ndarray, "d"]
    axes: Float64[np.ndarray, "d d"] | None

    def standardised(self, rows: Float[np.ndarray, "row d"]) -> Float64[np.ndarray, "row d"]:
        """Returns the rows less the mean, over the scale."""
        found = rows.astype(np.float64)
        found -= self.mean
        found /= self.scale
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """What was fitted.

    Attributes:
        classes: The codes of the classes that the training rows have, in rising order.
        weights: Of standardised columns; of two classes the first's are 0.
        bias: Of each class.
        passes: How often the rows were read for it.
        converged: Whether it ended for another reason than too many passes.
    """

    classes: Int32[np.ndarray, "class"]
    weights: Float64[np.ndarray, "class d"]
    bias: Float64[np.ndarray, "class"]
    passes: int
    converged: bool

    def logits(self, standardised: Float64[np.ndarray, "row d"]) -> Float64[np.ndarray, "row class"]:
        """Returns what a softmax makes probabilities of."""
        return standardised @ self.weights.T + self.bias


def scaling_of(blocks: Blocks) -> Scaling:
    """Returns how rows are standardised: population means and standard deviations, in float64, of one pass.

    Products are summed around the first block's mean, so that a column far from zero loses no digits.
    """
    origin = next(_cut(blocks)).mean(axis=0, dtype=np.float64)
    whole = len(origin) <= _WIDEST
    n, sums, squares = 0, np.zeros(len(origin)), np.zeros((len(origin),) * (2 if whole else 1))

    def products_of(rows: Float[np.ndarray, "row d"], _: slice) -> tuple[int, np.ndarray, np.ndarray]:
        shifted = rows.astype(np.float64)
        shifted -= origin
        own = shifted.T @ shifted if whole else np.einsum("rd,rd->d", shifted, shifted)
        return len(rows), shifted.sum(axis=0), own

    for count, own_sums, own_squares in _each(blocks, products_of):
        n += count
        sums += own_sums
        squares += own_squares
    offset = sums / n
    mean = origin + offset
    own = squares.diagonal() if squares.ndim == 2 else squares
    variance = np.maximum(own / n - offset**2, 0.0)
    # What is left of a constant column by rounding, as scikit-learn's StandardScaler bounds it.
    constant = variance <= n * _EPSILON * variance + (n * mean * _EPSILON) ** 2
    scale = np.where(constant, 1.0, np.sqrt(variance))
    if squares.ndim == 1:
        return Scaling(n, mean, scale, n * variance / scale**2, None)
    products = (squares - n * np.outer(offset, offset)) / np.outer(scale, scale)
    values, axes = np.linalg.eigh(products)
    return Scaling(n, mean, scale, np.maximum(values, 0.0), axes)


def fit_all(
    blocks: Blocks,
    labels: Sequence[Int32[np.ndarray, "row"]],
    scaling: Scaling,
    *,
    penalty: float,
    tolerances: Sequence[float] = (),
    progress: OnStep = quiet,
) -> list[Regression]:
    """Returns a regression of each of several labellings of the same rows.

    Args:
        blocks: The rows, once for each pass.
        labels: For each labelling, each row's class.
        scaling: Of these rows.
        penalty: On half the squared norm of the weights.
        tolerances: For each labelling, how near the minimum it is to come; `PRECISE` for all by default.
        progress: Told after how many passes it is, and how many there are at most.
    """
    ends = tolerances or [PRECISE] * len(labels)
    searches = [_Search(codes, scaling, penalty, end) for codes, end in zip(labels, ends, strict=True)]
    for passed in range(_MOST_PASSES):
        going = [search for search in searches if search.point is not None]
        if not going:
            break
        for search, seen in zip(going, _passed(blocks, going, scaling), strict=True):
            search.tell(seen)
        progress(passed + 1, _MOST_PASSES)
    return [search.ended() for search in searches]


def correct_by_text(
    blocks: Blocks,
    regressions: Sequence[Regression],
    labels: Sequence[Int32[np.ndarray, "row"]],
    scaling: Scaling,
    texts: Int32[np.ndarray, "row"],
    n_texts: int,
) -> Int64[np.ndarray, "regression text"]:
    """Returns how many rows of each text each regression puts into their class.

    Args:
        blocks: The rows.
        regressions: What predicts: the class of the largest logit, the first of several.
        labels: For each regression, each row's class.
        scaling: That of the rows which they were fitted on.
        texts: Each row's text.
        n_texts: How many texts there are.
    """

    def right(rows: Float[np.ndarray, "row d"], here: slice) -> list[np.ndarray]:
        standardised = scaling.standardised(rows)
        return [
            texts[here][own.classes[own.logits(standardised).argmax(axis=1)] == codes[here]]
            for own, codes in zip(regressions, labels, strict=True)
        ]

    correct = np.zeros((len(regressions), n_texts), np.int64)
    for found in _each(blocks, right):
        for counts, own in zip(correct, found, strict=True):
            counts += np.bincount(own, minlength=n_texts)
    return correct


def _each(blocks: Blocks, work: Callable[[np.ndarray, slice], Found]) -> Iterator[Found]:
    """Yields what comes of some rows, which are those of a slice, after the other: in their order, whoever did it."""
    ahead: deque[Future[Found]] = deque()
    threads, start = os.cpu_count() or 1, 0
    with ThreadPoolExecutor(threads, thread_name_prefix="probe") as pool:
        for rows in _cut(blocks):
            ahead.append(pool.submit(work, rows, slice(start, start + len(rows))))
            start += len(rows)
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _cut(blocks: Blocks) -> Iterator[Float[np.ndarray, "row d"]]:
    for block in blocks():
        for first in range(0, len(block), _ROWS):
            yield block[first : first + _ROWS]


@dataclass(slots=True, eq=False)
class _Seen:
    """What a pass finds of a regression at a point: its loss over all rows, the gradient of that, and its spread.

    The spread is the mean over rows of diag(p) - p p^T; of two classes, of p (1 - p).
    """

    loss: float
    gradient: Float64[np.ndarray, "column weight"]
    spread: Float64[np.ndarray, "column column"]


def _passed(blocks: Blocks, searches: "Sequence[_Search]", scaling: Scaling) -> list[_Seen]:
    """Returns what one pass over the rows finds of several regressions; the penalty is not in it."""
    point = np.concatenate([search.point for search in searches if search.point is not None])
    weights, bias = np.ascontiguousarray(point[:, :-1].T), point[:, -1]
    ends = np.cumsum([search.columns for search in searches])
    parts = [slice(end - search.columns, end) for end, search in zip(ends, searches, strict=True)]

    def seen(rows: Float[np.ndarray, "row d"], here: slice) -> tuple[list[float], np.ndarray, list[np.ndarray]]:
        standardised = scaling.standardised(rows)
        logits = standardised @ weights
        logits += bias
        spreads = [np.zeros((search.columns, search.columns)) for search in searches]
        losses = [
            search.residuals(logits[:, part], here, spread)
            for search, part, spread in zip(searches, parts, spreads, strict=True)
        ]
        return losses, np.column_stack([logits.T @ standardised, logits.sum(axis=0)]), spreads

    sums, losses = np.zeros_like(point), np.zeros(len(searches))
    spreads = [np.zeros((search.columns, search.columns)) for search in searches]
    for own_losses, own_sums, own_spreads in _each(blocks, seen):
        sums += own_sums
        losses += own_losses
        for spread, own in zip(spreads, own_spreads, strict=True):
            spread += own
    n = scaling.n_rows
    return [
        _Seen(float(loss), sums[part], spread / n)
        for loss, part, spread in zip(losses.tolist(), parts, spreads, strict=True)
    ]


class _Search:
    """One regression's way to its minimum: `point` is where it wants to be told of next, None at the end.

    A point has a row per column of the logits: the weights, and the bias behind them.
    """

    def __init__(self, codes: Int32[np.ndarray, "row"], scaling: Scaling, penalty: float, tolerance: float) -> None:
        self._classes, own = np.unique(codes, return_inverse=True)
        self._codes = own.astype(np.int32)
        self._scaling, self._penalty, self._tolerance = scaling, penalty, tolerance
        self._binary = len(self._classes) == 2
        self.columns = 1 if self._binary else len(self._classes)
        self._passes, self._converged = 0, False
        shares = np.log(np.bincount(own) / len(own))
        first = np.zeros((self.columns, len(scaling.mean) + 1))
        first[:, -1] = shares[1] - shares[0] if self._binary else shares
        self._at = first
        self._way = self._descent(first)
        self.point: Float64[np.ndarray, "column weight"] | None = None if len(self._classes) == 1 else next(self._way)
        self._converged = self.point is None

    def residuals(
        self,
        logits: Float64[np.ndarray, "row column"],
        here: slice,
        spread: Float64[np.ndarray, "column column"],
    ) -> float:
        """Makes logits into probabilities less labels, in place; adds to the spread; returns the loss."""
        codes = self._codes[here]
        if self._binary:
            z = logits[:, 0]
            loss = np.logaddexp(0.0, z).sum() - z[codes == 1].sum()
            z[...] = 0.5 * (1.0 + np.tanh(0.5 * z))
            spread += (z * (1.0 - z)).sum()
            z -= codes
            return float(loss)
        rows = np.arange(len(codes))
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[rows, codes].sum()
        np.exp(logits, out=logits)
        totals = logits.sum(axis=1, keepdims=True)
        logits /= totals
        spread += np.diag(logits.sum(axis=0)) - logits.T @ logits
        logits[rows, codes] -= 1.0
        return float(np.log(totals).sum() - chosen)

    def tell(self, seen: _Seen) -> None:
        """Goes on from what was found at `point`."""
        self._passes += 1
        try:
            self.point = self._way.send(seen)
        except StopIteration:
            self.point, self._converged = None, True

    def ended(self) -> Regression:
        """Returns the regression as far as it is."""
        point = np.concatenate([np.zeros_like(self._at), self._at]) if self._binary else self._at
        return Regression(
            self._classes.astype(np.int32), point[:, :-1].copy(), point[:, -1].copy(), self._passes, self._converged
        )

    def _descent(
        self, point: Float64[np.ndarray, "column weight"]
    ) -> Generator[Float64[np.ndarray, "column weight"], _Seen, None]:
        """Yields the points to be told of, down to the minimum; `_at` is the lowest so far."""
        value, gradient, spread = self._penalised(point, (yield point))
        steps: list[tuple[np.ndarray, np.ndarray]] = []
        while np.linalg.norm(gradient) > self._tolerance * min(self._penalty, 1.0):
            direction = -self._towards(gradient, steps, spread)
            slope = float(np.vdot(gradient, direction))
            if slope >= 0:  # rounding: the remembered steps say nothing more
                if not steps:
                    return
                steps.clear()
                continue
            length = 1.0
            while True:
                there = point + length * direction
                there_value, there_gradient, there_spread = self._penalised(there, (yield there))
                there_slope = float(np.vdot(there_gradient, direction))
                if there_value <= value + _ENOUGH * length * slope:
                    break
                # Where losses differ by their rounding only, slopes tell (Hager and Zhang, 2005: approximate Wolfe).
                if there_value <= value + _NOISE * abs(value) and abs(there_slope) <= (1 - 2 * _ENOUGH) * abs(slope):
                    break
                if length < _SHORTEST:
                    return
                curved = there_value - value - length * slope
                shorter = -slope * length**2 / (2 * curved) if curved > 0 else 0.0
                length = float(np.clip(shorter, 0.1 * length, 0.5 * length))
            moved, turned = there - point, there_gradient - gradient
            if np.vdot(moved, turned) > _EPSILON * np.linalg.norm(moved) * np.linalg.norm(turned):
                steps = [*steps[1 - _REMEMBERED :], (moved, turned)]
            point, value, gradient, spread = there, there_value, there_gradient, there_spread
            self._at = point

    def _penalised(
        self, point: Float64[np.ndarray, "column weight"], seen: _Seen
    ) -> tuple[float, Float64[np.ndarray, "column weight"], Float64[np.ndarray, "column column"]]:
        weights = point[:, :-1]
        gradient = seen.gradient.copy()
        gradient[:, :-1] += self._penalty * weights
        return seen.loss + 0.5 * self._penalty * float(np.vdot(weights, weights)), gradient, seen.spread

    def _towards(
        self,
        gradient: Float64[np.ndarray, "column weight"],
        steps: Sequence[tuple[np.ndarray, np.ndarray]],
        spread: Float64[np.ndarray, "column column"],
    ) -> Float64[np.ndarray, "column weight"]:
        """Returns the inverse Hessian's product with the gradient, as the last steps have it."""
        inverse = self._inverse(spread)
        left, shares = gradient.copy(), list[float]()
        for moved, turned in reversed(steps):
            shares.append(float(np.vdot(moved, left) / np.vdot(moved, turned)))
            left -= shares[-1] * turned
        left = inverse(left)
        if steps:
            moved, turned = steps[-1]
            left *= float(np.vdot(moved, turned) / np.vdot(turned, inverse(turned)))
        for (moved, turned), share in zip(steps, reversed(shares), strict=True):
            left += (share - float(np.vdot(turned, left) / np.vdot(moved, turned))) * moved
        return left

    def _inverse(
        self, spread: Float64[np.ndarray, "column column"]
    ) -> Callable[[Float64[np.ndarray, "column weight"]], Float64[np.ndarray, "column weight"]]:
        values, vectors = np.linalg.eigh(spread)
        values = np.maximum(values, 0.0)
        axes, n = self._scaling.axes, self._scaling.n_rows
        curvature = np.multiply.outer(values, self._scaling.products) + self._penalty
        known: Bool[np.ndarray, "column"] = values > 1e-12 * values.max(initial=0.0)
        # A bias that all classes share changes nothing: there the curvature is 0, and so is the gradient.
        of_bias = np.where(known, 1.0 / (n * np.where(known, values, 1.0)), 0.0)

        def inverse(given: Float64[np.ndarray, "column weight"]) -> Float64[np.ndarray, "column weight"]:
            turned = vectors.T @ given
            weights, bias = turned[:, :-1], turned[:, -1] * of_bias
            weights = weights / curvature if axes is None else ((weights @ axes) / curvature) @ axes.T
            return vectors @ np.column_stack([weights, bias])

        return inverse
