"""`traceformer verify`: is everything there, and as it was written?"""

import json as json_text
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from traceformer.units import amount_of_bytes

if TYPE_CHECKING:
    from traceformer.store.verification import Verification

__all__ = ["verify"]


def verify(run: Annotated[str, Parameter(name="RUN")], /, *, json: bool = False) -> int:
    """Check every file of a run against its records.

    Every array, token table and record is read and compared with the checksums that were written with it;
    files that are missing or do not belong are listed too. The exit code is 1 if anything is wrong.

    Example: `traceformer verify latest`

    Args:
        run: A folder, on disk or in a bucket (s3://bucket/run), the name of a run in ./traces, or `latest`; of a folder
            of runs (an experiment) all are checked.
        json: Print a JSON object.
    """
    from traceformer.store.folders import find_runs
    from traceformer.store.verification import verify_folder

    found = [verify_folder(folder) for folder in find_runs(run)]
    all_ok = all(each.ok for each in found)
    if json:
        shown = [each.to_json() for each in found]
        print(json_text.dumps(shown[0] if len(shown) == 1 else {"ok": all_ok, "runs": shown}, indent=2))
    else:
        print("\n".join(map(_in_words, found)))
    return 0 if all_ok else 1


def _in_words(found: "Verification") -> str:
    """Returns what is wrong with one run, a line each, or that nothing is."""
    files = f"{found.n_files} files ({amount_of_bytes(found.n_bytes)})"
    if found.problems:
        lines = [f"{problem.path}: {problem.what}" for problem in found.problems]
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        return "\n".join([*lines, f"{found.folder}: {count} in {files}"])
    hosts = [f"computed by {each}" for each in found.computed] if len(found.computed) > 1 else []
    so_far = "" if found.finished else "; the run is not finished, this is what was committed so far"
    return "\n".join([f"{found.folder}: all {files} are as they were written{so_far}", *hosts])
