"""The edits of `tf.edits`: the kinds of `capture`, and those that are made of a direction or a file of one.

    with tf.edit(model, tf.edits.steer("errors.safetensors", 20)):
        answer = tf.generate(model, "If the argument is not")

Steering adds scale times the vector as it is: in a unit of the stream where the vector has norm 1, as those that
`fit_direction` gives have. It begins at the last token of the prompt, from which the first one of the response is
predicted, and goes on to the end: as in contrastive activation addition (Rimsky et al., 2024) and with persona vectors
(Chen et al., 2025).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.directions import Direction
from traceformer.capture.edits.kinds import (
    Edit,
    add,
    cut,
    function,
    mean,
    patch,
    project_out,
    resample,
    scale,
    zero,
)
from traceformer.errors import SelectionError, UsageError
from traceformer.formats.results.directions import read_direction
from traceformer.shapes import Float32

if TYPE_CHECKING:
    from traceformer.capture.edits.kinds import Examples
    from traceformer.capture.edits.positions import Position
    from traceformer.sites import Stack

__all__ = [
    "FROM_PROMPT_END",
    "Edit",
    "ablate_direction",
    "add",
    "as_steering",
    "cut",
    "function",
    "mean",
    "patch",
    "project_out",
    "resample",
    "scale",
    "steer",
    "vector_at",
    "zero",
]

FROM_PROMPT_END = slice(-1, None)
"""The last token of a prompt, and all of its response."""

_WRITTEN = ("resid_pre", "attn_out", "mlp_out")
"""What a block reads, and what its parts add to it."""


def steer(
    direction: "Direction | str | Path",
    scale: float,
    layer: int | None = None,
    *,
    position: "Position" = FROM_PROMPT_END,
    example: "Examples" = None,
    stack: "Stack | None" = None,
) -> Edit:
    """Returns the edit that adds `scale` times a direction's vector to the rows that it was fitted on.

        steer(trait, 8)                                  # at its own layer, from the end of the prompt on
        steer("kindness.safetensors", -4, layer=12, position="response")

    Args:
        direction: What `fit_direction` gave, or a file: .safetensors, .npy or .pt, from here or from other tools.
        scale: How often the vector is added, as it is: it is not made a unit vector. By 0 nothing is touched.
        layer: The layer, of which the direction's own vector is taken; by default the one that it was fitted at, or, of
            several, the one at which it does best.
        position: Which tokens; from the last one of the prompt on by default.
        example: Which texts.
        stack: Which stack, where a model has two.

    Raises:
        NotFound, Unreadable: no such file, or not of vectors.
        SelectionError: the direction has no vector for the layer, or it is not clear for which it is.
        UsageError: a scale that is no number, or a vector with entries that are none.
    """
    own = as_direction(direction)
    number, vector = vector_at(own, layer)
    made = add(site_of(own), number, vector, scale, position=position, example=example, stack=stack)
    return replace(made, kind="steer", settings={"name": own.name, **made.settings})


def ablate_direction(
    direction: "Direction | str | Path",
    layer: int | None = None,
    *,
    position: "Position" = None,
    example: "Examples" = None,
    stack: "Stack | None" = None,
) -> tuple[Edit, ...]:
    """Returns the edits that keep a direction out of the residual stream of every layer (Arditi et al., 2024).

        with tf.edit(model, *tf.edits.ablate_direction(trait)):

    What lies along the vector is taken out of what each block reads, and of what attention and MLP add to it.

    Args:
        direction: As of `steer`.
        layer: Of which layer's vector, where the direction has several; by default as of `steer`.
        position: Which tokens; all by default.
        example: Which texts.
        stack: Which stack.

    Raises:
        NotFound, Unreadable, SelectionError, UsageError: as `steer`.
    """
    own = as_direction(direction)
    _, vector = vector_at(own, layer, needs_layer=False)
    made = [project_out(site, None, vector, position=position, example=example, stack=stack) for site in _WRITTEN]
    return tuple(replace(each, settings={"name": own.name, **each.settings}) for each in made)


def as_direction(direction: Any) -> Direction:
    """Returns a direction, or the one in a file.

    Raises:
        NotFound, Unreadable: no such file, or not of vectors.
        UsageError: it is neither.
    """
    if isinstance(direction, Direction):
        return direction
    if isinstance(direction, str | Path):
        return read_direction(Path(direction))
    raise UsageError(
        f"{type(direction).__name__} is no direction",
        hint='what fit_direction gave, or its file; of a bare vector tf.edits.add("resid_post", layer, vector, scale)',
    )


def site_of(direction: Direction) -> str:
    """Returns the site that a direction was fitted on: the residual stream behind a block where that is not said."""
    return str(direction.about.get("site", "resid_post"))


def vector_at(
    direction: Direction, layer: int | None, *, needs_layer: bool = True
) -> tuple[int | None, Float32[np.ndarray, "d"]]:
    """Returns the layer that is meant, and the direction's vector for it.

    Raises:
        SelectionError: it has none for the layer, or it is not clear which layer is meant.
    """
    if layer is None:
        [*layers] = direction.layers
        layer = layers[0] if len(layers) == 1 else direction.best_layer
    if layer is None and (needs_layer or len(direction.by_layer) > 1):
        listed = ", ".join(map(str, direction.layers))
        why = f"it has vectors for layers {listed}" if listed else "its vector is for none in particular"
        raise SelectionError(
            f"at which layer is {direction.name} meant?",
            why=why,
            hint="name one: behind FILE:SCALE as @LAYER, or as the layer of a dose",
        )
    vector = direction.at(layer)
    if vector is None:
        listed = ", ".join(map(str, direction.layers))
        raise SelectionError(f"{direction.name} has no vector for layer {layer}", hint=f"it has layers {listed}")
    return layer, vector


def as_steering(text: str) -> Edit:
    """Returns the edit that `FILE:SCALE` or `FILE:SCALE@LAYER` means.

        as_steering("kindness.safetensors:-4@12")

    Raises:
        UsageError: it is written otherwise.
        NotFound, Unreadable, SelectionError: as of `steer`.
    """
    file, colon, rest = text.rpartition(":")
    number, at, layer = rest.partition("@")
    try:
        found = float(number), int(layer) if at else None
    except ValueError:
        found = None
    if not file or not colon or found is None:
        raise UsageError(
            f"cannot read {text!r}", hint="write FILE:SCALE or FILE:SCALE@LAYER, as in trait.safetensors:8@2"
        )
    return steer(file, *found)
