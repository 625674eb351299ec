"""`traceformer verify`: is everything there, and as it was written?"""

import json as json_text
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import find_run
from traceformer.cli.units import amount_of_bytes
from traceformer.store.layout import MANIFEST

__all__ = ["verify"]


def verify(run: Annotated[str, Parameter(name="RUN")], /, *, json: bool = False) -> int:
    """Check every file of a run against its records.

    Every array, token table and record is read and compared with the checksums that were written with it;
    files that are missing or do not belong are listed too. The exit code is 1 if anything is wrong.

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        json: Print a JSON object.
    """
    from traceformer.store.commits import verify_run

    folder = find_run(run)
    problems = verify_run(folder)
    if json:
        found = [{"path": str(problem.path), "what": problem.what} for problem in problems]
        print(json_text.dumps({"run": str(folder), "ok": not found, "problems": found}, indent=2))
        return 1 if problems else 0
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
