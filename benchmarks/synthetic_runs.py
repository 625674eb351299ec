"""Writes runs as large as one likes that no model has made, through the store's own writer.

    python benchmarks/synthetic_runs.py FOLDER [--like wide] [--size 10e9]

1. Texts are made up, with words and stretches that come again (`synthetic_texts`).
2. A head's scores are a sum: for the token before, for the first one, for what came after the same token earlier
   (induction), against what is far away, and noise of low rank, as q and k make it. Their softmax is its pattern.
3. The start of a causal pattern is the pattern of a shorter text, so patterns are drawn once, at the longest length,
   and all examples take theirs out of that pool. Those of induction heads are drawn for each text, whose tokens they
   are about.
4. Residual rows are random walks through the layers, and logits are noise out of which what comes next stands at times.
"""

import argparse
import hashlib
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from synthetic_texts import VOCABULARY, Text, text_of

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.buffer import ShardBuffer
from traceformer.store.layout import RunLayout
from traceformer.store.meta import Dims, RunMeta
from traceformer.store.sizes import estimated_bytes
from traceformer.store.writer import RunWriter

__all__ = ["LIKE", "Shape", "write_run"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a run holds: the tokens of each example, and the sizes of the model that there is not."""

    lengths: tuple[int, ...]
    layers: int
    heads: int
    width: int = 64

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        layers, heads = tuple(range(self.layers)), tuple(range(self.heads))
        rows = {"resid_pre": layers, "resid_mid": layers, "resid_post": layers, "hidden": (*layers, self.layers)}
        return (
            ArraySpec(PATTERN, layers, heads),
            ArraySpec(ArrayKey("dec", None, "embed"), width=self.width),
            *(ArraySpec(ArrayKey("dec", None, site), own, width=self.width) for site, own in rows.items()),
            ArraySpec(ArrayKey("dec", None, "logits"), width=len(VOCABULARY)),
        )

    @property
    def layout(self) -> RunLayout:
        return RunLayout.plan(
            arch="dec",
            arrays=self.arrays,
            n_examples=len(self.lengths),
            longest={"dec": max(self.lengths)},
            mean={"dec": sum(self.lengths) / len(self.lengths)},
            triangles=[PATTERN],
        )

    def of_size(self, size: float, seed: int = 0) -> "Shape":
        """Returns the shape with as many examples as take about `size` bytes on disk, of half its longest and more."""
        random, longest = np.random.default_rng(seed), max(self.lengths)
        one = replace(self, lengths=(longest,)).layout
        lengths, estimated = [longest], estimated_bytes(one, {"dec": [longest]})
        while estimated < size:
            lengths.append(int(random.integers(math.ceil(longest / 2), longest + 1)))
            estimated += estimated_bytes(one, {"dec": lengths[-1:]})
        return replace(self, lengths=tuple(lengths))


class Mixture(NamedTuple):
    """What a head's scores are made of; `reach` is after how many tokens they have fallen by 1."""

    previous: float = 0.0
    first: float = 0.0
    induction: float = 0.0
    reach: float = math.inf
    noise: float = 1.0


PATTERN = ArrayKey("dec", "self", "attn_pattern")
LIKE = {
    "wide": Shape((512,), layers=32, heads=32),
    "long": Shape((4096,), layers=2, heads=12),
    "deep": Shape((1024,), layers=32, heads=8),
    "small": Shape((32, 128, 256, 512), layers=12, heads=12),
}
"""The runs that `viewer.py` opens: 10 GB, T = 4096, a search through all layers, and what its peers can open."""
KINDS = {
    "previous token": (0.08, Mixture(previous=8, noise=0.7)),
    "first token": (0.2, Mixture(first=7, noise=1.2)),
    "induction": (0.06, Mixture(induction=9, first=3, noise=0.7)),
    "local": (0.26, Mixture(first=1, reach=6)),
    "uniform": (0.1, Mixture(noise=0.25)),
    "mixed": (0.3, Mixture(first=3, reach=60, previous=1.5, noise=1.6)),
}
"""The share of each kind of head."""
_CHARACTERS, _DRAWS, _RANK = 32, 4, 8
_SIZE = {"wide": 10e9}


def write_run(folder: Path, shape: Shape, *, seed: int = 0, told: bool = False) -> Path:
    """Returns the folder of a new run of this shape; `told` prints how far it is."""
    random, layout = np.random.default_rng(seed), shape.layout
    estimated = estimated_bytes(layout, {"dec": shape.lengths})
    free = shutil.disk_usage(folder.resolve().parent).free
    if free < 1.1 * estimated:
        raise SystemExit(f"{folder}: {estimated / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    heads = Heads(shape, random)
    with RunWriter.create(folder, layout, _meta(folder, shape), digest={"seed": seed, "shape": str(shape)}) as writer:
        for shard in writer.pending:
            buffer, numbers = writer.buffer(), layout.shard_range(shard)
            lengths = shape.lengths[numbers.start : numbers.stop]
            texts = [text_of(length, random) for length in lengths]
            buffer.begin({"dec": lengths})
            for slot, text in enumerate(texts):
                _put_patterns(buffer, slot, heads.patterns(text.ids, random))
                _put_rows(buffer, slot, shape, text, random)
            writer.commit(shard, buffer, _token_table(numbers, texts))
            if told:
                print(f"{numbers.stop} of {layout.n_examples}, {writer.bytes_written >> 20} MiB", file=sys.stderr)
        return writer.finish()


class Heads:
    """The heads of a run: which kind each one is, and the pool that its patterns come from."""

    def __init__(self, shape: Shape, random: np.random.Generator) -> None:
        count, longest = shape.layers * shape.heads, max(shape.lengths)
        shares = np.array([share for share, _ in KINDS.values()])
        names = random.choice(list(KINDS), min(_CHARACTERS, count), p=shares / shares.sum())
        names[0] = "induction"
        self._mixtures = [_varied(KINDS[name][1], random) for name in names]
        self._draws = _DRAWS if len(shape.lengths) > 1 else 1
        self._pool = {
            (number, draw): pattern(mixture, longest, random)
            for number, mixture in enumerate(self._mixtures)
            for draw in range(self._draws)
            if not mixture.induction
        }
        numbers = np.arange(count) % len(self._mixtures)
        self._number = random.permutation(numbers).reshape(shape.layers, shape.heads)

    def patterns(self, ids: Sequence[int], random: np.random.Generator) -> Iterator[np.ndarray]:
        """Yields each layer's patterns of a text, (head, query, key)."""
        n = len(ids)
        own = {
            (number, draw): pattern(mixture, n, random, ids)
            for number, mixture in enumerate(self._mixtures)
            for draw in range(self._draws)
            if mixture.induction
        }
        chosen = random.integers(0, self._draws, self._number.shape)
        block = np.empty((self._number.shape[1], n, n), np.float16)
        for layer in range(len(chosen)):
            for head, key in enumerate(zip(self._number[layer].tolist(), chosen[layer].tolist(), strict=True)):
                block[head] = own[key] if key in own else self._pool[key][:n, :n]
            yield block


def pattern(mixture: Mixture, n: int, random: np.random.Generator, ids: Sequence[int] = ()) -> np.ndarray:
    """Returns a causal pattern (query, key) in float16, whose rows sum to one; induction needs the tokens' `ids`."""
    queries, keys = random.standard_normal((2, n, _RANK), np.float32)
    scores = (mixture.noise / math.sqrt(_RANK) * queries) @ keys.T
    position = np.arange(n, dtype=np.float32)
    scores += position / np.float32(mixture.reach)  # less what is the same in all of a row
    scores[:, 0] += mixture.first
    scores[np.arange(1, n), np.arange(n - 1)] += mixture.previous
    if mixture.induction:
        tokens = np.asarray(ids)
        scores[:, 1:] += np.float32(mixture.induction) * (tokens[:, None] == tokens[:-1])
    scores[position[:, None] < position] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores.astype(np.float16)


def _varied(mixture: Mixture, random: np.random.Generator) -> Mixture:
    return Mixture(*(float(part * random.uniform(0.75, 1.3)) for part in mixture))


def _put_patterns(buffer: ShardBuffer, slot: int, layers: Iterator[np.ndarray]) -> None:
    for layer, block in enumerate(layers):
        buffer.matrices[PATTERN].take(slot, layer, 0, block)


def _put_rows(buffer: ShardBuffer, slot: int, shape: Shape, text: Text, random: np.random.Generator) -> None:
    """Puts a walk of two steps a layer: `embed`, then `resid_mid` and `resid_post` of each layer in turn."""
    n = len(text.ids)
    table = np.random.default_rng(0).standard_normal((len(VOCABULARY), shape.width), np.float32)
    steps = random.standard_normal((2 * shape.layers, n, shape.width), np.float32) * 0.4
    walk = np.cumsum(np.concatenate((table[text.ids][None], steps)), axis=0).astype(np.float16)
    last = walk[-1].astype(np.float32)
    normed = (last / np.sqrt((last**2).mean(-1, keepdims=True))).astype(np.float16)
    values = {
        "embed": walk[0],
        "resid_pre": walk[:-1:2],
        "resid_mid": walk[1::2],
        "resid_post": walk[2::2],
        "hidden": np.concatenate((walk[:-1:2], normed[None])),
        "logits": _logits(text.ids, random),
    }
    for spec in buffer.layout.arrays:
        if spec.key.site in values:
            buffer.put(spec, slot, values[spec.key.site])


def _logits(ids: Sequence[int], random: np.random.Generator) -> np.ndarray:
    logits = random.standard_normal((len(ids), len(VOCABULARY)), np.float32)
    logits[np.arange(len(ids) - 1), ids[1:]] += random.exponential(5, len(ids) - 1)
    return logits.astype(np.float16)


def _token_table(numbers: range, texts: Sequence[Text]) -> pa.Table:
    return pa.table(
        {
            "example_id": [f"synthetic-{number}" for number in numbers],
            "split": ["synthetic"] * len(texts),
            "index": list(numbers),
            "text": [text.text for text in texts],
            "input_ids": [text.ids for text in texts],
            "attention_mask": [[1] * len(text.ids) for text in texts],
            "offset_mapping": [text.offsets for text in texts],
            "tokens": [text.names for text in texts],
            "n_tokens": [len(text.ids) for text in texts],
            "truncated": [False] * len(texts),
            "content_hash": [hashlib.sha256(text.text.encode()).hexdigest() for text in texts],
        }
    )


def _meta(folder: Path, shape: Shape) -> RunMeta:
    n_layers, n_heads, width = shape.layers, shape.heads, shape.width
    dims = Dims(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads, d_model=width, d_vocab=len(VOCABULARY))
    return RunMeta(
        run_id=folder.name,
        model="synthetic",
        model_name="synthetic",
        arch="dec",
        n_examples=len(shape.lengths),
        num_layers=n_layers,
        num_heads=n_heads,
        dtype="float16",
        dims={"dec": dims},
        byte_level=False,
        dataset="made up",
        split="synthetic",
        max_seq_len=max(shape.lengths),
        capture=("attn", "resid", "hidden", "logits"),
        time=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the run's; it must not be there")
    parser.add_argument("--like", choices=LIKE, default="wide")
    parser.add_argument("--size", type=float, help="bytes on disk, about; 10e9 of wide, else a few examples")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--tokens", type=int, help="of the longest example")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shape = LIKE[given.like]
    asked = {name: number for name in ("layers", "heads") if (number := getattr(given, name))}
    shape = replace(shape, **asked, **({"lengths": (given.tokens,)} if given.tokens else {}))
    size = given.size or _SIZE.get(given.like)
    if size:
        shape = shape.of_size(size, given.seed)
    start = time.perf_counter()
    run = write_run(given.folder, shape, seed=given.seed, told=True)
    written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    print(f"{run}: {written / 1e9:.2f} GB of {len(shape.lengths)} examples in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    _main()
