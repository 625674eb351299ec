"""`traceformer finish`: an unfinished run over a stream ends with what was committed."""

import json as json_text
import sys
from typing import Annotated

from cyclopts import Parameter

__all__ = ["finish"]


def finish(run: Annotated[str, Parameter(name="RUN")], /, *, json: bool = False) -> None:
    """End an unfinished run over a stream with what was committed.

    A stream may have no end: a run over one is interrupted, and then gone on with (--resume) or ended here. Its shards
    become a run like any other. One that is finished is left as it is.

    Example: `traceformer finish traces/x`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        json: Print the outcome as a JSON object.
    """
    from traceformer.store.ending import finish as end

    ended = end(run)
    if json:
        print(json_text.dumps({"run": str(ended.folder), "n_examples": ended.n}, indent=2))
        return
    print(f"{ended.n} examples; next: traceformer inspect {ended.folder}", file=sys.stderr)
    print(ended.folder)
