"""How a metric changes with every place of a pass at once: one pass forward, one backward.

1. `values_at` runs a text and keeps what some places hold.
2. `Climb` runs a text with gradients, and keeps what some places hold and, from one backward pass, how the metric
   changes with each number there: the slopes.
3. `estimates_at` is attribution patching (Nanda, "Attribution Patching", 2023; Syed et al., "Attribution Patching
   Outperforms Automated Circuit Discovery", 2023): by how much the metric would change if a place held another text's
   values is, to first order, (other - own) . slope, summed over the width of the place.
4. With several steps a place's slopes are the mean over the points k / steps, k = 0 .. steps - 1, of the straight way
   from what it holds to what the other text has there, at all positions and heads of the layer at once, while all
   before it stays (integrated gradients over a part's own activations: Marks et al., "Sparse Feature Circuits", 2024).
   That takes as many passes for each layer. One step is the slope at the text itself, in one pass for all of them.

A pattern's slope is that of the mixed values times the values, dL/dP[h, q, k] = dL/dz[h, q] . v[h, k], and a changed
pattern is what it makes of these. So no attention kernel has to hand its pattern over.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from traceformer.capture.edits.started import Passes
from traceformer.capture.edits.touching import Place, Touch
from traceformer.errors import UsageError

__all__ = ["Climb", "OfLogits", "Read", "estimates_at", "values_at"]

OfLogits: TypeAlias = Callable[[Tensor], Tensor]
"""Takes logits, (text, position, vocabulary), and returns a number for each text, with a gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Texts of equal length, as a model reads them, and the position whose logits are looked at; None for all."""

    passes: Passes
    ids: Tensor
    at: int | None

    def logits(self, touches: Mapping[Place, Touch]) -> Tensor:
        """Returns the logits of a pass that is touched: (text, position, vocabulary)."""
        return self.passes.whole(self.ids, self.at, touches)

    def copies(self, n: int) -> "Read":
        """Returns a text as many times."""
        return Read(self.passes, self.ids.expand(n, -1), self.at)


def values_at(
    texts: Read, places: Iterable[Place], touches: Mapping[Place, Touch] | None = None
) -> tuple[dict[Place, Tensor], Tensor]:
    """Returns what some places hold in a pass, as `Touching` hands it over, and the logits.

    `touches` are made on the way; a place that is touched and asked for is kept as it was before.

    Raises:
        Unsupported: the model has no such place.
    """
    kept: dict[Place, Tensor] = {}
    others = touches or {}

    def keeping(place: Place) -> Touch:
        def touch(tensor: Tensor) -> Tensor:
            kept[place] = tensor.clone()
            return others[place](tensor) if place in others else tensor

        return touch

    with torch.no_grad():
        logits = texts.logits({**others, **{place: keeping(place) for place in places}})
    return kept, logits


class Climb:
    """A pass with gradients.

    To each place zeros are added, with regard to which slopes are taken: so they are right wherever the model reads the
    tensor from, a residual stream behind its block, or a matrix of which the place is a view.

    Args:
        texts: What is read.
        places: Where slopes are wanted.
        put: What some of the places hold in the place of what the pass makes.

    Raises:
        Unsupported: weights of the model are elsewhere until they are used.

    Attributes:
        values: What each place holds.
        logits: With a gradient.
    """

    def __init__(self, texts: Read, places: Collection[Place], put: Mapping[Place, Tensor] | None = None) -> None:
        texts.passes.check_for_slopes()
        self.values: dict[Place, Tensor] = {}
        self._added: dict[Place, Tensor] = {}
        given = put or {}

        def watching(place: Place) -> Touch:
            def touch(tensor: Tensor) -> Tensor:
                tensor = given.get(place, tensor)
                self.values[place] = tensor
                self._added[place] = torch.zeros_like(tensor, requires_grad=True)
                return tensor + self._added[place]

            return touch

        with torch.enable_grad():
            self.logits = texts.logits({place: watching(place) for place in places})

    def slopes(
        self, of: Tensor, places: Sequence[Place], outer: Tensor | None = None, *, is_last: bool
    ) -> list[Tensor]:
        """Returns how the sum of a tensor changes with each number of some places, zero where it does not.

        Args:
            of: What came of the pass: a metric of it, or what a place holds.
            places: What it came from.
            outer: What the tensor is multiplied by before it is added up, of its shape.
            is_last: Whether nothing more is asked of this pass.

        Raises:
            UsageError: the metric has no gradient.
        """
        if not of.requires_grad:
            raise UsageError(
                "the metric has no gradient, which an estimate is made of",
                why="it does not follow from the logits by functions of torch, or it was detached from them",
                hint="a metric by its name, or a function of torch; or `estimate=False`, which needs none",
            )
        total = of.sum() if outer is None else (of * outer).sum()
        added = [self._added[place] for place in places]
        return list(
            torch.autograd.grad(total, added, retain_graph=not is_last, allow_unused=True, materialize_grads=True)
        )


def estimates_at(
    texts: Read, other: Mapping[Place, Tensor], metric: OfLogits, places: Sequence[Place], *, steps: int = 1
) -> dict[Place, Tensor]:
    """Returns by how much the metric of texts would change if a place held other values: to first order.

    Args:
        texts: What is run.
        other: What each place would hold: of these texts, or of one that serves for all.
        metric: What is looked at.
        places: Where; of patterns each edge is a place.
        steps: At how many points of the way to the other values slopes are taken.

    Returns:
        For each place (text, position), (text, head, position), or, of patterns, (text, head, query, key).

    Raises:
        Unsupported: the model has no such place.
        UsageError: the metric has no gradient, or `steps` is less than one.
    """
    if steps < 1:
        raise UsageError(f"`steps={steps}`", hint="1, or more for slopes along the way")
    own, _ = values_at(texts, dict.fromkeys((*places, *_operands(places))))
    found: dict[Place, Tensor] = {}
    for group in [places] if steps == 1 else [[place] for place in places]:
        slopes = [
            _slopes(texts, metric, group, None if steps == 1 else _on_the_way(group[0], own, other, step / steps))
            for step in range(steps)
        ]
        for place in group:
            slope = torch.stack([each[place] for each in slopes]).mean(0)
            change = (other[place] - own[place]) * slope
            found[place] = change if _is_pattern(place) else change.sum(-1)
    return found


def _slopes(
    texts: Read, metric: OfLogits, places: Sequence[Place], put: Mapping[Place, Tensor] | None
) -> dict[Place, Tensor]:
    """The metric's slope at some places, that of a pattern edge by edge."""
    climb = Climb(texts, _operands(places), put)
    targets = list(dict.fromkeys(_mixed(place) if _is_pattern(place) else place for place in places))
    slopes = dict(zip(targets, climb.slopes(metric(climb.logits), targets, is_last=True), strict=True))
    return {place: _of_edges(place, slopes, climb.values) if _is_pattern(place) else slopes[place] for place in places}


