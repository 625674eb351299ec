"""`traceformer vectors`: find the direction that tells two kinds of texts apart, and look at it."""

import json as json_text
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from traceformer.analysis.methods import Method, Position
from traceformer.cli.arguments import FILE_ON_DISK, FOLDER_ON_DISK
from traceformer.cli.terminal import table
from traceformer.errors import NotFound, UsageError
from traceformer.progress import Totals, progress_shown, steps_shown
from traceformer.sites import parse_indices

if TYPE_CHECKING:
    from traceformer.analysis.directions import Direction
    from traceformer.store.run import Run

__all__ = ["fit", "show", "vectors"]

_TEXTS = Group.create_ordered("The two kinds of texts")
_FIT = Group.create_ordered("What is found")
_OUTPUT = Group.create_ordered("Output")

vectors = App(
    name="vectors",
    help="""Find the direction that tells two kinds of texts apart.

Example: traceformer vectors fit --positive yes.txt --negative no.txt --model byte --output traits
""",
    help_epilogue="Each takes --json.",
)


@vectors.command
def fit(
    *,
    positive: Annotated[str, Parameter(group=_TEXTS, metavar="RUN|TEXTS")],
    negative: Annotated[str, Parameter(group=_TEXTS, metavar="RUN|TEXTS")],
    output: Annotated[Path, FOLDER_ON_DISK, Parameter(group=_OUTPUT, metavar="FOLDER")],
    model: Annotated[str | None, Parameter(group=_TEXTS)] = None,
    adapter: Annotated[str | None, Parameter(group=_TEXTS, metavar="FOLDER|NAME")] = None,
    like: Annotated[str | None, Parameter(group=_TEXTS, metavar="FAMILY")] = None,
    allow_pickle: Annotated[bool, Parameter(group=_TEXTS)] = False,
    method: Annotated[tuple[Method, ...], Parameter(group=_FIT, consume_multiple=(1, None), metavar="METHOD...")] = (
        "mean_diff",
    ),
    site: Annotated[str, Parameter(group=_FIT)] = "resid_post",
    layer: Annotated[str, Parameter(group=_FIT, name=("--layer", "--layers"), metavar="I,J-K|all")] = "all",
    position: Annotated[Position, Parameter(group=_FIT)] = "mean",
    name: Annotated[str | None, Parameter(group=_OUTPUT)] = None,
    device: Annotated[str | None, Parameter(group=_TEXTS)] = None,
    png: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_OUTPUT)] = None,
    json: Annotated[bool, Parameter(group=_OUTPUT)] = False,
) -> None:
    """Find the direction from one kind of texts to another, at each layer.

    Two runs, or two files of texts or prompts with a --model that reads them. Shown is how well each direction tells
    apart examples that it was not fitted on (five folds; chance is 0.5), beside the same with shuffled labels.

    Example: `traceformer vectors fit --positive yes.txt --negative no.txt --model byte --output traits`

    Args:
        positive: The texts that have the trait: a run or a folder of them; with --model a file of them or a prompt set.
        negative: The texts that lack it.
        output: The folder to write METHOD.safetensors into, with a vector per layer.
        model: The model that reads the texts; a folder, a Hub name or a built-in model.
        adapter: An adapter of PEFT for the model, in a folder or on the Hub.
        like: Record it by the row of this family, such as llama, once every fact of it is proved on the texts.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        method: mean_diff, probe (logistic regression), pca (first component of the differences of pairs); or several.
        site: Where to look for it.
        layer: Which layers; all that are stored by default.
        position: What stands for an example: the mean over its tokens, its last token, or the mean over its response.
        name: What to call the trait; the folder's name by default.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        png: Save a picture of how well each layer does, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.questions.traits import fit_directions

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    trait = name or output.resolve().name
    layers = None if layer == "all" else parse_indices(layer)
    loading = {"adapter": adapter, "device": device, "allow_pickle": allow_pickle, "like": like}
    runs = _runs_of_kinds(positive, negative, model, site, layers, loading)
    with steps_shown("fitting") as progress:
        fitted = fit_directions(
            *runs, method, site=site, layers=layers, position=position, name=trait, progress=progress
        )
    texts = {"positive": positive, "negative": negative}
    files = {
        output / f"{own_method}.safetensors": replace(own, about={**own.about, **texts})
        for own_method, own in fitted.items()
    }
    for path, own in files.items():
        own.save(path)
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.direction(*files.values(), title=f"{trait}  {site}"), png)
    if json:
        print(
            json_text.dumps(
                {"vectors": [{"file": str(path), **own.to_json()} for path, own in files.items()]}, indent=2
            )
        )
        return
    first = next(iter(files.values()))
    n_positive, n_negative = first.about["examples"]
    print(f"{trait}: {n_positive} positive and {n_negative} negative examples, {site}", end="\n\n")
    for own in files.values():
        print(_table(own), end="\n\n")
    then = "" if first.best_layer is None else f" --layer {first.best_layer}"
    made = [str(path) for path in files]
    print(f"wrote {' and '.join(made)}; next: traceformer project RUN --vector {' '.join(made)}{then}", file=sys.stderr)


@vectors.command
def show(
    file: Annotated[Path, Parameter(name="FILE")],
    /,
    *,
    json: bool = False,
) -> None:
    """Show what a file of vectors holds, and how they were found.

    Example: `traceformer vectors show traits/mean_diff.safetensors`

    Args:
        file: A .safetensors, .pt or .npy file.
        json: Print a JSON object.
    """
    from traceformer.formats.results.directions import read_direction

    found = read_direction(file)
    if json:
        print(json_text.dumps({"file": str(file), **found.to_json()}, indent=2))
        return
    print(f"{found.name}: {len(found.by_layer)} vectors, {found.width} wide")
    for what, value in sorted(found.about.items()):
        print(f"{what.replace('_', ' ')}: {' and '.join(map(str, value)) if isinstance(value, list) else value}")
    print()
    print(_table(found))
    print(f"next: traceformer project RUN --vector {file}", file=sys.stderr)


def _runs_of_kinds(
    positive: str,
    negative: str,
    model: str | None,
    site: str,
    layers: tuple[int, ...] | None,
    loading: dict[str, Any],
) -> "tuple[list[Run], list[Run]]":
    """The runs of both kinds of texts; recorded now, and kept nowhere, where a model is given."""
    if model is None:
        return _runs(positive), _runs(negative)

    from traceformer.capture.extract import record
    from traceformer.models.load import load_model

    loaded = load_model(model, **loading)

    def recorded(texts: str) -> "Run":
        read, name = _texts(texts), site.rpartition(".")[2]
        with progress_shown(Totals()) as told:
            return record(loaded, read, name, layers=layers, hidden_layers=layers, dtype="float32", progress=told)

    return [recorded(positive)], [recorded(negative)]


def _runs(name: str) -> "list[Run]":
    from traceformer.store.folders import find_runs
    from traceformer.store.run import Run

    try:
        return [Run(folder) for folder in find_runs(name)]
    except NotFound as error:
        if Path(name).is_file():
            hint = "--model MODEL, to record the texts"
            raise UsageError(f"{name} is a file, and no run", hint=hint) from error
        raise


def _texts(name: str) -> str | list[str]:
    """The texts of a prompt set, or what `record` calls them."""
    from traceformer.texts.prompts import PROMPT_SETS, load_prompt_set

    if Path(name).suffix.lower() != ".json" and not (PROMPT_SETS / f"{name}.json").is_file():
        return name
    return [prompt.text for prompt in load_prompt_set(name).prompts]


def _table(direction: "Direction") -> str:
    """A line per layer; how well it does, where that is known."""
    import numpy as np

    columns = list(next(iter(direction.quality.values()), {}))
    rows = [
        (
            "" if layer is None else f"L{layer}",
            f"{np.linalg.norm(values):.4g}",
            *(
                "" if (value := direction.quality.get(layer, {}).get(column)) is None else f"{value:.3g}"
                for column in columns
            ),
        )
        for layer, values in direction.by_layer.items()
    ]
    headers = ("layer", "norm", *(column.replace("_", " ") for column in columns))
    return (f"{direction.about['method']}\n" if "method" in direction.about else "") + table(
        headers, rows, numeric=range(1, len(headers))
    )
