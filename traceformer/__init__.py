"""Record what happens inside transformers, keep it in one compact store, ask it questions.

`from traceformer import TraceStore` starts without torch; everything is loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from traceformer.presentation import bind

if TYPE_CHECKING:
    from traceformer.analysis.paths.beam import BeamState, beam_search_backward
    from traceformer.analysis.paths.result import TraceResult
    from traceformer.analysis.paths.sankey import BeamPath, SankeyData, SankeyLink, SankeyNode
    from traceformer.compat.nanochat_engine import InterpretabilityEngine
    from traceformer.compat.reverse_attention import ReverseAttentionTracer
    from traceformer.compat.trace_storage import TraceStorage
    from traceformer.errors import TraceformerError
    from traceformer.formats.path_files import load_trace, save_trace
    from traceformer.questions.paths import trace_stored
    from traceformer.sites import Selection
    from traceformer.store.folders import open_run
    from traceformer.store.run import Run, TraceStore
    from traceformer.viewer.export import paths_html

__version__ = "0.1.0"

_HOMES = {
    "Run": "traceformer.store.run",
    "TraceStore": "traceformer.store.run",
    "open_run": "traceformer.store.folders",
    "Selection": "traceformer.sites",
    "TraceformerError": "traceformer.errors",
    "InterpretabilityEngine": "traceformer.compat.nanochat_engine",
    "TraceStorage": "traceformer.compat.trace_storage",
    "ReverseAttentionTracer": "traceformer.compat.reverse_attention",
    "trace_stored": "traceformer.questions.paths",
    "save_trace": "traceformer.formats.path_files",
    "load_trace": "traceformer.formats.path_files",
    "paths_html": "traceformer.viewer.export",
    "TraceResult": "traceformer.analysis.paths.result",
    "BeamPath": "traceformer.analysis.paths.sankey",
    "SankeyData": "traceformer.analysis.paths.sankey",
    "SankeyLink": "traceformer.analysis.paths.sankey",
    "SankeyNode": "traceformer.analysis.paths.sankey",
    "BeamState": "traceformer.analysis.paths.beam",
    "beam_search_backward": "traceformer.analysis.paths.beam",
}

__all__ = [
    "BeamPath",
    "BeamState",
    "InterpretabilityEngine",
    "ReverseAttentionTracer",
    "Run",
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
    "open_run",
    "paths_html",
    "save_trace",
    "trace_stored",
]

bind("Run", "transformer_lens", "traceformer.formats.hook_names", "cached")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'traceformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
