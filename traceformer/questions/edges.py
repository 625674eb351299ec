"""Effects of edges: what one part adds to the residual stream, changed in what one other part reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from traceformer.analysis.agreement import largest
from traceformer.analysis.edges import Edged, EdgeEffects, parts_of
from traceformer.analysis.effects import mean_over_pairs, normalised
from traceformer.errors import Unsupported, check_choice, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.patch import How, pairs_of
from traceformer.questions.sweeps import check_model
from traceformer.shapes import Float64
from traceformer.texts.contrasts import Contrasts

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.edits.edges import Stream
    from traceformer.capture.edits.metrics import Metric, MetricFunction
    from traceformer.capture.edits.pairing import AnswerToken, PairOfIds
    from traceformer.capture.edits.slopes import OfLogits

__all__ = ["edges"]


def edges(
    model: LoadedModel,
    clean: str | Sequence[int] | None = None,
    corrupt: str | Sequence[int] | None = None,
    *,
    answer: str | int | None = None,
    wrong: str | int | None = None,
    pairs: Contrasts | None = None,
    metric: "str | MetricFunction" = "logit_difference",
    how: How = "denoise",
    metric_position: int = -1,
    answer_token: "AnswerToken" = "only",
    steps: int = 1,
    exact_top: int = 0,
    batch_size: int = 8,
    progress: OnStep | None = None,
) -> EdgeEffects:
    """Returns the effect of every edge of a decoder's residual stream, estimated, and of the largest ones measured.

        edges(model, "ab ab ab a", "ab ab cb a", answer="b", wrong="c", exact_top=20).to_frame()

    An edge goes from a sender (the embedding, a head's z @ W_O, an MLP) to a receiver (queries, keys or values of a
    head, an MLP, the logits). Its effect is what becomes of the corrupt text's metric if the receiver reads what the
    sender adds to the clean text, at all positions, and everything else is as it is, as a share of the difference
    between both texts. One pass forward and backward estimates all of them (edge attribution patching, Syed et al.,
    2023); one is measured by two passes.

    Args:
        model: A decoder whose blocks add to the stream what heads and MLPs make, without norms behind them.
        clean: A text, or token ids.
        corrupt: Another one of as many tokens.
        answer: What should follow the clean text: a text of one token, or a token id.
        wrong: What should not.
        pairs: In place of these four: the name of a set, a file, or a list of objects, as of `patch`.
        metric: `logit_difference`, `log_prob`, `probability`, `loss`, `kl`, or a function of torch that takes logits
            (text, position, vocabulary) and returns a number per text.
        how: `denoise` runs the corrupt text with what is added to the clean one, `noise` the other way round.
        metric_position: Where the metric looks; the last token by default.
        answer_token: Whether an answer of several tokens is refused, or stands for its `first` one.
        steps: At how many points of the way from one text to the other slopes are taken, in a pass each (Hanna et al.,
            2024).
        exact_top: How many edges to measure: those of the largest mean estimates.
        batch_size: Edges that are measured at a time.
        progress: Told how many of how many steps are done.

    Raises:
        UsageError: texts of unequal length, an answer that is missing or of several tokens, a metric without a
            gradient.
        Unsupported: an encoder; a model whose stream is not the sum of what its parts add, or whose attention computes
            queries within itself.
        NotFound, Unreadable: no such pairs.
    """
    from traceformer.capture.edits.metrics import metric_named
    from traceformer.capture.edits.pairing import read_pairs
    from traceformer.models.behaviour import evaluating

    check_model(model, batch_size)
    if model.dims.arch != "dec":
        raise Unsupported(f"edges of {model.name}", why="it is no decoder: there is no one stream to the logits")
    if model.dims.stacks["dec"].attending is not None:
        raise Unsupported(f"edges of {model.name}", why="what its layers without attention add is of no head")
    check_choice("how", how, ("denoise", "noise"))
    check_whole("steps", steps, 1)
    check_whole("exact_top", exact_top, 0)
    look = metric_named(metric, metric_position)
    asked = pairs_of(clean, corrupt, answer, wrong, pairs)
    read = read_pairs(model, asked, look, answer_token=answer_token, can_align=False)
    reading = _Reading(model, look, how)
    # Read anew for what is measured, so that memory does not grow with pairs.
    n_measured = len(read) if exact_top else 0
    with steps_watched("edges", progress) as told, evaluating(model.model):
        found: list[_Found] = []
        for number, pair in enumerate(read):
            own = reading.of(pair)
            found.append(_Found(own.untouched, own.other, own.stream.estimates(own.metric, steps) / own.span))
            told(number + 1, len(read) + n_measured)
        dims = model.dims.stacks["dec"]
        senders, receivers = parts_of(dims.n_layers, dims.n_heads, dims.n_kv_heads)
        estimates = np.stack([each.estimates for each in found])
        exact = np.full(estimates.shape, np.nan)
        places = largest(mean_over_pairs(estimates), exact_top)
        chosen = [(senders[i], receivers[j]) for i, j in places]
        for number, pair in enumerate(read[:n_measured]):
            own = reading.of(pair)
            for first in range(0, len(chosen), batch_size):
                part = slice(first, first + batch_size)
                effects = (own.stream.measure(own.metric, chosen[part]) - own.untouched) / own.span
                exact[number][tuple(np.array(places[part]).T)] = effects
            told(len(read) + number + 1, len(read) + n_measured)
    untouched, other = (np.array(ends) for ends in zip(*((each.untouched, each.other) for each in found), strict=True))
    return EdgeEffects(
        senders,
        receivers,
        estimates,
        exact,
        *((other, untouched) if how == "denoise" else (untouched, other)),
        tuple(pair.name for pair in read),
        Edged(
            model=model.source_and_adapter,
            digest=model.digest,
            metric=look.name,
            position=look.position,
            how=how,
            steps=steps,
        ),
    )


class _Found(NamedTuple):
    untouched: float
    other: float
    estimates: Float64[np.ndarray, "sender receiver"]


@dataclass(frozen=True, slots=True)
class _Own:
    """One pair: the stream of the text that is run, the metric of passes, of this text untouched, and of the other."""

    stream: "Stream"
    metric: "OfLogits"
    untouched: float
    other: float

    @property
    def span(self) -> float:
        """What effects are shares of; NaN where there is nothing to share."""
        return float(1 / normalised(np.ones(1) + self.untouched, np.array([self.other]), np.array([self.untouched]))[0])


class _Reading:
    """Reads pairs with one model, for one metric."""

    def __init__(self, model: LoadedModel, metric: "Metric", how: How) -> None:
        from traceformer.capture.edits.started import Passes

        self._model, self._metric, self._how, self._passes = model, metric, how, Passes(model)

    def of(self, pair: "PairOfIds") -> _Own:
        import torch

        from traceformer.capture.edits.edges import Stream
        from traceformer.capture.edits.metrics import goal_of
        from traceformer.capture.edits.slopes import Read

        at = self._metric.at(self._passes.n_answers(len(pair.clean)))
        ids = [torch.tensor([text.ids], device=self._passes.device) for text in (pair.clean, pair.corrupt)]
        clean, corrupt = (Read(self._passes, each, at) for each in ids)
        with torch.no_grad():
            both = [each.logits({}) for each in (clean, corrupt)]
        goal = goal_of(self._metric, answer=[pair.answer], wrong=[pair.wrong], ids=ids[0], clean_logits=both[0])

        def metric(logits: "Tensor") -> "Tensor":
            """Of a pass over as many copies of the text as there are rows."""
            return self._metric.of(logits, goal.rows(torch.zeros(len(logits), dtype=torch.long, device=logits.device)))

        ends = (clean, both[0]), (corrupt, both[1])
        (other, others), (run, own) = ends if self._how == "denoise" else ends[::-1]
        return _Own(Stream(self._model, run, other), metric, float(metric(own)), float(metric(others)))
