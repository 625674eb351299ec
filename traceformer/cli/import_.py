"""`traceformer import`: files of another format as a run."""

import json as json_text
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from traceformer.cli.progress import steps_shown
from traceformer.errors import NotFound

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

    pt, json: document 5's files, document 2's traces, as documented, as their code wrote them, or as `traceformer
    export` did. safetensors: what `traceformer export` wrote. padded-zarr: document 1's folder. Positions that the
    files hold no values of are NaN in the run. No code in a file is ever run.

    Example: `traceformer import exports`

    Args:
        files: Files of one format, or folders of them.
        out_dir: The run's folder, in place of one named after time and model.
        overwrite: Replace a run that is in the way.
        json: Print the outcome as a JSON object.
    """
    from traceformer.formats.options import ImportOptions
    from traceformer.formats.registry import read_run
    from traceformer.store.run import TraceStore

    found = list(_files(files))
    with steps_shown("importing") as progress:
        folder = read_run(found, ImportOptions(out_dir, overwrite, progress))
    store = TraceStore(folder)
    if json:
        print(json_text.dumps({"run": str(folder), "examples": store.n, "files": len(found)}, indent=2))
        return
    notes = [f"{what}: {text}" for what, text in store.meta["imported"].items() if what in ("attention", "token_ids")]
    notes += ["positions that the files do not hold are NaN"] * bool(store.meta.get("unknown_rows"))
    count = f"{store.n} example{'s' if store.n != 1 else ''}"
    print("; ".join((count, *notes, f"next: traceformer analyze {folder}")), file=sys.stderr)
    print(folder)


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Yields the files, and of folders those that a format knows: its own, or else those of the folders in it."""
    from traceformer.formats.registry import READABLE

    for path in paths:
        if path.is_dir():
            known = _known(path.iterdir()) or _known(path.rglob("*"))
            if not known:
                raise NotFound(f"nothing to import in {path}", why=f"formats: {', '.join(READABLE)}")
            yield from known
        elif not path.is_file():
            raise NotFound(f"no file {path}")
        else:
            yield path


def _known(paths: Iterable[Path]) -> list[Path]:
    """Those that a format knows, 2.pt before 10.pt."""
    from traceformer.formats.registry import READABLE

    known = [path for path in paths if path.is_file() and any(own.recognises(path) for own in READABLE.values())]
    return sorted(known, key=lambda path: [int(part) if part.isdecimal() else part for part in _parts(path)])


def _parts(path: Path) -> list[str]:
    return re.split(r"([0-9]+)", str(path))
