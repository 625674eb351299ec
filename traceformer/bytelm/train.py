"""Train a byte-level model: Hugging Face's Trainer, around windows, a schedule and a measure that are exact.

1. Each epoch reads the training text once, cut into windows at other places than before, in random order.
2. AdamW decays matrices and nothing else; the learning rate rises, falls along a cosine, and stays at its floor.
3. From time to time the validation text is read, and the model's bits per byte on it are noted in a checkpoint.
4. The best model is saved in the end; a checkpoint holds all that is needed to go on as if nothing had happened.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from traceformer.bytelm.baselines import ngram_bits_per_byte, xz_bits_per_byte
from traceformer.bytelm.checkpoints import load_weights, newest_checkpoint, prepare_folder, refuse_other_weights
from traceformer.bytelm.corpus import Corpus, Span, open_corpus
from traceformer.bytelm.kept_steps import StepKeeper, steps_to_keep
from traceformer.bytelm.outcome import Figures, Outcome, draw_curves, model_card
from traceformer.bytelm.presets import build_config
from traceformer.bytelm.settings import Precision, ReportTo, TrainSettings
from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.bytelm.windows import Windows, bits_and_bytes
from traceformer.errors import UsageError
from traceformer.store.files import free_space

__all__ = ["Progress", "learning_rate_factor", "train"]

_BETAS = (0.9, 0.99)  # the second moment over many steps, since a batch of bytes is small
_POINTS = 200  # of the loss curve
_BIT = math.log(2)  # in nats
_MOST_FOR_NGRAM = 20_000_000  # bytes, which it counts in about 1.2 GB


class Progress(NamedTuple):
    """How far training is: `train` and `validation` are the last bits per byte, NaN before there are any."""

    step: int
    steps: int
    train: float
    validation: float
    bytes_per_second: float
    seconds: float
    seconds_left: float


def learning_rate_factor(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Returns what the learning rate is multiplied by: rising to 1, falling to `floor` at `total`, staying there."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dtype: Precision = "float32",
    report_to: ReportTo = "none",
    run_name: str | None = None,
    device: str | None = None,
    keep_steps: Sequence[int] | Literal["log"] = (),
    command: str = "traceformer.bytelm.train.train",
    show: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Trains a model and saves it in `folder`, in `dtype`, where AutoModelForCausalLM and AutoTokenizer find it.

    Beside it stand a card that gives `command` as what made it, all figures (training.json) and the loss curve
    (loss.png). Checkpoints lie in `folder`/checkpoints; `resume` goes on from the newest that is complete. Started by
    torchrun or accelerate launch, all processes train one model.

    `keep_steps` are steps whose model is kept for good, in float32 and without what training needs to go on, in
    `folder`/steps: 0 is the random one. "log" are 0, 1, 2, 4, 8 and so on, and the last.

    Raises:
        UsageError: a context longer than the model's, too little text, a reporter that is not installed, or steps to
            keep that there are not.
        NotFound, Unreadable: what `open_corpus` raises of the data.
        RunExists: the folder is not empty, and neither `resume` nor `overwrite` is meant.
        ConfigurationChanged: what is to be resumed was begun with other settings, data or weights.
        OutOfSpace: the disk is full; the checkpoints before are kept.
    """
    config = build_config(settings.preset, settings.attention)
    length = settings.seq_length or config.max_position_embeddings
    if not 2 <= length <= config.max_position_embeddings:
        raise UsageError(
            f"windows of {length} do not fit the preset {settings.preset!r}",
            why=f"its context is {config.max_position_embeddings}",
            hint=f"`seq_length={config.max_position_embeddings}`, or another `preset`",
        )
    if report_to != "none" and find_spec(report_to) is None:
        raise UsageError(f"{report_to} is not installed", hint=f"pip install {report_to}")
    logging.disable_progress_bar()
    arguments = _arguments(settings, folder, report_to, run_name, device)
    with arguments.main_process_first():
        corpus = open_corpus(settings.data, split=settings.split)
    windows = Windows(corpus.train, length, repeats=settings.repeats, seed=settings.seed)
    _plan_steps(arguments, settings, len(windows))
    kept = steps_to_keep(keep_steps, arguments.max_steps)

    set_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(config)
    if settings.init:
        load_weights(model, Path(settings.init))
    state = {**asdict(settings), "corpus": corpus.digest}
    with arguments.main_process_first():  # once nothing else can be refused
        if arguments.process_index == 0:
            prepare_folder(folder, state, resume=resume, overwrite=overwrite)
    checkpoint = newest_checkpoint(folder)
    if checkpoint:
        refuse_other_weights(model, checkpoint)
    trainer = _trainer(settings, arguments, model, windows)
    trainer.measured, trainer.length = corpus.validation, length
    reporter = _Reporter(show, settings.batch_size * settings.accumulation * arguments.world_size * (length - 1))
    trainer.add_callback(reporter)
    trainer.add_callback(StepKeeper(folder, kept, ByteTokenizer(model_max_length=config.max_position_embeddings)))
    with free_space(folder, kept="the checkpoints before are kept", hint="free some space, then `resume=True`"):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

        # The figures are those of the weights as they are saved.
        model = (
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).to(getattr(torch, dtype)).float()
        )
        outcome = _outcome(trainer, reporter, folder, model, corpus)
        if trainer.is_world_process_zero():
            model.config.use_cache = True  # the Trainer turns it off
            model.to(getattr(torch, dtype)).save_pretrained(folder)
            ByteTokenizer(model_max_length=config.max_position_embeddings).save_pretrained(folder)
            text = json.dumps({"settings": state, "outcome": outcome.to_json()}, indent=2)
            (folder / "training.json").write_text(text + "\n", encoding="utf-8", newline="\n")
            (folder / "README.md").write_text(model_card(settings, outcome, command), encoding="utf-8", newline="\n")
            draw_curves(outcome, folder / "loss.png")
    return outcome


