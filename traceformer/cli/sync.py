"""`traceformer sync`: a finished run copied to a bucket, or back."""

import json as json_text
import sys
from typing import Annotated

from cyclopts import Parameter

from traceformer.progress import steps_shown
from traceformer.units import amount_of_bytes

__all__ = ["sync"]


def sync(
    run: Annotated[str, Parameter(name="RUN")],
    place: Annotated[str, Parameter(name="PLACE")],
    /,
    *,
    json: bool = False,
) -> None:
    """Copy a finished run to a bucket, or from one to a disk.

    Every file is compared with the manifest's checksums, before it is written and as it lies there then; the manifest
    comes last. Interrupted, the same command goes on where it stopped. Credentials come from where other tools find
    them.

    Example: `traceformer sync latest s3://bucket/traces/first`

    Args:
        run: A folder, on disk or in a bucket, the name of a run in ./traces, or `latest`.
        place: Where it shall lie: a folder, s3://bucket/NAME, gs://bucket/NAME or hf://buckets/OWNER/BUCKET/NAME.
        json: Print a JSON object.
    """
    from traceformer.store.folders import find_run
    from traceformer.store.objects.path import sizes_in
    from traceformer.store.run import Run
    from traceformer.store.syncing import sync as copy

    source = Run(find_run(run))
    with steps_shown("copying") as progress:
        made = copy(source, place, progress=progress)
    assert made.folder is not None
    sizes = sizes_in(made.folder).values()
    if json:
        told = {"run": str(source.folder), "place": str(made.folder), "files": len(sizes), "bytes": sum(sizes)}
        print(json_text.dumps(told, indent=2))
        return
    print(made.folder)
    files = f"{len(sizes)} files, {amount_of_bytes(sum(sizes))}"
    print(f"{files}, as they were written; next: traceformer inspect {made.folder}", file=sys.stderr)
