"""Runs of the checkpoints of one training over the same texts: a folder of runs with an axis of steps."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, SelectionError, UsageError
from traceformer.store.commits import RunHead
from traceformer.store.folders import runs_in
from traceformer.store.layout import MANIFEST
from traceformer.store.locks import final_folder, unfinished_folder

if TYPE_CHECKING:
    import pandas as pd

    from traceformer.store.run import Run

__all__ = ["StepRun", "TrainingRuns", "folder_of_step", "open_checkpoints"]


@dataclass(frozen=True, slots=True)
class StepRun:
    """The run of one checkpoint: the model after `step` steps of its training."""

    step: int
    folder: Path
    model: str | None
    revision: str | None
    finished: bool


@dataclass(frozen=True, slots=True, repr=False)
class TrainingRuns:
    """The runs in a folder that say of which step of a training their model is, by step.

    runs = tf.open_checkpoints("traces/byte_steps")
    runs.run(512).attn(0, layer=2, head=3)
    for run in runs: ...
    """

    folder: Path
    all: tuple[StepRun, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, in order."""
        return tuple(each.step for each in self.all)

    def run(self, step: int) -> "Run":
        """Returns the run of a step.

        Raises:
            SelectionError: there is none; the message names those that there are.
        """
        from traceformer.store.run import Run

        for each in self.all:
            if each.step == step:
                return Run(each.folder)
        raise SelectionError(f"step {step} requested", why=f"{self.folder} has steps {', '.join(map(str, self.steps))}")

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator["Run"]:
        """Yields the runs, each opened when it is its turn."""
        return (self.run(step) for step in self.steps)

    def __repr__(self) -> str:
        open_ones = sum(not each.finished for each in self.all)
        state = f", {open_ones} unfinished" if open_ones else ""
        return f"TrainingRuns({str(self.folder)!r}: {len(self.all)} steps, {self.steps[0]} to {self.steps[-1]}{state})"

    def to_frame(self) -> "pd.DataFrame":
        """Returns one row per step."""
        import pandas as pd

        rows = [(each.step, each.folder.name, each.model, each.revision, each.finished) for each in self.all]
        return pd.DataFrame(rows, columns=["step", "run", "model", "revision", "finished"])

    def to_json(self) -> dict[str, Any]:
        runs = [
            {
                "step": each.step,
                "run": str(each.folder),
                "model": each.model,
                "revision": each.revision,
                "finished": each.finished,
            }
            for each in self.all
        ]
        return {"folder": str(self.folder), "steps": list(self.steps), "runs": runs}


def folder_of_step(folder: Path, step: int) -> Path:
    """Returns where the run of a step lies in a folder of them."""
    return folder / f"step{step}"


def open_checkpoints(folder: str | Path) -> TrainingRuns:
    """Returns the runs of a training's checkpoints that `record_checkpoints` put into a folder.

        open_checkpoints("traces/byte_steps").to_frame()

    Raises:
        NotFound: there is no such folder, or no run in it says of which step it is.
        UsageError: two runs are of one step.
        CorruptRun, Unreadable: a run cannot be read.
    """
    place = Path(folder)
    if not place.is_dir():
        raise NotFound(f"no folder {folder}", hint="tf.record_checkpoints makes a folder of runs")
    found: list[StepRun] = []
    for path in map(Path, map(str, runs_in(place))):
        is_begun = path == unfinished_folder(path)
        if not (is_begun and final_folder(path).exists()):  # what is to replace a run is not yet one
            about = RunHead.read(path).about
            if about.step is not None:
                found.append(StepRun(about.step, path, about.model, about.revision, (path / MANIFEST).exists()))
    if not found:
        why = "no run there says of which step of a training its model is"
        raise NotFound(f"no checkpoints in {folder}", why=why, hint="tf.record_checkpoints records them")
    found.sort(key=lambda each: each.step)
    for one, other in itertools.pairwise(found):
        if one.step == other.step:
            raise UsageError(
                f"two runs of step {one.step} in {folder}", why=f"{one.folder.name} and {other.folder.name}"
            )
    return TrainingRuns(place, tuple(found))
