"""`traceformer project`: how far every token lies along trait vectors, and how that develops."""

import json as json_text
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import FILE_ON_DISK, FOLDER_ON_DISK, find_example
from traceformer.errors import UsageError
from traceformer.filenames import file_name
from traceformer.progress import steps_shown
from traceformer.sites import parse_indices
from traceformer.texts.shown import printable

if TYPE_CHECKING:
    from traceformer.analysis.projection import Projections

__all__ = ["project"]

_COLUMN = 9  # of a number in a table, with the space before it


def project(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    vector: Annotated[tuple[Path, ...], Parameter(consume_multiple=(1, None), metavar="FILE...")] = (),
    site: str = "resid_post",
    layer: Annotated[str | None, Parameter(name=("--layer", "--layers"), metavar="I,J-K|all")] = None,
    example: str | None = None,
    png: Annotated[Path | None, FILE_ON_DISK] = None,
    output: Annotated[Path | None, FOLDER_ON_DISK, Parameter(metavar="FOLDER")] = None,
    json: bool = False,
) -> None:
    """Project what was recorded onto trait vectors, token by token.

    The projection of an activation a onto a vector v is (a @ v) / |v|, computed in float32; its cosine stands beside
    it. With --example: a line per token, and how the curve develops over the response. Without: a line per example, or
    per layer where there are several.

    Example: `traceformer project latest --vector vectors/errors/mean_diff.safetensors`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. Of a folder of several runs (an experiment), one
            after the other.
        vector: Files of vectors, .safetensors, .pt or .npy; each is one trait, with one vector or one per layer.
            Without them, the projections that a run was recorded with (--project) are shown.
        site: What to project: a site whose rows are as wide as the vectors.
        layer: Which layers; those that the files are for by default, or all. A file's only vector serves for any layer.
        example: An example's id, or its row number; all by default.
        png: Save a picture of the curves, in the format that the ending names.
        output: Save the curves and their dynamics as JSON, a file per example.
        json: Print a JSON object.
    """
    from traceformer.questions.traits import project as project_run
    from traceformer.store.folders import find_runs
    from traceformer.store.run import Run

    folders = find_runs(run)
    if len(folders) > 1:
        for option, value in (("--example", example), ("--png", png)):
            if value is not None:
                raise UsageError(f"{option}, and {run} holds {len(folders)} runs", hint=f"one, such as {folders[0]}")
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    layers = parse_indices(layer) if layer not in (None, "all") else None if layer is None else "all"
    told: list[Projections] = []
    for folder in folders:
        store = Run(folder)
        with steps_shown("projecting") as progress:
            one = None if example is None else find_example(store, example)
            told.append(project_run(store, *vector, layers=layers, site=site, example=one, progress=progress))
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.traits(told[0]), png)
    if output is not None:
        for found in told:
            _write_json(found, output if len(told) == 1 else output / found.run_name)
    if json:
        shown = [found.to_json() for found in told]
        print(json_text.dumps(shown[0] if len(shown) == 1 else {"runs": shown}, indent=2))
        return
    for number, found in enumerate(told):
        print("\n" * bool(number) + (_all_examples(found) if example is None else _one_example(found)))
    made = " and ".join(str(path) for path in (png, output) if path is not None)
    given = "".join([" --vector", *(f" {path}" for path in vector)] * bool(vector)) + f" --layer {layer}" * bool(layer)
    first = told[0].examples[0].example_id
    then = f"--example {shlex.quote(printable(first))}" + f" --png {file_name(first)}.png" * (example is not None)
    print(f"{f'wrote {made}; ' if made else ''}next: traceformer project {folders[0]}{given} {then}", file=sys.stderr)


def _all_examples(found: "Projections") -> str:
    from traceformer.cli.curves import example_table, layer_table

    title = f"{found.run}  {found.key}: projections of {len(found.examples)} examples"
    table = example_table(found.examples, found.layers[0]) if len(found.layers) == 1 else layer_table(found.examples)
    return f"{title}\n\n{table}"


def _one_example(found: "Projections") -> str:
    import numpy as np

    from traceformer.cli.curves import curve_table, dynamics_table

    [own], layers = found.examples, found.layers
    width = shutil.get_terminal_size((100, 24)).columns
    room = max(1, (width - 42) // _COLUMN)
    shown = [layers[i] for i in sorted({round(i) for i in np.linspace(0, len(layers) - 1, min(room, len(layers)))})]
    place = f"L{layers[0]}  " if len(layers) == 1 and layers[0] is not None else ""
    rest = f"\n\n{len(shown)} of {len(layers)} layers fit the width; --layer chooses others, --json has all"
    parts = [
        f"{name}  {place}{found.key}  example {printable(own.example_id)}\n\n{curve_table(own, i, shown)}"
        + rest * (len(shown) < len(layers))
        for i, name in enumerate(found.names)
    ]
    return "\n\n".join([*parts, dynamics_table(own)])


def _write_json(found: "Projections", folder: Path) -> None:
    """Writes a file per example, whole or not at all."""
    from traceformer.formats.options import ExportOptions

    whole = found.to_json()
    about = {name: value for name, value in whole.items() if name != "examples"}
    folder.mkdir(parents=True, exist_ok=True)
    options = ExportOptions(overwrite=True)
    for own in whole["examples"]:
        path = options.claimed(folder / f"{file_name(own['example_id'])}.json")
        part = path.with_name(f".{path.name}.part")
        part.write_text(json_text.dumps({**about, **own}, indent=2) + "\n", encoding="utf-8", newline="\n")
        part.replace(path)
