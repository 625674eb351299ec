"""Measures rows stored as bytes (`rows_codec="q8"`): how many bytes, how far off, and how fast, on one core.

    python benchmarks/q8.py [--json FILE] [--folder FOLDER] [--quick]

The peer is FP8 (e4m3) with one scale for each token, of the same rows in the same run. An error is that of a token's
row: the root of its mean square over that of the row. What it does to a reader is the logit lens of `byte`, read from a
run in q8 and from one in float32: the divergence (KL) between what both say, over all layers and tokens.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from table import Row, main, row, took

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store import q8
from traceformer.store.layout import RunLayout
from traceformer.store.names import Dtype, RowsCodec
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

LAYERS, WIDTH, TOKENS, EXAMPLES = 4, 768, 512, 64
MASSIVE = (138, 378, 447)  # a thousand times the median
RESID = ArraySpec(ArrayKey.parse("dec.resid_post"), tuple(range(LAYERS)), (), WIDTH)
RANDOM = np.random.default_rng(0)


def rows_with(massive: bool, tokens: int = TOKENS, layers: int = LAYERS) -> np.ndarray:
    rows = RANDOM.standard_normal((layers, tokens, WIDTH), np.float32)
    if massive:
        rows[..., MASSIVE] = 1000 * 0.6745 * (1 + 0.1 * rows[..., MASSIVE])  # the median magnitude of a normal number
    return rows


def errors(read: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns each token's."""
    return np.sqrt(((read - rows) ** 2).mean(-1) / (rows**2).mean(-1)).reshape(-1)


def as_fp8(rows: np.ndarray) -> np.ndarray:
    wide = torch.from_numpy(rows)
    scale = wide.abs().amax(-1, keepdim=True) / 448
    return ((wide / scale).to(torch.float8_e4m3fn).float() * scale).numpy()


def write(folder: Path, blocks: list[np.ndarray], rows_codec: RowsCodec, dtype: Dtype = "float16") -> Run:
    if folder.exists():
        shutil.rmtree(folder)
    layout = RunLayout.plan(
        arch="dec",
        arrays=[RESID],
        n_examples=len(blocks),
        longest={"dec": TOKENS},
        dtype=dtype,
        rows_codec=rows_codec,
        shard_examples=len(blocks),
    )
    with RunWriter.create(folder, layout, {}, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [block.shape[1] for block in blocks]})
        for b, block in enumerate(blocks):
            buffer.put(RESID, b, block.astype(dtype))
        writer.commit(0, buffer, pa.table({"example_id": [str(b) for b in range(len(blocks))]}))
        return Run(writer.finish())


def size_of(run: Run) -> int:
    assert isinstance(run.folder, Path)
    return sum(path.stat().st_size for path in run.folder.glob("*.zarr/x*/c.*"))


def measure_rows(folder: Path, quick: bool) -> Iterator[Row]:
    for massive in (False, True):
        with_them = f"with {len(MASSIVE)} massive channels" if massive else "without massive channels"
        blocks = [rows_with(massive) for _ in range(8 if quick else EXAMPLES)]
        run = write(folder / "q8-run", blocks, "q8")
        values = sum(block.size for block in blocks)
        yield row(f"{with_them}: bytes over float16's", [size_of(run) / (2 * values)], 0.54)
        found = [errors(run.get(number, "resid_post"), block) for number, block in enumerate(blocks)]
        own = np.concatenate(found)
        note = f"{own.mean():.5f}, at most {own.max():.5f}"
        yield row(f"{with_them}: relative error", [float(own.mean())], 0.008, note=note)
        others = [channel for channel in range(WIDTH) if channel not in MASSIVE]
        read = (run.get(number, "resid_post")[..., others] for number in range(len(blocks)))
        of_others = np.concatenate([errors(one, block[..., others]) for one, block in zip(read, blocks, strict=True)])
        yield row("  of the other channels", [float(of_others.mean())], 0.008, note=f"at most {of_others.max():.5f}")
        for name, chosen in (("of FP8 e4m3 with a scale for each token", slice(None)), ("FP8, of the others", others)):
            peer = np.concatenate([errors(as_fp8(block)[..., chosen], block[..., chosen]) for block in blocks])
            yield row(f"  {name}", [float(peer.mean())], None)
        off = max(
            float(np.abs(run.get(n, "resid_post") - block.astype(np.float16)).max()) for n, block in enumerate(blocks)
        )
        yield row("  largest error over the bound that the run states", [off / run.largest_error("resid_post")], 1.0)
        shutil.rmtree(folder / "q8-run")