def _on_the_way(
    place: Place, own: Mapping[Place, Tensor], other: Mapping[Place, Tensor], share: float
) -> dict[Place, Tensor]:
    """What a place holds this far on its way to the other text's values; of a pattern, what it makes of the values."""
    change = (other[place] - own[place]) * share
    if not _is_pattern(place):
        return {place: own[place] + change}
    values = _by_head(own[_values(place)], change.shape[1])
    return {_mixed(place): own[_mixed(place)] + change.to(values.dtype) @ values}


def _of_edges(place: Place, slopes: Mapping[Place, Tensor], values: Mapping[Place, Tensor]) -> Tensor:
    """How the metric changes with each edge of a pattern: (text, head, query, key)."""
    slope = slopes[_mixed(place)]
    return slope @ _by_head(values[_values(place)].detach(), slope.shape[1]).transpose(-2, -1)


def _by_head(values: Tensor, n_heads: int) -> Tensor:
    return values.repeat_interleave(n_heads // values.shape[1], dim=1)


def _is_pattern(place: Place) -> bool:
    return place[0].site == "attn_pattern"


def _mixed(place: Place) -> Place:
    return place[0]._replace(site="z"), place[1]


def _values(place: Place) -> Place:
    return place[0]._replace(site="v"), place[1]


def _operands(places: Iterable[Place]) -> list[Place]:
    """The places of a pass with gradients: in the place of each pattern, its values and what it makes of them."""
    pairs = ((_mixed(place), _values(place)) if _is_pattern(place) else (place,) for place in places)
    return list(dict.fromkeys(each for pair in pairs for each in pair))
