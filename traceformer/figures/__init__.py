"""Figures: what verbs return, as matplotlib figures, one value in and one figure out.

    traceformer.figures.lens(lens(run, 0)).savefig("lens.png")

No numbers are made here. Functions are loaded when they are used, and matplotlib with them; no file here is called as
one of them is.

lens_map        the likeliest next token at every layer and position
trait_curves    projections along a text, and how well a direction does layer by layer
path_ribbons    the paths to a token
style           colours, tokens, how a figure is saved
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceformer.figures.lens_map import lens_figure as lens
    from traceformer.figures.path_ribbons import paths_figure as paths
    from traceformer.figures.trait_curves import direction_figure as direction
    from traceformer.figures.trait_curves import traits_figure as traits

__all__ = ["direction", "lens", "paths", "traits"]

_HOMES = {
    "lens": ("traceformer.figures.lens_map", "lens_figure"),
    "traits": ("traceformer.figures.trait_curves", "traits_figure"),
    "direction": ("traceformer.figures.trait_curves", "direction_figure"),
    "paths": ("traceformer.figures.path_ribbons", "paths_figure"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, function = _HOMES[name]
        return getattr(import_module(module), function)
    raise AttributeError(f"module 'traceformer.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
