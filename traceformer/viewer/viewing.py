"""`tf.view`: runs in the browser."""

import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from traceformer.errors import NotFound, check_is
from traceformer.store.folders import find_runs
from traceformer.store.names import TRACES
from traceformer.store.objects.path import AnyPath, ObjectPath, as_path
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.server import Server

__all__ = ["view"]


def view(run: Run | Sequence[Run] | str | AnyPath | None = None, *, port: int = 0, browser: bool = True) -> Server:
    """Returns a server, on this machine alone, of pages that look inside runs, and opens them in the browser.

        view(run)              # in a notebook; `.address` is where, `.close()` ends it
        view("traces").wait()  # in a script: until Ctrl-C

    No model is loaded. A run that is being written is followed. In a folder of runs those that are begun meanwhile
    are shown, too.

    Args:
        run: A run or several, on disk or in memory; the folder of one, or of several, or of effects, on disk
            or in a bucket (`s3://bucket/prefix`); a run's name in
            ./traces; `latest`. Without it, the runs in ./traces.
        port: Where to serve; a free port by default.
        browser: Whether to open the page.

    Raises:
        NotFound: there is nothing to show.
        Unreachable: a bucket does not answer, or refuses.
        UsageError: the port is taken.
    """
    library = _library(run)
    names = library.names()
    alone = len(names) == 1 and (library.only is not None or library.folder is None)
    fragment = f"#{urlencode({'run': names[0], 'screen': 'overview'})}" if alone else ""
    server = Server.start(library, port=port, fragment=fragment)
    if browser:
        webbrowser.open(server.page)
    return server


def _library(shown: Run | Sequence[Run] | str | AnyPath | None) -> Library:
    if shown is None:
        if not TRACES.is_dir():
            raise NotFound(f"no folder {TRACES}", hint="traceformer extract makes a run there; or name a folder")
        return Library.at(TRACES)
    if isinstance(shown, str | Path | ObjectPath):
        place = as_path(shown)
        return Library.at(place if place.is_dir() else find_runs(str(shown))[0])
    if isinstance(shown, Run):
        if shown.folder is not None and not shown.finished:  # by its folder it is followed
            return Library.at(shown.folder)
        return Library.of(shown)
    several: Any = shown
    runs = [*several] if isinstance(several, Iterable) else [several]
    for run in runs:
        check_is(run, Run, "what open_run or record gave, several of them, or a folder")
    return Library.of(*runs)
