"""How far activations lie along directions, token by token, and how that develops along a text.

1. Directions are divided by their norms once, in float64.
2. Rows are widened to float32 in blocks that stay in the processor's cache, and each block is multiplied by all
   directions in one product: (a @ v) / |v|. Divided by |a| as well, that is the cosine.
3. `project_run` does so for one layer of all examples, on several threads, while the next rows are read.
4. `dynamics` puts a curve over tokens into a few numbers, as the Gemma capture's analysis defines them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from threadpoolctl import threadpool_limits

from traceformer.errors import UsageError
from traceformer.sites import ArrayKey
from traceformer.store.reader import TraceStore

__all__ = ["Dynamics", "Projections", "dynamics", "project", "project_run", "unit"]

_CACHE_BYTES = 1 << 20  # of widened rows: half of a core's second cache
_TASK_TOKENS = 8192
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
    return _project(activations, unit(directions))


def _project(activations: Float[np.ndarray, "token d"], units: Float32[np.ndarray, "direction d"]) -> Projections:
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


def project_run(
    store: TraceStore,
    site: str | ArrayKey,
    layer: int | None,
    directions: Float[np.ndarray, "direction d"],
    *,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Projections:
    """Returns the projections of one layer of all tokens of all examples, in the order of `store.token_examples`.

    Args:
        store: The run.
        site: A token array of it.
        layer: The model's number of the layer; None where the site has none.
        directions: As wide as the array's rows.
        progress: Told how many of how many tokens are done.

    Raises:
        UsageError: a direction is zero, infinite, NaN or of another width.
        NotRecorded, SelectionError: the run does not hold the site or the layer.
    """
    units = unit(directions)
    spec = store.spec(site)
    width = spec.width * max(1, len(spec.heads))
    if units.shape[1] != width:
        raise UsageError(f"directions of width {units.shape[1]}", why=f"{spec.key} is {width} wide")
    total = len(store.token_examples(spec.key.token_stack))
    values, norms = np.empty((total, len(units)), np.float32), np.empty(total, np.float32)
    done = 0
    for part in _in_order(store.stream(spec.key, layer, _TASK_TOKENS), lambda block: _project(block, units)):
        here = slice(done, done + len(part.norms))
        values[here], norms[here] = part.values, part.norms
        done = here.stop
        progress(done, total)
    return Projections(values, norms)


def _in_order(
    blocks: Iterator[Float[np.ndarray, "token d"]], work: Callable[[Float[np.ndarray, "token d"]], Projections]
) -> Iterator[Projections]:
    threads = os.cpu_count() or 1
    ahead: deque[Future[Projections]] = deque()
    # Each thread multiplies for itself: those that the library would add to each of them only wait for one another.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, thread_name_prefix="project") as pool:
        for block in blocks:
            ahead.append(pool.submit(work, block))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


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
