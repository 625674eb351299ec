"""Record what happens inside transformers, keep it in one compact store, ask it questions.

`from traceformer import TraceStore` starts without torch; everything is loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceformer.errors import TraceformerError
    from traceformer.sites import Selection
    from traceformer.store.reader import TraceStore

__version__ = "0.1.0"

_HOMES = {
    "TraceStore": "traceformer.store.reader",
    "Selection": "traceformer.sites",
    "TraceformerError": "traceformer.errors",
}

__all__ = ["Selection", "TraceStore", "TraceformerError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'traceformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