class _ByteTrainer(Trainer):
    """A Trainer whose evaluation is the bits per byte of a text."""

    measured: Span
    length: int

    def bits_per_byte(self, model: nn.Module, text: Span) -> float:
        """Returns the bits per byte of a text, measured by all processes together."""
        found = bits_and_bytes(
            model,
            text,
            length=self.length,
            batch_size=self.args.per_device_train_batch_size,
            part=(self.args.process_index, self.args.world_size),
        )
        # float32 is all that every device has, and exact enough for two sums of a few million.
        total: Any = self.accelerator.reduce(torch.tensor(found, device=self.args.device))
        return float(total[0] / total[1])

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.model is not None
        with self.compute_loss_context_manager():
            metrics = {"eval_bits_per_byte": self.bits_per_byte(self.model, self.measured)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Mover(TrainerCallback):
    """Moves the windows at the start of each epoch, and in the middle of one that is resumed."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._windows.move_to(int(state.epoch))


class _Reporter(TrainerCallback):
    """Tells `show` how far training is whenever something is logged."""

    def __init__(self, show: Callable[[Progress], None], bytes_per_step: int) -> None:
        self.last = Progress(0, 0, math.nan, math.nan, 0.0, 0.0, math.nan)
        self._show = show
        self.bytes_per_step = bytes_per_step
        self._began, self._first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        seconds = time.perf_counter() - self._began
        done = state.global_step - self._first_step
        self.last = Progress(
            state.global_step,
            state.max_steps,
            logs["loss"] / _BIT if "loss" in logs else self.last.train,
            logs.get("eval_bits_per_byte", self.last.validation),
            done * self.bytes_per_step / seconds,
            seconds,
            seconds / max(done, 1) * (state.max_steps - state.global_step),
        )
        if state.is_world_process_zero:
            self._show(self.last)


def _arguments(
    settings: TrainSettings, folder: Path, report_to: ReportTo, run_name: str | None, device: str | None
) -> TrainingArguments:
    return TrainingArguments(
        str(folder / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        max_grad_norm=settings.grad_clip,
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        torch_compile=settings.compile,
        use_cpu=device == "cpu",
        seed=settings.seed,
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=2,  # the best and the newest
        load_best_model_at_end=True,
        metric_for_best_model="eval_bits_per_byte",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        log_level="error",
        report_to=report_to,
        run_name=run_name,
    )


def _plan_steps(arguments: TrainingArguments, settings: TrainSettings, n_windows: int) -> None:
    batches = math.ceil(n_windows / (settings.batch_size * arguments.world_size))
    steps = max(1, math.ceil(settings.num_epochs * math.ceil(batches / settings.accumulation)))
    arguments.max_steps = steps
    arguments.logging_steps = max(1, steps // _POINTS)
    # A multiple of the logging steps: the average that a point shows is not in a checkpoint.
    apart = max(1, steps // settings.evaluations // arguments.logging_steps) * arguments.logging_steps
    arguments.eval_steps = arguments.save_steps = apart


def _trainer(
    settings: TrainSettings, arguments: TrainingArguments, model: PreTrainedModel, windows: Windows
) -> _ByteTrainer:
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, fused=True)
    total = arguments.max_steps
    warmup = math.ceil(settings.warmup * total) if settings.warmup < 1 else int(settings.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, warmup=warmup, total=total, floor=settings.floor)
    )
    trainer = _ByteTrainer(
        model,
        arguments,
        train_dataset=windows,
        eval_dataset=windows,  # is asked for, but never read: `evaluate` reads the validation text
        optimizers=(optimizer, schedule),
        callbacks=[_Mover(windows), *([EarlyStoppingCallback(settings.patience)] if settings.patience else [])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _outcome(
    trainer: _ByteTrainer, reporter: _Reporter, folder: Path, model: PreTrainedModel, corpus: Corpus
) -> Outcome:
    history = trainer.state.log_history
    return Outcome(
        folder=folder,
        data=f"{corpus.name}, SHA-256 {corpus.digest}",
        parameters=model.num_parameters(),
        steps=trainer.state.global_step,
        bytes_read=trainer.state.global_step * reporter.bytes_per_step,
        seconds=reporter.last.seconds,
        bytes_per_second=reporter.last.bytes_per_second,
        validation=_figures(trainer, model, corpus.train, corpus.validation),
        test=_figures(trainer, model, corpus.train, corpus.test) if len(corpus.test) > 1 else None,
        train_curve=[(int(entry["step"]), entry["loss"] / _BIT) for entry in history if "loss" in entry],
        validation_curve=[(int(e["step"]), e["eval_bits_per_byte"]) for e in history if "eval_bits_per_byte" in e],
    )


def _figures(trainer: _ByteTrainer, model: PreTrainedModel, train: Span, text: Span) -> Figures:
    ngram = ngram_bits_per_byte(train, text) if train.n_bytes <= _MOST_FOR_NGRAM else None
    return Figures(trainer.bits_per_byte(model, text), xz_bits_per_byte(text), ngram)
