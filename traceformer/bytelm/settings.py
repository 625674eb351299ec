"""The settings of a training."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from traceformer.bytelm.corpus import Split
from traceformer.errors import UsageError

__all__ = ["Attention", "Precision", "ReportTo", "TrainSettings"]

Attention: TypeAlias = Literal["dense", "sparse"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
ReportTo: TypeAlias = Literal["none", "wandb", "trackio", "tensorboard"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the weights: the same settings on the same machine, with as many threads, give the same model.

    `init` is the folder of a model whose weights are the first ones, in place of random ones. `repeats` is the share of
    windows that repeat themselves (see `Windows`).
    `seq_length` None is the model's whole context. `warmup` is a share of all steps if below 1, else steps.
    `batch_size` counts windows per device and forward pass, `accumulation` passes per step. `evaluations` is how often
    in all the model is measured and a checkpoint written, `patience` how many of them without a better model end it.
    """

    preset: str = "small"
    attention: Attention = "dense"
    data: str = "pydoc"
    split: Split = "standard"
    init: str | None = None
    repeats: float = 0.0
    num_epochs: float = 20
    batch_size: int = 32
    seq_length: int | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.02
    floor: float = 0.1
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    accumulation: int = 1
    precision: Precision = "float32"
    evaluations: int = 10
    patience: int | None = None
    seed: int = 42
    compile: bool = False

    def __post_init__(self) -> None:
        above_zero = ("num_epochs", "batch_size", "learning_rate", "accumulation", "evaluations", "patience")
        for name in (*above_zero, "warmup", "floor", "repeats", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf or (value == 0 and name not in above_zero)):
                wanted = "above 0" if name in above_zero else "of at least 0"
                raise UsageError(f"`{name}` cannot be {value}", hint=f"give a number {wanted}")
        for name in ("floor", "repeats"):
            if getattr(self, name) > 1:
                raise UsageError(f"`{name}` cannot be {getattr(self, name)}", why="it is a share", hint="0 to 1")
