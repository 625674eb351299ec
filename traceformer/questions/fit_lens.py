"""A lens fitted: for each layer a map into the place of the last one, tuned, by ridge regression or by derivatives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from traceformer.analysis.ridge import Affine, chosen_ridge
from traceformer.analysis.translators import HeldOut, Translators
from traceformer.errors import SelectionError, UsageError, check_choice, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import Readout
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.fit_jacobian import JacobianSettings, jacobian_matrices
from traceformer.questions.fitting_rows import PARTS, FittingRows, LayerRows, Part
from traceformer.questions.lens import residual_of
from traceformer.questions.model_of_run import open_readout_of
from traceformer.questions.recorded import Texts, check_asked, recorded
from traceformer.shapes import Float32
from traceformer.sites import Numbers, as_indices
from traceformer.store.run import Run

__all__ = ["FITTED", "Fitted", "check_settings", "fit_lens"]

Fitted: TypeAlias = Literal["tuned", "ridge", "jacobian"]
FITTED: tuple[Fitted, ...] = get_args(Fitted)

_STEPS = 300


def fit_lens(
    of: Run | LoadedModel,
    texts: Texts | None = None,
    *,
    kind: Fitted = "tuned",
    layers: Numbers = None,
    limit: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    skip: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    model: str | Path | LoadedModel | None = None,
    progress: OnStep | None = None,
) -> Translators:
    """Returns for each layer the affine map that puts its rows of the residual stream in the place of the last one's.

        lens = fit_lens(run)                          # of a run that holds resid_post, or hidden
        lens.to_frame()                               # a row per layer: held-out KL and top-1, beside the logit lens's
        lens.save("byte-lens.safetensors")

    Rows are (token, d_model), as they are stored; the model is not run, and its weights stay as they are. Of each
    layer, W (d_model, d_model) and b (d_model) are fitted on the rows of 70 % of the examples: `ridge` minimises the
    sum of squares to the last layer's row, in float64, its penalty chosen on 15 % of them; `tuned` goes on from there
    and minimises KL(what the last layer says || what W h + b says), in nats, both through the model's own final norm
    and unembedding. Of the identity, ridge and tuned each layer has what is best in KL on these 15 %, among those whose
    likeliest word is that of the end as often as the logit lens's. The last 15 % say how well it does. The last layer's
    map is the identity.

    `jacobian` runs the model: W is the mean, over texts and positions, of the sum over the same and all later positions
    of the derivative of the last layer's row by this layer's, before the final norm; b is zero. It is fitted to no
    read-out, so that all but the held-out texts take part, and the last layer has none.

    Jacobian lens: Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models".
    Tuned lens: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens".

    Args:
        of: A run of a decoder, or of an encoder-decoder with targets; or a decoder, which is recorded in memory.
        texts: What a model reads.
        kind: `tuned`, `ridge`, or `jacobian`.
        layers: The model's numbers; all that are stored by default.
        limit: The first examples only.
        steps: How many batches of 512 rows `tuned` takes for each layer; 300 by default.
        seed: Deals the examples to the three parts, and draws batches.
        skip: Of `jacobian`, how many of a text's first positions are left out; 16 by default.
        max_tokens: Of `jacobian`, how many of a text's first tokens are read; 128 by default.
        batch_size: Of `jacobian`, how many rows of a matrix are made in one pass backward, each of a copy of the text;
            8 by default.
        model: The run's model, if it is at hand, or where its folder is now, if it was moved.
        progress: Told how many of how many steps are done; a bar is shown in a terminal or notebook for None.

    Raises:
        NotRecorded: the run holds no residual stream, or not its last layer.
        NotFound: the model's folder is not there.
        ConfigurationChanged: what lies there is another model than the run's.
        SelectionError: a layer is not stored.
        NumericError: a row holds NaN or inf.
        UsageError: there are fewer than ten examples with tokens; a run with texts, or a model without; a setting of
            another kind of lens.
        Unsupported: an encoder, which predicts no next token; a family whose readout is not known.
    """
    check_asked(of)
    check_choice("kind", kind, FITTED)
    derived = {"skip": skip, "max_tokens": max_tokens, "batch_size": batch_size}
    check_settings(kind, steps=steps, **derived)
    steps = _STEPS if steps is None else steps
    check_whole("steps", steps, 1)
    check_whole("seed", seed, 0)
    if limit is not None:
        check_whole("limit", limit, 1)
    run = recorded(of, texts, "resid_post", limit=limit)
    spec = residual_of(run)
    readout = open_readout_of(run, of if isinstance(of, LoadedModel) else model)
    settings = JacobianSettings(**{name: value for name, value in derived.items() if value is not None})
    rows = FittingRows(run, spec, readout, limit=limit, seed=seed)
    there = tuple(layer for layer in rows.layers if kind != "jacobian" or layer != rows.last)
    chosen = tuple(sorted(set(there if layers is None else as_indices(layers) or ())))
    missing = [layer for layer in chosen if layer not in there]
    if missing or not chosen:
        named = ", ".join(map(str, missing)) or "nothing"
        stored = ", ".join(map(str, rows.layers))
        raise SelectionError(f"layer {named} requested", why=f"this run holds layers {stored} of {spec.key}")
    with steps_watched("fitting", progress) as told:
        given = None
        if kind == "jacobian":
            at_hand = of if isinstance(of, LoadedModel) else model
            given = _jacobians(run, rows, chosen, at_hand, settings, told)
        return _fitted(run, rows, readout, chosen, kind, steps, seed, told, given)


def check_settings(kind: Fitted, **given: object) -> None:
    """Makes sure that each setting that is given means something to a kind of lens: a parameter of `fit_lens`.

    Raises:
        UsageError: it is one of another kind.
    """
    for name, value in given.items():
        own = "tuned" if name == "steps" else "jacobian"
        if value is not None and kind != own:
            raise UsageError(
                f"`{name}` of a {kind} lens", why=f"it is of a {own} lens", hint=f"a {own} lens, or leave it out"
            )


def _fitted(
    run: Run,
    rows: FittingRows,
    readout: Readout,
    layers: tuple[int, ...],
    kind: Fitted,
    steps: int,
    seed: int,
    told: OnStep,
    given: "_Given | None",
) -> Translators:
    from traceformer.capture.tuning import TorchReadout, Tuning, tune

    own, ends = TorchReadout(readout), rows.ends()
    identity = Affine(np.eye(readout.d_model), np.zeros(readout.d_model))
    found: list[Affine] = []
    names: list[str] = []
    figures: list[tuple[float, float, float, float]] = []
    penalties: dict[int, float] = {}
    for number, layer in enumerate(layers):
        if given is None:
            told(number * steps, len(layers) * steps)
        if layer == rows.last:  # what it says is what is said in the end
            found.append(identity)
            names.append("identity")
            figures.append((0.0, 1.0, 0.0, 1.0))
            continue
        read = rows.read(layer)
        if given is not None:
            maps, spectrum = {"jacobian": given.maps[layer]}, None
        else:
            ridge, penalties[layer], spectrum = chosen_ridge(read.fit, read.validation)
            maps = {"ridge": ridge}

        def measured(own_map: Affine, part: Part, read: LayerRows = read) -> tuple[float, float]:
            return own.measured(_translated(own_map, read.drawn[part]), ends[part])

        if kind == "tuned" and spectrum is not None:
            maps = {"identity": identity, **maps}
            maps["tuned"] = tune(
                min(maps.values(), key=lambda each: measured(each, "validation")[0]),
                spectrum,
                own,
                (read.drawn["fit"], ends["fit"]),
                (read.drawn["validation"], ends["validation"]),
                Tuning(steps),
                seed=seed,
                progress=lambda done, of, number=number: told(number * of + done, len(layers) * of),
            )
        name = _best({name: measured(each, "validation") for name, each in maps.items()})
        found.append(maps[name])
        names.append(name)
        figures.append((*measured(maps[name], "held_out"), *measured(identity, "held_out")))
    if given is None:
        told(len(layers) * steps, len(layers) * steps)
    kl, top1, logit_kl, logit_top1 = np.array(figures).T
    return Translators(
        kind,
        layers,
        np.stack([each.matrix.astype(np.float32) for each in found]),
        np.stack([each.vector.astype(np.float32) for each in found]),
        model=run.about.model,
        model_weights=run.about.model_weights,
        d_vocab=readout.d_vocab,
        about={
            "site": str(rows.key),
            "run": run.name,
            "seed": seed,
            **({"steps": steps} if kind == "tuned" else {}),
            **(
                given.about if given is not None else {"penalties": {str(own): each for own, each in penalties.items()}}
            ),
            "examples": dict(rows.examples),
            "rows": dict(rows.rows),
            "drawn_rows": dict(rows.drawn),
        },
        held_out=HeldOut(
            kl,
            top1,
            logit_kl,
            logit_top1,
            tuple(names),
            rows=rows.drawn["held_out"],
            examples=rows.examples["held_out"],
        ),
    )


class _Given(NamedTuple):
    """Maps that no rows were fitted to, and what is to be said of them."""

    maps: Mapping[int, Affine]
    about: Mapping[str, int]


def _jacobians(
    run: Run,
    rows: FittingRows,
    layers: tuple[int, ...],
    model: str | Path | LoadedModel | None,
    settings: JacobianSettings,
    told: OnStep,
) -> _Given:
    """The mean derivatives over all examples that are not held out."""
    fitted = np.flatnonzero((rows.part_of == PARTS.index("fit")) | (rows.part_of == PARTS.index("validation")))
    matrices, texts = jacobian_matrices(run, fitted.tolist(), layers, model, settings, told)
    nothing = np.zeros(matrices.shape[-1])
    return _Given(
        {layer: Affine(matrix.astype(np.float64), nothing) for layer, matrix in zip(layers, matrices, strict=True)},
        {"n_prompts": texts, "skip": settings.skip, "max_tokens": settings.max_tokens},
    )


def _translated(own: Affine, rows: Float32[np.ndarray, "row d_model"]) -> Float32[np.ndarray, "row d_model"]:
    return rows @ own.matrix.astype(np.float32).T + own.vector.astype(np.float32)


def _best(measured: Mapping[str, tuple[float, float]]) -> str:
    """The map of the least KL, of those that name the likeliest word as often as the identity, if that is there."""
    least = measured["identity"][1] if "identity" in measured else 0.0
    return min((name for name, (_, top1) in measured.items() if top1 >= least), key=lambda name: measured[name][0])
