"""A run's examples as nanochat traces.

Everything is in a nanochat trace's own shapes: attention of the whole sequence, prompt and response; of the logits the
rows that predicted the response (all rows, where there is no response). What it has no place for is said in
`metadata["traceformer"]`, so that an import gives the run back; arrays of it are added on request only.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from traceformer.errors import NotRecorded
from traceformer.filenames import file_name
from traceformer.formats.nanochat_json.trace_writer import write_trace
from traceformer.formats.nanochat_json.traces import Captures, Tensor, Trace, TraceHead
from traceformer.formats.options import ExportOptions
from traceformer.formats.outgoing import Passage, described_run, key_of, lossless_arrays, row_types, written_dtype
from traceformer.shapes import Float
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run

__all__ = ["ACTIVATION_SITES", "OPTIONS", "trace_of", "write_files"]

OPTIONS: frozenset[str] = frozenset(("steps", "lossless"))
ACTIVATION_SITES: Mapping[str, str] = {
    "pre_attn_norm": "attn_norm",
    "post_attn": "attn_out",
    "pre_mlp_norm": "mlp_norm",
    "post_mlp": "mlp_out",
}
"""A nanochat trace's names for what is captured in a block, and the sites that they are."""
_OF_TOKENS = ("input_ids", "attention_mask", "tokens")
_SETTINGS = ("temperature", "top_k", "top_p", "max_tokens", "seed")


def write_files(store: Run, folder: Path, options: ExportOptions) -> Iterator[Path]:
    """Yields `{trace_id}.json` for each example, once it is written.

    Raises:
        Unsupported: the run is an encoder-decoder's.
        NotRecorded: it holds nothing that such a trace has.
        RunExists: a file is in the way, of another example or of another export.
    """
    ids = store.ids if options.example_ids is None else options.example_ids
    for done, example_id in enumerate(ids, start=1):
        trace = trace_of(store, example_id, steps=options.steps, lossless=options.lossless)
        path = options.claimed(folder / f"{trace.head.trace_id}.json")
        write_trace(path, trace)
        options.progress(done, len(ids))
        yield path


def trace_of(
    store: Run,
    example_id: str,
    *,
    trace_id: str | None = None,
    steps: bool | None = None,
    lossless: bool = False,
) -> Trace:
    """Returns an example as a trace, whose arrays are read when they are written.

    Raises as `write_files` does.
    """
    return _Example(store, example_id).trace(trace_id, steps, lossless)


