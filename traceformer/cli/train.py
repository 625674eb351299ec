"""`traceformer train`: its flags, how its progress is shown, and what it leaves beside the model."""

import json as json_text
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import FOLDER_ON_DISK, count
from traceformer.cli.stopping import keeping
from traceformer.errors import UsageError
from traceformer.units import amount_of_bytes, duration

if TYPE_CHECKING:
    from traceformer.bytelm.train import Progress

__all__ = ["train"]

_MODEL = Group.create_ordered("What to train")
_STEPS = Group.create_ordered("How it learns")
_WHERE = Group.create_ordered("Where it goes")
_HOW = Group.create_ordered("How it runs")

_SECONDS_BETWEEN_LINES = 5.0


def train(
    *,
    preset: Annotated[Literal["tiny", "small", "thesis"], Parameter(group=_MODEL)] = "small",
    attention: Annotated[Literal["dense", "sparse"], Parameter(group=_MODEL)] = "dense",
    data: Annotated[str, Parameter(group=_MODEL, metavar="enwik8|pydoc|FILE|FOLDER")] = "pydoc",
    split: Annotated[Literal["standard", "thesis"], Parameter(group=_MODEL)] = "standard",
    init: Annotated[Path | None, Parameter(group=_MODEL, metavar="FOLDER")] = None,
    repeats: Annotated[float, Parameter(group=_MODEL)] = 0.0,
    num_epochs: Annotated[float, Parameter(group=_STEPS)] = 20,
    batch_size: Annotated[int, Parameter(group=_STEPS), count("N")] = 32,
    seq_length: Annotated[int | None, Parameter(group=_STEPS), count("N", least=2)] = None,
    learning_rate: Annotated[float, Parameter(group=_STEPS)] = 1e-3,
    warmup: Annotated[float, Parameter(group=_STEPS)] = 0.02,
    floor: Annotated[float, Parameter(group=_STEPS)] = 0.1,
    weight_decay: Annotated[float, Parameter(group=_STEPS)] = 0.1,
    grad_clip: Annotated[float, Parameter(group=_STEPS)] = 1.0,
    accumulation: Annotated[int, Parameter(group=_STEPS), count("N")] = 1,
    patience: Annotated[int | None, Parameter(group=_STEPS), count("N")] = None,
    seed: Annotated[int, Parameter(group=_STEPS)] = 42,
    out_dir: Annotated[
        Path | None, FOLDER_ON_DISK, Parameter(group=_WHERE, show_default="models/PRESET-ATTENTION-DATA")
    ] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(group=_WHERE)] = "float32",
    keep_steps: Annotated[str | None, Parameter(group=_WHERE, metavar="log|N,N")] = None,
    resume: Annotated[bool, Parameter(group=_WHERE)] = False,
    overwrite: Annotated[bool, Parameter(group=_WHERE)] = False,
    precision: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(group=_HOW)] = "float32",
    evaluations: Annotated[int, Parameter(group=_HOW), count("N")] = 10,
    compile: Annotated[bool, Parameter(group=_HOW)] = False,
    device: Annotated[Literal["cpu", "auto"], Parameter(group=_HOW)] = "auto",
    report_to: Annotated[Literal["none", "wandb", "trackio", "tensorboard"], Parameter(group=_HOW)] = "none",
    run_name: Annotated[str | None, Parameter(group=_HOW)] = None,
    json: Annotated[bool, Parameter(group=_HOW)] = False,
) -> None:
    """Train a byte-level transformer, dense or sparse.

    The model, its tokenizer, a model card, all figures (training.json) and the loss curve (loss.png) go to --out_dir.
    Bits per byte are measured on text that is held out of training. For several GPUs write
    torchrun --nproc-per-node 4 --no-python before the command.

    Example: `traceformer train --preset tiny --num-epochs 0.5`

    Args:
        preset: 2 layers with a context of 128 bytes, 4 with 512, or 12 with 1024.
        attention: Every head sees all that came before, or each its own sparse pattern.
        data: enwik8 is downloaded once, pydoc (Python's own documentation) needs no network; or your own text.
        split: How text is held out: 90 % training, 5 % validation, 5 % test; or thesis, 90 % and 10 %.
        init: A trained model of the same shape to begin with.
        repeats: The share of windows that hold a few random bytes over and over, which reward induction heads.
        num_epochs: How often the training text is read; 0.5 is half of it.
        batch_size: Windows per device and forward pass.
        seq_length: Bytes per window; the model's whole context by default.
        learning_rate: The highest, after warm-up.
        warmup: The share of all steps in which the learning rate rises; 1 or more are steps.
        floor: The share of the learning rate where the cosine ends.
        weight_decay: AdamW's, on matrices.
        grad_clip: The largest norm of a gradient.
        accumulation: Forward passes per step.
        patience: Stop after so many evaluations without a better model.
        seed: Of the first weights and of the order of the data.
        out_dir: The folder of the model.
        dtype: How the weights are saved.
        keep_steps: Keep the models of these steps in OUT_DIR/steps; log is 0, 1, 2, 4, 8 and so on, and the last.
        resume: Go on from the newest checkpoint in --out_dir.
        overwrite: Begin again in a folder that is not empty.
        precision: What the forward pass computes in; weights and AdamW stay in float32.
        evaluations: How often the model is measured on validation text and a checkpoint is written.
        compile: Compile the model first; slow to begin, then often faster.
        device: cpu, or auto for what there is.
        report_to: Where else figures go.
        run_name: What the run is called there.
        json: Print the outcome as a JSON object.
    """
    from traceformer.bytelm.settings import TrainSettings
    from traceformer.bytelm.train import train as run_training

    settings = TrainSettings(
        preset=preset,
        attention=attention,
        data=data,
        split=split,
        init=None if init is None else str(init),
        repeats=repeats,
        num_epochs=num_epochs,
        batch_size=batch_size,
        seq_length=seq_length,
        learning_rate=learning_rate,
        warmup=warmup,
        floor=floor,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        accumulation=accumulation,
        precision=precision,
        evaluations=evaluations,
        patience=patience,
        seed=seed,
        compile=compile,
    )
    source = Path(data).resolve().name if Path(data).exists() else data
    folder = out_dir or Path("models") / f"{preset}-{attention}-{source}"
    with keeping("checkpoints are kept"), _progress_shown() as show:
        outcome = run_training(
            settings,
            folder,
            resume=resume,
            overwrite=overwrite,
            dtype=dtype,
            report_to=report_to,
            run_name=run_name,
            device=device,
            keep_steps=_steps(keep_steps),
            show=show,
            command=shlex.join(["traceformer", *sys.argv[1:]]),
        )
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    if json:
        print(json_text.dumps(outcome.to_json(), indent=2))
        return
    figures = outcome.validation
    ngram = "" if figures.ngram is None else f", order-5 n-grams {figures.ngram:.3f}"
    read = f"{amount_of_bytes(outcome.bytes_read)} read in {duration(outcome.seconds)}"
    print(
        f"{outcome.parameters:,} parameters, {read}; "
        f"{figures.model:.3f} bits per byte on held-out text (xz -9 {figures.xz:.3f}{ngram})\n"
        f"next: traceformer extract --model {folder} --dataset demo --capture all",
        file=sys.stderr,
    )
    print(folder)


