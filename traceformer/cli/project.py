"""`traceformer project`: how far every token lies along trait vectors, and how that develops."""

import json as json_text
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from traceformer.cli.arguments import find_example, find_run
from traceformer.cli.progress import steps_shown
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.sites import SITES, ArraySpec, parse_indices

if TYPE_CHECKING:
    from traceformer.analysis.projection import TextCurves
    from traceformer.capture.projecting import Traits
    from traceformer.formats.directions import DirectionFile
    from traceformer.store.run import TraceStore

__all__ = ["find_rows", "project", "read_traits"]

_COLUMN = 9  # of a number in a table, with the space before it


def project(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    vector: Annotated[tuple[Path, ...], Parameter(consume_multiple=(1, None), metavar="FILE...")] = (),
    site: str = "resid_post",
    layer: Annotated[str | None, Parameter(metavar="I,J-K|all")] = None,
    example: str | None = None,
    png: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    output: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    json: bool = False,
) -> None:
    """Project what was recorded onto trait vectors, token by token.

    The projection of an activation a onto a vector v is (a @ v) / |v|, computed in float32; its cosine stands beside
    it. With --example: a line per token, and how the curve develops over the response. Without: a line per example, or
    per layer where there are several.

    Example: `traceformer project latest --vector vectors/errors/mean_diff.safetensors`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        vector: Files of vectors, .safetensors, .pt or .npy; each is one trait, with one vector or one per layer.
            Without them, the projections that a run was recorded with (--project) are shown.
        site: What to project: a site whose rows are as wide as the vectors.
        layer: Which layers; those that the files are for by default, or all. A file's only vector serves for any layer.
        example: An example's id, or its row number; all by default.
        png: Save a picture of the curves, in the format that the ending names.
        output: Save the curves and their dynamics as JSON, a file per example.
        json: Print a JSON object.
    """
    from traceformer.cli.curves import example_table, layer_table, to_json
    from traceformer.store.run import TraceStore

    folder = find_run(run)
    store = TraceStore(folder)
    files = _read(vector)
    if files:
        spec = find_rows(store, site)
        _check(files, spec, store)
        layers = _layers(files, spec, layer)
    else:
        spec = _recorded(store)
        layers = _stored_layers(spec, layer)
    ids = store.ids if example is None else (find_example(example, store.ids),)
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    with steps_shown("projecting") as progress:
        found = _curves(store, spec, layers, files, None if example is None else ids[0], progress)
    about = _about(folder, spec, files, store)
    if png is not None:
        from traceformer.figures.style import save
        from traceformer.figures.traits import curves_figure

        save(curves_figure(found, title=f"{folder.name}  {spec.key}"), png)
    if output is not None:
        for own in found:
            _write_json(output / f"{own.example_id}.json", {**about, **to_json(own)})
    if json:
        print(json_text.dumps({**about, "examples": [to_json(own) for own in found]}, indent=2))
        return
    if example is None:
        print(f"{folder}  {spec.key}: projections of {len(found)} examples", end="\n\n")
        print(example_table(found, layers[0]) if len(layers) == 1 else layer_table(found))
    else:
        _print_example(found[0], spec, layers)
    made = " and ".join(str(path) for path in (png, output) if path is not None)
    shown = "".join([" --vector", *(f" {path}" for path in vector)] * bool(vector)) + f" --layer {layer}" * bool(layer)
    then = f"--example {found[0].example_id}" + f" --png {found[0].example_id}.png" * (example is not None)
    print(f"{f'wrote {made}; ' if made else ''}next: traceformer project {folder}{shown} {then}", file=sys.stderr)


