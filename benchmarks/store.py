"""Measures the store against the limits of the machine it runs on, measured in the same run.

    python benchmarks/store.py [--json FILE] [--folder FOLDER]

Each figure is the median of seven, with the spread between the smallest and the largest. Attention is synthetic:
causal, with heads from sharply local to diffuse; the targets were set on a trained model's, which is alike in size.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from table import Ratios, Row, main, row, seconds, took

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter

REPEATS = 7
LAYERS, HEADS, TOKENS, EXAMPLES, D_MODEL = 6, 8, 256, 128, 512
PATTERN = ArraySpec(ArrayKey.parse("dec.self.attn_pattern"), tuple(range(LAYERS)), tuple(range(HEADS)))
RESIDUAL = ArraySpec(ArrayKey.parse("dec.resid_post"), tuple(range(LAYERS)), (), D_MODEL)
MORE_ROWS = (
    ArraySpec(ArrayKey.parse("dec.resid_mid"), tuple(range(LAYERS)), (), D_MODEL),
    ArraySpec(ArrayKey.parse("dec.self.q"), tuple(range(LAYERS)), tuple(range(HEADS)), 64),
)
RANDOM = np.random.default_rng(0)
BLOCK = RANDOM.bytes(16 << 20)
LENGTHS = RANDOM.integers(52, TOKENS + 1, EXAMPLES)


def attention(length: int, layers: int) -> np.ndarray:
    """Returns causal patterns (layer, head, query, key): heads look back over 2 to 2000 tokens, and at token 0."""
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    reach = np.geomspace(2, 2000, layers * HEADS).reshape(layers, HEADS, 1, 1)
    scores = RANDOM.standard_normal((layers, HEADS, length, length), np.float32) * 1.5 - distance / reach
    scores[..., 0] += 2
    scores[..., distance < 0] = -np.inf
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores.astype(np.float16)


def table_of(layout: RunLayout, shard: int) -> pa.Table:
    return pa.table({"example_id": [f"example-{i}" for i in layout.shard_range(shard)]})


def fill(layout: RunLayout, writer: RunWriter, shard: int, lengths: np.ndarray) -> object:
    buffer = writer.buffer()
    own = lengths[layout.shard_range(shard).start : layout.shard_range(shard).stop]
    buffer.begin({"dec": own.tolist()})
    for spec in layout.arrays:
        if spec.site.is_matrix:
            for b, length in enumerate(own):
                buffer.put(spec, b, attention(int(length), len(spec.layers)))
        else:
            used = int(own.sum())
            shape = (*buffer.arrays[spec.key].shape[:-2], used, spec.width)
            buffer.arrays[spec.key][..., :used, :] = RANDOM.standard_normal(shape, np.float32)
    return buffer


def write_run(
    folder: Path, arrays: list[ArraySpec], lengths: np.ndarray = LENGTHS, **options: int
) -> tuple[Path, float]:
    """Writes a run; returns its folder and the seconds that commits took, without filling the buffers."""
    sizes = {"n_examples": len(lengths), "longest": {"dec": int(lengths.max())}}
    layout = RunLayout.plan(arch="dec", arrays=arrays, triangles=[PATTERN.key], **sizes, **options)
    committing = 0.0
    with RunWriter.create(folder, layout, {}, digest={}, overwrite=True) as writer:
        for shard in writer.pending:
            buffer = fill(layout, writer, shard, lengths)
            committing += seconds(lambda b=buffer, k=shard: writer.commit(k, b, table_of(layout, k)))  # pyright: ignore
        return writer.finish(), committing


def durable_write(path: Path, size: int) -> None:
    """Writes `size` bytes to one file and waits until they would survive a crash: the machine's limit."""
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(BLOCK)):
            file.write(BLOCK)
        os.fsync(file.fileno())


def durable(what: str, size: int, plain: list[float], ours: list[float], target: float | None) -> Row:
    """Returns the row of the store's durable rate over the machine's, and notes both: a shared disk's limit varies."""
    rates = [f"{size / max(each) / 1e6:.0f}-{size / min(each) / 1e6:.0f}" for each in (ours, plain)]
    ratios = [limit / own for limit, own in zip(plain, ours, strict=True)]
    return row(what, ratios, target, at_least=True, note=f"{rates[0]} over {rates[1]} MB/s")


def array_bytes(folder: Path, group: str) -> int:
    return sum(path.stat().st_size for path in (folder / group).glob("c.*"))


