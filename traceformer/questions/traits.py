"""Traits of runs: the direction that tells two kinds of texts apart, and how far every token lies along directions."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, overload

import numpy as np

from traceformer.analysis.directions import Direction, Fit, fit
from traceformer.analysis.methods import Method, Position
from traceformer.analysis.projection import ProjectedRows, Projections, TextCurves
from traceformer.analysis.projection import project as project_rows
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.formats.results.directions import read_all_directions
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, quiet, steps_watched
from traceformer.questions.recorded import Texts, check_asked, recorded
from traceformer.questions.trait_rows import example_rows, project_run
from traceformer.questions.vocabulary import shown_tokens
from traceformer.sites import SITES, ArraySpec
from traceformer.store.run import Run

__all__ = ["fit_direction", "fit_directions", "project"]

Layers: TypeAlias = Sequence[int] | Literal["all"] | None


def fit_direction(
    positive: Run | Texts,
    negative: Run | Texts,
    *,
    model: LoadedModel | None = None,
    method: Method = "mean_diff",
    site: str = "resid_post",
    layer: int | Sequence[int] | None = None,
    position: Position = "mean",
    name: str | None = None,
) -> Direction:
    """Returns the direction from one kind of texts to another, and how well it tells others of them apart.

        fit_direction(errors, returns, layer=2, name="errors")
        fit_direction(["raises ...", ...], ["returns ...", ...], model=load_model("byte"))

    Args:
        positive: A run of the texts that have the trait; with `model` the texts.
        negative: A run of texts that lack it, of the same model; with `model` the texts.
        model: What reads the texts.
        method: `mean_diff`, `probe` (logistic regression) or `pca` (first component of the differences of pairs).
        site: Where to look for it.
        layer: The layer to find it at, or several; every one that both runs hold by default.
        position: What stands for an example: the mean over its tokens, its last token, or the mean over its response.
        name: What to call the trait; the method's name by default.

    Raises:
        UsageError: runs of two models, fewer than two examples of a kind, or no difference between them.
        NotRecorded: a run does not hold the site, or no responses.
        SelectionError: a layer that a run does not hold.
    """
    layers = (layer,) if isinstance(layer, int) else layer
    if model is not None:
        capture = site.rpartition(".")[2]
        positive, negative = (recorded(model, _texts(each), capture, layers) for each in (positive, negative))
    if not isinstance(positive, Run) or not isinstance(negative, Run):
        raise UsageError("texts without a model that reads them", hint="`model`, or two runs")
    with steps_watched("fitting", None) as told:
        found = fit_directions(
            positive, negative, (method,), site=site, layers=layers, position=position, name=name, progress=told
        )
    return found[method]


def _texts(each: Run | Texts) -> Texts:
    if isinstance(each, Run):
        raise UsageError("a run and `model`", why="a run has its model", hint="one of them")
    return each


def fit_directions(
    positive: Run | Sequence[Run],
    negative: Run | Sequence[Run],
    methods: Sequence[Method],
    *,
    site: str = "resid_post",
    layers: Layers = None,
    position: Position = "mean",
    name: str | None = None,
    progress: OnStep = quiet,
) -> dict[Method, Direction]:
    """Returns the same by several methods, for which each layer is read once; `progress` is told of layers.

    The texts of a kind may lie in several runs, whose examples then count as those of one.
    """
    kinds = [(each,) if isinstance(each, Run) else tuple(each) for each in (positive, negative)]
    runs = [run for kind in kinds for run in kind]
    digests = list(dict.fromkeys(run.about.model_weights for run in runs))
    if len(digests) > 1:
        raise UsageError("the runs are of different models", why=f"their weights are {' and '.join(map(str, digests))}")
    specs = {run: _find_rows(run, site) for run in runs}
    chosen = _common_layers(list(specs.values()), layers)
    fits: dict[Method, dict[int | None, Fit]] = {method: {} for method in methods}
    for number, layer in enumerate(chosen):
        rows = [np.concatenate([example_rows(run, specs[run], layer, position) for run in kind]) for kind in kinds]
        for method, own in fits.items():
            own[layer] = fit(rows[0], rows[1], method)
        progress(number + 1, len(chosen))
    about = {
        "site": specs[runs[0]].key.site,
        "position": position,
        "model": runs[0].about.model_and_adapter,
        "model_weights": digests[0],
        "examples": [sum(run.n for run in kind) for kind in kinds],
    }
    return {
        method: Direction(
            method if name is None else name if len(fits) == 1 else f"{name} {method}",
            {layer: own.direction for layer, own in by_layer.items()},
            {"method": method, **about},
            {layer: own.numbers for layer, own in by_layer.items()},
        )
        for method, by_layer in fits.items()
    }


def _common_layers(specs: Sequence[ArraySpec], asked: Layers) -> tuple[int | None, ...]:
    for other in specs[1:]:
        if specs[0].key != other.key or specs[0].width != other.width:
            raise UsageError("the runs hold different arrays", why=f"{specs[0].key} and {other.key}")
    if not specs[0].layers:
        return (None,)
    common = [layer for layer in specs[0].layers if all(layer in spec.layers for spec in specs)]
    wanted = common if asked in (None, "all") else list(asked)
    missing = [layer for layer in wanted if layer not in common]
    if missing or not wanted:
        stored = f"the runs hold layers {_listed(common) or 'none'} of {specs[0].key}"
        raise SelectionError(f"layer {missing[0] if missing else asked} requested", why=stored)
    return tuple(wanted)


@overload
def project(
    run: Run | LoadedModel,
    *directions: Direction | str | Path,
    texts: Texts | None = None,
    layers: Layers | int = None,
    site: str | None = None,
    example: int | str | None = None,
    progress: OnStep | None = None,
) -> Projections: ...


@overload
def project(
    run: Sequence[Run],
    *directions: Direction | str | Path,
    texts: None = None,
    layers: Layers | int = None,
    site: str | None = None,
    example: int | str | None = None,
    progress: OnStep | None = None,
) -> list[Projections]: ...


def project(
    run: Run | LoadedModel | Sequence[Run],
    *directions: Direction | str | Path,
    texts: Texts | None = None,
    layers: Layers | int = None,
    site: str | None = None,
    example: int | str | None = None,
    progress: OnStep | None = None,
) -> Projections | list[Projections]:
    """Returns how far every token of a run lies along directions; of several runs, a list of that.

        project(answer, trait, example=0).to_frame()

    The projection of an activation a onto a vector v is (a @ v) / |v|, computed in float32. Without directions, the
    projections that the run was recorded with are returned; the cosines of these are not known.

    Args:
        run: A run, or several; or a model.
        texts: What a model reads.
        directions: Traits, or files of them: .safetensors, .pt or .npy.
        layers: Which layers, or "all"; those that the directions are for by default. An only vector serves for any.
        site: What to project, a site whose rows are as wide as the vectors; `resid_post` by default.
        example: One of the examples, by number or id; all by default.
        progress: Told how many of how many tokens are done, each counted once for every layer; a bar is shown in a
            terminal or notebook for None.

    Raises:
        UsageError: no directions, one that is given twice, or of another width.
        NotRecorded: the run does not hold the site.
        SelectionError: a layer is not stored, or a direction has no vector for it.
    """
    named = read_all_directions(directions)
    if isinstance(run, LoadedModel):
        run = recorded(run, texts, (site or "resid_post").rpartition(".")[2])
    elif texts is not None:
        raise UsageError("a run and texts", why="a run has its texts", hint="one of them")
    layers = [layers] if isinstance(layers, int) else layers
    runs = [run] if isinstance(run, Run) else run
    for each in runs if isinstance(runs, list | tuple) else [runs]:
        check_asked(each)
    with steps_watched("projecting", progress) as told:
        found = [_project(each, named, layers, site, example, told) for each in runs]
    return found[0] if isinstance(run, Run) else found


def _project(
    run: Run,
    directions: Mapping[str, Direction],
    asked: Layers,
    site: str | None,
    example: int | str | None,
    progress: OnStep,
) -> Projections:
    if directions:
        spec = _find_rows(run, site or "resid_post")
        _check(directions, spec, run)
        layers, names = _layers(directions, spec, asked), tuple(directions)
    else:
        spec = _recorded(run)
        layers, names = _stored_layers(spec, asked), tuple((run.about.projection or {})["names"])
    by_layer: dict[int | None, ProjectedRows] = {}
    for number, layer in enumerate(layers):

        def told(done: int, of: int, number: int = number) -> None:
            progress(number * of + done, len(layers) * of)

        by_layer[layer] = _rows(run, spec, layer, directions, example, told)
    return Projections(
        None if run.folder is None else str(run.folder),
        spec.key,
        str(spec.key) if directions else (run.about.projection or {})["site"],
        names,
        layers,
        tuple(_curves(run, spec, names, by_layer, example)),
        tuple(
            {**own.about, "name": name, "layers": list(own.layers)} | _thresholds(own)
            for name, own in directions.items()
        )
        or tuple({"name": name, "layers": list(spec.layers)} for name in names),
    )


def _thresholds(direction: Direction) -> dict[str, dict[int | None, float]]:
    """Where it was found to tell its two kinds apart, by layer, if that is known."""
    found = {layer: numbers.get("threshold") for layer, numbers in direction.quality.items()}
    known = {layer: number for layer, number in found.items() if number is not None}
    return {"thresholds": known} if known else {}


def _rows(
    run: Run,
    spec: ArraySpec,
    layer: int | None,
    directions: Mapping[str, Direction],
    example: int | str | None,
    progress: OnStep,
) -> ProjectedRows:
    """One layer of all examples, or of one. In memory are the projections only, 4 bytes per token and direction."""
    if not directions:
        all_rows = run.activations(spec.key, layer) if example is None else run.get(example, spec.key, layer)
        return ProjectedRows(all_rows.astype(np.float32), np.full(len(all_rows), np.nan, np.float32))
    vectors = np.stack([vector for own in directions.values() if (vector := own.at(layer)) is not None])
    if example is not None:
        return project_rows(run.get(example, spec.key, layer), vectors)
    return project_run(run, spec.key, layer, vectors, progress=progress)


def _curves(
    run: Run,
    spec: ArraySpec,
    names: tuple[str, ...],
    by_layer: Mapping[int | None, ProjectedRows],
    example: int | str | None,
) -> list[TextCurves]:
    """The rows of each example, with its tokens and where its response begins."""
    stack = spec.key.token_stack
    prompts = run.tokens.get("n_prompt") if stack == "dec" else None
    start, curves = 0, list[TextCurves]()
    for own_id in run.ids if example is None else (run.example_id(example),):
        here = slice(start, start + run.length(own_id, stack))
        start = here.stop
        begins = None if prompts is None else prompts.iloc[run.row(own_id)]
        curves.append(
            TextCurves(
                own_id,
                [piece.text for piece in shown_tokens(run, own_id, stack)],
                None if begins is None or np.isnan(begins) else int(begins),
                names,
                {layer: ProjectedRows(rows.values[here], rows.norms[here]) for layer, rows in by_layer.items()},
            )
        )
    return curves


def _find_rows(run: Run, site: str) -> ArraySpec:
    """Returns the array that a site or a key names, one with a row per token.

    Raises:
        NotRecorded: the run does not hold it.
        SelectionError: it holds several, or this one is made of heads or matrices.
    """
    specs = run.layout.arrays
    found = [spec for spec in specs if site in (spec.key.site, str(spec.key))]
    if not found:
        known = site in SITES or "." in site
        stored = f"it has {' '.join(str(spec.key) for spec in specs)}"
        hint = f'`capture="{site}"` when it is recorded' if site in SITES else ""
        raise NotRecorded(f"this run holds no {site}" if known else f"no site {site!r}", why=stored, hint=hint)
    if len(found) > 1:
        choices = " or ".join(f'`site="{spec.key}"`' for spec in found)
        raise SelectionError(f"{site} is there {len(found)} times", hint=choices)
    if found[0].site.is_derived or found[0].site.holds_ids:
        raise SelectionError(f"{found[0].key} is no activation", why=found[0].site.meaning, hint='`site="resid_post"`')
    if not found[0].site.is_per_token or found[0].heads:
        raise SelectionError(f"{found[0].key} has no single row per token", hint='`site="resid_post"`')
    return found[0]


def _recorded(run: Run) -> ArraySpec:
    """The array of the projections that were made when the run was recorded."""
    for spec in run.layout.arrays:
        if spec.key.site == "projection":
            if run.about.projection is None or len(run.about.projection["names"]) != spec.width:
                raise NotRecorded("this run does not say onto which directions it was projected")
            return spec
    raise UsageError("project needs `directions`", why="this run was not recorded with any")


def _check(directions: Mapping[str, Direction], spec: ArraySpec, run: Run) -> None:
    """Refuses vectors of another width, and warns of those that were found somewhere else."""
    weights = run.about.model_weights
    for name, own in directions.items():
        if own.width != spec.width:
            raise UsageError(f"the vectors of {name} are {own.width} wide", why=f"{spec.key} is {spec.width} wide")
        site, model = own.about.get("site"), own.about.get("model_weights")
        if site is not None and site != spec.key.site:
            warnings.warn(f"{name} was found at {site}, and is used at {spec.key.site}", stacklevel=4)
        if model is not None and weights is not None and model != weights:
            found_in = f"in another model ({own.about.get('model')}, weights {model})"
            warnings.warn(f"{name} was found {found_in} than this run's (weights {weights})", stacklevel=4)


def _layers(directions: Mapping[str, Direction], spec: ArraySpec, asked: Layers) -> tuple[int | None, ...]:
    if not spec.layers:
        if asked not in (None, "all"):
            raise SelectionError(f"layers {_listed(asked)} requested", why=f"{spec.key} has no layers")
        return (None,)
    named = sorted({layer for own in directions.values() for layer in own.layers})
    if asked is None and named:
        fitting = [
            layer
            for layer in named
            if layer in spec.layers and all(own.at(layer) is not None for own in directions.values())
        ]
        if not fitting:
            raise SelectionError(f"the vectors are for layers {_listed(named)}", why=_stored(spec))
        return tuple(fitting)
    wanted = _stored_layers(spec, asked)
    for layer in wanted:
        for name, own in directions.items():
            if own.at(layer) is None:
                hint = f"`layers={list(own.layers)}`, which it has"
                raise SelectionError(f"{name} has no vector for layer {layer}", hint=hint)
    return wanted


def _stored_layers(spec: ArraySpec, asked: Layers) -> tuple[int, ...]:
    wanted = spec.layers if asked in (None, "all") else tuple(asked)
    for layer in wanted:
        if layer not in spec.layers:
            raise SelectionError(f"layer {layer} requested", why=_stored(spec))
    return wanted


def _stored(spec: ArraySpec) -> str:
    return f"this run holds layers {_listed(spec.layers)} of {spec.key}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
