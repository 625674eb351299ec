"""`traceformer export`: a run in another format."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import find_example, find_run
from traceformer.cli.progress import steps_shown
from traceformer.cli.units import amount_of_bytes
from traceformer.errors import UsageError
from traceformer.formats.options import ExportOptions
from traceformer.formats.registry import named
from traceformer.store.reader import TraceStore

__all__ = ["export"]


def export(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    format: Annotated[str, Parameter(metavar="json")] = "json",
    output: Annotated[Path, Parameter(metavar="DIR")] = Path("exports"),
    example: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="ID...")] = (),
    steps: bool = False,
    lossless: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a run in another format.

    json: document 2's traces, one file per example, with the attention of the whole sequence and the logits that
    predicted the response.

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        format: What to write.
        output: The folder to write into.
        example: Examples' ids, or their row numbers; all by default.
        steps: json: add what was captured at each step, as a run generated with --capture-steps does anyway.
        lossless: json: add every array and row that document 2 has no place for, so that an import gives the run back.
        overwrite: Replace files of the same names.
        json: Print the outcome as a JSON object.
    """
    chosen = named(format)
    folder = find_run(run)
    store = TraceStore(folder)
    for option, value in (("steps", steps), ("lossless", lossless)):
        if value and option not in chosen.options:
            raise UsageError(f"--format {format} has no --{option}")
    ids = tuple(find_example(name, store.ids) for name in example) or None
    with steps_shown("exporting") as progress:
        options = ExportOptions(ids, steps or None, lossless, overwrite, progress)
        files = list(chosen.write(store, output, options))
    size = sum(path.stat().st_size for path in files)
    if json:
        outcome = {"run": str(folder), "format": format, "files": [str(path) for path in files], "bytes": size}
        print(json_text.dumps(outcome, indent=2))
        return
    for path in files:
        print(path)
    count = f"{len(files)} file{'s' if len(files) != 1 else ''}"
    print(f"{count}, {amount_of_bytes(size)}; back into a run: traceformer import {output}", file=sys.stderr)
