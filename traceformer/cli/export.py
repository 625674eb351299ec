"""`traceformer export`: a run in another format."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import FOLDER_ON_DISK, Indices, find_example
from traceformer.errors import UsageError
from traceformer.progress import steps_shown
from traceformer.sites import parse_indices
from traceformer.units import amount_of_bytes

__all__ = ["export"]


def export(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    format: Annotated[str, Parameter(metavar="NAME")] = "json",
    output: Annotated[Path, FOLDER_ON_DISK] = Path("exports"),
    example: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="ID...")] = (),
    layout: Annotated[str | None, Parameter(metavar="residual|internals")] = None,
    layers: Indices = None,
    screens: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="NAME...")] = (),
    steps: bool = False,
    lossless: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a run in another format.

    pt: the Gemma capture's files for PyTorch, {set}/{id}.pt or {set}/{id}_L{layer}.pt. safetensors: a file per example
    with every array, and a manifest. transformerlens: a .pt per example with TransformerLens's hook names.
    padded-zarr: the padded store, every example padded to the longest. json: nanochat traces, one file per example,
    with the attention of the whole sequence and the logits that predicted the response. html: one page for the browser
    that needs no network, with as many of the first examples as make 10 MB, or those named.

    Example: `traceformer export latest --format safetensors`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. The runs of a folder of several (an experiment) go
            each to a folder of its name.
        format: pt, safetensors, transformerlens, padded-zarr, json or html.
        output: The folder to write into; of html the page, or a folder for it.
        example: Examples' ids, or their row numbers; all by default.
        layout: pt: the residual streams of all layers in one file (the default), or the internals of each layer.
        layers: pt: such as 0,3-5; all that are stored by default.
        screens: html: some of overview, head, paths, lab, stream; all by default.
        steps: json: add what was captured at each step, as a run generated with --capture-steps does anyway.
        lossless: json, pt: add every array and row that the format has no place for, so that an import gives the
            run back.
        overwrite: Replace files of the same names.
        json: Print the outcome as a JSON object.
    """
    from traceformer.formats.registry import READABLE
    from traceformer.formats.registry import export as write
    from traceformer.store.folders import find_runs
    from traceformer.store.run import Run
    from traceformer.viewer.export import export_html

    folders = find_runs(run)
    if example and len(folders) > 1:
        raise UsageError(f"--example, and {run} holds {len(folders)} runs", hint=f"one of them, such as {folders[0]}")
    numbers = None if layers is None else parse_indices(layers)
    if screens and format != "html":
        raise UsageError(f"--screens, and {format} has none", hint="--format html")
    files: list[Path] = []
    for folder in folders:
        store = Run(folder)
        with steps_shown("exporting") as progress:
            if format == "html":
                _refuse_with_html(layout=layout, layers=layers, steps=steps, lossless=lossless)
                page = output if output.suffix == ".html" and len(folders) == 1 else output / f"{folder.name}.html"
                examples = [find_example(store, name) for name in example] or None
                shown = screens or None
                made = export_html(
                    store, page, examples=examples, screens=shown, overwrite=overwrite, progress=progress
                )
                files.append(made)
                continue
            files += write(
                store,
                format,
                output if len(folders) == 1 else output / folder.name,
                examples=[find_example(store, name) for name in example] or None,
                layout=layout,
                layers=numbers,
                steps=steps,
                lossless=lossless,
                overwrite=overwrite,
                progress=progress,
            )
    inside = [each for path in files for each in ((path,) if path.is_file() else path.rglob("*")) if each.is_file()]
    size = sum(path.stat().st_size for path in inside)
    if json:
        outcome = {
            "run": str(folders[0] if len(folders) == 1 else run),
            "format": format,
            "files": [str(path) for path in files],
            "bytes": size,
        }
        print(json_text.dumps(outcome, indent=2))
        return
    for path in files:
        print(path)
    back = f"; back into a run: traceformer import {output}" if format in READABLE and len(folders) == 1 else ""
    print(f"{len(inside)} file{'s' if len(inside) != 1 else ''}, {amount_of_bytes(size)}{back}", file=sys.stderr)


def _refuse_with_html(**options: object) -> None:
    """Refuses options of other formats."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(f"--{given[0]} with html", why="a page has no such choice", hint="without it")