def measure_attention(folder: Path) -> Iterator[Row]:
    raw = EXAMPLES * LAYERS * HEADS * TOKENS**2 * 2
    run = folder / "attention"
    plain: list[float] = []
    ours: list[float] = []
    for _ in range(REPEATS):
        plain.append(seconds(lambda: durable_write(folder / "plain", raw)))
        (folder / "plain").unlink()
        run, committing = write_run(run, [PATTERN])
        ours.append(committing)
    yield durable("attention, durable raw MB/s over a plain file's", raw, plain, ours, 1.0)
    triangle = sum(int(n) * (int(n) + 1) // 2 for n in LENGTHS) * LAYERS * HEADS * 2
    yield row(
        "attention, bytes over the fp16 causal triangle", [array_bytes(run, "dec_self_attn.zarr/attn") / triangle], 0.92
    )
    store = TraceStore(run)
    places = RANDOM.integers(0, (EXAMPLES, LAYERS, HEADS), (1000, 3)).tolist()
    picks = [(f"example-{example}", layer, head) for example, layer, head in places]
    p50: list[float] = []
    for _ in range(REPEATS):
        p50.append(statistics.median(seconds(lambda p=pick: store.attn(*p)) for pick in picks) * 1e3)
    yield row("random matrix through TraceStore, warm p50 in ms", p50, 0.5)


def measure_scan(folder: Path) -> Iterator[Row]:
    """One head of texts that are all as long as can be, against the same squares in one plain file."""
    spec = ArraySpec(PATTERN.key, (0, 1), PATTERN.heads)
    for tokens, examples, target in ((256, 128, 0.6), (1024, 16, 0.35)):
        run, _ = write_run(folder / f"scan-{tokens}", [spec], np.full(examples, tokens))
        store, plain = TraceStore(run), folder / "plain"
        np.stack([square for _, square in store.head("attn", 1, 0, dtype="stored")]).tofile(plain)
        for what, work, bound in (("each with its max()", np.max, target), ("nothing computed", len, 0.4)):
            yield row(
                f"one-head scan over np.fromfile, T = {tokens}, {what}",
                scans(store, plain, work),
                bound,
                at_least=True,
                note=f"{plain.stat().st_size >> 20} MiB",
            )
        plain.unlink()


def scans(store: TraceStore, plain: Path, work: Callable[[np.ndarray], object]) -> Ratios:
    ratios = Ratios()
    for head in range(REPEATS):
        limit = took(lambda: work(np.fromfile(plain, np.float16)))
        ratios.add(limit, took(lambda h=head: [work(each) for _, each in store.head("attn", 1, h, dtype="stored")]))
    return ratios


def measure_rows(folder: Path) -> Iterator[Row]:
    run, _ = write_run(folder / "rows", [RESIDUAL, *MORE_ROWS], shard_examples=64)
    true_bytes = int(LENGTHS.sum()) * LAYERS * D_MODEL * 2
    stored = array_bytes(run, "dec_res_post_mlp.zarr/x")
    yield row("token array, bytes over true bytes", [stored / true_bytes], 1.05)
    files = [
        path
        for path in run.rglob("*")
        if path.parent.name in ("tokens", "commits", "x", "q") and path.name != "zarr.json"
    ]
    files = [path for path in files if not path.parent.name.startswith("token_")]
    wanted = (3 + 2) / 64
    yield row("files per example over (arrays + 2) / B", [len(files) / EXAMPLES / wanted], 1.0)
    store = TraceStore(run)
    store.activations("resid_post", 3, dtype="stored").tofile(folder / "plain")
    ratios: list[float] = []
    widened: list[float] = []
    for _ in range(REPEATS):
        limit = seconds(lambda: np.fromfile(folder / "plain", np.float16))
        ratios.append(limit / seconds(lambda: store.activations("resid_post", 3, dtype="stored")))
        widened.append(limit / seconds(lambda: store.activations("resid_post", 3)))
    (folder / "plain").unlink()
    size = int(LENGTHS.sum()) * D_MODEL * 2
    yield row("one layer of all examples over np.fromfile, warm", ratios, 0.35, at_least=True, note=f"{size >> 20} MiB")
    yield row("  as float32, the same limit", widened, None, note="twice the bytes, widened while they are read")
    raw = true_bytes * 2 + int(LENGTHS.sum()) * LAYERS * HEADS * 64 * 2
    plain: list[float] = []
    ours: list[float] = []
    for _ in range(REPEATS):
        plain.append(seconds(lambda: durable_write(folder / "plain", raw)))
        (folder / "plain").unlink()
        ours.append(write_run(folder / "rows", [RESIDUAL, *MORE_ROWS], shard_examples=64)[1])
    yield durable("token arrays, durable MB/s over a plain file's", raw, plain, ours, None)


if __name__ == "__main__":
    main(__doc__, measure_attention, measure_scan, measure_rows)
