"""Measures the speed of `traceformer train` over that of a bare loop of the same model and batches, turn by turn.

    python benchmarks/train.py [--json FILE] [--folder FOLDER] [--quick]

The preset `small` on the CPU, float32: bytes per second of the Trainer with its data, schedule and logging, without the
evaluation at the end, over forward, backward, clipping and AdamW on ids that are there already. Medians of five.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from table import Row, main, row, seconds
from transformers import AutoModelForCausalLM

from traceformer.bytelm.presets import build_config
from traceformer.bytelm.settings import TrainSettings
from traceformer.bytelm.train import Progress, train

LENGTH = 512
WARM_UP = 2  # steps, before the clock starts


def trainer_speed(text: Path, folder: Path, batch_size: int, attention: str) -> float:
    """Returns bytes per second from the end of the warm-up to that of the last step."""
    ends: list[float] = []

    def note(progress: Progress) -> None:
        if len(ends) < progress.step:  # the evaluation at the end is logged at the same step as the last one
            ends.append(time.perf_counter())

    settings = TrainSettings(data=str(text), attention=attention, num_epochs=1, batch_size=batch_size, evaluations=1)
    train(settings, folder, overwrite=True, device="cpu", show=note)
    return (len(ends) - WARM_UP) * batch_size * (LENGTH - 1) / (ends[-1] - ends[WARM_UP - 1])


def bare_speed(n_steps: int, batch_size: int, attention: str) -> float:
    model = AutoModelForCausalLM.from_config(build_config("small", attention, use_cache=False))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, 256, (batch_size, LENGTH))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(WARM_UP):
        step()
    return n_steps * batch_size * (LENGTH - 1) / seconds(lambda: [step() for _ in range(n_steps)])


def measure(folder: Path, quick: bool) -> Iterator[Row]:
    turns, n_steps, batch_size = (2 if quick else 5), 10, 4
    text = folder / "text"
    n_windows = (n_steps + WARM_UP) * batch_size + 1
    text.write_bytes(bytes(i * 7919 % 251 for i in range(int((n_windows + 1) * (LENGTH - 1) / 0.9))))
    for attention in ("dense", "sparse"):
        ratios = [
            trainer_speed(text, folder / "m", batch_size, attention) / bare_speed(n_steps, batch_size, attention)
            for _ in range(turns)
        ]
        what = f"bytes/s of train over a bare loop, small {attention}, batch {batch_size}"
        yield row(what, ratios, 0.9, at_least=True)


if __name__ == "__main__":
    main(__doc__, measure)
