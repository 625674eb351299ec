"""Runs in memory of a decoder that was never there: rows, patterns and logits that numpy draws, over given tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.run import Run

__all__ = ["LENGTHS", "TEXTS", "drawn", "run_of"]

LENGTHS = (5, 9, 1)
TEXTS = tuple(tuple(f"w{number}" for number in range(length)) for length in LENGTHS)


def drawn(seed: int, site: str, *, layers: int = 2, heads: int = 3, width: int = 6) -> list[np.ndarray]:
    """Returns an array of each text, in float32."""
    random = np.random.default_rng(seed)
    found = []
    for length in LENGTHS:
        if site == "attn_pattern":
            weights = np.tril(random.random((layers, heads, length, length)) + 1e-3)
            found.append((weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32))
        elif site in ("logits", "final_norm", "embed"):
            found.append(random.normal(2, 1, (length, width)).astype(np.float32))
        else:
            found.append(random.normal(2, 1, (layers, length, width)).astype(np.float32))
    return found


def run_of(
    arrays: Mapping[str, Sequence[np.ndarray]],
    *,
    stack: Any = "dec",
    texts: Sequence[Sequence[str]] = TEXTS,
    ids: Sequence[str] | None = None,
    columns: Mapping[str, Any] | None = None,
    name: str = "made",
    shard_examples: int | None = None,
    **meta: Any,
) -> Run:
    """Returns a run that holds these arrays of each text, all layers and heads of them."""
    specs = []
    for site, values in arrays.items():
        own = values[0]
        attention = "self" if site in ("attn_pattern", "q") else None
        layers = tuple(range(own.shape[0])) if own.ndim > 2 else ()
        heads = tuple(range(own.shape[1])) if own.ndim > 3 else ()
        width = 0 if site == "attn_pattern" else own.shape[-1]
        specs.append(ArraySpec(ArrayKey(stack, attention, site), layers, heads, width))
    lengths = [len(tokens) for tokens in texts]
    layout = RunLayout.plan(
        arch=stack, arrays=specs, n_examples=len(texts), longest={stack: max(lengths)}, dtype="float32",
        shard_examples=shard_examples or len(texts),
    )  # fmt: skip
    dims = {"n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "d_model": 6, "d_head": 2}
    stated = {"run_id": name, "model": "made", "dims": {stack: dims}, **meta}
    words = {word: number for number, word in enumerate(sorted({word for tokens in texts for word in tokens}))}
    table = {
        "example_id": [f"ex{i}" for i in range(len(texts))] if ids is None else list(ids),
        "text": [" ".join(tokens) for tokens in texts],
        "input_ids": [[words[word] for word in tokens] for tokens in texts],
        "tokens": [list(tokens) for tokens in texts],
        **(columns or {}),
    }
    with MemoryWriter(layout, stated, digest={}) as writer:
        for shard in writer.pending:
            examples = layout.shard_range(shard)
            buffer = writer.buffer()
            buffer.begin({stack: [lengths[example] for example in examples]})
            for spec in specs:
                for place, example in enumerate(examples):
                    values = arrays[spec.key.site][example]
                    if spec.site.is_matrix:
                        buffer.put(spec, place, values)
                    else:
                        buffer.rows(spec.key, place)[...] = values
            writer.commit(shard, buffer, pa.table(table).slice(examples.start, len(examples)))
        return writer.finish()
