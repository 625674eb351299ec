"""Affine maps tuned until what is read out of a layer's rows is what the model says in the end. No model is run.

1. `TorchReadout` is a model's norm and unembedding in torch. Of rows it gives the KL divergence from what others say,
   and its slope, a block of words at a time: logits of all words are there only if they fit one block.
2. `tune` has a map M of whitened rows: x about their mean, along the axes along which they vary, each over its own
   deviation, so that one length of step fits them all. It begins as the map that it is given, and Adam changes it
   against the mean KL of batches.
3. Now and then the KL of other rows is measured; the map that did best on those is what is returned.

All is float32, and depends on rows, seed and number of threads only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from traceformer.analysis.ridge import Affine, Spectrum
from traceformer.models.readout import Readout
from traceformer.progress import OnStep, quiet
from traceformer.shapes import Float32, Float64

__all__ = ["Agreement", "TorchReadout", "Tuning", "tune"]

_BLOCK_BYTES = 16 << 20  # of the logits at hand, on either side
_KEPT_BYTES = 1 << 30  # an unembedding up to so many bytes is read once
_WORDS = 8192


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near rows say what others say.

    Attributes:
        kl: Of each row KL(what the other says || what it says), in nats.
        same: Whether the likeliest word is the same.
        slope: Of the KL of each row by what the unembedding is multiplied with; None where it was not asked for.
    """

    kl: Tensor
    same: Tensor
    slope: Tensor | None


