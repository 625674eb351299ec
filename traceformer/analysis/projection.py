"""How far activations lie along directions, token by token, and how that develops along a text.

1. Directions are divided by their norms once, in float64.
2. Rows are widened to float32 in blocks that stay in the processor's cache, and each block is multiplied by all
   directions in one product: (a @ v) / |v|. Divided by |a| as well, that is the cosine.
3. `project_run` does so for one layer of all examples, on several threads, while the next rows are read.
4. `dynamics` puts a curve over tokens into a few numbers, as the Gemma capture's analysis defines them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from traceformer.errors import UsageError

__all__ = ["Dynamics", "Projections", "dynamics", "project", "unit"]

_CACHE_BYTES = 1 << 20  # of widened rows: half of a core's second cache
_SETTLED = 0.1
_PERSISTING = 0.5


@dataclass(frozen=True, slots=True)
class Projections:
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


def project(activations: Float[np.ndarray, "token d"], directions: Float[np.ndarray, "direction d"]) -> Projections:
    """Returns the projection of each row onto each direction, computed in float32.

    Raises:
        UsageError: a direction is zero, infinite or NaN.
    """
    return project_units(activations, unit(directions))


def project_units(activations: Float[np.ndarray, "token d"], units: Float32[np.ndarray, "direction d"]) -> Projections:
    n_tokens, width = activations.shape
    values = np.empty((n_tokens, len(units)), np.float32)
    norms = np.empty(n_tokens, np.float32)
    rows = max(1, _CACHE_BYTES // (4 * max(1, width)))
    for start in range(0, n_tokens, rows):
        here = slice(start, start + rows)
        block = activations[here].astype(np.float32)
        np.matmul(block, units.T, out=values[here])
        np.einsum("td,td->t", block, block, out=norms[here])
    return Projections(values, np.sqrt(norms, out=norms))


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
    by_layer: Mapping[int | None, Projections]

    @property
    def begins(self) -> int:
        """The first token of what dynamics are about: of the response, if there is one."""
        return self.n_prompt or 0

    def mean(self, direction: int) -> Float32[np.ndarray, "token"]:
        """Returns a direction's curve averaged over the layers, as the Gemma capture has it."""
        return np.stack([own.values[:, direction] for own in self.by_layer.values()]).mean(axis=0)

    def dynamics(self, layer: int | None, direction: int) -> Dynamics:
        return dynamics(self.by_layer[layer].values[self.begins :, direction])
