"""Figures: one value in, one matplotlib `Figure` out. No text of a terminal, and nothing that asks a model or a run.

style         what all pictures share, and how one becomes a file or a part of a notebook
lens_map      `lens`: the likeliest next token at every layer and position
trait_curves  `traits`: projections along a text; `direction`: how well a direction does, layer by layer
path_ribbons  `paths`: the paths to a token, as ribbons

A function is loaded when it is used: `from traceformer import figures; figures.lens(value)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceformer.figures.lens_map import lens
    from traceformer.figures.path_ribbons import paths
    from traceformer.figures.trait_curves import direction, traits

_HOMES = {
    "direction": "traceformer.figures.trait_curves",
    "lens": "traceformer.figures.lens_map",
    "paths": "traceformer.figures.path_ribbons",
    "traits": "traceformer.figures.trait_curves",
}
# No module is called like a function: once imported it would stand in the function's place.

__all__ = ["direction", "lens", "paths", "traits"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'traceformer.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
