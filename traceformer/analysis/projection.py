"""How far activations lie along directions, token by token, and how that develops along a text.

1. Directions are divided by their norms once, in float64.
2. Rows are widened to float32 in blocks that stay in the processor's cache, and each block is multiplied by all
   directions in one product: (a @ v) / |v|. Divided by |a| as well, that is the cosine. The compiled core does all of
   it while a row is in registers.
3. `dynamics` puts a curve over tokens into a few numbers, as the Gemma capture's analysis defines them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.core import kernels
from traceformer.core.library import core
from traceformer.errors import UsageError
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Float32
from traceformer.sites import ArrayKey

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dynamics", "ProjectedRows", "Projections", "TextCurves", "dynamics", "project", "project_units", "unit"]

_CACHE_BYTES = 1 << 20  # of widened rows: half of a core's second cache
_SETTLED = 0.1
_PERSISTING = 0.5


@dataclass(frozen=True, slots=True)
class ProjectedRows:
    """Rows projected onto directions.

    Attributes:
        values: (a @ v) / |v|.
        norms: |a|; NaN where it was not recorded.
    """

    values: Float32[np.ndarray, "token direction"]
    norms: Float32[np.ndarray, "token"]

    @property
    def cosines(self) -> Float32[np.ndarray, "token direction"]:
        """Cosine of the angle between activation and direction; NaN for an activation of zeros, which has none."""
        with np.errstate(invalid="ignore"):
            return self.values / self.norms[:, None]


def unit(directions: Float[np.ndarray, "direction d"]) -> Float32[np.ndarray, "direction d"]:
    """Returns the directions divided by their norms.

    Raises:
        UsageError: one is zero, infinite or NaN.
    """
    wide = directions.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    for number, norm in enumerate(norms[:, 0]):
        if not np.isfinite(norm) or norm == 0:
            raise UsageError(
                f"direction {number} is no direction", why="it is all zeros" if norm == 0 else "it holds NaN or inf"
            )
    return (wide / norms).astype(np.float32)


def project(activations: Float[np.ndarray, "token d"], directions: Float[np.ndarray, "direction d"]) -> ProjectedRows:
    """Returns the projection of each row onto each direction, computed in float32.

    Raises:
        UsageError: a direction is zero, infinite or NaN.
    """
    return project_units(activations, unit(directions))


def project_units(
    activations: Float[np.ndarray, "token d"], units: Float32[np.ndarray, "direction d"]
) -> ProjectedRows:
    """Returns the projection of each row onto each direction, which `unit` made of norm 1."""
    there = core()
    is_read = activations.itemsize <= 4 and activations.strides[1] == activations.itemsize
    if there is not None and is_read:
        return ProjectedRows(*kernels.project(there, activations, units))
    n_tokens, width = activations.shape
    values = np.empty((n_tokens, len(units)), np.float32)
    norms = np.empty(n_tokens, np.float32)
    rows = max(1, _CACHE_BYTES // (4 * max(1, width)))
    for start in range(0, n_tokens, rows):
        here = slice(start, start + rows)
        block = activations[here].astype(np.float32)
        np.matmul(block, units.T, out=values[here])
        np.einsum("td,td->t", block, block, out=norms[here])
    return ProjectedRows(values, np.sqrt(norms, out=norms))


@dataclass(frozen=True, slots=True)
class Dynamics:
    """How a curve over tokens develops, by the definitions of the Gemma capture's analysis; s is its value at a token.

    Attributes:
        velocity: s[i+1] - s[i].
        acceleration: velocity[i+1] - velocity[i].
        commitment_point: The first i with |acceleration[i]| < 0.1; None if there is none.
        peak: The first token where |s| is largest; None without tokens.
        peak_velocity: The largest |velocity|, 0 without any.
        average_velocity: The mean |velocity|, 0 without any.
        persistence: How many tokens after the peak have |s| above half of the peak's.
    """

    velocity: Float[np.ndarray, "pair"]
    acceleration: Float[np.ndarray, "triple"]
    commitment_point: int | None
    peak: int | None
    peak_velocity: float
    average_velocity: float
    persistence: int


def dynamics(curve: Float[np.ndarray, "token"]) -> Dynamics:
    """Returns the dynamics of a curve, computed in float64."""
    scores = curve.astype(np.float64)
    velocity = np.diff(scores)
    acceleration = np.diff(velocity)
    settled = np.flatnonzero(np.abs(acceleration) < _SETTLED)
    size, speed = np.abs(scores), np.abs(velocity)
    peak = int(size.argmax()) if len(size) else None
    return Dynamics(
        velocity,
        acceleration,
        int(settled[0]) if len(settled) else None,
        peak,
        float(speed.max(initial=0.0)),
        float(speed.mean()) if len(speed) else 0.0,
        0 if peak is None else int((size[peak + 1 :] > _PERSISTING * size[peak]).sum()),
    )


@dataclass(frozen=True, slots=True)
class TextCurves:
    """One example's projections: a curve per layer and direction.

    Attributes:
        example_id: Its id.
        tokens: Its tokens.
        n_prompt: Where its response begins; None if it is not a generation.
        names: The directions'.
        by_layer: A row per token, a column per direction; the only key is None for a site without layers.
    """

    example_id: str
    tokens: Sequence[str]
    n_prompt: int | None
    names: Sequence[str]
    by_layer: Mapping[int | None, ProjectedRows]

    @property
    def begins(self) -> int:
        """The first token of what dynamics are about: of the response, if there is one."""
        return self.n_prompt or 0

    @property
    def parts(self) -> list[str | None]:
        """For each token whether it is of the prompt or the response; None where there is no response."""
        if self.n_prompt is None:
            return [None] * len(self.tokens)
        return ["prompt" if position < self.n_prompt else "response" for position in range(len(self.tokens))]

    def mean(self, direction: int) -> Float32[np.ndarray, "token"]:
        """Returns a direction's curve averaged over the layers, as the Gemma capture has it."""
        return np.stack([own.values[:, direction] for own in self.by_layer.values()]).mean(axis=0)

    def dynamics(self, layer: int | None, direction: int) -> Dynamics:
        return dynamics(self.by_layer[layer].values[self.begins :, direction])

    def to_json(self) -> dict[str, Any]:
        """Returns all curves of the example, with their dynamics; lists run over its tokens."""
        return {
            "example_id": self.example_id,
            "tokens": list(self.tokens),
            "n_prompt": self.n_prompt,
            "curves": [
                {
                    "vector": name,
                    "layer": layer,
                    "projection": plain(rows.values[:, i]),
                    "cosine": plain(rows.cosines[:, i]),
                    "dynamics": plain(asdict(dynamics(rows.values[:, i]))),
                    **({} if self.n_prompt is None else {"response_dynamics": plain(asdict(self.dynamics(layer, i)))}),
                }
                for i, name in enumerate(self.names)
                for layer, rows in self.by_layer.items()
            ],
        }


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """The tokens of some examples of a run, projected onto directions.

    Attributes:
        run: Where the run lies; None in memory.
        key: The array that was read: what was projected, or the projections that were recorded.
        array: What was projected: `dec.resid_post`.
        names: The directions'.
        layers: The layers that were projected; one None for a site without layers.
        examples: A curve per layer and direction, for each of the examples.
        vectors: What is known of each direction, with its name, its layers, and if that is known by layer the
            `thresholds` that its two kinds were told apart by.
    """

    run: str | None
    key: ArrayKey
    array: str
    names: tuple[str, ...]
    layers: tuple[int | None, ...]
    examples: tuple[TextCurves, ...]
    vectors: tuple[Mapping[str, Any], ...]

    def __repr__(self) -> str:
        several = f"{len(self.examples)} examples" if len(self.examples) != 1 else f"{self.examples[0].example_id!r}"
        numbers = ", ".join(str(layer) for layer in self.layers if layer is not None)
        layers = f" layer{'s' * (len(self.layers) > 1)} {numbers}" if numbers else ""
        return f"Projections({several} of {self.run_name}, {self.array}{layers}: {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        return in_notebook(self)

    @property
    def run_name(self) -> str:
        """What the run is called."""
        return "a run in memory" if self.run is None else PurePath(self.run).name

    def threshold(self, direction: int, layer: int | None) -> float | None:
        """Returns what a direction was found to tell its two kinds apart by in a layer, if that is known."""
        thresholds = self.vectors[direction].get("thresholds") or {}
        return thresholds.get(layer)

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per example, position, direction and layer; `part` says prompt or response of a generation."""
        import pandas as pd

        frames = [
            pd.DataFrame(
                {
                    "example_id": own.example_id,
                    "position": range(len(own.tokens)),
                    "token": list(own.tokens),
                    "part": own.parts,
                    "direction": name,
                    "layer": pd.Series([layer] * len(own.tokens), dtype="Int64"),
                    "projection": rows.values[:, i],
                    "cosine": rows.cosines[:, i],
                }
            )
            for own in self.examples
            for i, name in enumerate(self.names)
            for layer, rows in own.by_layer.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def to_json(self) -> dict[str, Any]:
        """Returns everything: what was projected onto what, and all curves of every example."""
        return {
            "run": self.run,
            "array": self.array,
            "vectors": [dict(vector) for vector in self.vectors],
            "examples": [own.to_json() for own in self.examples],
        }
