"""What a run lacks, in words that a page says before it draws anything."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from traceformer.sites import ArraySpec
from traceformer.store.meta import Dims
from traceformer.store.names import public_name
from traceformer.store.run import Run

__all__ = ["notices_of"]

_ATTENTIONS = {
    "enc.self": "encoder attention",
    "dec.self": "decoder attention",
    "dec.cross": "cross-attention",
}

_AXES = {
    "layer": ("layer", "layers"),
    "hidden_layer": ("entry", "entries"),
    "head": ("head", "heads"),
    "kv_head": ("key-value head", "key-value heads"),
}


def notices_of(run: Run) -> list[str]:
    """Returns sentences without an end: what is still missing, which layers and heads are, what is not exact."""
    return [*_unfinished(run), *_attention(run), *_rounded(run), *_parts(run), *_edits(run)]


def _unfinished(run: Run) -> Iterator[str]:
    if not run.finished:
        count = f"{run.n}" if run.layout.is_open else f"{run.n} of {run.layout.n_examples}"
        yield f"being written: {count} examples so far"


def _attention(run: Run) -> Iterator[str]:
    if not any(spec.key.site == "attn_pattern" for spec in run.layout.arrays):
        yield "no attention was recorded, which capture=attn does"


def _rounded(run: Run) -> Iterator[str]:
    if run.layout.attn_codec == "sqrt8":
        yield "attention weights are stored in a byte each, off by up to 0.004"
    if run.layout.rows_codec == "q8":
        yield "activations are stored in a byte each, off by up to 0.4 % of the largest of 32 neighbours"


def _parts(run: Run) -> Iterator[str]:
    """Yields a sentence for each choice of layers or heads that leaves some of the model's out, attention first."""
    named: dict[_Part, list[str]] = {}
    with_axis: Counter[str] = Counter()
    for spec in sorted(run.layout.arrays, key=lambda spec: spec.key.site != "attn_pattern"):
        if spec.site.of_experts:  # which other layers do not have
            continue
        with_axis.update(spec.site.axes)
        for part in _left_out(spec, run.about.dims_of(spec.key.token_stack)):
            named.setdefault(part, []).append(_called(spec, run))
    for (axis, part), names in named.items():
        yield f"{part} only" if len(names) == with_axis[axis] else f"{', '.join(names)} of {part} only"


def _called(spec: ArraySpec, run: Run) -> str:
    if spec.key.site == "attn_pattern":
        return _ATTENTIONS[f"{spec.key.stack}.{spec.key.attention}"] if run.arch == "encdec" else "attention"
    name = public_name(spec.key)
    return name if run.arch == "encdec" else name.removeprefix(f"{spec.key.stack}_")


class _Part(NamedTuple):
    axis: str
    numbers: str


def _left_out(spec: ArraySpec, dims: Dims) -> Iterator[_Part]:
    own = dims.at(spec.layers)
    totals = {"layer": dims.n_layers, "head": own.n_heads, "kv_head": own.n_kv_heads}
    totals["hidden_layer"] = None if dims.n_layers is None else dims.n_layers + 1
    if spec.site.of_attention and dims.attending is not None:
        totals["layer"] = len(dims.attending)
    for axis, numbers in zip((a for a in spec.site.axes if a in totals), (spec.layers, spec.heads), strict=False):
        if len(numbers) < (totals[axis] or 0):
            what = _AXES[axis][len(numbers) != 1]
            yield _Part(axis, f"{what} {', '.join(map(str, numbers))} of {totals[axis]}")


def _edits(run: Run) -> Iterator[str]:
    for edit in run.about.edits or ():
        settings = " ".join(f"{name}={value}" for name, value in edit.items() if name not in ("kind", "site"))
        yield f"recorded while the model was edited: {edit.get('kind')} {edit.get('site')} {settings}".rstrip()
