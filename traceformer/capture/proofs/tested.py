"""Claims tested on what was recorded: what is kept of a pass, how far off each claim is, and what rounding explains."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from traceformer.capture.proofs.attention import ATTENTION_CLAIMS
from traceformer.capture.proofs.experts import EXPERT_CLAIMS
from traceformer.capture.proofs.place import NotHere, Place, Rounding, Scene, error_between
from traceformer.capture.proofs.stream import STREAM_CLAIMS
from traceformer.capture.scores import Span
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = ["Arrays", "Errors", "Kept", "is_exact", "prove", "tolerance_of"]

Arrays = dict[tuple[ArrayKey, int | None], list[Tensor]]
Errors = dict[tuple[ArrayKey, str, Rounding], float]

# Tolerances relative to max(1, the largest expected value). In float32 they are about a hundred times its resolution
# of 1.2e-7: enough for sums of thousands of products in another order, too little for any wrong scale, mask or index.
_FLOAT32 = {
    Rounding.NONE: 0.0,
    Rounding.FLOAT32: 1e-5,
    Rounding.MODEL: 1e-5,
    Rounding.SOFTMAX: 5e-6,
    Rounding.BATCH: 1e-5,
}
# What modules raise that are given what they are not made for.
_MISFITS = (AssertionError, RuntimeError, TypeError, LookupError)

# Below float32 an operation done again may round otherwise at each of its few steps.
_STEPS = 4
# Through a whole pass the rounding of scores adds up over layers: as many times that of one softmax.
_LAYERS = 10


def tolerance_of(rounding: Rounding, dtype: torch.dtype, largest_score: float) -> float:
    """Returns how far the two sides of a true claim may be apart in a model of this dtype.

    A softmax turns the rounding of its scores, which is relative to the largest of them, into an absolute error of
    its patterns.
    """
    resolution = torch.finfo(dtype).eps
    exact = rounding in (Rounding.NONE, Rounding.FLOAT32)
    least = _FLOAT32[rounding] if exact or resolution <= torch.finfo(torch.float32).eps else _STEPS * resolution
    amplified = {Rounding.SOFTMAX: 1, Rounding.BATCH: _LAYERS}.get(rounding, 0)
    return max(least, amplified * resolution * largest_score)


def is_exact(model: PreTrainedModel) -> bool:
    return model.dtype in (torch.float32, torch.float64)


class Kept:
    """A sink that keeps a copy of everything, cut to the true tokens of each example."""

    def __init__(self, spans: Mapping[Stack, Sequence[Span]]) -> None:
        self._spans = spans
        self.arrays: Arrays = {}

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        if spec.site.is_per_example:
            self.arrays[spec.key, layer] = [row.clone() for row in rows]
            return
        spans = self._spans[spec.key.token_stack]
        self.arrays[spec.key, layer] = [rows[i, ..., s.start : s.stop, :].clone() for i, s in enumerate(spans)]

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        squares = self.arrays.setdefault((spec.key, layer), [])
        if example == len(squares):
            n_queries, n_keys = (self._spans[s][example].length for s in (spec.key.stack, spec.key.key_stack))
            squares.append(block.new_zeros(len(spec.heads), n_queries, n_keys))
        squares[example][:, queries.start : queries.stop, keys.start : keys.stop] = block


def prove(scene: Scene, specs: Sequence[ArraySpec], errors: Errors) -> None:
    """Raises the error of each claim about each array to the largest one over all layers and examples."""
    for spec in specs:
        for site, fact, sides, rounding in (*STREAM_CLAIMS, *EXPERT_CLAIMS, *ATTENTION_CLAIMS):
            if site != spec.key.site:
                continue
            for layer in spec.layers or (None,):
                for example in range(len(scene.ids)):
                    place = Place(scene, example, spec.key.stack, spec.key.attention, layer)
                    try:
                        error = error_between(*sides(place))
                    except NotHere:
                        continue
                    except torch.OutOfMemoryError:
                        raise
                    except _MISFITS:  # the row names a module that does something else
                        error = torch.inf
                    claim = (spec.key, fact, rounding)
                    errors[claim] = max(error, errors.get(claim, 0.0))
