"""The role card of `traceformer heads --roles` as text, as JSON and in files."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.cli.failures import in_flags
from traceformer.cli.terminal import table

if TYPE_CHECKING:
    from traceformer.analysis.roles import Roles

__all__ = ["check_card", "told_roles"]

_PAGES = (".html", ".htm")


def check_card(path: Path) -> None:
    """Makes sure that a card of this name can be written: a page, or a picture.

    Raises:
        UsageError: its ending names no format.
    """
    if path.suffix not in _PAGES:
        from traceformer.figures.style import check_format

        check_format(path)


def told_roles(found: "Roles", figure: Path | None, *, json: bool) -> None:
    """Prints the card, and writes it into a file: a page where that ends in `.html`, else a picture."""
    if figure is not None:
        _save(found, figure)
    if json:
        print(json_text.dumps({"figure": None if figure is None else str(figure), **found.to_json()}, indent=2))
        return
    print(_as_text(found))
    for column, why in found.notes.items():
        print(f"{column}: {in_flags(why)}", file=sys.stderr)
    made = "" if figure is None else f"wrote {figure}; "
    model = shlex.quote(found.about.model or "MODEL")
    then = f"circuits {model} --figure circuits.png" if found.circuits is not None else f"check {model}"
    print(f"{made}next: traceformer {then}", file=sys.stderr)


def _as_text(found: "Roles") -> str:
    import numpy as np

    columns = [name for name in found.shown if not name.endswith("rank")]

    def cell(number: float) -> str:
        return f"{number:.2f}" if np.isfinite(number) else ""

    rows = [
        (name, role, *(cell(found.values[column][number]) for column in columns))
        for number, (name, role) in enumerate(zip(found.names, found.roles, strict=True))
    ]
    headers = ("head", "role", *(column.replace("_weights", " (W)").replace("_token", "") for column in columns))
    return "\n".join((table(headers, rows, numeric=range(2, len(headers))), *_massive(found)))


def _massive(found: "Roles") -> tuple[str, ...]:
    """Two lines on massive activations, where the stream was there to look at."""
    massive = found.massive
    if massive is None:
        return ()
    import numpy as np

    layer = int(np.nanargmax(massive.largest))
    hundred, thousand = (massive.over.sum(axis=0) / max(int(massive.entries.sum()), 1)).tolist()
    return (
        "",
        f"massive activations: {hundred:.3g} of all entries over 100 times the median, {thousand:.3g} over 1,000; the "
        f"largest is {massive.largest[layer]:.0f} times, after L{massive.layers[layer]}",
    )


def _save(found: "Roles", path: Path) -> None:
    if path.suffix in _PAGES:
        from traceformer.figures.role_page import roles_page

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(roles_page(found), encoding="utf-8", newline="\n")
        return
    from traceformer import figures
    from traceformer.figures.style import save

    save(figures.roles(found), path)