def find_rows(store: "TraceStore", site: str) -> ArraySpec:
    """Returns the array that `--site` names, one with a row per token.

    Raises:
        NotRecorded: the run does not hold it.
        SelectionError: it holds several, or this one is made of heads or matrices.
    """
    specs = store.layout.arrays
    found = [spec for spec in specs if site in (spec.key.site, str(spec.key))]
    if not found:
        known = site in SITES or "." in site
        stored = f"it has {' '.join(str(spec.key) for spec in specs)}"
        hint = f"--capture {site} when it is recorded" if site in SITES else ""
        raise NotRecorded(f"this run holds no {site}" if known else f"no site {site!r}", why=stored, hint=hint)
    if len(found) > 1:
        keys = [str(spec.key) for spec in found]
        raise SelectionError(f"{site} is there {len(keys)} times", hint=" or ".join(f"--site {key}" for key in keys))
    if found[0].site.is_derived:
        raise SelectionError(f"{found[0].key} is no activation", why=found[0].site.meaning, hint="--site resid_post")
    if found[0].site.is_matrix or found[0].heads:
        raise SelectionError(f"{found[0].key} has no single row per token", hint="--site resid_post")
    return found[0]


def read_traits(paths: Sequence[Path], site: str) -> "Traits":
    """Returns the trait vectors in some files, for a recording to project onto."""
    from traceformer.capture.projecting import Traits

    return Traits({name: file.by_layer for name, file in _read(paths).items()}, site)


def _recorded(store: "TraceStore") -> ArraySpec:
    """The array of the projections that were made when the run was recorded."""
    specs = [spec for spec in store.layout.arrays if spec.key.site == "projection"]
    if not specs:
        raise UsageError("project needs --vector", hint="traceformer vectors fit makes vectors")
    return specs[0]


def _read(paths: Sequence[Path]) -> "dict[str, DirectionFile]":
    """The files by the names of their traits; where two are called the same, their paths tell them apart."""
    from traceformer.formats.directions import read_directions

    files = [read_directions(path) for path in paths]
    names = [file.name for file in files]
    own = [str(path) if names.count(file.name) > 1 else file.name for path, file in zip(paths, files, strict=True)]
    if len(set(own)) < len(own):
        raise UsageError("a file of vectors is given twice", why=" ".join(map(str, paths)))
    return dict(zip(own, files, strict=True))


def _check(files: "dict[str, DirectionFile]", spec: ArraySpec, store: "TraceStore") -> None:
    """Refuses vectors of another width, and warns of those that were found somewhere else."""
    weights = store.meta.get("configuration", {}).get("model weights")
    for name, file in files.items():
        if file.width != spec.width:
            raise UsageError(f"the vectors of {name} are {file.width} wide", why=f"{spec.key} is {spec.width} wide")
        site, model = file.about.get("site"), file.about.get("model_weights")
        if site is not None and site != spec.key.site:
            warnings.warn(f"{name} was found at {site}, and is used at {spec.key.site}", stacklevel=2)
        if model is not None and weights is not None and model != weights:
            found_in = f"in another model ({file.about.get('model')}, weights {model})"
            warnings.warn(f"{name} was found {found_in} than this run's (weights {weights})", stacklevel=2)


def _layers(files: "dict[str, DirectionFile]", spec: ArraySpec, asked: str | None) -> tuple[int | None, ...]:
    if not spec.layers:
        if asked not in (None, "all"):
            raise SelectionError(f"--layer {asked}", why=f"{spec.key} has no layers")
        return (None,)
    stored = f"this run holds layers {', '.join(map(str, spec.layers))} of {spec.key}"
    named = sorted({layer for file in files.values() for layer in file.layers})
    if asked is None and named:
        fitting = [
            layer for layer in named if layer in spec.layers and all(f.at(layer) is not None for f in files.values())
        ]
        if not fitting:
            raise SelectionError(f"the vectors are for layers {', '.join(map(str, named))}", why=stored)
        return tuple(fitting)
    wanted = _stored_layers(spec, asked)
    for layer in wanted:
        for name, file in files.items():
            if file.at(layer) is None:
                own = ",".join(map(str, file.layers))
                raise SelectionError(f"{name} has no vector for layer {layer}", hint=f"--layer {own}, which it has")
    return wanted