class TorchReadout:
    """A model's own final norm, unembedding and softcap; see `Readout`."""

    def __init__(self, readout: Readout) -> None:
        self._readout = readout
        self._norm_weight, self._norm_bias = _tensor(readout.norm_weight), _tensor(readout.norm_bias)
        self._project_out, self._bias = _tensor(readout.project_out), _tensor(readout.bias)
        small = 4 * readout.d_vocab * readout.unembedding.shape[1] <= _KEPT_BYTES
        self._kept = [*self._read()] if small else None

    def _read(self) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, self._readout.d_vocab, _WORDS):
            last = min(first + _WORDS, self._readout.d_vocab)
            yield first, torch.from_numpy(np.ascontiguousarray(self._readout.unembedding.rows(first, last)))

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        yield from self._read() if self._kept is None else self._kept

    @property
    def rows_at_once(self) -> int:
        """How many rows have room."""
        return max(1, _BLOCK_BYTES // (4 * min(_WORDS, self._readout.d_vocab)))

    def normed(self, rows: Tensor) -> Tensor:
        """Returns what the unembedding is multiplied with, as `analysis.lens.normed` does."""
        own = self._readout
        if own.norm is not None:
            if own.norm.startswith("layer"):
                rows = rows - rows.mean(dim=1, keepdim=True)
            rows = rows / torch.sqrt(rows.square().mean(dim=1, keepdim=True) + own.epsilon)
            if self._norm_weight is not None:
                rows = rows * (self._norm_weight + 1 if own.norm.endswith("plus_one") else self._norm_weight)
            if self._norm_bias is not None:
                rows = rows + self._norm_bias
        if self._project_out is not None:
            rows = rows @ self._project_out.T
        return rows * own.scale

    def _logits(self, rows: Tensor, first: int, words: Tensor) -> Tensor:
        logits = rows @ words.T
        if self._bias is not None:
            logits += self._bias[first : first + len(words)]
        cap = self._readout.softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def agreement(self, rows: Tensor, others: Tensor, *, slope: bool = False) -> Agreement:
        """Returns how near `rows` say what `others` say; both are normed."""
        parts = [
            self._agreement(rows[here], others[here], slope=slope)
            for here in (slice(i, i + self.rows_at_once) for i in range(0, len(rows), self.rows_at_once))
        ]
        slopes = [part.slope for part in parts if part.slope is not None]
        return Agreement(
            torch.cat([part.kl for part in parts]),
            torch.cat([part.same for part in parts]),
            torch.cat(slopes) if slopes else None,
        )

    def _agreement(self, rows: Tensor, others: Tensor, *, slope: bool) -> Agreement:
        lone = None
        own, other = _LogSum(len(rows)), _LogSum(len(rows))
        for first, words in self._blocks():
            logits, aims = self._logits(rows, first, words), self._logits(others, first, words)
            own.add(logits, first)
            other.add(aims, first)
            lone = (logits, aims)
        if self._readout.d_vocab > _WORDS:
            lone = None
        kl, by_rows = torch.zeros(len(rows)), torch.zeros_like(rows) if slope else None
        for first, words in self._blocks():
            logits, aims = lone or (self._logits(rows, first, words), self._logits(others, first, words))
            log_own, log_other = logits - own.total[:, None], aims - other.total[:, None]
            aimed = log_other.exp()
            kl += (aimed * (log_other - log_own)).sum(dim=1)
            if by_rows is not None:
                by_logits = log_own.exp() - aimed
                if self._readout.softcap is not None:
                    by_logits *= 1 - (logits / self._readout.softcap).square()
                by_rows += by_logits @ words
        return Agreement(kl, own.likeliest == other.likeliest, by_rows)

    def measured(
        self, rows: Float32[np.ndarray, "row d_model"], others: Float32[np.ndarray, "row d_embed"]
    ) -> tuple[float, float]:
        """Returns the mean KL, in nats, and the share of rows with the same likeliest word; `others` are normed."""
        kl = same = 0.0
        for i in range(0, len(rows), self.rows_at_once):
            here = slice(i, i + self.rows_at_once)
            found = self.agreement(self.normed(torch.from_numpy(rows[here])), torch.from_numpy(others[here]))
            kl += float(found.kl.double().sum())
            same += float(found.same.sum())
        return kl / len(rows), same / len(rows)


class _LogSum:
    """The logarithm of the sum of exponentials, and the largest, of logits that come in blocks."""

    def __init__(self, n: int) -> None:
        self.total = torch.full((n,), -torch.inf)
        self.likeliest = torch.zeros(n, dtype=torch.int64)
        self._largest = torch.full((n,), -torch.inf)

    def add(self, logits: Tensor, first: int) -> None:
        self.total = torch.logaddexp(self.total, torch.logsumexp(logits, dim=1))
        largest, place = logits.max(dim=1)
        self.likeliest = torch.where(largest > self._largest, place + first, self.likeliest)
        self._largest = torch.maximum(largest, self._largest)


def _tensor(values: Float32[np.ndarray, "..."] | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(np.array(values))


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a map is tuned.

    Attributes:
        steps: Batches.
        batch: Rows of one.
        rate: Of Adam: by what share of its deviation a number of a row may change at a step; it falls to zero along
            half a cosine.
        checks: How often other rows are measured.
    """

    steps: int = 300
    batch: int = 512
    rate: float = 0.03
    checks: int = 20


def tune(
    start: Affine,
    spectrum: Spectrum,
    readout: TorchReadout,
    fitted: tuple[Float32[np.ndarray, "row d_model"], Float32[np.ndarray, "row d_embed"]],
    checked: tuple[Float32[np.ndarray, "check d_model"], Float32[np.ndarray, "check d_embed"]],
    how: Tuning,
    *,
    seed: int = 0,
    progress: OnStep = quiet,
) -> Affine:
    """Returns the map whose read-out of `checked` rows is nearest to what these say in the end, in mean KL.

    Args:
        start: The map to begin with.
        spectrum: Of the rows.
        readout: The model's.
        fitted: A layer's rows to fit, and for each of them the last layer's, normed.
        checked: Other rows, and the same for them.
        how: Steps and batches.
        seed: Of the batches.
        progress: Told how many of how many steps are done.
    """
    whitened, (rows, others) = Whitened.of(spectrum), fitted
    inputs, aims = torch.from_numpy(whitened.of_rows(rows)), torch.from_numpy(others)
    check_inputs, check_aims = torch.from_numpy(whitened.of_rows(checked[0])), torch.from_numpy(checked[1])
    matrix, vector = (torch.from_numpy(each.astype(np.float32)).requires_grad_() for each in whitened.of_map(start))
    # All numbers of a row of the matrix may move at once, each by as much: so many of them are one deviation.
    rate = how.rate * float(matrix.detach().norm(dim=1).median()) / len(vector) ** 0.5
    optimiser = torch.optim.Adam([matrix, vector], lr=rate)
    random = np.random.default_rng(seed)
    order = random.permutation(len(rows))
    at, every = 0, max(1, how.steps // how.checks)
    best, least = (matrix.detach().clone(), vector.detach().clone()), np.inf
    for step in range(how.steps + 1):
        if step % every == 0 or step == how.steps:
            with torch.no_grad():
                found = readout.agreement(readout.normed(check_inputs @ matrix.T + vector), check_aims)
            kl = float(found.kl.double().mean())
            if kl < least:
                best, least = (matrix.detach().clone(), vector.detach().clone()), kl
        if step == how.steps:
            break
        if at + how.batch > len(order):
            order, at = random.permutation(len(rows)), 0
        here = torch.from_numpy(order[at : at + how.batch])
        at += how.batch
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / how.steps))
        optimiser.zero_grad()
        normed = readout.normed(inputs[here] @ matrix.T + vector)
        slope = readout.agreement(normed.detach(), aims[here], slope=True).slope
        assert slope is not None
        normed.backward(slope / len(here))
        optimiser.step()
        progress(step + 1, how.steps)
    return whitened.back(*(each.numpy().astype(np.float64) for each in best))


@dataclass(frozen=True, slots=True)
class Whitened:
    """Rows about their mean, along the axes along which they vary, each over its own deviation."""

    mean: Float64[np.ndarray, "d"]
    axes: Float64[np.ndarray, "d axis"]
    deviations: Float64[np.ndarray, "axis"]

    @classmethod
    def of(cls, spectrum: Spectrum) -> "Whitened":
        variances = spectrum.powers / spectrum.n
        floor = 1e-3 * float(variances.mean())
        return cls(spectrum.mean, spectrum.axes, np.sqrt(variances + floor))

    def of_rows(self, rows: Float32[np.ndarray, "row d"]) -> Float32[np.ndarray, "row axis"]:
        to = (self.axes / self.deviations).astype(np.float32)
        return (rows - self.mean.astype(np.float32)) @ to

    def of_map(self, own: Affine) -> tuple[Float64[np.ndarray, "d axis"], Float64[np.ndarray, "d"]]:
        return (own.matrix @ self.axes) * self.deviations, own.vector + own.matrix @ self.mean

    def back(self, matrix: Float64[np.ndarray, "d axis"], vector: Float64[np.ndarray, "d"]) -> Affine:
        whole = (matrix / self.deviations) @ self.axes.T
        return Affine(whole, vector - whole @ self.mean)
