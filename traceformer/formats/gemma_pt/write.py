"""A run's examples as the Gemma capture's .pt files, in either of its layouts.

`residual` is one file per example, `{set}/{id}.pt`: the residual stream of all layers, and patterns averaged over
heads. `internals` is one file per example and layer, `{set}/{id}_L{layer}.pt`: projections, each head's pattern, MLP
and residual stream. With N tokens of prompt, entry i of a response is what belongs to its own token i, at position N+i.
Its pattern is the context that produced that token, A[:, :N+i, :N+i], a corner of the one square A that the run holds:
a file keeps A once, and its corners are views of it.

Beyond what the capture has, a member `traceformer` says what the file holds, for an import to give the run back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.filenames import file_name
from traceformer.formats.options import ExportOptions
from traceformer.formats.outgoing import Passage, described_run, key_of, lossless_arrays, row_types, written_dtype
from traceformer.formats.torch_files import Part, write_torch_file
from traceformer.shapes import Float
from traceformer.sites import ArraySpec
from traceformer.store.names import Dtype
from traceformer.store.run import Run

__all__ = ["INTERNALS", "LAYOUTS", "OPTIONS", "PT_FORMAT", "RESIDUAL", "write_files"]

OPTIONS: frozenset[str] = frozenset(("layout", "layers", "lossless"))
PT_FORMAT = "traceformer pt 1"
INTERNALS: Mapping[str, Mapping[str, str]] = {
    "attention": {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "attn_weights": "attn_pattern"},
    "mlp": {"up_proj": "mlp_up", "gelu": "mlp_act", "down_proj": "mlp_down"},
    "residual": {"input": "resid_pre", "after_attn": "resid_mid", "output": "resid_post"},
}
"""The Gemma capture's names in a file of one layer, and the sites that they are."""
RESIDUAL: Mapping[str, str] = {"residual_in": "resid_pre", "after_attn": "resid_mid", "residual_out": "resid_post"}
"""Its names in a file of all layers."""
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "residual": (*RESIDUAL.values(), "attn_pattern"),
    "internals": tuple(site for part in INTERNALS.values() for site in part.values()),
}
"""The layouts, and the sites that each takes."""
_ROWS = "entry i of a response belongs to its token i, at position N+i (N tokens of prompt)"
_PATTERNS = "entry i of a response is the context that produced token i: A[:, :N+i, :N+i] of the whole pattern A"


def write_files(store: Run, folder: Path, options: ExportOptions) -> Iterator[Path]:
    """Yields each file, once it is written.

    Raises:
        UsageError: no such layout.
        NotRecorded: the run lacks a site, or heads, that the layout takes; the message says what to record.
        SelectionError: it lacks a layer that was asked for.
        Unsupported: it is an encoder-decoder's.
        RunExists: a file is in the way.
    """
    layout = options.layout or next(iter(LAYOUTS))
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}", hint=" or ".join(f'`layout="{name}"`' for name in LAYOUTS))
    ids = store.ids if options.example_ids is None else options.example_ids
    for done, example_id in enumerate(ids, start=1):
        example = _Example.of(store, example_id, layout, options)
        for path, data in example.files():
            target = options.claimed(folder / path)
            write_torch_file(target, data, example.dtype)
            yield target
        options.progress(done, len(ids))


