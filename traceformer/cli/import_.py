"""`traceformer import`: files of another format as a run."""

import json as json_text
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.progress import steps_shown
from traceformer.errors import NotFound
from traceformer.formats.options import ImportOptions
from traceformer.formats.registry import FORMATS, format_of
from traceformer.store.reader import TraceStore

__all__ = ["import_"]


def import_(
    files: Annotated[tuple[Path, ...], Parameter(name="FILE", consume_multiple=(1, None))],
    /,
    *,
    out_dir: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Make a run of files in another format.

    json: document 2's traces, as documented, as its code wrote them, or as `traceformer export` did. Positions that
    they hold no values of are NaN in the run.

    Args:
        files: Files of one format, or folders of them.
        out_dir: The run's folder, in place of one named after time and model.
        overwrite: Replace a run that is in the way.
        json: Print the outcome as a JSON object.
    """
    found = list(_files(files))
    with steps_shown("importing") as progress:
        folder = format_of(found).read(found, ImportOptions(out_dir, overwrite, progress))
    store = TraceStore(folder)
    if json:
        print(json_text.dumps({"run": str(folder), "examples": store.n, "files": len(found)}, indent=2))
        return
    partly = "; positions that the files do not hold are NaN" if store.meta.get("unknown_rows") else ""
    count = f"{store.n} example{'s' if store.n != 1 else ''}"
    print(f"{count}{partly}; next: traceformer analyze {folder}", file=sys.stderr)
    print(folder)


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Yields the files, and of folders those that a format knows."""
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.is_file())
            known = [each for each in inside if any(own.recognises(each) for own in FORMATS.values())]
            if not known:
                raise NotFound(f"nothing to import in {path}", why=f"formats: {', '.join(FORMATS)}")
            yield from known
        elif not path.is_file():
            raise NotFound(f"no file {path}")
        else:
            yield path
