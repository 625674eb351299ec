"""`traceformer vectors`: find the direction that tells two kinds of texts apart, and look at it."""

import json as json_text
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from traceformer.analysis.choices import Method, Position
from traceformer.cli.arguments import find_run
from traceformer.cli.progress import steps_shown
from traceformer.cli.terminal import table
from traceformer.errors import NotFound, SelectionError, UsageError
from traceformer.sites import ArraySpec, Selection, Stack, parse_indices

if TYPE_CHECKING:
    from traceformer.analysis.directions import Fit
    from traceformer.formats.directions import DirectionFile
    from traceformer.store.run import TraceStore

__all__ = ["fit", "show", "vectors"]

_TEXTS = Group.create_ordered("The two kinds of texts")
_FIT = Group.create_ordered("What is found")
_OUTPUT = Group.create_ordered("Output")

vectors = App(
    name="vectors",
    help="""Find the direction that tells two kinds of texts apart.

Example: `traceformer vectors fit --positive yes.txt --negative no.txt --model byte --output traits`
""",
    help_epilogue="Each takes --json.",
)


@vectors.command
def fit(
    *,
    positive: Annotated[str, Parameter(group=_TEXTS, metavar="RUN|TEXTS")],
    negative: Annotated[str, Parameter(group=_TEXTS, metavar="RUN|TEXTS")],
    output: Annotated[Path, Parameter(group=_OUTPUT, metavar="FOLDER")],
    model: Annotated[str | None, Parameter(group=_TEXTS)] = None,
    method: Annotated[tuple[Method, ...], Parameter(group=_FIT, consume_multiple=(1, None), metavar="METHOD...")] = (
        "mean_diff",
    ),
    site: Annotated[str, Parameter(group=_FIT)] = "resid_post",
    layer: Annotated[str, Parameter(group=_FIT, metavar="I,J-K|all")] = "all",
    position: Annotated[Position, Parameter(group=_FIT)] = "mean",
    name: Annotated[str | None, Parameter(group=_OUTPUT)] = None,
    device: Annotated[str | None, Parameter(group=_TEXTS)] = None,
    png: Annotated[Path | None, Parameter(group=_OUTPUT, metavar="FILE")] = None,
    json: Annotated[bool, Parameter(group=_OUTPUT)] = False,
) -> None:
    """Find the direction from one kind of texts to another, at each layer.

    Two runs, or two files of texts or prompts with a --model that reads them. Shown is how well each direction tells
    apart examples that it was not fitted on (five folds; chance is 0.5), beside the same with shuffled labels.

    Example: `traceformer vectors fit --positive yes.txt --negative no.txt --model byte --output traits`

    Args:
        positive: The texts that have the trait: a run, or with --model a file of texts or a prompt set.
        negative: The texts that lack it.
        output: The folder to write METHOD.safetensors into, with a vector per layer.
        model: The model that reads the texts; a folder, a Hub name or a built-in model.
        method: mean_diff, probe (logistic regression), pca (first component of the differences of pairs); or several.
        site: Where to look for it.
        layer: Which layers; all that are stored by default.
        position: What stands for an example: the mean over its tokens, its last token, or the mean over its response.
        name: What to call the trait; the folder's name by default.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        png: Save a picture of how well each layer does, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.cli.project import find_rows
    from traceformer.cli.statistics import plain
    from traceformer.formats.directions import DirectionFile, write_directions

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    trait = name or output.resolve().name
    with _two_runs(positive, negative, model, site, layer, device) as runs:
        specs = [find_rows(store, site) for store in runs]
        layers = _layers(runs, specs, layer)
        found = _fit_all(runs, specs, layers, method, position)
        about: dict[str, Any] = {
            "site": specs[0].key.site,
            "position": position,
            "model": model or runs[0].meta.get("model"),
            "model_weights": runs[0].meta["configuration"].get("model weights"),
            "positive": positive,
            "negative": negative,
            "examples": [store.n for store in runs],
        }
    files: dict[Path, DirectionFile] = {}
    for own_method, fits in found.items():
        quality = {str(layer): _quality(own) for layer, own in fits.items()}
        directions = {layer: own.direction for layer, own in fits.items()}
        called = trait if len(found) == 1 else f"{trait} {own_method}"
        path = output / f"{own_method}.safetensors"
        files[path] = DirectionFile(called, directions, {"method": own_method, **about, "quality": quality})
        write_directions(path, files[path])
    if png is not None:
        from traceformer.figures.style import save
        from traceformer.figures.traits import quality_figure

        save(quality_figure(found, title=f"{trait}  {specs[0].key}"), png)
    if json:
        told = [{"file": str(path), "name": file.name, **file.about} for path, file in files.items()]
        print(json_text.dumps({"vectors": plain(told)}, indent=2))
        return
    print(f"{trait}: {about['examples'][0]} positive and {about['examples'][1]} negative examples, {site}", end="\n\n")
    for file in files.values():
        print(_table(file), end="\n\n")
    fits = found[method[0]]
    best = max(fits, key=lambda layer: (fits[layer].held_out.accuracy, fits[layer].held_out.effect_size))
    then = "" if best is None else f" --layer {best}"
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
    import numpy as np

    from traceformer.cli.statistics import plain
    from traceformer.formats.directions import read_directions

    found = read_directions(file)
    if json:
        norms = {str(layer): float(np.linalg.norm(values)) for layer, values in found.by_layer.items()}
        told = {"file": str(file), "name": found.name, "width": found.width, "norms": norms, **found.about}
        print(json_text.dumps(plain(told), indent=2))
        return
    print(f"{found.name}: {len(found.by_layer)} vectors, {found.width} wide")
    for what, value in sorted(found.about.items()):
        if what not in ("quality", "name"):
            print(f"{what.replace('_', ' ')}: {' and '.join(map(str, value)) if isinstance(value, list) else value}")
    print()
    print(_table(found))
    print(f"next: traceformer project RUN --vector {file}", file=sys.stderr)


@contextmanager
def _two_runs(
    positive: str, negative: str, model: str | None, site: str, layer: str, device: str | None
) -> "Generator[tuple[TraceStore, TraceStore]]":
    """The runs of both kinds of texts; recorded now, and thrown away afterwards, where a model is given."""
    from traceformer.store.run import TraceStore

    if model is None:
        runs = (_run(positive), _run(negative))
        weights = [store.meta.get("configuration", {}).get("model weights") for store in runs]
        if weights[0] != weights[1]:
            raise UsageError(
                "the two runs are of different models", why=f"their weights are {weights[0]} and {weights[1]}"
            )
        yield runs
        return

    from traceformer.capture.extract import record
    from traceformer.capture.prepare import ExtractRequest, prepare
    from traceformer.cli.progress import Totals, progress_shown

    layers = None if layer == "all" else parse_indices(layer)
    both: dict[Stack, tuple[int, ...] | None] = {"enc": layers, "dec": layers}
    selection = Selection((site.rpartition(".")[2],), both, hidden_layers=layers)
    with TemporaryDirectory(prefix="traceformer-vectors-") as folder:
        loaded, stores = None, list[TraceStore]()
        for kind, texts in (("positive", positive), ("negative", negative)):
            request = ExtractRequest(
                selection,
                model=model,
                dataset=_texts(texts, Path(folder) / f"{kind}.jsonl"),
                limit=None,
                max_seq_len="auto",
                dtype="float32",
                out_dir=Path(folder) / kind,
                device=device,
            )
            prepared = prepare(request, loaded)
            loaded = prepared.loaded
            with progress_shown(Totals()) as progress:
                stores.append(TraceStore(record(prepared, progress)))
        yield stores[0], stores[1]


def _run(name: str) -> "TraceStore":
    from traceformer.store.run import TraceStore

    try:
        return TraceStore(find_run(name))
    except NotFound as error:
        if Path(name).is_file():
            hint = "--model MODEL, to record the texts"
            raise UsageError(f"{name} is a file, and no run", hint=hint) from error
        raise


def _texts(name: str, jsonl: Path) -> str:
    """What `extract` calls a data set; a prompt set is written down as one."""
    from traceformer.texts.prompts import PROMPT_SETS, load_prompt_set

    if Path(name).suffix.lower() != ".json" and not (PROMPT_SETS / f"{name}.json").is_file():
        return name
    prompts = load_prompt_set(name).prompts
    jsonl.write_text("".join(json_text.dumps({"id": each.prompt_id, "text": each.text}) + "\n" for each in prompts))
    return str(jsonl)


def _layers(runs: "Sequence[TraceStore]", specs: Sequence[ArraySpec], asked: str) -> tuple[int | None, ...]:
    if specs[0].key != specs[1].key or specs[0].width != specs[1].width:
        raise UsageError("the two runs hold different arrays", why=f"{specs[0].key} and {specs[1].key}")
    if not specs[0].layers:
        return (None,)
    common = [layer for layer in specs[0].layers if layer in specs[1].layers]
    stored = f"both runs hold layers {', '.join(map(str, common)) or 'none'} of {specs[0].key}"
    wanted = common if asked == "all" else parse_indices(asked)
    missing = [layer for layer in wanted if layer not in common]
    if missing or not wanted:
        raise SelectionError(f"layer {missing[0] if missing else asked} requested", why=stored)
    return tuple(wanted)


def _fit_all(
    runs: "Sequence[TraceStore]",
    specs: Sequence[ArraySpec],
    layers: Sequence[int | None],
    methods: Sequence[Method],
    position: Position,
) -> "dict[Method, dict[int | None, Fit]]":
    from traceformer.analysis.directions import fit as fit_direction
    from traceformer.questions.traits import example_rows

    found: dict[Method, dict[int | None, Fit]] = {method: {} for method in methods}
    with steps_shown("fitting") as progress:
        for number, layer in enumerate(layers):
            rows = [example_rows(store, spec, layer, position) for store, spec in zip(runs, specs, strict=True)]
            for method in found:
                found[method][layer] = fit_direction(rows[0], rows[1], method)
            progress(number + 1, len(layers))
    return found


def _quality(own: "Fit") -> dict[str, float | None]:
    return {
        "held_out_accuracy": own.held_out.accuracy,
        "effect_size": own.held_out.effect_size,
        "shuffled_accuracy": own.shuffled,
        "shuffled_highest": own.shuffled_highest,
        "separation": own.separation,
        "threshold": own.threshold,
    }


def _table(file: "DirectionFile") -> str:
    """A line per layer; the quality of vectors that were found here."""
    import numpy as np

    quality: dict[str, dict[str, float | None]] = file.about.get("quality", {})
    columns = list(next(iter(quality.values()), {}))
    rows = [
        (
            "" if layer is None else f"L{layer}",
            f"{np.linalg.norm(values):.4g}",
            *(
                "" if (value := quality.get(str(layer), {}).get(column)) is None else f"{value:.3g}"
                for column in columns
            ),
        )
        for layer, values in file.by_layer.items()
    ]
    headers = ("layer", "norm", *(column.replace("_", " ") for column in columns))
    return (f"{file.about['method']}\n" if "method" in file.about else "") + table(
        headers, rows, numeric=range(1, len(headers))
    )
