"""`traceformer import`: files of another format as a run."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import NAMED_FOLDER
from traceformer.progress import steps_shown

__all__ = ["import_"]


def import_(
    files: Annotated[tuple[Path, ...], Parameter(name="FILE", consume_multiple=(1, None))],
    /,
    *,
    out_dir: Annotated[Path | None, NAMED_FOLDER] = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Make a run of files in another format.

    pt, json: the Gemma capture's files, nanochat traces, as documented, as their code wrote them, or as `traceformer
    export` did. safetensors: what `traceformer export` wrote. padded-zarr: the padded store. Positions that the
    files hold no values of are NaN in the run. No code in a file is ever run.

    Example: `traceformer import exports`

    Args:
        files: Files of one format, or folders of them.
        out_dir: The run's folder, in place of one named after time and model.
        overwrite: Replace a run that is in the way.
        json: Print the outcome as a JSON object.
    """
    from traceformer.formats.registry import files_of, import_run

    found = files_of(files)
    with steps_shown("importing") as progress:
        store = import_run(found, out=out_dir, overwrite=overwrite, progress=progress)
    if json:
        print(json_text.dumps({"run": str(store.folder), "examples": store.n, "files": len(found)}, indent=2))
        return
    notes = [
        f"{what}: {text}" for what, text in (store.about.imported or {}).items() if what in ("attention", "token_ids")
    ]
    notes += ["positions that the files do not hold are NaN"] * bool(store.about.unknown_rows)
    count = f"{store.n} example{'s' if store.n != 1 else ''}"
    print("; ".join((count, *notes, f"next: traceformer analyze {store.folder}")), file=sys.stderr)
    print(store.folder)
