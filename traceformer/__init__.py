"""Record what happens inside transformers, keep it in one compact store, ask it questions.

`from traceformer import TraceStore` starts without torch; everything is loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceformer.analysis.beam import BeamState, beam_search_backward
    from traceformer.analysis.results import TraceResult
    from traceformer.analysis.sankey import BeamPath, SankeyData, SankeyLink, SankeyNode
    from traceformer.engine import InterpretabilityEngine
    from traceformer.errors import TraceformerError
    from traceformer.formats.trace_storage import TraceStorage
    from traceformer.sites import Selection
    from traceformer.store.reader import TraceStore
    from traceformer.tracer import ReverseAttentionTracer, load_trace, save_trace, trace_stored
    from traceformer.viewer.export import paths_html

__version__ = "0.1.0"

_HOMES = {
    "TraceStore": "traceformer.store.reader",
    "Selection": "traceformer.sites",
    "TraceformerError": "traceformer.errors",
    "InterpretabilityEngine": "traceformer.engine",
    "TraceStorage": "traceformer.formats.trace_storage",
    "ReverseAttentionTracer": "traceformer.tracer",
    "trace_stored": "traceformer.tracer",
    "save_trace": "traceformer.tracer",
    "load_trace": "traceformer.tracer",
    "paths_html": "traceformer.viewer.export",
    "TraceResult": "traceformer.analysis.results",
    "BeamPath": "traceformer.analysis.sankey",
    "SankeyData": "traceformer.analysis.sankey",
    "SankeyLink": "traceformer.analysis.sankey",
    "SankeyNode": "traceformer.analysis.sankey",
    "BeamState": "traceformer.analysis.beam",
    "beam_search_backward": "traceformer.analysis.beam",
}

__all__ = [
    "BeamPath",
    "BeamState",
    "InterpretabilityEngine",
    "ReverseAttentionTracer",
    "SankeyData",
    "SankeyLink",
    "SankeyNode",
    "Selection",
    "TraceResult",
    "TraceStorage",
    "TraceStore",
    "TraceformerError",
    "__version__",
    "beam_search_backward",
    "load_trace",
    "paths_html",
    "save_trace",
    "trace_stored",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'traceformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
