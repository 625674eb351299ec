"""Measures a training that takes its batches from a run on disk, against the same loop over a tensor in memory.

    python benchmarks/train_from_run.py [--json FILE] [--folder FOLDER] [--quick]

1. The run holds rows of d 768 in float16, more than two windows of 65,536 of them; the tensor holds the same rows in
   float32, in an order that was drawn before. Its batches are slices, which cost nothing.
2. Each turn trains a sparse autoencoder of 8,192 features (an encoder, a decoder, Adam) for some batches of 4,096 rows:
   over the tensor, over the run, over the run with a worker. The run's side begins anew in each turn, so its first
   window counts, for which the training has to wait.
3. A ratio is the speed over the run by that over the tensor: 1 is as fast.
4. Reading alone: the rows that are made in a second, without a training. And how well an epoch is shuffled.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from table import Ratios, Row, main, row, took
from torch.utils.data import DataLoader

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import Run
from traceformer.store.training_order import TrainingOrder
from traceformer.store.writer import RunWriter

WIDTH, FEATURES, BATCH, TOKENS = 768, 8192, 4096, 1024
SPEC = ArraySpec(ArrayKey.parse("dec.resid_post"), (6,), (), WIDTH)


class Autoencoder:
    """A sparse autoencoder, its optimiser, and one step of both."""

    def __init__(self, features: int) -> None:
        torch.manual_seed(0)
        self.encoder = torch.nn.Linear(WIDTH, features)
        self.decoder = torch.nn.Linear(features, WIDTH)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimiser = torch.optim.Adam(parameters, 1e-4, foreach=True)

    def step(self, rows: torch.Tensor) -> None:
        active = torch.relu(self.encoder(rows))
        loss = (self.decoder(active) - rows).pow(2).sum(-1).mean() + 1e-3 * active.abs().sum(-1).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def write_run(folder: Path, texts: int) -> Run:
    layout = RunLayout.plan(arch="dec", arrays=[SPEC], n_examples=texts, longest={"dec": TOKENS})
    random = np.random.default_rng(0)
    with RunWriter.create(folder, layout, {}, digest={}) as writer:
        for shard in writer.pending:
            numbers = layout.shard_range(shard)
            buffer = writer.buffer()
            buffer.begin({"dec": [TOKENS] * len(numbers)})
            shape = (len(numbers) * TOKENS, WIDTH)
            buffer.arrays[SPEC.key][0, : shape[0]] = random.standard_normal(shape, np.float32)
            writer.commit(shard, buffer, pa.table({"example_id": [f"text-{number}" for number in numbers]}))
        return Run(writer.finish())


def train(model: Autoencoder, batches: Iterable[torch.Tensor], steps: int) -> Callable[[], object]:
    def work() -> None:
        for rows in itertools.islice(batches, steps):
            model.step(rows)

    return work


def of_a_training(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    steps, features = (4, 256) if quick else (18, FEATURES)
    run = write_run(folder / "run", 40 if quick else 160)
    data = run.training_data("resid_post", 6, BATCH)
    tensor = torch.from_numpy(np.concatenate([*data.batches(epoch=1)]))
    slices = [tensor[at : at + BATCH] for at in range(0, len(tensor), BATCH)]
    model = Autoencoder(features)
    sides = {
        "over the run": data.to_torch(),
        "the same, a DataLoader with a worker": DataLoader(
            data.to_torch(), batch_size=None, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
        ),
    }
    speeds = {name: Ratios() for name in sides}
    for turn in range(turns + 1):
        base = took(train(model, slices, steps))
        for name, batches in sides.items():
            own = took(train(model, batches, steps))
            if turn:
                speeds[name].add(base, own)
    shape = f"{steps} batches of {BATCH} x {WIDTH}, {features} features"
    for name, ratios in speeds.items():
        yield row(f"speed of a training {name}", ratios, 0.9, at_least=True, note=shape)


def of_reading(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    run = write_run(folder / "read", 40 if quick else 160)
    for name, chosen in {
        "shuffled": {},
        "in order": {"shuffle": False},
        "shuffled, float16": {"dtype": "stored"},
    }.items():
        data = run.training_data("resid_post", 6, BATCH, **chosen)
        rates: list[float] = []
        for epoch in range(turns + 1):
            start = time.perf_counter()
            rows = sum(len(batch) for batch in data.batches(epoch))
            rates.append(rows / (time.perf_counter() - start) / 1e6)
        yield row(f"millions of rows of {WIDTH} made in a second, {name}", rates[1:], None)


def of_shuffling() -> Iterator[Row]:
    chunks, chunk = 8192, 512
    order = TrainingOrder(np.full(chunks, chunk), 1 << 16, seed=0)
    window = [order.parts(number) for number in range(order.n // order.window)]
    places = [
        np.concatenate([np.arange(part.piece * chunk + part.first, part.piece * chunk + part.stop) for part in parts])
        for parts in window
    ]
    seen = np.concatenate([own[order.places(number)] for number, own in enumerate(places)])
    correlation = float(np.corrcoef(seen[:-1], seen[1:])[0, 1])
    yield row("correlation of neighbours' places in a run of 4 million rows", [correlation], None)
    same = float(np.mean(seen[:-1] // chunk == seen[1:] // chunk))
    yield row("neighbours out of one chunk of 512 rows", [same], None, note=f"by chance in a window: {1 / 128:.4f}")
    batches = seen[: len(seen) // BATCH * BATCH].reshape(-1, BATCH) // chunk
    yield row("chunks that a batch of 4,096 has rows of", [float(len(np.unique(own))) for own in batches], None)


if __name__ == "__main__":
    main(__doc__, of_a_training, of_reading, of_shuffling, threads=2, turns=5)
