"""Effects in lines of text: a grid of layers by heads or positions, or the largest ones."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.cli.choices import SweepPlace
from traceformer.cli.terminal import table
from traceformer.texts.shown import printable, visible

if TYPE_CHECKING:
    from traceformer.analysis.effects import Axis, Effects

__all__ = ["report", "shown_effects", "told_of"]

_LARGEST = 12
_CELL = 7  # of a number and the space before it


def shown_effects(found: "Effects") -> str:
    """Returns what was measured, as a grid where it fits the terminal; else the largest effects, or all groups."""
    width = shutil.get_terminal_size((100, 24)).columns
    is_alone = found.agreement.measured == 0  # without measurements to show beside it
    if is_alone and len(found.axes) == 2 and len(found.axes[1].numbers) * _CELL + 8 <= width:
        return _grid(found)
    return _largest(found)


def told_of(found: "Effects") -> str:
    """Returns what was done, and how it was made sure of, in a line or two."""
    about = found.about
    sites = " + ".join(about.sites)
    count = f"{len(found.pairs)} {'text' if about.verb == 'ablate' else 'pair'}{'s' * (len(found.pairs) != 1)}"
    made = f"{about.way}; {about.compared} compared with whole passes, largest difference {about.error:.1e}"
    lines = [f"{about.model}: {about.how} {sites}, {about.metric}, {count}", made if about.compared else about.way]
    return "\n".join([*lines, *([str(found.agreement)] if found.agreement.measured else [])])


def report(found: "Effects", where: SweepPlace, then: str) -> None:
    """Prints effects, as they are asked for, and which command may be next."""
    made = _saved(found, where.png)
    if where.json:
        print(json.dumps(found.to_json(), indent=2))
        return
    print(told_of(found), shown_effects(found), sep="\n\n")
    print(f"{made}next: traceformer {then}", file=sys.stderr)


def _saved(found: "Effects", path: Path | None) -> str:
    """Writes the map, if a path is given, and returns what to say of it."""
    if path is None:
        return ""
    from traceformer import figures
    from traceformer.figures.style import save

    save(figures.effects(found), path)
    return f"wrote {path}; "


def _grid(found: "Effects") -> str:
    down, across = found.axes
    names = [_named(down, i) for i in range(len(down.numbers))]
    headers = (f"{down.name}", *(_named(across, i) for i in range(len(across.numbers))))
    rows = [
        (name, *("" if value != value else f"{value:.3f}" for value in line))
        for name, line in zip(names, found.values.tolist(), strict=True)
    ]
    return table(headers, rows, numeric=range(1, len(headers)))


def _largest(found: "Effects") -> str:
    import numpy as np

    from traceformer.analysis.effects import mean_over_pairs

    values, spread = found.values, found.spread
    exact = mean_over_pairs(found.by_pair["exact"]) if "exact" in found.by_pair else None
    size = np.where(np.isfinite(values), np.abs(values - found.about.untouched), -1).reshape(-1)
    order = np.argsort(-size, kind="stable")[:_LARGEST]
    if found.axes[0].name == "group":  # those that were asked for, then those to compare with
        order = np.arange(len(size))
    rows: list[tuple[str, ...]] = []
    for flat in order.tolist():
        place = np.unravel_index(flat, values.shape)
        where = tuple(_named(axis, int(i)) for axis, i in zip(found.axes, place, strict=True))
        deviation = "" if np.isnan(spread[place]) else f"{spread[place]:.4f}"
        measured = () if exact is None else ("" if np.isnan(exact[place]) else f"{exact[place]:.4f}",)
        rows.append((*where, f"{values[place]:.4f}", *measured, deviation))
    headers = (*(axis.name for axis in found.axes), found.kind, *(() if exact is None else ("exact",)), "spread")
    lines = [table(headers, rows, numeric=range(len(found.axes), len(headers)))]
    if len(size) > len(order):
        lines += ["", f"the {len(order)} largest of {len(size)}; --json has all"]
    return "\n".join(lines)


def _named(axis: "Axis", i: int) -> str:
    """`L5`, `H3`, a group's heads, or a position and its token."""
    if not axis.has_tokens:
        return printable(axis.labels[i])
    token = axis.labels[i]
    return f"{axis.numbers[i]} {visible(token)}" if token else str(axis.numbers[i])