def _stored_layers(spec: ArraySpec, asked: str | None) -> tuple[int, ...]:
    wanted = spec.layers if asked in (None, "all") else parse_indices(asked or "")
    for layer in wanted:
        if layer not in spec.layers:
            stored = f"this run holds layers {', '.join(map(str, spec.layers))} of {spec.key}"
            raise SelectionError(f"layer {layer} requested", why=stored)
    return wanted


def _curves(
    store: "TraceStore",
    spec: ArraySpec,
    layers: Sequence[int | None],
    files: "dict[str, DirectionFile]",
    example_id: str | None,
    progress: Callable[[int, int], None],
) -> "list[TextCurves]":
    """All examples' projections, or one's. In memory are the projections only, 4 bytes per token, layer and vector."""
    import numpy as np

    from traceformer.analysis.projection import Projections, TextCurves
    from traceformer.analysis.projection import project as project_rows
    from traceformer.questions.traits import project_run
    from traceformer.questions.vocabulary import tokens_of

    stack, by_layer = spec.key.token_stack, dict[int | None, Projections]()
    names = tuple(files) or tuple(store.meta["projection"]["names"])
    for number, layer in enumerate(layers):
        if not files:
            of_all = example_id is None
            values = store.activations(spec.key, layer) if of_all else store.get(example_id, spec.key, layer)
            by_layer[layer] = Projections(values.astype(np.float32), np.full(len(values), np.nan, np.float32))
            continue
        directions = np.stack([vector for file in files.values() if (vector := file.at(layer)) is not None])
        if example_id is not None:
            by_layer[layer] = project_rows(store.get(example_id, spec.key, layer), directions)
        else:
            by_layer[layer] = project_run(
                store,
                spec.key,
                layer,
                directions,
                progress=lambda done, of, number=number: progress(number * of + done, len(layers) * of),
            )
    prompts = store.tokens.get("n_prompt") if stack == "dec" else None
    start, found = 0, list[TextCurves]()
    for own_id in store.ids if example_id is None else (example_id,):
        here = slice(start, start + store.length(own_id, stack))
        start = here.stop
        begins = None if prompts is None else prompts.iloc[store.row(own_id)]
        found.append(
            TextCurves(
                own_id,
                tokens_of(store, own_id, stack),
                None if begins is None or np.isnan(begins) else int(begins),
                names,
                {layer: Projections(own.values[here], own.norms[here]) for layer, own in by_layer.items()},
            )
        )
    return found


def _print_example(own: "TextCurves", spec: ArraySpec, layers: Sequence[int | None]) -> None:
    import numpy as np

    from traceformer.cli.curves import curve_table, dynamics_table

    width = shutil.get_terminal_size((100, 24)).columns
    room = max(1, (width - 42) // _COLUMN)
    shown = [layers[i] for i in sorted({round(i) for i in np.linspace(0, len(layers) - 1, min(room, len(layers)))})]
    for i, name in enumerate(own.names):
        place = f"L{layers[0]}  " if len(layers) == 1 and layers[0] is not None else ""
        print(f"{name}  {place}{spec.key}  example {own.example_id}", end="\n\n")
        print(curve_table(own, i, shown))
        if len(shown) < len(layers):
            print(f"\n{len(shown)} of {len(layers)} layers fit the width; --layer chooses others, --json has all")
        print()
    print(dynamics_table(own))


def _about(folder: Path, spec: ArraySpec, files: "dict[str, DirectionFile]", store: "TraceStore") -> dict[str, Any]:
    if not files:
        recorded = store.meta["projection"]
        vectors = [{"name": name, "layers": list(spec.layers)} for name in recorded["names"]]
        return {"run": str(folder), "array": recorded["site"], "vectors": vectors}
    about = [{what: value for what, value in file.about.items() if what != "quality"} for file in files.values()]
    vectors = [
        {**own, "name": name, "layers": list(file.layers)}
        for own, (name, file) in zip(about, files.items(), strict=True)
    ]
    return {"run": str(folder), "array": str(spec.key), "vectors": vectors}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json_text.dumps(data, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