def _steps(asked: str | None) -> Sequence[int] | Literal["log"]:
    if asked is None or asked == "log":
        return "log" if asked else ()
    if not re.fullmatch(r"\d+(,\d+)*", asked):
        raise UsageError(f"cannot read the steps {asked!r}", hint="log, or steps such as 0,10,100")
    return [int(step) for step in asked.split(",")]


@contextmanager
def _progress_shown() -> "Generator[Callable[[Progress], None]]":
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
        return
    shown_at = time.perf_counter()
    shown: tuple[float, ...] = ()

    def print_line(progress: "Progress") -> None:
        nonlocal shown_at, shown
        now, said = time.perf_counter(), progress[:4]
        due = now - shown_at >= _SECONDS_BETWEEN_LINES or progress.step == progress.steps
        if due and said != shown:  # the last step is told of several times
            shown_at, shown = now, said
            print(f"step {progress.step}/{progress.steps}  {_in_words(progress)}", file=sys.stderr, flush=True)

    yield print_line


@contextmanager
def _bar() -> "Generator[Callable[[Progress], None]]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda progress: bar.update(
            task, completed=progress.step, total=progress.steps, description=_in_words(progress)
        )


def _in_words(progress: "Progress") -> str:
    held_out = "" if math.isnan(progress.validation) else f" (held out {progress.validation:.3f})"
    speed = f"{amount_of_bytes(progress.bytes_per_second)}/s"
    return f"{progress.train:.3f} bits per byte{held_out}  {speed}  {duration(progress.seconds_left)} left"
