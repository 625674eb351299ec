"""How the last layer's rows of the residual stream follow from earlier layers': what a Jacobian lens translates with.

1. A text is run once, as many copies of it in a batch as rows of the matrix are made at a time, with gradients.
2. For a dimension i of the stream, one pass backward gives the slope of the sum over positions t' of h_last[t', i] with
   regard to h_l[t], for every layer l and position t at once. A causal model's later positions do not follow from later
   ones still, so that this is the sum over t' >= t: what a row does to all that comes after it, itself included.
3. J_l[i] is the mean of these over positions t. Both t and t' leave out the first positions, which many models use as
   places to look at when there is nothing to see, and the last one, whose next token is not in the text.
4. Neither the final norm nor the unembedding is within it. Derivatives are exact; texts count the same each.

That is the estimator of Gurnee et al., "Verbalizable Representations Form a Global Workspace in Language Models"
(2026), as anthropics/jacobian-lens and TransformerLens 4.3 have it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from traceformer.capture.edits.slopes import Climb, Read
from traceformer.capture.edits.touching import Place
from traceformer.sites import ArrayKey

__all__ = ["jacobians"]

_RESIDUAL = ArrayKey("dec", None, "resid_post")


def jacobians(
    text: Read,
    layers: Sequence[int],
    last: int,
    *,
    skip: int,
    at_once: int,
    told: Callable[[int, int], None] = lambda _, __: None,
) -> Tensor:
    """Returns J of each layer for one text: float32, (layer, d_model of the last layer, d_model of this one).

    Memory holds the graph of `at_once` copies of the text, and the matrices.

    Args:
        text: One text, of more than `skip` + 1 tokens, as a causal decoder reads it.
        layers: Which layers.
        last: The model's last layer.
        skip: How many of the first positions are left out.
        at_once: How many rows of a matrix are made in one pass backward.
        told: Told how many of how many rows are made.

    Raises:
        Unsupported: the model has no such place, or its weights are elsewhere until they are used.
    """
    places: list[Place] = [(_RESIDUAL, layer) for layer in layers]
    end: Place = (_RESIDUAL, last)
    climb = Climb(text.copies(at_once), [*places, end])
    rows = climb.values[end]
    _, n_positions, width = rows.shape
    counted = slice(skip, n_positions - 1)
    found = torch.empty(len(layers), width, width)
    for first in range(0, width, at_once):
        stop = min(first + at_once, width)
        outer = torch.zeros_like(rows)
        for copy, dimension in enumerate(range(first, stop)):
            outer[copy, counted, dimension] = 1
        slopes = climb.slopes(rows, places, outer, is_last=stop == width)
        for at, slope in enumerate(slopes):
            found[at, first:stop] = slope[: stop - first, counted].float().mean(1).cpu()
        told(stop, width)
    return found
