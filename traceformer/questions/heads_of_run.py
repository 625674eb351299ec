"""The heads of a run: its patterns are read once, in parts of bounded size, by this process or by several."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, Convention, ConventionName
from traceformer.analysis.head_metrics import HeadMetrics, join_heads
from traceformer.analysis.head_tally import Measurement
from traceformer.analysis.heads import Geometry
from traceformer.capture.workers.engine import Ray
from traceformer.errors import NotRecorded
from traceformer.progress import OnStep
from traceformer.questions.sights import sights_of
from traceformer.shapes import Int32
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.meta import RunMeta
from traceformer.store.run import Run

__all__ = ["attention_name", "digest_of", "gaps_of", "measured_of", "measured_on"]

_AT_ONCE = 32 << 20  # bytes that are read together


def attention_name(key: ArrayKey) -> str:
    """Returns what an attention is called: `dec.self`, `dec.cross`."""
    return f"{key.stack}.{key.attention}"


def measured_of(
    store: Run,
    convention: Convention,
    window: int,
    rows: Sequence[int],
    progress: OnStep,
) -> HeadMetrics:
    """Returns the metrics of all heads of a run, over these rows.

    Raises:
        NotRecorded: it holds no patterns.
    """
    specs = _patterns(store)
    done, total = 0, len(rows) * len(specs)

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    return _joined(store, rows, specs, [_measured(store, spec, convention, window, rows, step) for spec in specs])


def measured_on(
    engine: Ray, store: Run, convention: ConventionName, window: int, rows: Sequence[int], progress: OnStep
) -> HeadMetrics:
    """Returns the same metrics: each layer of each attention is measured by one worker, from first row to last."""
    specs = _patterns(store)
    parts = [(str(spec.key), layer) for spec in specs for layer in spec.layers]
    measure = partial(
        _measured_layer,
        str(store.on_disk().folder.absolute()),
        convention,
        window,
        tuple(rows),
        engine.threads_per_worker,
    )
    measured: list[HeadMetrics] = []
    for metrics in engine.map(measure, parts):
        measured.append(metrics)
        progress(len(measured), len(parts))
    return _joined(store, rows, specs, measured)


def _measured_layer(
    folder: str, convention: ConventionName, window: int, rows: Sequence[int], threads: int, part: tuple[str, int]
) -> HeadMetrics:
    """The heads of one layer of one attention of the run in a folder."""
    store, (key, layer) = Run(Path(folder)), part
    spec = replace(next(spec for spec in store.layout.arrays if str(spec.key) == key), layers=(layer,))
    return _measured(store, spec, CONVENTIONS[convention], window, rows, lambda: None, threads)


def _patterns(store: Run) -> list[ArraySpec]:
    specs = [spec for spec in store.layout.arrays if spec.key.site == "attn_pattern"]
    if not specs and store.about.why_no_patterns is not None:
        raise NotRecorded("this run holds no attention patterns", why=store.about.why_no_patterns)
    if not specs:
        raise NotRecorded("this run holds no attention patterns", hint='record it with `capture="attn"`')
    return specs


def _measured(
    store: Run,
    spec: ArraySpec,
    convention: Convention,
    window: int,
    rows: Sequence[int],
    step: Callable[[], None],
    threads: int | None = None,
) -> HeadMetrics:
    """The heads of some layers of one attention, over some rows of a run."""
    aligned = spec.key.attention == "self"
    tokens = _tokens(store, spec.key) if aligned else None
    sights = sights_of(store, spec)
    with Measurement(
        attention_name(spec.key), spec.layers, spec.heads, convention=convention, window=window, threads=threads
    ) as measurement:
        for row in rows:
            queries, keys = (store.length(row, stack) for stack in (spec.key.stack, spec.key.key_stack))
            own = None if tokens is None else tokens[row]
            geometries = {sight: Geometry(queries, keys, sight, aligned, own) for sight in sights.values()}
            size = len(spec.layers) * len(spec.heads) * queries * keys * store.layout.itemsize(spec)
            for layer, head in _parts(spec, size, one_sight=len(geometries) == 1):
                layer = spec.layers[0] if len(spec.layers) == 1 else layer
                measurement.add(
                    partial(store.get, row, spec.key, layer, head, dtype="stored"),
                    geometries[sights[spec.layers[0] if layer is None else layer]],
                    layer=layer,
                    head=head,
                )
            step()
        return measurement.metrics()


def _joined(
    store: Run, rows: Sequence[int], specs: Sequence[ArraySpec], measured: Sequence[HeadMetrics]
) -> HeadMetrics:
    table = store.table
    texts = table["text"].take(list(rows)).to_pylist() if "text" in table.column_names else [None]
    model, source = store.about.model_and_adapter, str(store.folder or store.name)
    without = gaps_of(specs, store.about)
    return join_heads(measured, source=source, model=model, texts=digest_of(texts), without=without)


def gaps_of(specs: Sequence[ArraySpec], about: RunMeta) -> dict[str, tuple[int, ...]]:
    """The layers of each attention's stack that have none, where there are such."""
    gaps = {attention_name(spec.key): about.dims_of(spec.key.stack).without_attention for spec in specs}
    return {name: layers for name, layers in gaps.items() if layers}


def digest_of(texts: Sequence[str | bytes | None]) -> str | None:
    """Returns how many texts there are and a digest of them all; None where one is not known."""
    parts = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
    hashes = [sha256(part).digest() for part in parts if part is not None]
    return None if len(hashes) < len(parts) else f"{len(parts)} texts {sha256(b''.join(hashes)).hexdigest()[:12]}"


def _parts(spec: ArraySpec, size: int, *, one_sight: bool) -> list[tuple[int | None, int | None]]:
    """The (layer, head) to read at a time: all of them, or one layer, or one head, as much as a bounded part holds."""
    if size <= _AT_ONCE and one_sight:
        return [(None, None)]
    if size // len(spec.layers) <= _AT_ONCE:
        return [(layer, None) for layer in spec.layers]
    return [(layer, head) for layer in spec.layers for head in spec.heads]


def _tokens(store: Run, key: ArrayKey) -> list[Int32[np.ndarray, "position"]] | None:
    """The token ids of every example, where the run has them."""
    column = "dec_input_ids" if key.stack == "dec" and store.arch == "encdec" else "input_ids"
    if column not in store.tokens:
        return None
    return [np.asarray(ids, np.int32) for ids in store.tokens[column]]
