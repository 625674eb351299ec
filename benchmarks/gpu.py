"""Measures recording on a GPU against its physical limits, in one run of under 8 minutes.

    python benchmarks/gpu.py [--json FILE] [--folder FOLDER] [--quick] [--turns N]

GPT-2 small's shape with random weights, in bfloat16. Whole extractions, committed to `--folder`, are timed against as
many plain passes (SDPA, nothing recorded), turn by turn; so is what the bus and the folder's file system take of the
same bytes. Give a folder in memory, such as /dev/shm, to leave the disk out of it. A part that fails says so, and the
others go on. Without a GPU the same paths run on the processor, in sizes that only show that they do.
"""

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from extract import EVERYTHING, HEADS_3X3, make_texts, size_of
from table import Row, delete, main, row, seconds
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_CTX = 16_384
LENGTHS = (512, 2048, 8192, N_CTX)
"""What heads are recorded at, batches of 16,384 tokens."""
SECONDS = 60  # after which a part begins no further turn


def waited(work: Callable[[], object]) -> Callable[[], None]:
    """Returns `work` with a wait for the device behind it."""

    def run() -> None:
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def timed(works: dict[str, Callable[[], object]], turns: int, between: Callable[[], object]) -> dict[str, list[float]]:
    """Returns the seconds of each way, turn by turn; the first turn warms up, and `between` is not timed.

    There are fewer turns where these take too long.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    start = time.perf_counter()
    for turn in range(turns + 1):
        if turn > 1 and time.perf_counter() - start > SECONDS:
            break
        for name, work in works.items():
            between()
            took = seconds(waited(work))
            if turn:
                times[name].append(took)
    return times


def over(times: dict[str, list[float]], mine: str, base: str) -> list[float]:
    return [one / other for one, other in zip(times[mine], times[base], strict=True)]


class Bench:
    """One model and its texts: plain passes and extractions of the same batches."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

        import traceformer as tf

        torch.manual_seed(0)
        words = {"<end>": 0, **{f"w{i}": i for i in range(1, 5000)}}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>")
        model = GPT2LMHeadModel(GPT2Config(n_positions=N_CTX)).to(DEVICE, torch.bfloat16).eval()
        self.folder, self.loaded = folder, tf.load_model(model, fast)

    def plain(self, batch: int, length: int, n_batches: int) -> Callable[[], None]:
        ids = torch.randint(0, 5000, (batch, length), device=DEVICE)

        def run() -> None:
            with torch.inference_mode():
                for _ in range(n_batches):
                    self.loaded.model.base_model(input_ids=ids, use_cache=False)

        return run

    def recording(
        self, capture: tuple[str, ...], batch: int, length: int, n_batches: int, **selected: object
    ) -> Callable[[], object]:
        from traceformer.capture.extract import extract, read_texts
        from traceformer.sites import Selection
        from traceformer.store.place import Place, Storage

        path = self.folder / f"texts-{batch * n_batches}x{length}.txt"
        texts = path if path.exists() else make_texts(path, batch * n_batches, length)
        read = read_texts(texts, max_seq_len=length)
        selection = Selection(capture, **selected)  # pyright: ignore[reportArgumentType]
        # A shard a batch: by default shards of 256 MiB would cut the batches down.
        place = Place(folder=self.folder / "run", overwrite=True, storage=Storage(shard_examples=batch))
        return lambda: extract(self.loaded, read, selection, place, batch_size=batch)

    def delete(self) -> None:
        delete(self.folder / "run", self.folder / "plain.bin")


