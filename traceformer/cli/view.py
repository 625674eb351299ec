"""`traceformer view`: runs in the browser."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.store.names import TRACES

__all__ = ["view"]


def view(
    run: Annotated[str | None, Parameter(name="RUN")] = None,
    /,
    *,
    port: int = 0,
    browser: Annotated[bool, Parameter(negative="--no-browser")] = True,
) -> None:
    """Look inside runs in the browser.

    Serves the pages on this machine alone until Ctrl-C; models are not loaded.

    Args:
        run: A run, `latest`, or a folder of runs; ./traces by default.
        port: Where to serve; a free port by default.
        browser: Open the page.
    """
    from traceformer.store.folders import find_run
    from traceformer.store.run import Run
    from traceformer.viewer.library import Library
    from traceformer.viewer.server import serve

    if run is None or (Path(run).is_dir() and not (Path(run) / "meta.json").is_file()):
        serve(Library(Path(run or TRACES)), port=port, browser=browser)
        return
    opened = Run(find_run(run))
    serve(Library.of(opened), port=port, browser=browser, fragment=f"#run={opened.name}&screen=overview")
