"""The matrices of a Jacobian lens, of the model itself while it reads a run's texts again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from traceformer.errors import Unsupported, UsageError, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep
from traceformer.questions.model_of_run import load_model_of
from traceformer.shapes import Float32
from traceformer.store.run import Run

if TYPE_CHECKING:
    from traceformer.capture.edits.slopes import Read

__all__ = ["JacobianSettings", "jacobian_matrices"]


@dataclass(frozen=True, slots=True)
class JacobianSettings:
    """How derivatives are taken.

    Attributes:
        skip: How many of a text's first positions are left out: models look at these when there is nothing to see.
        max_tokens: Of a text no more than its first so many tokens are read.
        batch_size: How many rows of a matrix are made at once, each from a copy of the text.

    Raises:
        UsageError: one of them is no such number.
    """

    skip: int = 16
    max_tokens: int = 128
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_whole("skip", self.skip, 0)
        check_whole("max_tokens", self.max_tokens, 2)
        check_whole("batch_size", self.batch_size, 1)


def jacobian_matrices(
    run: Run,
    examples: Sequence[int],
    layers: Sequence[int],
    model: LoadedModel | str | Path | None,
    settings: JacobianSettings,
    told: OnStep,
) -> tuple[Float32[np.ndarray, "layer d_last d_own"], int]:
    """Returns the matrix of each layer, and of how many texts it is the mean.

    Args:
        run: What the texts are of.
        examples: Which of its examples count.
        layers: Which layers.
        model: The run's model, or where its folder is now; where the run says by default.
        settings: How derivatives are taken.
        told: Told how many of how many rows of the matrices are made, counted once for every text.

    Raises:
        NotFound, ConfigurationChanged: the run's model is not there, or is another one.
        Unsupported: it is no causal decoder.
        UsageError: no text is long enough.
    """
    from traceformer.capture.edits.jacobians import mean_jacobians, without_slopes_of_weights
    from traceformer.capture.edits.started import Passes
    from traceformer.models.behaviour import behaviour_of, evaluating

    loaded = model if isinstance(model, LoadedModel) else load_model_of(run, model=model)
    if loaded.dims.arch != "dec" or behaviour_of(loaded.model).looks_ahead:
        why = "what comes later would count for what is earlier: it takes a decoder that does not look ahead"
        raise Unsupported(f"a Jacobian lens of {loaded.name}", why=why)
    fewest = settings.skip + 2
    long_enough = [number for number in examples if min(run.length(number, "dec"), settings.max_tokens) >= fewest]
    if not long_enough:
        why = f"its first {settings.skip} positions are left out, and the last one"
        hint = "longer texts, or a smaller `skip`"
        raise UsageError(f"no text has the {fewest} tokens that a Jacobian takes", why=why, hint=hint)
    passes = Passes(loaded)

    def texts() -> Iterator["Read"]:
        import torch

        from traceformer.capture.edits.slopes import Read

        for number in long_enough:
            ids = [int(token) for token in run.encodings(number)["input_ids"]][: settings.max_tokens]
            # Logits are made at one position only, where the model can be told: they are not needed.
            yield Read(passes, torch.tensor([ids], device=passes.device), len(ids) - 1)

    depth = loaded.dims.stacks["dec"].n_layers
    with evaluating(loaded.model), without_slopes_of_weights(loaded.model):
        found = mean_jacobians(
            texts(),
            layers,
            depth - 1,
            skip=settings.skip,
            at_once=settings.batch_size,
            told=lambda done, of: told(done, of * len(long_enough)),
        )
    return found, len(long_enough)
