"""The role card of every head: its metrics on texts, what its weights say, massive activations, and its ablation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from traceformer.analysis.circuits import Circuits, circuits_of
from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.effects import Effects
from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.analysis.massive import MassiveActivations, MassiveTally
from traceformer.analysis.roles import Roles, join_roles
from traceformer.errors import NotFound, Unsupported, UsageError, check_choice, check_is
from traceformer.models.head_weights import HeadWeights, head_weights_of
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.heads import Reading, batching_of, heads, measured_live, reading_of
from traceformer.questions.model_of_run import open_head_weights_of
from traceformer.questions.recorded import check_asked
from traceformer.questions.training_texts import TrainingTexts
from traceformer.questions.vocabulary import shown_tokens
from traceformer.shapes import Float, Float64
from traceformer.sites import ArrayKey
from traceformer.store.run import Run
from traceformer.texts.cells import TextColumn, TextList
from traceformer.texts.windows import FileWindows

__all__ = ["roles"]

_STREAM = "resid_post"
_HOW = {
    "mean": "its output replaced by its mean over all tokens",
    "zero": "its output replaced by zeros",
    "resample": "its output replaced by what it is in another text",
}
_AT_ONCE = 16  # texts whose stream is in memory

Ablation: TypeAlias = Literal["zero", "mean", "resample"]


def roles(
    of: Run | LoadedModel,
    texts: str | Path | TextList | FileWindows | TrainingTexts | None = None,
    *,
    ablation: "Ablation | Effects | Float[np.ndarray, 'layer head'] | None" = None,
    model: str | Path | LoadedModel | None = None,
    limit: int | None = None,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    seq_length: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    progress: OnStep | None = None,
) -> Roles:
    """Returns one row per head: what it attends to, what its weights copy, and what the model loses without it.

        roles(load_model("byte"), ["The Eiffel Tower is in Paris.", "Rome is in Italy."]).to_frame()
        roles(run)

    Columns are metrics of `heads` and numbers of `circuits`, in whose `induction_weights` measured previous-token heads
    stand in for positions; beside them it says how much of the residual stream is massive, where it is at hand.

    Args:
        of: A run that holds patterns (and `resid_post`, for massive activations), or a model.
        texts: What a model reads, as in `heads`.
        ablation: How each head is ablated on the same texts: `mean`, `zero` or `resample`, as in `ablate`, which runs
            the model once more for each layer's heads. Or what was found: the `Effects` of `ablate` over layers and
            heads, or an array of all layers and heads. None leaves the column empty.
        model: The run's model, if it is at hand, or where its folder is now, if it was moved.
        limit: The first examples only, as in `heads`.
        split: Which part of a data set.
        text_column: The column of a data set that holds the text.
        ids_column: The column that holds token ids.
        seq_length: Tokens of a window, or of a text at most.
        batch_size: Examples per forward pass; 4 by default.
        batch_tokens: In its place, the most tokens of a forward pass.
        progress: Told how many of how many steps of measuring are done; bars for None.

    Raises:
        NotRecorded: the run holds no patterns.
        ConfigurationChanged: the run's model is another one now.
        UsageError: a run with texts, a model without, effects that are not those of these heads.
    """
    check_asked(of)
    if isinstance(ablation, str):
        check_choice("ablation", ablation, tuple(_HOW))
    elif isinstance(ablation, Effects):
        _check_effects(ablation, of)
    notes: dict[str, str] = {}
    reading: Reading | None = None
    if isinstance(of, Run):
        if texts is not None:
            raise UsageError("a run and texts", why="a run has its texts", hint="one of them")
        metrics = heads(of, limit=limit, progress=progress)
        massive = _massive_of_run(of, limit, notes)
    else:
        if texts is None:
            raise UsageError("what shall the model read?", hint='a list of texts, or a data set such as "demo"')
        if model is not None:
            raise UsageError("a model and `model`", why="`model` says where a run's is", hint="one of them")
        reading = reading_of(
            *(of, texts),
            limit=limit,
            split=split,
            text_column=text_column,
            ids_column=ids_column,
            seq_length=seq_length,
        )
        batching = batching_of(reading, batch_size, batch_tokens)
        with steps_watched("measuring", progress) as told:
            metrics = measured_live(reading, CONVENTIONS["exact"], 8, batching, "float16", told)
        massive = _massive_of_model(of, reading, notes)
    found = _circuits(of, model, metrics, notes)
    if isinstance(ablation, str):
        ablation = _ablated(of, reading, ablation, notes, progress)
    return join_roles(metrics, circuits=found, massive=massive, ablation=_by_head(ablation, metrics), notes=notes)


def _circuits(
    of: Run | LoadedModel, model: str | Path | LoadedModel | None, metrics: HeadMetrics, notes: dict[str, str]
) -> Circuits | None:
    """What the weights say, with the measured previous-token heads; None, with a note, where they are not to be had."""
    try:
        weights = open_head_weights_of(of, model) if isinstance(of, Run) else head_weights_of(of)
    except (NotFound, Unsupported) as error:
        notes["copying"] = f"{error.message}: {error.why}" if error.why else error.message
        return None
    with steps_watched("reading weights", None) as told:
        return circuits_of(weights, _previous(metrics, weights), progress=told)


def _previous(metrics: HeadMetrics, weights: HeadWeights) -> Float64[np.ndarray, "layer head"] | None:
    """The measured attention to the token before, NaN for heads that were not measured."""
    grid = np.full((weights.dims.n_layers, weights.dims.n_heads), np.nan)
    for row, score in zip(metrics.rows, metrics.values["previous_token"], strict=True):
        if row.attention == "dec.self":
            grid[row.layer, row.head] = score
    return grid


def _massive_of_run(run: Run, limit: int | None, notes: dict[str, str]) -> MassiveActivations | None:
    key = ArrayKey("enc" if run.arch == "enc" else "dec", None, _STREAM)
    spec = run.layout.spec(key)
    if spec is None:
        notes["massive"] = f'the run holds no {_STREAM}: record it with `capture="attn {_STREAM}"`'
        return None
    tally = MassiveTally(spec.layers)
    for example in run.ids[:limit]:
        tokens = [piece.text for piece in shown_tokens(run, example, key.stack)]
        for layer in spec.layers:
            tally.add(layer, run.get(example, key, layer), tokens)
    return tally.result()


def _massive_of_model(model: LoadedModel, reading: Reading, notes: dict[str, str]) -> MassiveActivations | None:
    """The same of what a model reads, some texts at a time: their stream is in memory."""
    from traceformer.capture.extract import record

    stack = model.dims.arch
    if stack == "encdec" or any(row.types is not None for row in reading.rows):
        notes["massive"] = "of pairs of texts, and of two stacks, a run holds the stream: record it, and ask the run"
        return None
    key = ArrayKey(stack, None, _STREAM)
    tally = MassiveTally(tuple(range(model.dims.stacks[stack].n_layers)))
    for start in range(0, len(reading.rows), _AT_ONCE):
        rows = reading.rows[start : start + _AT_ONCE]
        run = record(model, [list(row.ids[stack]) for row in rows], _STREAM, dtype="float32")
        for number, row in enumerate(rows):
            for layer in tally.layers:
                tally.add(layer, run.get(number, key, layer), row.tokens[stack])
    return tally.result()


def _ablated(
    of: Run | LoadedModel, reading: Reading | None, how: str, notes: dict[str, str], progress: OnStep | None
) -> Effects | None:
    """The effects of ablating each head on the texts that the model reads; None, with a note, where there are none."""
    if not isinstance(of, LoadedModel) or reading is None:
        why = "the model of a run is not loaded"
        raise UsageError(f"ablation {how!r} of a run", why=why, hint="a model with texts, or what tf.ablate returned")
    from traceformer.questions.ablate import ablate

    ids = [list(row.ids["dec"]) for row in reading.rows if len(row.ids.get("dec", ())) > 1]
    try:
        if not ids:
            raise Unsupported("ablating heads", why="no text has a next token")
        effects = ablate(of, ids, how=how, progress=progress)  # pyright: ignore[reportArgumentType]
    except Unsupported as error:
        notes["ablation"] = f"{error.message}: {error.why}" if error.why else error.message
        return None
    notes["ablation"] = f"by how much the loss grows with {_HOW[how]}"
    return effects


def _by_head(
    ablation: "Effects | Float[np.ndarray, 'layer head'] | None", metrics: HeadMetrics
) -> Mapping[tuple[int, int], float] | None:
    """The effect of each head's ablation, by layer and head."""
    if ablation is None:
        return None
    if isinstance(ablation, np.ndarray):
        if not {(row.layer, row.head) for row in metrics.rows} <= {*np.ndindex(ablation.shape)}:
            why = f"the heads are in layers up to {max(metrics.layers)}, up to head {max(metrics.heads)}"
            raise UsageError(f"effects of {ablation.shape} heads", why=why, hint="an array over all layers and heads")
        return {(int(place[0]), int(place[1])): float(effect) for place, effect in np.ndenumerate(ablation)}
    check_is(ablation, Effects, "what ablate gave, or an array over all layers and heads")
    names = [axis.name for axis in ablation.axes]
    if names != ["layer", "head"]:
        raise UsageError(f"effects over {' and '.join(names)}", hint='`ablate(model, texts, site="z")`, over heads')
    layers, numbers = (axis.numbers for axis in ablation.axes)
    values = ablation.values
    return {(layer, head): float(values[i, j]) for i, layer in enumerate(layers) for j, head in enumerate(numbers)}


def _check_effects(ablation: Effects, of: Run | LoadedModel) -> None:
    """Refuses effects of another model."""
    digest = of.digest if isinstance(of, LoadedModel) else of.about.model_weights
    if ablation.about.digest != digest:
        why = f"its weights are {ablation.about.digest}, those of the heads {digest}"
        raise UsageError(f"effects of another model, {ablation.about.model}", why=why)
