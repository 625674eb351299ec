"""Runs with texts of one's own, written without a model: patterns of two layers and heads, which numpy draws."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.writer import RunWriter

HOSTILE = [
    "<img src=x onerror=document.title='owned'>",
    "</script><script>document.title='owned'</script>",
    "javascript:alert(1)",
    "\u202egnp.exe",  # reads from right to left
    "\u0301",  # a mark without the letter that it belongs to
    "a" * 10_000,
    "\x00\x1b[31m",
    "🏳️‍🌈",
    "'\"`${1+1}{{7*7}}",
    "--><!--",
]
DIMS = {
    "n_layers": 4,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_model": 8,
    "d_head": 4,
    "d_mlp": 16,
    "d_vocab": 99,
    "n_ctx": 64,
}
PATTERNS = ArraySpec(ArrayKey("dec", "self", "attn_pattern"), (1, 3), (0, 1))


def pattern(example: int, layer: int, head: int, length: int) -> np.ndarray:
    scores = np.random.default_rng((example, layer, head)).normal(size=(length, length))
    weights = np.tril(np.exp(scores))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float16)


class Writing:
    """A run that is being written: one shard of one example for each text, committed when it is said."""

    def __init__(
        self,
        folder: Path,
        texts: Sequence[Sequence[str]],
        triangles: Sequence[ArrayKey] = (),
        ids: Sequence[str] | None = None,
        **meta: str,
    ) -> None:
        self.texts = [list(tokens) for tokens in texts]
        self.ids = [f"ex{number}" for number in range(len(texts))] if ids is None else ids
        longest = max(map(len, self.texts))
        layout = RunLayout.plan(
            arch="dec",
            arrays=[PATTERNS],
            n_examples=len(texts),
            longest={"dec": longest},
            shard_examples=1,
            triangles=triangles,
        )
        told = {"model": "tiny", "dataset": "demo", "arch": "dec", "dims": {"dec": DIMS}, **meta}
        self._writer = RunWriter.create(folder, layout, told, digest={})
        self._next = 0

    def commit(self) -> None:
        """Commits the next text."""
        number, tokens = self._next, self.texts[self._next]
        buffer = self._writer.buffer()
        buffer.begin({"dec": [len(tokens)]})
        squares = [[pattern(number, layer, head, len(tokens)) for head in PATTERNS.heads] for layer in PATTERNS.layers]
        buffer.put(PATTERNS, 0, np.array(squares))
        table = {
            "example_id": [self.ids[number]],
            "text": ["".join(tokens)],
            "tokens": [tokens],
            "input_ids": [list(range(len(tokens)))],
        }
        self._writer.commit(number, buffer, pa.table(table))
        self._next += 1

    def finish(self) -> Path:
        """Commits what is left; returns the finished run's folder."""
        with self._writer:
            while self._next < len(self.texts):
                self.commit()
            return self._writer.finish()

    def close(self) -> None:
        """Leaves the run unfinished."""
        self._writer.close()


def write_run(folder: Path, texts: Sequence[Sequence[str]] = (["The", " cat", " sat"], ["one", " two"])) -> Path:
    """Returns the folder of a finished run."""
    return Writing(folder, texts).finish()
