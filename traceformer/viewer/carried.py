"""What each screen asks for, for a file that carries the answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from traceformer.analysis.head_tally import attention_name
from traceformer.questions.thumbnails import pattern_arrays, thumbnail_groups
from traceformer.store.run import Run

__all__ = ["SCREENS", "asked_by", "asked_of_run"]

Asked = tuple[str, dict[str, Any]]
"""A resource, and what it is asked."""

_LENS_WINDOW = 32  # positions, as in web/src/screens/stream/lens.tsx
_NORMS = ("resid_pre", "resid_mid", "resid_post", "hidden", "attn_out", "mlp_out")


def asked_of_run(run: Run, screens: Sequence[str]) -> Iterator[Asked]:
    """Yields what screens ask for whatever example they show."""
    yield "run", {"run": run.name}
    if "lab" in screens:
        yield "heads", {"run": run.name}
        for spec in pattern_arrays(run):
            asked = {"attn": attention_name(spec.key), "method": "ward", "features": "entropy,sparsity,distance"}
            yield "clusters", {"run": run.name, **asked}
    if "stream" in screens:
        yield "directions", {"run": run.name}


def asked_by(run: Run, row: int, screens: Sequence[str]) -> Iterator[Asked]:
    """Yields what screens ask for of one example."""
    yield "example", {"run": run.name, "ex": row}
    for screen in screens:
        for resource, asked in SCREENS[screen](run, row):
            yield resource, {"run": run.name, "ex": row, **asked}


def _overview(run: Run, row: int) -> Iterator[Asked]:
    yield "overview", {}
    yield "predictions", {}
    yield "heads", {}
    for spec in pattern_arrays(run):
        for heads in thumbnail_groups(run, row, spec):
            yield "thumbnails", {"attn": attention_name(spec.key), "from": heads.start, "to": heads.stop}


def _head(run: Run, row: int) -> Iterator[Asked]:
    yield "heads", {}
    for spec in pattern_arrays(run):
        for layer in spec.layers:
            for head in spec.heads:
                yield (
                    "matrix",
                    {"attn": attention_name(spec.key), "layer": layer, "head": head, "form": "pixels"},
                )


def _paths(run: Run, row: int) -> Iterator[Asked]:
    """The paths to the last token, as the page searches them at first."""
    arrays = [spec for spec in run.layout.arrays if spec.key.site == "attn_pattern"]
    arrays = [spec for spec in arrays if spec.key.stack == "dec"] or arrays
    if not arrays:
        return
    spec = next((spec for spec in arrays if spec.key.attention == "self"), arrays[0])
    has_source = any(other.key.attention == "cross" for other in arrays)
    dims = run.about.dims_of(spec.key.stack)
    across = not has_source and len(spec.layers) + len(dims.without_attention) == dims.n_layers
    layer = "all" if across else spec.layers[-1]
    last = run.length(row, spec.key.stack) - 1
    yield "paths", {"attn": attention_name(spec.key), "q": last, "layer": layer, "certify": 1}


def _lab(run: Run, row: int) -> Iterator[Asked]:
    yield "heads", {}


def _stream(run: Run, row: int) -> Iterator[Asked]:
    for spec in run.layout.arrays:
        if spec.key.site in _NORMS:
            yield "norms", {"array": str(spec.key)}
    for first in range(0, run.length(row, "dec") if "dec" in run.layout.stacks else 0, _LENS_WINDOW):
        yield "lens", {"from": first}


SCREENS: Mapping[str, Callable[[Run, int], Iterator[Asked]]] = {
    "overview": _overview,
    "head": _head,
    "paths": _paths,
    "lab": _lab,
    "stream": _stream,
}
"""The screens that a file can carry."""
