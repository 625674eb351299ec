"""Models on the way: those of chosen steps of a training, kept for good, each as a folder that loads by itself."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase, TrainerCallback

from traceformer.errors import UsageError

__all__ = ["KEPT", "StepKeeper", "steps_to_keep"]

KEPT = "steps"
"""The folder of a training that they lie in, as `checkpoint-N`."""


def steps_to_keep(asked: Sequence[int] | Literal["log"], last: int) -> tuple[int, ...]:
    """Returns the steps that are meant, in order: of "log" 0, the powers of two, and the last.

    Raises:
        UsageError: a step that there is not.
    """
    if asked == "log":
        return (0, *(2**power for power in range(last.bit_length()) if 2**power < last), last)
    beyond = [step for step in asked if not 0 <= step <= last]
    if beyond:
        raise UsageError(f"step {beyond[0]} cannot be kept", why=f"this training has steps 0 to {last}")
    return tuple(sorted(set(asked)))


class StepKeeper(TrainerCallback):
    """Keeps the model of some steps. A folder has its name once it is whole; one that is there stays as it is."""

    def __init__(self, folder: Path, steps: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder = folder / KEPT
        self._steps = frozenset(steps)
        self._tokenizer = tokenizer

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._keep(state, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._keep(state, given["model"])

    def _keep(self, state: Any, model: Any) -> None:
        place = self._folder / f"checkpoint-{state.global_step}"
        if state.global_step not in self._steps or not state.is_world_process_zero or place.exists():
            return
        part = place.with_name(f".{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        made = getattr(model, "_orig_mod", model)  # under torch.compile
        made = getattr(made, "module", made)  # under DistributedDataParallel
        cached, made.config.use_cache = made.config.use_cache, True  # the Trainer turns it off
        made.save_pretrained(part)
        made.config.use_cache = cached
        self._tokenizer.save_pretrained(part)
        part.rename(place)