class _Example:
    """One example of a run, in a nanochat trace's words."""

    def __init__(self, store: Run, example_id: str) -> None:
        passage = Passage.of(store, example_id, "nanochat traces")
        self._store, self._id, self._passage = store, example_id, passage
        self._ids, self._n_prompt = passage.ids, passage.n_prompt
        self._is_partial = store.about.unknown_rows == "NaN"
        self._blocks: dict[ArrayKey, Float[np.ndarray, "..."]] = {}

    def trace(self, trace_id: str | None, steps: bool | None, lossless: bool) -> Trace:
        wanted = (self.spec(site) for site in ("token_embed", "logits", "attn_pattern", *ACTIVATION_SITES.values()))
        specs = [spec for spec in wanted if spec is not None]
        if not specs:
            raise NotRecorded(
                "this run holds nothing that nanochat traces have",
                why="they have attn_pattern, token_embed, logits, attn_norm, attn_out, mlp_norm and mlp_out",
            )
        if steps is None:
            steps = bool((self._store.about.generation or {}).get("capture_steps"))
        further = lossless_arrays(self._store, "nanochat traces") if lossless else ()
        extra = {str(spec.key): self._whole(spec) for spec in further if spec not in specs or spec.key.site == "logits"}
        listed = [*specs, *(spec for spec in further if spec not in specs)]
        return Trace(
            self._head(trace_id, listed),
            self._ids[: self._n_prompt],
            self._ids[self._n_prompt :],
            self._captures(slice(0, len(self._ids)), self._predicting()),
            self._steps() if steps else None,
            extra,
        )

    def spec(self, site: str) -> ArraySpec | None:
        return self._store.layout.spec(key_of(site, self._passage.stack))

    def _predicting(self) -> slice:
        """The rows of logits that predicted the response; all rows if there is none."""
        n = len(self._ids)
        return slice(0, n) if self._n_prompt == n else slice(self._n_prompt - 1, n - 1)

    def _captures(self, rows: slice, of_logits: slice) -> Captures:
        embeddings, logits, pattern = (self.spec(site) for site in ("token_embed", "logits", "attn_pattern"))
        activations: dict[int, dict[str, Tensor]] = {}
        for name, site in ACTIVATION_SITES.items():
            spec = self.spec(site)
            for layer in spec.layers if spec else ():
                assert spec is not None
                activations.setdefault(layer, {})[name] = self._rows(spec, layer, rows)
        return Captures(
            None if embeddings is None else self._rows(embeddings, None, rows),
            None if logits is None else self._rows(logits, None, of_logits),
            {layer: self._pattern(pattern, layer, rows) for layer in pattern.layers} if pattern else {},
            dict(sorted(activations.items())),
        )

    def _steps(self) -> Iterator[Captures]:
        """Step 0 shows the prompt; step i > 0 the response's token i - 1, which is what token i follows from."""
        self._keep_all()
        for step in range(len(self._ids) - self._n_prompt):
            last = self._n_prompt + step
            rows = slice(0 if step == 0 else last - 1, last)
            yield self._captures(rows, rows)

    def _keep_all(self) -> None:
        """Reads what steps would otherwise read once each."""
        for site in ("token_embed", "logits", "attn_pattern", *ACTIVATION_SITES.values()):
            spec = self.spec(site)
            if spec is not None:
                self._blocks[spec.key] = self._store.get(self._id, spec.key, dtype="stored")

    def _read(self, spec: ArraySpec, layer: int | None) -> Float[np.ndarray, "..."]:
        kept = self._blocks.get(spec.key)
        if kept is not None:
            return kept if layer is None else kept[spec.layers.index(layer)]
        return self._store.get(self._id, spec.key, layer, dtype="stored")

    def _rows(self, spec: ArraySpec, layer: int | None, rows: slice) -> Tensor:
        if self._is_partial:
            values = self._read(spec, layer)[rows]
            return Tensor.of(values[_known(values)][None], self._dtype(spec))
        return Tensor(
            (1, rows.stop - rows.start, spec.width),
            self._dtype(spec),
            blocks=lambda: (self._read(spec, layer)[rows],),
        )

    def _pattern(self, spec: ArraySpec, layer: int, rows: slice) -> Tensor:
        """Queries `rows` and the keys up to the last of them, as a cached step has them."""
        if self._is_partial:
            values = self._read(spec, layer)[:, rows]
            known = _known(values.swapaxes(0, 1).reshape(values.shape[1], -1))
            return Tensor.of(values[None, :, known, : rows.start + known.stop], self._dtype(spec))
        return Tensor(
            (1, len(spec.heads), rows.stop - rows.start, rows.stop),
            self._dtype(spec),
            blocks=partial(self._heads, spec, layer, rows),
        )

    def _heads(self, spec: ArraySpec, layer: int, rows: slice) -> Iterator[Float[np.ndarray, "query key"]]:
        kept = self._blocks.get(spec.key)
        for index, head in enumerate(spec.heads):
            if kept is not None:
                yield kept[spec.layers.index(layer), index, rows, : rows.stop]
            else:
                yield self._store.get(self._id, spec.key, layer, head, dtype="stored")[rows, : rows.stop]

    def _whole(self, spec: ArraySpec) -> Tensor:
        """An array as the run has it: (1[, layer][, head], token, d) or (1, layer, head, query, key)."""
        n = len(self._ids)
        lead = (len(spec.layers),) * bool(spec.layers) + (len(spec.heads),) * bool(spec.heads)
        last = (n, n) if spec.site.is_matrix else (n, spec.width)
        layers = spec.layers or (None,)
        return Tensor(
            (1, *lead, *last),
            self._dtype(spec),
            blocks=lambda: (self._store.get(self._id, spec.key, layer, dtype="stored") for layer in layers),
        )

    def _dtype(self, spec: ArraySpec) -> str:
        return f"torch.{written_dtype(self._store, [spec])}"

    def _head(self, trace_id: str | None, specs: list[ArraySpec]) -> TraceHead:
        row, about = self._passage.row, self._store.about
        model = str(about.model)
        own = json.loads(row.get("metadata") or "{}")
        stated = {name: row[name] for name in _SETTINGS if row.get(name) is not None}
        ours = {
            "example_id": self._id,
            "tokens": row.get("tokens"),
            "row": {name: value for name, value in row.items() if name not in (*_OF_TOKENS, "metadata")},
            "arrays": [spec.to_json() for spec in specs],
            "types": row_types(self._store),
            "run": described_run(self._store),
        }
        source = model.split(":")[1] if model.startswith("nanochat:") else model
        timestamp = str(row.get("timestamp") or (about.time or "").replace(" ", "T"))
        return TraceHead(
            trace_id or _trace_id(self._id, timestamp),
            timestamp,
            self._passage.prompt,
            self._passage.response,
            row.get("category"),
            {"model_source": source, **stated, **own, "traceformer": ours},
        )


def _known(rows: Float[np.ndarray, "row value"]) -> slice:
    """Returns from where to where there are rows that are not NaN throughout."""
    known = np.flatnonzero(~np.isnan(rows).all(axis=1))
    return slice(int(known[0]), int(known[-1]) + 1) if len(known) else slice(0, 0)


def _trace_id(example_id: str, timestamp: str) -> str:
    """Returns the engine's `trace_{time}`, and the example's name, since a batch has one time."""
    if example_id.startswith("trace_"):
        return file_name(example_id)
    time = re.sub(r"[-:]", "", timestamp).replace("T", "_").replace(".", "_")
    return file_name("_".join(("trace", *((time,) if re.fullmatch(r"[0-9_]+", time) else ()), example_id)))
