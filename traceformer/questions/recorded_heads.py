"""The head metrics of a run that were worked out while it was recorded, and what such a table says of its texts."""

from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from traceformer.analysis.conventions import Convention
from traceformer.analysis.head_metrics import HeadMetrics, join_heads
from traceformer.analysis.head_tally import Averaging, attention_name
from traceformer.analysis.heads import Geometry, example_weights
from traceformer.analysis.visibility import visibility_of
from traceformer.errors import NotRecorded
from traceformer.progress import OnStep
from traceformer.shapes import Float32, Int32
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.meta import RunMeta
from traceformer.store.run import Run

__all__ = ["digest_of", "heads_as_recorded", "tokens_of", "without_attention"]


def heads_as_recorded(
    store: Run, convention: Convention, window: int, rows: Sequence[int], progress: OnStep
) -> HeadMetrics:
    """Returns the metrics of a run's heads, averaged over these examples as if its patterns had been read.

    The effective span is one example's: over several it takes the patterns themselves, and is NaN.

    Raises:
        NotRecorded: they were worked out in another convention, or with another window.
    """
    stated = store.about.head_metrics
    if stated is None:
        raise NotRecorded("this run does not say how its head metrics were worked out")
    for name, asked, there in (
        ("convention", convention.name, stated["convention"]),
        ("window", window, stated["window"]),
    ):
        if asked != there:
            raise NotRecorded(
                f"head metrics with {name} {asked}",
                why=f"this run holds those with {name} {there}, and no patterns",
                hint=f'`{name}={there!r}`, or a run recorded with `capture="attn"`',
            )
    specs = [spec for spec in store.layout.arrays if spec.key.site == "head_metrics"]
    done, total = 0, len(rows) * len(specs)
    measured: list[HeadMetrics] = []
    for spec in specs:
        key, aligned = spec.key, spec.key.attention == "self"
        ahead: Sequence[int] = stated["ahead"].get(attention_name(key), ())
        facts = store.about.attention
        sights = {layer: visibility_of(facts, key, layer, ahead=layer in ahead) for layer in spec.layers}
        tokens = tokens_of(store, key, rows) if aligned else None
        averaging = Averaging(attention_name(key), spec.layers, spec.heads, window=window)
        for number, (row, values) in enumerate(_of_rows(store, key, rows)):
            queries, keys = (store.length(row, stack) for stack in (key.stack, key.key_stack))
            if queries and keys:
                ids = None if tokens is None else tokens[number]
                weights = {
                    sight: example_weights(Geometry(queries, keys, sight, aligned, ids))
                    for sight in set(sights.values())
                }
                averaging.add(values, np.stack([weights[sights[layer]] for layer in spec.layers]), queries)
            done += 1
            progress(done, total)
        measured.append(averaging.metrics())
    table = store.table_of(rows)
    texts = table["text"].to_pylist() if "text" in table.column_names else [None]
    model, source = store.about.model_and_adapter, str(store.folder or store.name)
    without = without_attention(specs, store.about)
    return join_heads(measured, source=source, model=model, texts=digest_of(texts), without=without)


def _of_rows(store: Run, key: ArrayKey, rows: Sequence[int]) -> Iterator[tuple[int, Float32[np.ndarray, "..."]]]:
    """Yields rows and what was recorded of them, (layer, head, metric): block by block where they are all."""
    if list(rows) == list(range(store.n)):
        yield from enumerate(values for _, values in store.head(key))
    else:
        yield from ((row, store.get(row, key)) for row in rows)


def without_attention(specs: Sequence[ArraySpec], about: RunMeta) -> dict[str, tuple[int, ...]]:
    """The layers of each attention's stack that have none, where there are such."""
    gaps = {attention_name(spec.key): about.dims_of(spec.key.stack).without_attention for spec in specs}
    return {name: layers for name, layers in gaps.items() if layers}


def digest_of(texts: Sequence[str | bytes | None]) -> str | None:
    """Returns how many texts there are and a digest of them all; None where one is not known."""
    parts = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
    hashes = [sha256(part).digest() for part in parts if part is not None]
    return None if len(hashes) < len(parts) else f"{len(parts)} texts {sha256(b''.join(hashes)).hexdigest()[:12]}"


def tokens_of(store: Run, key: ArrayKey, rows: Sequence[int]) -> list[Int32[np.ndarray, "position"]] | None:
    """The token ids of each of these rows, where the run has them."""
    column = "dec_input_ids" if key.stack == "dec" and store.arch == "encdec" else "input_ids"
    table = store.table_of(rows)
    if column not in table.column_names:
        return None
    return [np.asarray(ids, np.int32) for ids in table.column(column).to_pylist()]
