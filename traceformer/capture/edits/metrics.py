"""One number of each pass: what a sweep looks at, as tensors that gradients flow through.

    metric = metric_named("logit_difference")
    metric.of(logits, goal)                                     # a number per text

A metric looks at one position (the last one by default) or at all of them, and compares logits with a `Goal`: what
should and should not come there, which tokens come next, what the clean text's pass predicted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from traceformer.errors import NumericError, UsageError, check_choice, check_whole

__all__ = ["METRICS", "Goal", "Metric", "MetricFunction", "goal_of", "metric_named"]

MetricFunction: TypeAlias = Callable[[Tensor], Tensor]
"""Takes logits (text, position, vocabulary), returns a number per text."""


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """What logits of some texts are compared with; None for what no metric asked for.

    Attributes:
        answer: The token that should come, of each text.
        wrong: The one that should not.
        targets: The token that comes next at each position but the last: (text, position - 1).
        clean: The log-probabilities of the clean texts at the position: (text, vocabulary).
    """

    answer: Tensor | None = None
    wrong: Tensor | None = None
    targets: Tensor | None = None
    clean: Tensor | None = None

    def rows(self, index: Tensor) -> "Goal":
        """Returns the goal of the texts with these numbers, in this order."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return Goal(**{name: None if tensor is None else tensor[index] for name, tensor in given.items()})


def _logit_difference(logits: Tensor, goal: Goal) -> Tensor:
    return _at(logits[:, 0], goal.answer) - _at(logits[:, 0], goal.wrong)


def _log_prob(logits: Tensor, goal: Goal) -> Tensor:
    return _at(logits[:, 0], goal.answer) - logits[:, 0].logsumexp(-1)


def _probability(logits: Tensor, goal: Goal) -> Tensor:
    return _log_prob(logits, goal).exp()


def _kl(logits: Tensor, goal: Goal) -> Tensor:
    assert goal.clean is not None
    return (goal.clean.exp() * (goal.clean - logits[:, 0].log_softmax(-1))).sum(-1)


def _loss(logits: Tensor, goal: Goal) -> Tensor:
    assert goal.targets is not None
    before = logits[:, : goal.targets.shape[1]]
    return (before.logsumexp(-1) - before.gather(-1, goal.targets[..., None])[..., 0]).mean(-1)


def _at(logits: Tensor, tokens: Tensor | None) -> Tensor:
    assert tokens is not None
    return logits.gather(-1, tokens[:, None])[:, 0]


METRICS: dict[str, tuple[Callable[[Tensor, Goal], Tensor], tuple[str, ...]]] = {
    "logit_difference": (_logit_difference, ("answer", "wrong")),
    "log_prob": (_log_prob, ("answer",)),
    "probability": (_probability, ("answer",)),
    "loss": (_loss, ("targets",)),
    "kl": (_kl, ("clean",)),
}
"""Name -> its function, and what of a goal it needs.

`logit_difference`: the answer's logit less the wrong one's. `log_prob` and `probability`: the answer's. `loss`: the
mean of -log p over the clean text's next tokens. `kl`: how far a pass's prediction is from the clean text's, in nats.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A number of each pass.

    Attributes:
        name: As in `METRICS`, or a function's own.
        position: The position whose logits it takes, negative from the end; None for those of all positions.
        needs: What of a goal it needs.
    """

    name: str
    function: Callable[[Tensor, Goal], Tensor]
    position: int | None
    needs: tuple[str, ...] = ()

    def of(self, logits: Tensor, goal: Goal) -> Tensor:
        """Returns the metric of each text from logits (text, position, vocabulary), of the one position or of all.

        It is float32, or float64 of such logits.

        Raises:
            UsageError: a function returned something else than a number per text.
            NumericError: it is NaN or infinite.
        """
        values: Any = self.function(logits if logits.dtype == torch.float64 else logits.float(), goal)
        shape = tuple(getattr(values, "shape", ()))
        if not isinstance(values, Tensor) or shape != (len(logits),):
            raise UsageError(
                f"the metric {self.name} returned {shape or type(values).__name__}",
                why=f"of logits {tuple(logits.shape)} it should return a tensor of {len(logits)} numbers, one per text",
            )
        if not bool(values.isfinite().all()):
            raise NumericError(
                f"the metric {self.name} is {values[~values.isfinite()][0].item()}",
                why="the model's logits are not finite, or the metric is not defined there",
                hint='another metric, or `model_dtype="float32"`',
            )
        return values

    def at(self, length: int) -> int | None:
        """Returns the position whose logits it takes in a text of this length, counted from 0; None for all.

        Raises:
            UsageError: the text has no such position.
        """
        if self.position is None:
            return None
        if not -length <= self.position < length:
            raise UsageError(
                f"the metric {self.name} looks at position {self.position}",
                why=f"a text has positions 0-{length - 1} only",
            )
        return self.position % length


def metric_named(metric: str | MetricFunction, position: int = -1) -> Metric:
    """Returns the metric that is meant: one of `METRICS`, or a function of the logits of all positions.

        metric_named("probability", position=-1)
        metric_named(lambda logits: logits[:, -1, 5])

    Raises:
        UsageError: there is no metric of this name, or the position is no number.
    """
    check_whole("metric_position", position)
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric("function" if name == "<lambda>" else name, lambda logits, _: metric(logits), None)
    check_choice("metric", metric, METRICS)
    function, needs = METRICS[metric]
    return Metric(metric, function, None if metric == "loss" else position, needs)


def goal_of(
    metric: Metric,
    *,
    answer: Sequence[int | None],
    wrong: Sequence[int | None],
    ids: Tensor,
    clean_logits: Tensor,
) -> Goal:
    """Returns what a metric needs for some pairs.

    Args:
        metric: What is asked for.
        answer: The tokens that should come; what is None is not needed.
        wrong: Those that should not.
        ids: The clean texts: (text, position).
        clean_logits: Theirs: (text, position, vocabulary), of the metric's position or of all.
    """

    def tokens(given: Sequence[int | None], name: str) -> Tensor | None:
        return torch.tensor(given, device=ids.device) if name in metric.needs else None

    return Goal(
        tokens(answer, "answer"),
        tokens(wrong, "wrong"),
        ids[:, 1:] if "targets" in metric.needs else None,
        clean_logits[:, 0].float().log_softmax(-1) if "clean" in metric.needs else None,
    )
