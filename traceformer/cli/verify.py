"""`traceformer verify`: is everything there, and as it was written?"""

import json as json_text
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from traceformer.cli.arguments import find_runs
from traceformer.cli.units import amount_of_bytes
from traceformer.store.layout import MANIFEST

__all__ = ["verify"]


def verify(run: Annotated[str, Parameter(name="RUN")], /, *, json: bool = False) -> int:
    """Check every file of a run against its records.

    Every array, token table and record is read and compared with the checksums that were written with it;
    files that are missing or do not belong are listed too. The exit code is 1 if anything is wrong.

    Example: `traceformer verify latest`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`; of a folder of runs (an experiment) all are checked.
        json: Print a JSON object.
    """
    folders = find_runs(run)
    if not json:
        return max([_verify(folder) for folder in folders])
    found = [_as_json(folder) for folder in folders]
    all_ok = all(each["ok"] for each in found)
    print(json_text.dumps(found[0] if len(found) == 1 else {"ok": all_ok, "runs": found}, indent=2))
    return 0 if all_ok else 1


def _as_json(folder: Path) -> dict[str, Any]:
    from traceformer.store.commits import verify_run

    found = [{"path": str(problem.path), "what": problem.what} for problem in verify_run(folder)]
    return {"run": str(folder), "ok": not found, "problems": found}


def _verify(folder: Path) -> int:
    """Prints what is wrong with one run, or that nothing is; returns the exit code."""
    from traceformer.store.commits import verify_run

    problems = verify_run(folder)
    for problem in problems:
        print(f"{problem.path}: {problem.what}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = amount_of_bytes(sum(path.stat().st_size for path in files))
    if problems:
        print(f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in {len(files)} files ({size})")
        return 1
    so_far = "" if (folder / MANIFEST).exists() else "; the run is not finished, this is what was committed so far"
    print(f"{folder}: all {len(files)} files ({size}) are as they were written{so_far}")
    return 0
