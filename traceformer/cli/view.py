"""`traceformer view`: runs in the browser."""

import sys
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import count

__all__ = ["view"]


def view(
    run: Annotated[str | None, Parameter(name="RUN")] = None,
    /,
    *,
    port: Annotated[int, count("N", least=0)] = 0,
    browser: Annotated[bool, Parameter(negative="--no-browser")] = True,
) -> None:
    """Look inside runs in the browser.

    Serves pages on this machine alone, until Ctrl-C, and prints their address. No model is loaded. A run that is being
    written is followed; runs that are begun meanwhile appear.

    Example: `traceformer view latest`

    Args:
        run: A folder of runs, ./traces by default, or in a bucket (s3://bucket/prefix); or a run: its folder, its name
            in ./traces, or `latest`.
        port: Where to serve; 0 is a free port.
        browser: Open the page.
    """
    from traceformer.viewer.viewing import view

    server = view(run, port=port, browser=browser)
    print(server.page, flush=True)
    print("Ctrl-C ends it", file=sys.stderr)
    server.wait()
