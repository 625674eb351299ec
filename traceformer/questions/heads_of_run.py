"""The heads of a run: its patterns are read once, in parts of bounded size, by this process or by several."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from traceformer.analysis.conventions import CONVENTIONS, Convention, ConventionName
from traceformer.analysis.head_metrics import HeadMetrics, join_heads
from traceformer.analysis.head_tally import Measurement, attention_name
from traceformer.analysis.heads import Geometry
from traceformer.capture.workers.engine import Ray
from traceformer.errors import NotRecorded
from traceformer.progress import OnStep
from traceformer.questions.recorded_heads import digest_of, heads_as_recorded, tokens_of, without_attention
from traceformer.questions.sights import sights_of
from traceformer.sites import ArraySpec
from traceformer.store.run import Run

__all__ = ["measured_of", "measured_on"]

_AT_ONCE = 32 << 20  # bytes that are read together


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
    if not specs:
        return heads_as_recorded(store, convention, window, rows, progress)
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
    if not specs:  # which is read in no time
        return heads_as_recorded(store, CONVENTIONS[convention], window, rows, progress)
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
    """The patterns of a run; none where it holds the metrics of its heads in their place."""
    specs = [spec for spec in store.layout.arrays if spec.key.site == "attn_pattern"]
    if not specs and store.about.why_no_patterns is not None:
        raise NotRecorded("this run holds no attention patterns", why=store.about.why_no_patterns)
    if not specs and not any(spec.key.site == "head_metrics" for spec in store.layout.arrays):
        why = f"it holds {' '.join(str(spec.key) for spec in store.layout.arrays)}"
        hint = 'record it with `capture="attn"` or `capture="heads"`'
        raise NotRecorded("this run holds no attention patterns", why=why, hint=hint)
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
    tokens = tokens_of(store, spec.key, rows) if aligned else None
    sights = sights_of(store, spec)
    with Measurement(
        attention_name(spec.key), spec.layers, spec.heads, convention=convention, window=window, threads=threads
    ) as measurement:
        for number, row in enumerate(rows):
            queries, keys = (store.length(row, stack) for stack in (spec.key.stack, spec.key.key_stack))
            own = None if tokens is None else tokens[number]
            geometries = {sight: Geometry(queries, keys, sight, aligned, own) for sight in sights.values()}
            size = len(spec.layers) * len(spec.heads) * queries * keys * store.layout.itemsize(spec)
            for layer, head in _parts(spec, size, one_sight=len(geometries) == 1):
                layer = spec.layers[0] if len(spec.layers) == 1 else layer
                geometry = geometries[sights[spec.layers[0] if layer is None else layer]]
                for part in _rows_at_once(size, spec, layer, head, queries):
                    measurement.add(
                        partial(store.get, row, spec.key, layer, head, dtype="stored", queries=part),
                        geometry,
                        layer=layer,
                        head=head,
                        first=part.start,
                        stop=part.stop,
                    )
            step()
        return measurement.metrics()


def _joined(
    store: Run, rows: Sequence[int], specs: Sequence[ArraySpec], measured: Sequence[HeadMetrics]
) -> HeadMetrics:
    table = store.table_of(rows)
    texts = table["text"].to_pylist() if "text" in table.column_names else [None]
    model, source = store.about.model_and_adapter, str(store.folder or store.name)
    without = without_attention(specs, store.about)
    return join_heads(measured, source=source, model=model, texts=digest_of(texts), without=without)


def _parts(spec: ArraySpec, size: int, *, one_sight: bool) -> list[tuple[int | None, int | None]]:
    """The (layer, head) to read at a time: all of them, or one layer, or one head, as much as a bounded part holds."""
    if size <= _AT_ONCE and one_sight:
        return [(None, None)]
    if size // len(spec.layers) <= _AT_ONCE:
        return [(layer, None) for layer in spec.layers]
    return [(layer, head) for layer in spec.layers for head in spec.heads]


def _rows_at_once(size: int, spec: ArraySpec, layer: int | None, head: int | None, queries: int) -> Iterator[slice]:
    """The queries to read at a time: all of them, or of a head that is larger than a bounded part some."""
    own = size // ((1 if layer is None else len(spec.layers)) * (1 if head is None else len(spec.heads)))
    step = max(1, queries * _AT_ONCE // own) if own > _AT_ONCE else max(1, queries)
    return (slice(first, min(first + step, queries)) for first in range(0, max(1, queries), step))
