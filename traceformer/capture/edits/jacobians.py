"""How the last layer's rows of the residual stream follow from earlier layers': what a Jacobian lens translates with.

1. A text is run once, as many copies of it in a batch as rows of the matrix are made at a time, with gradients.
2. For a dimension i of the stream, one pass backward gives the slope of the sum over positions t' of h_last[t', i] with
   regard to h_l[t], for every layer l and position t at once. Nothing follows from later tokens in a causal model, so
   that this is the sum over t' >= t: what a row does to all that comes after it, itself included.
3. J_l[i] is the mean of these over positions t. Both t and t' leave out the first positions, which many models use as
   places to look at when there is nothing to see, and the last one, whose next token is not in the text.
4. Neither the final norm nor the unembedding is within it. Derivatives are exact; each text counts the same.

That is the estimator of Gurnee et al., "Verbalizable Representations Form a Global Workspace in Language Models"
(2026), as anthropics/jacobian-lens and TransformerLens 4.3 have it.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from traceformer.capture.edits.slopes import Climb, Read
from traceformer.capture.edits.touching import Place
from traceformer.progress import OnStep, quiet
from traceformer.shapes import Float32
from traceformer.sites import ArrayKey

__all__ = ["jacobians", "mean_jacobians", "without_slopes_of_weights"]

_RESIDUAL = ArrayKey("dec", None, "resid_post")


def mean_jacobians(
    texts: Iterable[Read], layers: Sequence[int], last: int, *, skip: int, at_once: int, told: OnStep = quiet
) -> Float32[np.ndarray, "layer d_last d_own"]:
    """Returns J of each layer: the mean over texts of what `jacobians` gives, to which each text is one step."""
    total: Tensor | None = None
    count = 0
    for text in texts:

        def step(done: int, of: int, before: int = count) -> None:
            told(before * of + done, of)

        found = jacobians(text, layers, last, skip=skip, at_once=at_once, told=step)
        total = found if total is None else total.add_(found)
        count += 1
    assert total is not None, "there is a text at least"
    return (total / count).numpy()


def jacobians(
    text: Read,
    layers: Sequence[int],
    last: int,
    *,
    skip: int,
    at_once: int,
    told: Callable[[int, int], None] = quiet,
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


@contextmanager
def without_slopes_of_weights(model: nn.Module) -> Generator[None]:
    """While it lasts, gradients begin at what is touched, and nothing is kept for those of the weights."""
    own = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in own:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in own:
            weight.requires_grad_(True)
