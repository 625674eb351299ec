"""The interfaces of the systems that this one replaces, on top of what does their work here; loaded when used.

    from traceformer.compat import InterpretabilityEngine, load_model

    model, tokenizer, meta = load_model("sft", "cpu")  # a nanochat checkpoint
    engine = InterpretabilityEngine(model, tokenizer, "traces")

Nothing in it computes what a question, a recording or a format does not.

nanochat_engine    a prompt answered and recorded as nanochat's engine does it, by its conventions
trace_storage      a folder of its traces, listed without reading their numbers
reverse_attention  the tracer of the package reverse-attention, on a live model

From elsewhere come nanochat's `load_model`; `trace_stored`, `save_trace`, `load_trace` and `TraceResult`; `BeamState`
and `beam_search_backward`; the diagram's `BeamPath`, `SankeyData`, `SankeyLink` and `SankeyNode`; and `paths_html`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceformer.analysis.paths.beam import BeamState, beam_search_backward
    from traceformer.analysis.paths.result import TraceResult
    from traceformer.analysis.paths.sankey import BeamPath, SankeyData, SankeyLink, SankeyNode
    from traceformer.compat.nanochat_engine import InterpretabilityEngine
    from traceformer.compat.reverse_attention import ReverseAttentionTracer
    from traceformer.compat.trace_storage import TraceStorage
    from traceformer.formats.results.path_traces import load_trace, save_trace
    from traceformer.models.nanochat import load_model
    from traceformer.questions.paths import trace_stored

    paths_html: Any  # lies above, in the viewer; it is handed through, as the package's own face does

__all__ = [
    "BeamPath",
    "BeamState",
    "InterpretabilityEngine",
    "ReverseAttentionTracer",
    "SankeyData",
    "SankeyLink",
    "SankeyNode",
    "TraceResult",
    "TraceStorage",
    "beam_search_backward",
    "load_model",
    "load_trace",
    "paths_html",
    "save_trace",
    "trace_stored",
]

_HOMES = {
    "analysis.paths.beam": ("BeamState", "beam_search_backward"),
    "analysis.paths.result": ("TraceResult",),
    "analysis.paths.sankey": ("BeamPath", "SankeyData", "SankeyLink", "SankeyNode"),
    "compat.nanochat_engine": ("InterpretabilityEngine",),
    "compat.reverse_attention": ("ReverseAttentionTracer",),
    "compat.trace_storage": ("TraceStorage",),
    "formats.results.path_traces": ("load_trace", "save_trace"),
    "models.nanochat": ("load_model",),
    "questions.paths": ("trace_stored",),
    "viewer.pages": ("paths_html",),
}
_HOME_OF = {name: f"traceformer.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'traceformer.compat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