def measure_everything(bench: Bench, turns: int, quick: bool) -> Iterator[Row]:
    """Whole recordings over plain passes, and their bytes a second over what bus and file system take."""
    batch, length, n_batches = (2, 64, 2) if quick else (16, 512, 4)
    shape = f"{batch} x {length}"
    plain, record = bench.plain(batch, length, n_batches), bench.recording(EVERYTHING, batch, length, n_batches)
    bench.recording(EVERYTHING, batch, length, 1)()
    raw, written = raw_bytes(batch, length), size_of(bench.folder, "run/**/c.*")
    bench.delete()
    one_batch = torch.empty(raw, dtype=torch.uint8, device=DEVICE)
    pinned = torch.empty(raw, dtype=torch.uint8, pin_memory=DEVICE == "cuda")

    def write_plain() -> None:
        with (bench.folder / "plain.bin").open("wb", buffering=0) as file:
            for _ in range(n_batches):
                file.write(memoryview(pinned.numpy())[:written])
            os.fsync(file.fileno())

    works: dict[str, Callable[[], object]] = {
        "plain": plain,
        "record": record,
        "stream": bench.recording(("resid",), batch, length, n_batches),
        "bus": lambda: [pinned.copy_(one_batch, non_blocking=True) for _ in range(n_batches)],
        "file": write_plain,
    }
    times = timed(works, turns, bench.delete)
    speed = [n_batches * raw / 1e9 / took for took in times["bus"]]
    note = f"{raw / 1e6:.0f} MB a batch, {written / 1e6:.0f} on disk; the bus: {statistics.median(speed):.1f} GB/s"
    yield row(f"{shape}: attn qkv hidden resid / plain", over(times, "record", "plain"), None, note=note)
    yield row(f"{shape}: resid / plain", over(times, "stream", "plain"), None)
    yield row(f"{shape}: raw bytes/s over one pinned copy's", over(times, "bus", "record"), None)
    yield row(f"{shape}: written bytes/s over a plain file's", over(times, "file", "record"), None)


def raw_bytes(batch: int, length: int) -> int:
    """Returns the bytes of a batch's arrays in float16: rows of tokens, and whole squares."""
    width, layers, heads = 768, 12, 12
    rows = (3 * layers + (layers + 1) + 3 * layers + 1) * width
    return 2 * batch * (length * rows + length**2 * layers * heads)


def measure_heads(bench: Bench, length: int, turns: int, quick: bool) -> Iterator[Row]:
    """Patterns of 3 layers x 3 heads beside a pass whose attention is a flash kernel."""
    batch, n_batches = (1, 1) if quick else (N_CTX // length, 4)
    works: dict[str, Callable[[], object]] = {
        "plain": bench.plain(batch, length, n_batches),
        "heads": bench.recording(("attn",), batch, length, n_batches, **HEADS_3X3),
    }
    times = timed(works, turns, bench.delete)
    bench.delete()
    megabytes, plain = batch * 9 * length**2 / 1e6, 1e3 * statistics.median(times["plain"]) / n_batches
    note = f"{megabytes:.0f} MB of triangles and {plain:.0f} ms of plain pass a batch"
    heads = over(times, "heads", "plain")
    yield row(f"{batch} x {length}: attn of 3 layers x 3 heads / plain", heads, None, note=note)


def ten(work: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: [work() for _ in range(10)]


def measure_sparse(length: int, turns: int) -> Iterator[Row]:
    """The thesis's sparse heads by FlexAttention over dense causal attention, forward."""
    from traceformer.bytelm.flex import flex_sparse_attention
    from traceformer.bytelm.patterns import thesis_patterns
    from traceformer.bytelm.sparse_mask import sparse_mask

    q, k, v = torch.randn(3, 1, 8, length, 64, device=DEVICE, dtype=torch.bfloat16 if DEVICE == "cuda" else None)
    mask = sparse_mask(thesis_patterns(8, length), length, length)

    works: dict[str, Callable[[], object]] = {
        "sparse": ten(partial(flex_sparse_attention, q, k, v, mask, 64**-0.5)),
        "dense": ten(partial(scaled_dot_product_attention, q, k, v, is_causal=True)),
    }
    times = timed(works, turns, lambda: None)
    note = f"dense {1e2 * statistics.median(times['dense']):.2f} ms"
    yield row(f"T = {length}: sparse heads by FlexAttention / dense", over(times, "sparse", "dense"), None, note=note)


def going_on(part: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Yields the rows of a part, up to where it fails."""
    try:
        yield from part()
    except Exception as error:  # whatever it is, the other parts are still to be measured
        print(f"failed: {type(error).__name__}: {error}", flush=True)
        traceback.print_exc()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def measure(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    quick = quick or DEVICE == "cpu"
    bench = Bench(folder)
    yield from going_on(partial(measure_everything, bench, turns, quick))
    for length in LENGTHS[:1] if quick else LENGTHS:
        yield from going_on(partial(measure_heads, bench, length, turns, quick))
    for length in (256,) if quick else (4096, N_CTX):
        yield from going_on(partial(measure_sparse, length, turns))


if __name__ == "__main__":
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: tiny sizes on the processor"
    print(f"{name}, torch {torch.__version__}")
    main(__doc__, measure)
