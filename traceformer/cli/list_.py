"""`traceformer list`: the runs of a folder."""

import json as json_text
import sys
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.terminal import table
from traceformer.store.names import TRACES
from traceformer.units import amount_of_bytes

__all__ = ["list_"]


def list_(folder: Annotated[str, Parameter(name="FOLDER")] = str(TRACES), /, *, json: bool = False) -> None:
    """List the runs of a folder, the newest first: model, data set, examples, size.

    Example: `traceformer list`

    Args:
        folder: Where they lie; ./traces by default. In a bucket, s3://bucket/prefix, too.
        json: Print a JSON object.
    """
    from traceformer.store.folders import list_runs

    found = list_runs(folder)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
        return
    if not found.runs:
        print(f"{folder} holds no runs; next: traceformer extract --model byte --dataset demo", file=sys.stderr)
        return
    rows = [
        (
            run.run,
            run.model or "unreadable",
            run.dataset or "",
            str(run.n_examples),
            amount_of_bytes(run.bytes),
            run.state,
        )
        for run in found.runs
    ]
    print(table(("run", "model", "data set", "examples", "on disk", ""), rows, numeric=(3, 4)))
    print(f"next: traceformer inspect {found.folder / found.runs[0].run}", file=sys.stderr)