@dataclass(frozen=True, slots=True)
class _Example:
    """One example of a run, in the Gemma capture's words."""

    store: Run
    passage: Passage
    layout: str
    specs: Mapping[str, ArraySpec]
    layers: tuple[int, ...]
    arrays: tuple[ArraySpec, ...]
    lossless: bool

    @property
    def dtype(self) -> Dtype:
        """That of all tensors of its files."""
        return written_dtype(self.store, self.arrays)

    @classmethod
    def of(cls, store: Run, example_id: str, layout: str, options: ExportOptions) -> "_Example":
        passage = Passage.of(store, example_id, "the Gemma capture's files")
        specs = _recorded(store, passage, layout)
        layers, lossless = _layers(specs, options.layers), options.lossless
        arrays = lossless_arrays(store, "the Gemma capture's files") if lossless else tuple(specs.values())
        return cls(store, passage, layout, specs, layers, arrays, lossless)

    def files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields where each file goes, and what it holds."""
        of_set, name = self._names()
        if self.layout == "residual":
            yield Path(of_set, f"{name}.pt"), self._residual()
            return
        for layer in self.layers:
            yield Path(of_set, f"{name}_L{layer}.pt"), self._internals(layer)

    def _names(self) -> tuple[str, str]:
        """The prompt set's name and the prompt's, with which of its responses it is where there are several."""
        of_set, name = self.passage.row.get("prompt_set"), self.passage.example_id
        shorter = name.removeprefix(f"{of_set}-")
        if of_set and not self.store.is_id(shorter):  # no other example may give a file its name
            name = shorter
        return file_name(str(of_set or self.store.about.dataset or "run")), file_name(name)

    def _internals(self, layer: int) -> dict[str, Any]:
        prompt, response = self._texts()
        further: dict[str, Part] = {}
        for part, names in INTERNALS.items():
            prompt[part], response[part] = {}, {}
            for name, site in names.items():
                values = self._read(site, layer)
                if site == "attn_pattern":
                    own = self._corners(values)
                    further[str(self.specs[site].key)] = Part(values)  # where the last token looks is in no corner
                elif part == "residual":
                    own = self._rows(values)[0], Part(values, (slice(self.passage.n_prompt, None), None))
                else:
                    own = self._rows(values)
                prompt[part][name], response[part][name] = own
        for spec in self._further():
            if spec.site.axes[0] == "layer" and layer in spec.layers:
                further[str(spec.key)] = self._whole(spec, layer)
            elif spec.site.axes[0] != "layer" and layer == self.layers[0]:
                further[str(spec.key)] = self._whole(spec)
        return {"prompt": prompt, "response": response, "traceformer": self._told(further, layer)}

    def _residual(self) -> dict[str, Any]:
        prompt, response = self._texts()
        n = self.passage.n_prompt
        for part in (prompt, response):
            part["activations"], part["attention"] = {}, {}
        for layer in self.layers:
            rows = {name: self._read(site, layer) for name, site in RESIDUAL.items()}
            for part, span in ((prompt, slice(0, n)), (response, slice(n, None))):
                part["activations"][str(layer)] = {name: Part(values, (span,)) for name, values in rows.items()}
            mean = self._read("attn_pattern", layer).mean(axis=0, dtype=np.float32)
            seen = len(mean) - (n < len(mean))  # where the last token looks is in no corner
            own = self._corners(np.ascontiguousarray(mean[:seen, :seen]))
            prompt["attention"][f"layer_{layer}"], response["attention"][f"layer_{layer}"] = own
        further = {str(spec.key): self._whole(spec) for spec in self._further()}
        return {"prompt": prompt, "response": response, "traceformer": self._told(further)}

    def _texts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        own, n = self.passage, self.passage.n_prompt
        prompt = {"text": own.prompt, "tokens": own.tokens[:n], "token_ids": list(own.ids[:n])}
        return prompt, {"text": own.response, "tokens": own.tokens[n:], "token_ids": list(own.ids[n:])}

    def _read(self, site: str, layer: int) -> Float[np.ndarray, "..."]:
        """One layer of a site: (token, d), heads side by side, or (head, query, key)."""
        spec = self.specs[site]
        values = self.store.get(self.passage.example_id, spec.key, layer, dtype="stored")
        if spec.heads and not spec.site.is_matrix:
            return np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(values.shape[1], -1)
        return values

    def _rows(self, values: Float[np.ndarray, "token d"]) -> tuple[Part, list[Part]]:
        """The prompt's rows, and each of the response's as (1, d)."""
        n = self.passage.n_prompt
        return Part(values, (slice(0, n),)), [Part(values, (slice(i, i + 1),)) for i in range(n, len(values))]

    def _corners(self, square: Float[np.ndarray, "*head query key"]) -> tuple[Part, list[Part]]:
        """The prompt's square, and for each token of the response that of all tokens before it."""
        n, total = self.passage.n_prompt, len(self.passage.ids)
        heads = (slice(None),) * (square.ndim - 2)
        corners = [Part(square, (*heads, slice(0, size), slice(0, size))) for size in (n, *range(n, total))]
        return corners[0], corners[1:]

    def _further(self) -> Sequence[ArraySpec]:
        """What the layout has no place for: every head's pattern, where it has the mean, is among it."""
        kept = {spec.key for spec in self.specs.values()}
        if self.layout == "residual":
            kept.remove(self.specs["attn_pattern"].key)
        return [spec for spec in self.arrays if spec.key not in kept] if self.lossless else []

    def _whole(self, spec: ArraySpec, layer: int | None = None) -> Part:
        return Part(self.store.get(self.passage.example_id, spec.key, layer, dtype="stored"))

    def _told(self, further: Mapping[str, Part], layer: int | None = None) -> dict[str, Any]:
        return {
            "format": PT_FORMAT,
            "layout": self.layout,
            "layers": list(self.layers),
            **({} if layer is None else {"layer": layer}),
            "dtype": self.dtype,
            "activations": _ROWS,
            "attention": _PATTERNS + ("; the mean over heads" if self.layout == "residual" else ""),
            "after_attn": "the residual stream between attention and MLP (resid_mid), not its normed copy",
            "example_id": self.passage.example_id,
            "row": dict(self.passage.row),
            "types": row_types(self.store),
            "run": described_run(self.store),
            "arrays": [spec.to_json() for spec in self.arrays],
            "further": dict(further),
        }


