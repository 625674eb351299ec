"""Figures: what verbs return, as matplotlib figures, one value in and one figure out.

    traceformer.figures.lens(lens(run, 0)).savefig("lens.png")

Those that draw one chart draw it in `ax`, if that is given; those that draw several, in `figure`, which may be a
subfigure. No numbers are made here, and no pages for the browser, which are in `viewer`. Functions are loaded when they
are used, and matplotlib with them; no file here is called as one of them is.

style           one look for all of them, where they are drawn, and how a figure is saved
shown           figures in a notebook
cards           what a notebook shows of other nouns, without matplotlib
metric_scales   how metrics of heads are written, and how far colours and bars reach
head_maps       a map of layers and heads for every metric
cluster_charts  heads in clusters
entropy_maps    the entropy of every head of a run
role_card       a line per head: behaviour, weights and ablation
role_page       the same as a page that stands by itself
circuit_maps    what heads copy, and which feed which, from weights
comparison_maps  two runs: layers, heads, and what they predict
attention       one pattern with its tokens, or all patterns side by side
lens_map        the logit lens
lens_quality    how near translators come to what is said in the end, layer by layer
logit_parts     what each part of a model adds to a logit
path_ribbons    paths for papers: one ribbon lane per path
effect_maps     effects of patching and ablating, with tokens on the axes
trait_curves    curves of a trait over tokens, and the quality of vectors by layer
probe_curves    what probes reach at each layer, beside their controls
trait_text      a trait on the text itself
dose_curves     a trait and fluency against the scale of steering
edge_map        effects of edges: senders, receivers, and what was measured
training_curves  metrics of heads along a training
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceformer.figures.circuit_maps import circuits_figure as circuits
    from traceformer.figures.cluster_charts import clusters_figure as clusters
    from traceformer.figures.comparison_maps import comparison_figure as comparison
    from traceformer.figures.dose_curves import dose_figure as dose
    from traceformer.figures.edge_map import edges_figure as edges
    from traceformer.figures.effect_maps import effects_figure as effects
    from traceformer.figures.entropy_maps import entropy_figure as entropy
    from traceformer.figures.head_maps import heads_figure as heads
    from traceformer.figures.lens_map import lens_figure as lens
    from traceformer.figures.lens_quality import translators_figure as translators
    from traceformer.figures.logit_parts import attribution_figure as attribution
    from traceformer.figures.path_ribbons import paths_figure as paths
    from traceformer.figures.probe_curves import probes_figure as probes
    from traceformer.figures.role_card import roles_figure as roles
    from traceformer.figures.style import theme
    from traceformer.figures.training_curves import training_figure as training
    from traceformer.figures.trait_curves import direction_figure as direction
    from traceformer.figures.trait_curves import traits_figure as traits

__all__ = [
    "attribution",
    "circuits",
    "clusters",
    "comparison",
    "direction",
    "dose",
    "edges",
    "effects",
    "entropy",
    "heads",
    "lens",
    "paths",
    "probes",
    "roles",
    "theme",
    "training",
    "traits",
    "translators",
]

_HOMES = {
    "heads": ("traceformer.figures.head_maps", "heads_figure"),
    "circuits": ("traceformer.figures.circuit_maps", "circuits_figure"),
    "clusters": ("traceformer.figures.cluster_charts", "clusters_figure"),
    "comparison": ("traceformer.figures.comparison_maps", "comparison_figure"),
    "entropy": ("traceformer.figures.entropy_maps", "entropy_figure"),
    "effects": ("traceformer.figures.effect_maps", "effects_figure"),
    "lens": ("traceformer.figures.lens_map", "lens_figure"),
    "traits": ("traceformer.figures.trait_curves", "traits_figure"),
    "translators": ("traceformer.figures.lens_quality", "translators_figure"),
    "dose": ("traceformer.figures.dose_curves", "dose_figure"),
    "edges": ("traceformer.figures.edge_map", "edges_figure"),
    "direction": ("traceformer.figures.trait_curves", "direction_figure"),
    "attribution": ("traceformer.figures.logit_parts", "attribution_figure"),
    "roles": ("traceformer.figures.role_card", "roles_figure"),
    "paths": ("traceformer.figures.path_ribbons", "paths_figure"),
    "probes": ("traceformer.figures.probe_curves", "probes_figure"),
    "theme": ("traceformer.figures.style", "theme"),
    "training": ("traceformer.figures.training_curves", "training_figure"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from traceformer.figures.shown import shown_in_notebooks

        shown_in_notebooks()
        module, function = _HOMES[name]
        return getattr(import_module(module), function)
    raise AttributeError(f"module 'traceformer.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
