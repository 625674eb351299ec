"""The lens of a recorded example: what was read out while recording, or its residual stream read out now.

Without translators that is the logit lens, with them a tuned, a ridge or a Jacobian lens.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.analysis.lens import Compared, Lens, LensRows, normed, read_out
from traceformer.errors import NotRecorded, SelectionError, Unsupported, UsageError, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import Readout
from traceformer.progress import OnStep, quiet, steps_watched
from traceformer.questions.lens_checks import TranslatorsGiven, check_logits, translatable, translators_of
from traceformer.questions.model_of_run import open_readout_of
from traceformer.questions.recorded import check_asked, recorded
from traceformer.questions.statistics import targets_of
from traceformer.questions.vocabulary import shown_tokens, token_texts
from traceformer.shapes import Float32, Int64
from traceformer.sites import ArrayKey, ArraySpec, Numbers, as_indices
from traceformer.store.run import Run

__all__ = ["lens", "recorded_lens", "residual_of", "run_lens"]

_RESIDUAL = ("resid_post", "hidden")
_TOP = 3
_ROWS_BYTES = 256 << 20  # of the normed rows at hand


def lens(
    of: Run | LoadedModel,
    example: int | str = 0,
    *,
    layers: Numbers = None,
    positions: Numbers = None,
    top_k: int | None = None,
    translators: TranslatorsGiven | None = None,
    model: str | Path | LoadedModel | None = None,
    progress: OnStep | None = None,
) -> Lens:
    """Returns the next token of a recorded example, or of a text, as each layer would have it.

        lens(run, 0, positions=[12]).to_frame()
        lens(load_model("byte"), "return the name of the na")
        lens(run, 0, translators="byte-lens.safetensors")

    What every layer left in the residual stream is put through the model's own final norm and unembedding, which are
    read from its folder; the model is not run. That is the logit lens; with `translators` each layer's rows are
    translated before. Of a run that holds what was read out while it was recorded (`lens_top_k`), and no residual
    stream, that is shown, and no model is needed.

    Args:
        of: A run of a decoder, or of an encoder-decoder with targets; or a decoder itself.
        example: Of a run one of its examples, by number or id; of a model the text that it reads.
        layers: The model's numbers; by default all that are stored, and have a translator if any are given.
        positions: Positions of the example; all by default.
        top_k: How many of the likeliest tokens to keep: 3 by default, or all that were read out while recording.
        translators: What `fit_lens` found, or a file: one that `save` wrote, a published Jacobian lens (.pt), or the
            folder of a lens of the `tuned-lens` package. The model's last layer is read as it is.
        model: The run's model, if it is at hand, or where its folder is now, if it was moved.
        progress: Told how many of how many words are done, each counted once for every group of rows; a bar is shown in
            a terminal or notebook for None.

    Raises:
        NotRecorded: the run holds no residual stream, or fewer of the likeliest tokens.
        NotFound: the model's folder is not there, or no such file of translators.
        Unreadable: the file holds no translators, or not all of them.
        ConfigurationChanged: what lies in the folder is another model than the run's, or does not give the logits that
            the run holds; or the translators are another model's.
        SelectionError: a layer is not stored, or has no translator, or a position is not in the example.
        Unsupported: an encoder, which predicts no next token; a family whose readout is not known.
        UsageError: a model without a text.
    """
    check_asked(of)
    layers, positions = as_indices(layers), as_indices(positions)
    if isinstance(of, LoadedModel):
        if not isinstance(example, str):
            raise UsageError(f"{example} is no text", hint="a model reads a text, a run has examples")
        dec = of.dims.stacks.get("dec")
        # The last layer is what the others are compared with.
        whole = None if layers is None or dec is None else sorted({*layers, dec.n_layers - 1})
        run, example, model = recorded(of, [example], "resid_post", whole), 0, of
    else:
        run = of
    if translators is None and _is_read_out(run):
        return recorded_lens(run, example, layers=layers, positions=positions, top=top_k, model=model)
    readout = open_readout_of(run, model)
    top = _TOP if top_k is None else top_k
    check_whole("top_k", top, 1)
    with steps_watched("reading out", progress) as told:
        return run_lens(
            run,
            example,
            readout,
            layers=layers,
            positions=positions,
            top=top,
            translators=translators,
            model=model,
            progress=told,
        )


def run_lens(
    run: Run,
    example: int | str,
    readout: Readout,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int = _TOP,
    translators: TranslatorsGiven | None = None,
    model: str | Path | LoadedModel | None = None,
    progress: OnStep = quiet,
) -> Lens:
    """Returns what the layers of a recorded example say, given the readout of the run's model; else as `lens`.

    Raises:
        UsageError: the readout is of another width.
    """
    spec = residual_of(run)
    if spec.width != readout.d_model:
        raise UsageError(f"a readout of width {readout.d_model}", why=f"{spec.key} is {spec.width} wide")
    # `hidden` begins with the embedding: entry i + 1 is what layer i left, and the last one is behind the final norm.
    first = 1 if spec.key.site == "hidden" else 0
    stored = tuple(number - first for number in spec.layers if number >= first)
    last = (run.about.dims_of("dec").n_layers or 0) - 1
    found = None if translators is None else translators_of(run, translators, readout)
    if found is not None:
        layers = translatable(found[0], stored, last, layers)
    chosen, where, targets = _part_of(run, example, spec, stored, layers, positions)

    def residual(layer: int, places: Int64[np.ndarray, "place"]) -> Float32[np.ndarray, "place d_embed"]:
        stream = run.get(example, spec.key, layer + first)[places]
        if found is not None and layer != last:
            stream = found[0].translated(stream, layer)
        return normed(stream, readout, skip_norm=first == 1 and layer == last)

    has_last = last in stored
    if has_last:
        some = np.unique(where[[0, len(where) // 2, -1]])
        check_logits(run, example, spec, some.tolist(), residual(last, some), readout)
    total, at_once = len(chosen) * len(where), max(1, _ROWS_BYTES // (4 * spec.width))
    parts: list[LensRows] = []
    for start in range(0, total, at_once):
        # Rows are counted layer by layer, position by position within each.
        stop = min(start + at_once, total)
        numbers = range(start // len(where), -(-stop // len(where)))
        pieces = [slice(max(0, start - n * len(where)), stop - n * len(where)) for n in numbers]
        places, number = np.unique(np.arange(start, stop) % len(where), return_inverse=True)
        parts.append(
            read_out(
                np.concatenate([residual(chosen[n], where[piece]) for n, piece in zip(numbers, pieces, strict=True)]),
                readout,
                targets=np.concatenate([targets[piece] for piece in pieces]),
                top=top,
                compared=Compared(residual(last, where[places]), number) if has_last else None,
                progress=lambda done, of: progress(len(parts) * of + done, -(-total // at_once) * of),
            )
        )
    shape = (len(chosen), len(where))
    rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in LensRows.__slots__}
    if last in chosen:  # products of the same numbers may differ in a last bit, which is no divergence from itself
        rows["kl"].reshape(shape)[chosen.index(last)] = 0
    return _lens(
        run,
        example,
        model,
        key=spec.key,
        layers=chosen,
        positions=where,
        targets=targets,
        translated=None if found is None else replace(found[1], layers=tuple(own for own in chosen if own != last)),
        **{name: values.reshape(*shape, *values.shape[1:]) for name, values in rows.items()},
    )


def recorded_lens(
    run: Run,
    example: int | str = 0,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int | None = None,
    model: str | Path | LoadedModel | None = None,
) -> Lens:
    """Returns what the layers of an example said while it was recorded; arguments as of `lens`.

    Raises:
        NotRecorded: the run holds no likeliest tokens, or fewer than `top` of them.
        SelectionError: a layer is not stored, or a position is not in the example.
    """
    ids = run.spec("lens_topk")
    if top is not None and not 1 <= top <= ids.width:
        why = f"this run holds {ids.width} of each layer"
        raise NotRecorded(f"the {top} likeliest tokens", why=why, hint="`lens_top_k` when it is recorded")
    chosen, where, targets = _part_of(run, example, ids, ids.layers, layers, positions)
    place = np.ix_([ids.layers.index(layer) for layer in chosen], where.tolist())
    all_ids = run.get(example, ids.key)[place].astype(np.int64)
    probabilities = run.get(example, ids.key._replace(site="lens_topk_prob"))[place].astype(np.float32)
    is_target = (all_ids == targets[:, None]) & (targets >= 0)[:, None]
    there = is_target.any(axis=-1)
    return _lens(
        run,
        example,
        model,
        key=ids.key,
        layers=chosen,
        positions=where,
        targets=targets,
        top_ids=all_ids[..., :top],
        top_probabilities=probabilities[..., :top],
        entropy=np.full(there.shape, np.nan, np.float32),
        target_probability=np.where(there, (probabilities * is_target).sum(axis=-1), np.float32(np.nan)),
        target_rank=np.where(there, is_target.argmax(axis=-1) + 1, 0),
        kl=np.full(there.shape, np.nan, np.float32),
    )


def _lens(
    run: Run,
    example: int | str,
    model: str | Path | LoadedModel | None,
    *,
    positions: Int64[np.ndarray, "position"],
    **found: Any,
) -> Lens:
    """What was found, with the texts of its tokens."""
    tokens, text = shown_tokens(run, example, "dec"), token_texts(run, model)
    ids = {*found["top_ids"].flat, *found["targets"][found["targets"] >= 0]}
    return Lens(
        run.example_id(example),
        positions=tuple(positions.tolist()),
        tokens=tuple(tokens[position].text for position in positions),
        names={int(token_id): text(int(token_id)) for token_id in ids},
        **found,
    )


def _is_read_out(run: Run) -> bool:
    """Whether a run holds the likeliest tokens of each layer, and no residual stream to read all from."""
    return _first_of(run, _RESIDUAL) is None and _first_of(run, ("lens_topk",)) is not None


def _part_of(
    run: Run,
    example: int | str,
    spec: ArraySpec,
    stored: Sequence[int],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> tuple[tuple[int, ...], Int64[np.ndarray, "position"], Int64[np.ndarray, "position"]]:
    """Returns the layers and positions that are meant, and the targets of these."""
    chosen = _chosen("layer", layers, stored, f"this run holds layers {_listed(stored)} of {spec.key}")
    length = run.length(example, "dec")
    places = _chosen("position", positions, range(length), f"this example has positions 0-{length - 1}")
    where = np.asarray(places, np.int64)
    return chosen, where, targets_of(run)(run.example_id(example))[where]


def _first_of(run: Run, sites: Sequence[str]) -> ArraySpec | None:
    found = (run.layout.spec(ArrayKey("dec", None, site)) for site in sites)
    return next((spec for spec in found if spec is not None), None)


def residual_of(run: Run) -> ArraySpec:
    """Returns the array that holds a decoder's residual stream: `resid_post`, or else `hidden`.

    Raises:
        Unsupported: an encoder, which predicts no next token.
        NotRecorded: the run holds neither.
    """
    if run.arch == "enc":
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    found = _first_of(run, _RESIDUAL)
    if found is not None:
        return found
    raise NotRecorded(
        "this run holds no residual stream of a decoder",
        why=f"it holds {' '.join(str(spec.key) for spec in run.layout.arrays)}",
        hint='record it with `capture="resid_post"`',
    )


def _chosen(what: str, wanted: Sequence[int] | None, available: Sequence[int], why: str) -> tuple[int, ...]:
    chosen = tuple(available if wanted is None else wanted)
    missing = [number for number in chosen if number not in available]
    if missing or not chosen:
        raise SelectionError(f"{what} {_listed(missing) or 'nothing'} requested", why=why)
    return chosen


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
