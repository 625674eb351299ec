"""A run as one file: what its screens ask for, answered beforehand, in a page that asks nothing of any network."""

import tempfile
import time
import webbrowser
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, TraceformerError, UsageError, check_choice, check_is
from traceformer.formats.whole import appearing_whole, refuse_to_replace
from traceformer.presentation import framed, notebook
from traceformer.progress import OnStep, steps_watched
from traceformer.store.objects.path import disk_path
from traceformer.store.run import Run
from traceformer.viewer.carried import SCREENS, asked_by, asked_of_run
from traceformer.viewer.library import Library
from traceformer.viewer.pages import page_of
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

if TYPE_CHECKING:
    from traceformer.viewer.widget import RunWidget

__all__ = ["export_html", "run_html", "run_widget", "show_run"]

_AGAIN = 0.02  # seconds
_MOST = 10_000_000  # bytes of answers, before they are compressed, of a page without examples named


def export_html(
    run: Run,
    path: str | Path,
    *,
    examples: Sequence[int | str] | None = None,
    screens: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: OnStep | None = None,
) -> Path:
    """Returns the one HTML file that it writes, which shows examples of a run anywhere, without a network.

        export_html(run, "run.html", examples=[0, 3])

    Patterns are carried as 256 steps of their square roots, and the page says so.

    Args:
        run: What to show.
        path: The file.
        examples: By number or id; the first ones, as many as make a page of about 10 MB, by default.
        screens: Some of `SCREENS`; all by default.
        overwrite: Replace a file of this name.
        progress: Told how many of how many examples are done; a bar where somebody watches, by default.

    Raises:
        UsageError: no such screen, or the run has no examples.
        ExampleNotFound: no such example.
        RunExists: something is at `path`, and `overwrite` is False.
        NotFound: the viewer's pages were not built when the package was installed.
    """
    check_is(run, Run, "what open_run or record gave")
    path = disk_path(path)
    refuse_to_replace(path, overwrite=overwrite)
    with steps_watched("exporting", progress) as told:
        page = _page(run, examples, screens, told)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_whole(path) as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return path


def run_html(run: Run, example: int | str = 0) -> str:
    """Returns the page of one example."""
    return _page(run, [example], None, lambda done, of: None)


def show_run(run: Run, example: int | str = 0) -> None:
    """Shows the page of one example: in the notebook, or in a browser, from one of the system's temporary files."""
    page = run_html(run, example)
    if notebook() is not None:
        from IPython.display import display

        display({"text/html": framed(page)}, raw=True)
        return
    file = Path(tempfile.mkdtemp(prefix="traceformer-run-")) / "run.html"
    file.write_text(page, encoding="utf-8", newline="\n")
    webbrowser.open(file.as_uri())


def run_widget(run: Run, example: int | str = 0) -> "RunWidget":
    """Returns the widget of a run.

    Raises:
        NotFound: anywidget is not installed.
    """
    if find_spec("anywidget") is None:
        raise NotFound("anywidget is not installed", hint="pip install 'traceformer[notebook]'")
    from traceformer.viewer.widget import RunWidget

    return RunWidget(run, example)


def _page(run: Run, examples: Sequence[int | str] | None, screens: Sequence[str] | None, progress: OnStep) -> str:
    chosen = tuple(SCREENS) if screens is None else tuple(screens)
    for screen in chosen:
        check_choice("screen", screen, SCREENS)
    if not chosen or not run.n:
        raise UsageError("nothing to show", why="no screen was named" if run.n else "the run holds no example")
    rows = range(run.n) if examples is None else [run.row(example) for example in examples]
    library = Library.of(run)
    answers, carried = _answered(library, asked_of_run(run, chosen)), list[int]()
    for done, row in enumerate(rows):
        own = _answered(library, asked_by(run, row, chosen))
        if carried and examples is None and sum(map(len, (answers | own).values())) > _MOST:
            break
        answers |= own
        carried.append(row)
        progress(done + 1, len(rows))
    start = {
        "screen": chosen[0],
        "run": run.name,
        "ex": str(carried[0]),
        "screens": ",".join(chosen),
        "examples": ",".join(map(str, carried)),
    }
    return page_of(answers, start, title=f"{run.name} · Traceformer")


def _answered(library: Library, asked: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, bytes]:
    """The answers, but for those that the run does not have: the page says so."""
    answers: dict[str, bytes] = {}
    for resource, fields in asked:
        query = Query({name: str(value) for name, value in fields.items()})
        try:
            while (found := answer(library, resource, query)).is_pending:
                time.sleep(_AGAIN)
        except TraceformerError:
            continue
        answers[query.key(resource)] = found.body
    return answers
