"""Dose and response of steering: what a model writes at each scale, read by the model as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.directions import Direction
from traceformer.analysis.dose import Dose, Steered
from traceformer.errors import UsageError, check_number
from traceformer.progress import OnStep, quiet, steps_watched
from traceformer.texts.chats import Message
from traceformer.texts.prompts import PromptSet

if TYPE_CHECKING:
    from traceformer.capture.edits.positions import Position
    from traceformer.capture.rereading import Reread
    from traceformer.models.loaded import LoadedModel
    from traceformer.store.run import Run

__all__ = ["dose"]


def dose(
    model: "str | Path | LoadedModel",
    prompts: str | Path | PromptSet | Sequence[str | Sequence[Message]],
    direction: Direction | str | Path,
    scales: Sequence[float],
    *,
    layer: int | None = None,
    position: "Position" = slice(-1, None),
    max_tokens: int | None = None,
    temperature: float | None = None,
    num_return_sequences: int | None = None,
    seed: int = 42,
    chat: bool = False,
    batch_size: int = 8,
    progress: OnStep | None = None,
) -> Dose:
    """Returns how a trait's projection and the fluency of a model's answers change with the scale of steering.

        dose(load_model("byte"), ["If the argument is not"], trait, [-20, 0, 20], max_tokens=40).summary()

    At each scale the model answers all prompts while the direction is added (`tf.edits.steer`). The responses are then
    read by the model as it is, not steered: their projection onto the direction says how much of the trait is in what
    was written, the mean log-probability of their tokens how natural the model finds it.

    Args:
        model: What `load_model` gave, or what it takes.
        prompts: As of `generate`: a prompt, a list of them, a file of them (a `Path`), or a prompt set.
        direction: What `fit_direction` gave, or a file of a direction.
        scales: How often its vector is added, as it is; 0 is the model as it is.
        layer: As of `steer`: by default the layer that the direction was fitted at.
        position: Which tokens it is added to: by default from the last one of the prompt on.
        max_tokens: As of `generate`, and so `temperature`, `num_return_sequences`, `seed`, `chat`, `batch_size`.
        temperature: How freely to choose; 0 takes the most likely token.
        num_return_sequences: Responses per prompt.
        seed: Of the first batch, the same at each scale.
        chat: Put each prompt into the model's chat template.
        batch_size: Prompts at a time.
        progress: Told how many of how many responses are done.

    Raises:
        UsageError: no scales, one that is no number or is given twice, or a direction of another width.
        SelectionError: the direction has no vector for the layer, or the model no such layer.
        NotFound, Unreadable, Unsupported, NumericError, OutOfSpace: as `generate` and `steer` raise them.
    """
    from traceformer.capture.derived import Traits
    from traceformer.capture.edits.positions import told
    from traceformer.capture.edits.session import edit
    from traceformer.capture.generation.generate import generate
    from traceformer.capture.rereading import reread
    from traceformer.models.load import as_loaded
    from traceformer.questions.edits import as_direction, site_of, steer, vector_at

    scales = _checked(scales)
    own = as_direction(direction)
    number, vector = vector_at(own, layer)
    assert number is not None
    loaded = as_loaded(model, with_head=True)
    choosing: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "num_return_sequences": num_return_sequences,
        "seed": seed,
        "chat": chat,
    }
    site = site_of(own)
    place = f"dec.{site}" if loaded.dims.arch == "encdec" else site  # it is the decoder that is steered
    trait = Traits({own.name: {number: vector}}, place)
    runs: list[Run] = []
    found: list[list[Reread]] = []
    with steps_watched("steering", progress) as shown:
        for done, scale in enumerate(scales):
            shown(done, len(scales))
            with edit(loaded, steer(own, scale, number, position=position)):
                run = generate(
                    loaded, prompts, project=trait, dtype="float32", batch_size=batch_size, progress=quiet, **choosing
                )
            runs.append(run)
            found.append(reread(loaded, run, place, number, vector, batch_size=batch_size))
        shown(len(scales), len(scales))
    return Dose(
        scales,
        tuple(runs[0].ids),
        tuple(tuple(run.tokens.response) for run in runs),
        np.array([[each.n_tokens for each in responses] for responses in found], np.int64),
        np.array([[each.projection for each in responses] for responses in found]),
        np.array([[each.log_prob for each in responses] for responses in found]),
        Steered(
            model=loaded.name,
            digest=loaded.digest,
            direction=own.name,
            site=site,
            layer=number,
            norm=float(np.linalg.norm(vector)),
            position=told(position),
            settings=_settings(runs[0]),
        ),
    )


def _checked(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales in rising order.

    Raises:
        UsageError: there are none, one is no number, or one is given twice.
    """
    given = list(scales) if hasattr(scales, "__iter__") and not isinstance(scales, str) else []
    if not given:
        raise UsageError(f"`scales={scales!r}`", hint="a list of numbers, such as [-8, -4, 0, 4, 8]")
    for scale in given:
        check_number("scale", scale)
    rising = sorted(map(float, given))
    if len(set(rising)) < len(rising):
        raise UsageError(f"a scale is given twice in {', '.join(f'{scale:g}' for scale in rising)}")
    return tuple(rising)


def _settings(run: "Run") -> dict[str, Any]:
    """How tokens were chosen."""
    stated = run.about.generation or {}
    return {name: stated[name] for name in ("max_tokens", "temperature", "top_k", "top_p", "seed") if name in stated}
