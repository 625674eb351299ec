"""What is proved of patterns by recipe: made anew of the recorded q and k they are the recorded ones, and the model's.

The recipe is read from the longest example, which runs alone; the patterns are those of the whole padded batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from traceformer.capture.proofs.attention import own_attention
from traceformer.capture.proofs.place import NotHere, Place, Rounding, Scene, error_between
from traceformer.capture.proofs.tested import Errors
from traceformer.capture.recipes import Reading
from traceformer.capture.recorder import Recorder
from traceformer.capture.sinks import Spans
from traceformer.errors import Unsupported
from traceformer.models.family import Architecture
from traceformer.sites import ArraySpec
from traceformer.store.rebuilding import rebuilt_of
from traceformer.store.recipes import operands_of

__all__ = ["BY_RECIPE", "prove_recipes"]

BY_RECIPE = "made anew by recipe of q and k"
_OWN = f"{BY_RECIPE}, equals the model's own eager attentions"


def prove_recipes(
    model: PreTrainedModel,
    row: Architecture,
    specs: Sequence[ArraySpec],
    scenes: Sequence[Scene],
    longest: tuple[Mapping[str, Tensor], Spans],
    errors: Errors,
) -> str:
    """Adds how far patterns by recipe are off, the largest over all layers and examples.

    Args:
        model: The model.
        row: Its architecture.
        specs: What was recorded.
        scenes: Of one batch, under each attention.
        longest: The inputs of its longest example alone, and where its tokens are.
        errors: Those of all claims.

    Returns:
        Why patterns cannot be by recipe; nothing if they can, or are not there.
    """
    there = {spec.key for spec in specs}
    patterns = [spec for spec in specs if spec.key.site == "attn_pattern" and there.issuperset(operands_of(spec.key))]
    if not patterns:
        return ""
    reading, (inputs, spans) = Reading(), longest
    try:
        with Recorder(model, patterns, None, row, follows=reading) as recorder:
            recorder.run(spans, **inputs)
        for spec in patterns:
            reading.recipe(spec)  # that of all its layers
    except Unsupported as error:
        return f"{error.message}: {error.why}"
    for scene in scenes:
        for spec in patterns:
            for layer in spec.layers:
                for example in range(len(scene.ids)):
                    _prove(scene, spec, layer, example, reading, errors)
    return ""


def _prove(scene: Scene, spec: ArraySpec, layer: int, example: int, reading: Reading, errors: Errors) -> None:
    recipe = reading.of_layer(spec.key, layer)
    query, key = (scene.arrays[own, layer][example].float().contiguous().cpu().numpy() for own in operands_of(spec.key))
    made = np.stack([rebuilt_of(recipe, 0, i, query[i], key[i // recipe.group]) for i in range(len(spec.heads))])
    place = Place(scene, example, spec.key.stack, spec.key.attention, layer)
    patterns = torch.from_numpy(made).to(scene.arrays[spec.key, layer][example].device)
    sides = {f"{BY_RECIPE}, equals what is recorded": scene.arrays[spec.key, layer][example]}
    with suppress(NotHere):
        sides[_OWN] = own_attention(place)
    for fact, expected in sides.items():
        claim = (spec.key, fact, Rounding.SOFTMAX)
        errors[claim] = max(error_between(patterns, expected), errors.get(claim, 0.0))
