"""Record what happens inside transformers, keep it in one compact store, ask it questions.

    import traceformer as tf

    model = tf.load_model("byte")
    run = tf.record(model, ["The Eiffel Tower is in Paris."])
    tf.heads(run).to_frame()

Verbs take a run, or a model with texts. Everything is loaded when it is first used: this import loads no torch.

Each folder says at its door what is in it. Beside them lie, for all of them:

arguments     what verbs are given, against their annotations: a wrong type is refused in words
errors        the tree of errors, each with why and what would do
heap          freed memory kept for the next layer, where the process is ours or asks for it
sites         all that can be recorded, in one table; which of it, with which layers and heads: `Selection`
presentation  what shows a noun, bound from above
progress      bars in terminal and notebook
shapes        the shapes in annotations: inert, unless tests have them checked
units         numbers of bytes and seconds as a person reads them
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from traceformer.presentation import bind

if TYPE_CHECKING:
    from traceformer import compat, figures
    from traceformer.analysis.attribution import Attribution
    from traceformer.analysis.circuits import Circuits
    from traceformer.analysis.comparison import Comparison
    from traceformer.analysis.directions import Direction
    from traceformer.analysis.dose import Dose
    from traceformer.analysis.edges import EdgeEffects
    from traceformer.analysis.effects import Effects
    from traceformer.analysis.head_curves import HeadCurves
    from traceformer.analysis.head_metrics import HeadMetrics
    from traceformer.analysis.lens import Lens
    from traceformer.analysis.paths.result import Paths
    from traceformer.analysis.probes import Probes
    from traceformer.analysis.roles import Roles
    from traceformer.analysis.translators import Translators
    from traceformer.capture.checkpoints import record_checkpoints
    from traceformer.capture.edits.session import edit
    from traceformer.capture.extract import record
    from traceformer.capture.generation.generate import generate
    from traceformer.capture.workers.engine import Ray
    from traceformer.errors import TraceformerError
    from traceformer.formats.registry import export, import_run
    from traceformer.formats.results.probes import open_probes
    from traceformer.formats.results.translators import open_lens
    from traceformer.models.load import load_model
    from traceformer.questions import edits
    from traceformer.questions.ablate import ablate
    from traceformer.questions.attribute import attribute
    from traceformer.questions.check import check
    from traceformer.questions.circuits import circuits
    from traceformer.questions.clusters import cluster
    from traceformer.questions.compare import compare
    from traceformer.questions.dose import dose
    from traceformer.questions.edges import edges
    from traceformer.questions.effects_folder import open_effects
    from traceformer.questions.fit_lens import fit_lens
    from traceformer.questions.heads import heads
    from traceformer.questions.lens import lens
    from traceformer.questions.patch import patch
    from traceformer.questions.paths import paths
    from traceformer.questions.probes import fit_probe
    from traceformer.questions.roles import roles
    from traceformer.questions.statistics import statistics
    from traceformer.questions.traits import fit_direction, project
    from traceformer.sites import Selection
    from traceformer.store.ending import finish
    from traceformer.store.folders import open_run
    from traceformer.store.run import Run, TraceStore
    from traceformer.store.syncing import sync
    from traceformer.store.training import TrainingRuns, open_checkpoints
    from traceformer.store.upgrading import upgrade
    from traceformer.viewer.export import export_html
    from traceformer.viewer.viewing import view

__version__ = "0.2.0"

__all__ = [
    "Attribution",
    "Circuits",
    "Comparison",
    "Direction",
    "Dose",
    "EdgeEffects",
    "Effects",
    "HeadCurves",
    "HeadMetrics",
    "Lens",
    "Paths",
    "Probes",
    "Ray",
    "Roles",
    "Run",
    "Selection",
    "TraceStore",
    "TraceformerError",
    "TrainingRuns",
    "Translators",
    "__version__",
    "ablate",
    "attribute",
    "check",
    "circuits",
    "cluster",
    "compare",
    "compat",
    "dose",
    "edges",
    "edit",
    "edits",
    "export",
    "export_html",
    "figures",
    "finish",
    "fit_direction",
    "fit_lens",
    "fit_probe",
    "generate",
    "heads",
    "import_run",
    "lens",
    "load_model",
    "open_checkpoints",
    "open_effects",
    "open_lens",
    "open_probes",
    "open_run",
    "patch",
    "paths",
    "project",
    "record",
    "record_checkpoints",
    "roles",
    "statistics",
    "sync",
    "upgrade",
    "view",
]

_HOMES = {
    "Attribution": "traceformer.analysis.attribution",
    "Circuits": "traceformer.analysis.circuits",
    "Comparison": "traceformer.analysis.comparison",
    "Direction": "traceformer.analysis.directions",
    "Dose": "traceformer.analysis.dose",
    "EdgeEffects": "traceformer.analysis.edges",
    "Effects": "traceformer.analysis.effects",
    "HeadCurves": "traceformer.analysis.head_curves",
    "HeadMetrics": "traceformer.analysis.head_metrics",
    "Lens": "traceformer.analysis.lens",
    "Paths": "traceformer.analysis.paths.result",
    "Probes": "traceformer.analysis.probes",
    "Ray": "traceformer.capture.workers.engine",
    "Roles": "traceformer.analysis.roles",
    "Run": "traceformer.store.run",
    "Selection": "traceformer.sites",
    "TraceStore": "traceformer.store.run",
    "TraceformerError": "traceformer.errors",
    "TrainingRuns": "traceformer.store.training",
    "Translators": "traceformer.analysis.translators",
    "ablate": "traceformer.questions.ablate",
    "attribute": "traceformer.questions.attribute",
    "check": "traceformer.questions.check",
    "circuits": "traceformer.questions.circuits",
    "cluster": "traceformer.questions.clusters",
    "compare": "traceformer.questions.compare",
    "dose": "traceformer.questions.dose",
    "edges": "traceformer.questions.edges",
    "edit": "traceformer.capture.edits.session",
    "export": "traceformer.formats.registry",
    "export_html": "traceformer.viewer.export",
    "finish": "traceformer.store.ending",
    "fit_direction": "traceformer.questions.traits",
    "fit_lens": "traceformer.questions.fit_lens",
    "fit_probe": "traceformer.questions.probes",
    "generate": "traceformer.capture.generation.generate",
    "heads": "traceformer.questions.heads",
    "import_run": "traceformer.formats.registry",
    "lens": "traceformer.questions.lens",
    "load_model": "traceformer.models.load",
    "open_checkpoints": "traceformer.store.training",
    "open_effects": "traceformer.questions.effects_folder",
    "open_lens": "traceformer.formats.results.translators",
    "open_probes": "traceformer.formats.results.probes",
    "open_run": "traceformer.store.folders",
    "patch": "traceformer.questions.patch",
    "paths": "traceformer.questions.paths",
    "project": "traceformer.questions.traits",
    "record": "traceformer.capture.extract",
    "record_checkpoints": "traceformer.capture.checkpoints",
    "roles": "traceformer.questions.roles",
    "statistics": "traceformer.questions.statistics",
    "sync": "traceformer.store.syncing",
    "upgrade": "traceformer.store.upgrading",
    "view": "traceformer.viewer.viewing",
}
_MODULES = {
    "compat": "traceformer.compat",
    "edits": "traceformer.questions.edits",
    "figures": "traceformer.figures",
}

bind("Run", "thumbnails", "traceformer.questions.thumbnails", "keep_thumbnails")
bind("Run", "transformer_lens", "traceformer.formats.transformer_lens.hooks", "cached")
bind("Attribution", "html", "traceformer.figures.logit_parts", "attribution_html")
bind("Circuits", "html", "traceformer.figures.circuit_maps", "circuits_html")
bind("Comparison", "html", "traceformer.figures.comparison_maps", "comparison_html")
bind("Direction", "file", "traceformer.formats.results.directions", "write_direction")
bind("Direction", "html", "traceformer.figures.trait_curves", "direction_html")
bind("Dose", "html", "traceformer.figures.dose_curves", "dose_html")
bind("EdgeEffects", "html", "traceformer.figures.edge_map", "edges_html")
bind("Effects", "html", "traceformer.figures.effect_maps", "effects_html")
bind("HeadClusters", "csv", "traceformer.formats.results.head_tables", "write_clusters")
bind("HeadClusters", "html", "traceformer.figures.cluster_charts", "clusters_html")
bind("HeadCurves", "html", "traceformer.figures.training_curves", "training_html")
bind("HeadMetrics", "csv", "traceformer.formats.results.head_tables", "write_heads")
bind("HeadMetrics", "html", "traceformer.figures.cards.head_table", "head_table")
bind("Lens", "html", "traceformer.figures.cards.lens_table", "lens_table")
bind("Paths", "browser", "traceformer.viewer.pages", "open_paths")
bind("Paths", "html", "traceformer.viewer.pages", "paths_frame")
bind("Paths", "page", "traceformer.viewer.pages", "paths_html")
bind("Probes", "file", "traceformer.formats.results.probes", "write_probes")
bind("Probes", "html", "traceformer.figures.probe_curves", "probes_html")
bind("Projections", "html", "traceformer.figures.cards.trait_card", "trait_card")
bind("Roles", "html", "traceformer.figures.role_page", "roles_html")
bind("Run", "browser", "traceformer.viewer.export", "show_run")
bind("Run", "html", "traceformer.figures.cards.run_card", "run_card")
bind("Run", "page", "traceformer.viewer.export", "run_html")
bind("Run", "widget", "traceformer.viewer.export", "run_widget")
bind("RunStatistics", "html", "traceformer.figures.cards.statistics_table", "statistics_table")
bind("TrainingData", "datasets", "traceformer.feeds.single_items", "single_items")
bind("TrainingData", "torch", "traceformer.feeds.torch_batches", "torch_batches")
bind("Translators", "file", "traceformer.formats.results.translators", "write_translators")
bind("Translators", "html", "traceformer.figures.lens_quality", "translators_html")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        from traceformer.arguments import checked

        found = getattr(import_module(_HOMES[name]), name)
        return found if isinstance(found, type) else checked(found)
    # The names of older systems, whose home is `compat`, are found here, too.
    compat = import_module("traceformer.compat")
    if not name.startswith("_") and name in compat.__all__:
        return getattr(compat, name)
    raise AttributeError(f"module 'traceformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
