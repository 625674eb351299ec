"""What `traceformer heads` tells of a folder of checkpoints: metrics of heads along the steps of their training."""

import json as json_text
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.cli.terminal import table
from traceformer.progress import steps_shown
from traceformer.units import duration

if TYPE_CHECKING:
    from traceformer.analysis.head_curves import HeadCurves

__all__ = ["are_checkpoints", "told_curves"]

_SCORES = ("previous_token", "induction")
_STRONGEST = 4
_REACHED = 0.5


def are_checkpoints(folders: Sequence[Path]) -> bool:
    """Whether these runs are of the checkpoints of a training."""
    from traceformer.store.commits import RunHead

    return all(RunHead.read(folder).about.step is not None for folder in folders)


def told_curves(folder: Path, output: Path, *, plot: bool, json: bool, **options: Any) -> None:
    """Measures, writes the table and the picture, and prints what is seen; `options` as of `tf.heads`."""
    import time

    from traceformer.questions.heads import heads

    started = time.perf_counter()
    with steps_shown("measuring") as progress:
        curves = heads(folder, progress=progress, **options)
    output.parent.mkdir(parents=True, exist_ok=True)
    curves.to_frame().to_csv(output, index=False, lineterminator="\n")
    pictures = [_saved(curves, output)] if plot else []
    if json:
        files = {"output": str(output), "plot": [str(path) for path in pictures]}
        print(json_text.dumps({**files, **curves.to_json()}, indent=2))
        return
    print(_as_text(curves))
    made, took = " and ".join(map(str, [output, *pictures])), duration(time.perf_counter() - started)
    last = folder / f"step{curves.steps[-1]}"
    print(f"wrote {made} in {took}; next: traceformer heads {last} --plot", file=sys.stderr)


def _saved(curves: "HeadCurves", output: Path) -> Path:
    from traceformer import figures
    from traceformer.figures.style import save

    place = output.with_suffix(".png")
    save(figures.training(curves), place)
    return place


def _as_text(curves: "HeadCurves") -> str:
    about = curves.about
    examples = " and ".join(f"{count} of {name}" for name, count in about.examples.items())
    sizes = f"{len(curves.rows)} heads at {len(curves.steps)} steps, examples: {examples}"
    parts = [f"{about.source}: {sizes}; {about.convention} convention"]
    for metric in _SCORES:
        if metric in curves.values and np.isfinite(curves.values[metric]).any():
            parts += ["", "\n".join(_of_metric(curves, metric))]
    return "\n".join(parts)


def _of_metric(curves: "HeadCurves", metric: str) -> Iterator[str]:
    rows = curves.strongest(metric, _STRONGEST)
    names = [curves.names[row] for row in rows]
    cells = [
        (str(step), *(f"{value:.2f}" for value in values))
        for step, values in zip(curves.steps, curves.values[metric][:, rows], strict=True)
    ]
    yield metric
    yield table(("step", *names), cells, numeric=range(len(names) + 1))
    first = curves.first_step(metric, _REACHED)
    told = [
        f"{name} at step {first[row]:.0f}" for name, row in zip(names, rows, strict=True) if np.isfinite(first[row])
    ]
    yield f"first at {_REACHED} or more: {', '.join(told) or 'none'}"
