"""`traceformer upgrade`: a run of an older format in the newest one."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import NAMED_FOLDER
from traceformer.errors import UsageError
from traceformer.progress import steps_shown
from traceformer.units import amount_of_bytes

__all__ = ["upgrade"]


def upgrade(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    out_dir: Annotated[Path | None, NAMED_FOLDER] = None,
    replace: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a run of an older format in the newest one, in which rows that are equal are stored once.

    Every number stays what it was. The new run goes to a folder beside the old one, which stays. Older formats can be
    read for good, so this is for the space. A run that is of the newest format already is left as it is.

    Example: `traceformer upgrade traces/old --replace`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`; of a folder of runs (an experiment) all are upgraded.
        out_dir: The new run's folder.
        replace: Put the new run in the old one's place; the old one is removed when the new one is complete.
        overwrite: Replace a run that is at --out_dir, or an upgrade that was interrupted.
        json: Print the outcome as a JSON object.
    """
    from traceformer.store.folders import find_runs, folder_bytes
    from traceformer.store.layout import FORMAT_VERSION
    from traceformer.store.run import Run
    from traceformer.store.upgrading import upgrade as write

    folders = find_runs(run)
    if out_dir is not None and len(folders) > 1:
        raise UsageError(f"--out_dir, and {run} holds {len(folders)} runs", hint="leave it out, or name one of them")
    outcomes: list[dict[str, object]] = []
    for folder in folders:
        before, old = folder_bytes(folder), Run(folder)
        with steps_shown("upgrading") as progress:
            new = write(old, out_dir, replace=replace, overwrite=overwrite, progress=progress)
        assert new.folder is not None
        after = folder_bytes(new.folder)
        sizes = {"bytes_before": before, "bytes": after}
        outcomes.append({"run": str(folder), "out": str(new.folder), "upgraded": new is not old, **sizes})
        if not json:
            print(new.folder)
            told = f"format {FORMAT_VERSION}, {amount_of_bytes(after)} after {amount_of_bytes(before)}"
            if new is old:
                told = f"{folder} is of format {FORMAT_VERSION} already"
            elif not replace:
                told = f"{told}; {folder} is as it was"
            print(f"{told}; next: traceformer verify {new.folder}", file=sys.stderr)
    if json:
        print(json_text.dumps(outcomes[0] if len(outcomes) == 1 else {"runs": outcomes}, indent=2))
