"""Comparing takes as much memory for many texts as for few: measured in processes of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.writer import RunWriter

TOKENS, SHARD, SHARDS = 256, 100, 12
SPECS = (
    ArraySpec(ArrayKey("dec", None, "resid_post"), (0, 1, 2), width=64),
    ArraySpec(ArrayKey("dec", "self", "attn_pattern"), (0,), (0,)),
    ArraySpec(ArrayKey("dec", None, "logits"), width=100),
)
CODE = """
import resource, sys
import traceformer as tf

first, second, limit = sys.argv[1:]
found = tf.compare(tf.open_run(first), tf.open_run(second), limit=int(limit))
assert not found.left_out
assert "torch" not in sys.modules
print(found.about.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write(folder: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    layout = RunLayout.plan(
        arch="dec", arrays=SPECS, n_examples=SHARD * SHARDS, longest={"dec": TOKENS}, shard_examples=SHARD
    )
    meta = {"model": "made", "arch": "dec", "dims": {"dec": {"n_layers": 3, "n_heads": 1, "d_model": 64}}}
    with RunWriter.create(folder, layout, meta, digest={}) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            buffer.begin({"dec": [TOKENS] * SHARD})
            for example in range(SHARD):
                weights = np.tril(random.random((1, 1, TOKENS, TOKENS), np.float32))
                buffer.put(SPECS[1], example, weights / weights.sum(axis=-1, keepdims=True))
                for spec in (SPECS[0], SPECS[2]):
                    rows = buffer.rows(spec.key, example)
                    rows[...] = random.normal(size=rows.shape)
            ids = [f"ex{shard * SHARD + i}" for i in range(SHARD)]
            tokens = list(map(str, range(TOKENS)))
            columns = {"example_id": ids, "text": ids, "input_ids": [list(range(TOKENS))] * SHARD}
            writer.commit(shard, buffer, pa.table({**columns, "tokens": [tokens] * SHARD}))
        return writer.finish()


@pytest.mark.slow  # it writes half a gigabyte, and reads all of it
def test_twelve_times_the_texts_take_no_more_memory(tmp_path: Path) -> None:
    runs = [str(write(tmp_path / name, seed)) for seed, name in enumerate(("one", "two"))]
    peaks = []
    for limit in (SHARD, SHARD * SHARDS):
        ran = subprocess.run(
            [sys.executable, "-c", CODE, *runs, str(limit)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        tokens, peak = map(int, ran.stdout.split())
        assert tokens == limit * TOKENS
        peaks.append(peak)
    # The rows of the second are 300 MB in float64; the token table alone is larger by 20.
    assert peaks[1] - peaks[0] < 60, peaks