def measure_speed(quick: bool, turns: int) -> Iterator[Row]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        for dtype in (np.float32, np.float16):
            rows = rows_with(massive=True, tokens=(1 << 11) if quick else (1 << 14), layers=1)[0].astype(dtype)
            codes, scales = np.empty(rows.shape, np.int8), np.empty((len(rows), q8.n_blocks(WIDTH)), np.float16)
            out = np.empty(rows.shape, np.float32)
            encode = [took(lambda: q8.encode(rows, codes, scales)).processor for _ in range(turns)]  # noqa: B023
            decode = [took(lambda: q8.decode_rows(codes, scales, out)).processor for _ in range(turns)]  # noqa: B023
            name = np.dtype(dtype).name
            speed = [4 * rows.size / each / 1e9 for each in encode]
            target = 0.5 if dtype == np.float32 else None
            yield row(f"encode, GB/s of float32, from {name}", speed, target, at_least=True, note="processor seconds")
            if dtype == np.float32:
                yield row(
                    "decode, GB/s of float32", [4 * rows.size / each / 1e9 for each in decode], None, at_least=True
                )
    finally:
        os.sched_setaffinity(0, cores)


def measure_lens(folder: Path, quick: bool) -> Iterator[Row]:
    import traceformer as tf
    from traceformer.analysis.lens import normed
    from traceformer.models.readout import readout_of

    model = tf.load_model("byte", device="cpu")
    readout = readout_of(model)
    words = readout.unembedding.rows(0, readout.d_vocab)

    def said(run: Run, site: str, layer: int | None) -> np.ndarray:
        """Log-probabilities of all words, in float64."""
        rows = run.activations(site, layer)
        logits = (normed(rows, readout) * np.float32(1) @ words.T).astype(np.float64)
        logits += 0 if readout.bias is None else readout.bias
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def divergence(exact: np.ndarray, other: np.ndarray) -> float:
        return float((np.exp(exact) * (exact - other)).sum(axis=1).mean())

    how = {"limit": 4 if quick else 32, "max_seq_len": 128}
    full, byte, half = (
        tf.record(model, "demo", "resid logits", dtype=dtype, rows_codec=codec, **how)  # pyright: ignore
        for dtype, codec in (("float32", "exact"), ("float16", "q8"), ("float16", "exact"))
    )
    layers = full.spec("resid_post").layers
    each = [divergence(said(full, "resid_post", layer), said(byte, "resid_post", layer)) for layer in layers]
    peers = [divergence(said(full, "resid_post", layer), said(half, "resid_post", layer)) for layer in layers]
    note = f"{sum(full.lengths())} tokens, {len(layers)} layers; the largest of a layer {max(each):.1e}"
    yield row("byte: KL of the lens from q8 against float32, in 1e-5", [1e5 * float(np.mean(each))], 3, note=note)
    yield row("  from float16", [1e5 * float(np.mean(peers))], None)
    off = [errors(byte.activations("resid_post", layer), full.activations("resid_post", layer)) for layer in layers]
    yield row("byte: relative error of resid_post", [float(np.concatenate(off).mean())], 0.008)

    logits = full.activations("logits")
    codes, scales = np.empty(logits.shape, np.int8), np.empty((len(logits), q8.n_blocks(logits.shape[1])), np.float16)
    made, read = q8.encode(logits, codes, scales), np.empty_like(logits)
    q8.decode_rows(codes, scales, read)
    read[:, list(made.channels[0])] = made.massive[0]

    def log_probabilities(own: np.ndarray) -> np.ndarray:
        wide = own.astype(np.float64) - own.max(axis=1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))

    worse = divergence(log_probabilities(logits), log_probabilities(read))
    yield row("byte: KL of its logits in 1e-5, were they stored so", [1e5 * worse], None)


if __name__ == "__main__":
    main(__doc__, measure_rows, measure_speed, measure_lens, threads=1)
