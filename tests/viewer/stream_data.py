"""A run of the built-in model with a direction and effects beside it, whose names are markup."""

from pathlib import Path

import numpy as np

import traceformer as tf
from traceformer.analysis.directions import Direction
from traceformer.analysis.effects import Axis, Swept
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.store.run import Run
from traceformer.viewer.kept import Pending
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query
from traceformer.viewer.resources import RESOURCES

MARKUP = "<img src=x onerror=document.title='hit'>"
TEXTS = (f"raises ValueError if {MARKUP} is missing, else returns its name", "return the name of the file")
CAPTURE = "attn_pattern v z embed resid_pre resid_mid resid_post attn_out mlp_mid mlp_out"
LAYERS, PAIRS = 4, 3


def write_folder(folder: Path) -> None:
    """Writes the run `byte`, the directions `traits/errors` and `narrow`, and the effects `patched` and `estimated`."""
    run = tf.record("byte", list(TEXTS), capture=CAPTURE, out=folder / "byte")
    write_direction(folder, run)
    random = np.random.default_rng(0)
    measured = {"effect": random.normal(size=(PAIRS, LAYERS, 5)), "metric": np.zeros((PAIRS, LAYERS, 5))}
    write_effects(folder / "patched", measured)
    estimate = random.normal(size=(PAIRS, LAYERS, 5))
    exact = np.where(np.abs(estimate) > 0.7, estimate + 0.1 * random.normal(size=estimate.shape), np.nan)
    write_effects(folder / "estimated", {"estimate": estimate, "exact": exact})


def write_direction(folder: Path, run: Run) -> None:
    random = np.random.default_rng(1)
    vectors = {layer: random.normal(size=256).astype(np.float32) for layer in (1, 2)}
    about = {"site": "resid_mid", "position": "mean", "method": "mean_diff", "model_weights": run.about.model_weights}
    quality = {1: {"threshold": 0.5, "held_out_accuracy": 0.75}, 2: {"threshold": -1.5, "held_out_accuracy": 1.0}}
    Direction(MARKUP, vectors, about, quality).save(folder / "traits" / "errors.safetensors")
    Direction("narrow", {2: np.ones(3, np.float32)}).save(folder / "traits" / "narrow.safetensors")


def write_effects(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes effects of layers and five positions in three pairs."""
    axes = (
        Axis("layer", tuple(range(LAYERS)), tuple(f"L{layer}" for layer in range(LAYERS))),
        Axis("position", tuple(range(5)), (MARKUP, "b", "", "d", "\n")),
    )
    about = Swept(
        verb="patch", model="byte", digest="0", sites=("dec.resid_pre",), metric="logit_difference", how="denoise"
    )
    names = (MARKUP, "second", "third")
    with EffectsFolder.create(folder, about, axes, names, {}, resume=False, arrays=tuple(arrays)) as made:
        for number in range(PAIRS):
            own = {name: values[number] for name, values in arrays.items()}
            made.write(number, {**own, "clean": np.float64(2.5 + number), "corrupt": np.float64(-number)})
        made.finish(about)


def asked(library: Library, resource: str, **values: object) -> Packet:
    """Returns a packet once it is done."""
    from importlib import import_module

    function = getattr(import_module(f"traceformer.viewer.resources.{RESOURCES[resource]}"), resource)
    query = Query({name.rstrip("_"): str(value) for name, value in values.items()})
    for _ in range(100):
        found = function(library, query)
        if not isinstance(found, Packet) or "pending" not in found.about:
            return found
    raise AssertionError(f"{resource} does not come to an end")