def _recorded(store: Run, passage: Passage, layout: str) -> dict[str, ArraySpec]:
    """Returns the arrays that a layout takes.

    Raises:
        NotRecorded: one is missing, or heads of it are.
    """
    found = {site: store.layout.spec(key_of(site, passage.stack)) for site in LAYOUTS[layout]}
    missing = [site for site, spec in found.items() if spec is None]
    if missing:
        raise NotRecorded(
            f'`layout="{layout}"` needs {" ".join(missing)}, which this run does not hold',
            why=f"it holds {' '.join(str(spec.key) for spec in store.layout.arrays)}",
            hint=f'record with `capture="{" ".join(LAYOUTS[layout])}"`',
        )
    specs = {site: spec for site, spec in found.items() if spec is not None}
    for spec in specs.values():
        dims = store.about.dims_of(passage.stack).at(spec.layers)
        of_all = dims.n_kv_heads if "kv_head" in spec.site.axes else dims.n_heads
        if spec.heads and of_all is not None and len(spec.heads) < of_all:
            raise NotRecorded(
                f'`layout="{layout}"` needs all {of_all} heads of {spec.key}',
                why=f"this run holds heads {', '.join(map(str, spec.heads))}",
                hint="record without `heads`",
            )
    return specs


def _layers(specs: Mapping[str, ArraySpec], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the layers to write: those asked for, or all that every array has.

    Raises:
        SelectionError: an array has not all that were asked for, or there is none that all have.
    """
    for spec in specs.values():
        lacking = [layer for layer in wanted or () if layer not in spec.layers]
        if lacking:
            raise SelectionError(
                f"layer {', '.join(map(str, lacking))} requested",
                why=f"this run holds layers {', '.join(map(str, spec.layers))} of {spec.key}",
                hint="record with `layers` that name it",
            )
    if wanted is not None:
        return tuple(wanted)
    [first, *others] = specs.values()
    layers = tuple(layer for layer in first.layers if all(layer in spec.layers for spec in others))
    if not layers:
        raise NotRecorded("no layer is held of all sites", hint="record them together")
    return layers
