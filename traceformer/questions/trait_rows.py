"""The rows of a run that traits are made of: one per example to fit a direction on, and all tokens projected."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from traceformer.analysis.methods import Position
from traceformer.analysis.projection import ProjectedRows, project_units, unit
from traceformer.errors import NotRecorded, UsageError
from traceformer.progress import OnStep, quiet
from traceformer.shapes import Float, Float32
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run

__all__ = ["example_rows", "project_run"]


def project_run(
    run: Run,
    site: str | ArrayKey,
    layer: int | None,
    directions: Float[np.ndarray, "direction d"],
    *,
    progress: OnStep = quiet,
) -> ProjectedRows:
    """Returns the projections of one layer of all tokens of all examples, in the order of `run.token_examples`.

    Args:
        run: The run.
        site: A token array of it.
        layer: The model's number of the layer; None where the site has none.
        directions: As wide as the array's rows.
        progress: Told how many of how many tokens are done.

    Raises:
        UsageError: a direction is zero, infinite, NaN or of another width.
        NotRecorded, SelectionError: the run does not hold the site or the layer.
    """
    units = unit(directions)
    spec = run.spec(site)
    width = spec.width * max(1, len(spec.heads))
    if units.shape[1] != width:
        raise UsageError(f"directions of width {units.shape[1]}", why=f"{spec.key} is {width} wide")
    total = len(run.token_examples(spec.key.token_stack))
    values, norms = np.empty((total, len(units)), np.float32), np.empty(total, np.float32)
    done = 0
    for part in _in_order(run.pieces(spec.key, layer, dtype="stored"), lambda block: project_units(block, units)):
        here = slice(done, done + len(part.norms))
        values[here], norms[here] = part.values, part.norms
        done = here.stop
        progress(done, total)
    return ProjectedRows(values, norms)


def _in_order(
    blocks: Iterator[Float[np.ndarray, "token d"]], work: Callable[[Float[np.ndarray, "token d"]], ProjectedRows]
) -> Iterator[ProjectedRows]:
    from threadpoolctl import threadpool_limits

    threads = os.cpu_count() or 1
    ahead: deque[Future[ProjectedRows]] = deque()
    # Each thread multiplies for itself: those that the library would add to each of them only wait for one another.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, thread_name_prefix="project") as pool:
        for block in blocks:
            ahead.append(pool.submit(work, block))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def example_rows(run: Run, spec: ArraySpec, layer: int | None, position: Position) -> Float32[np.ndarray, "example d"]:
    """Returns one row for each example of a run.

    Args:
        run: The run.
        spec: A token array of it, without heads.
        layer: The model's number of the layer; None where the site has none.
        position: The mean over all tokens, the last token, or the mean over the response.

    Raises:
        NotRecorded: `response` of a run that is no generation.
        UsageError: an example has no tokens there.
    """
    prompts = run.tokens.get("n_prompt")
    if position == "response" and (prompts is None or prompts.isna().any() or spec.key.token_stack != "dec"):
        raise NotRecorded("this run holds no responses", hint='`position="mean"`, or a run that generate made')
    rows = np.empty((run.n, spec.width), np.float32)
    for row, (example_id, values) in enumerate(run.head(spec.key, layer)):
        first = 0 if prompts is None or position != "response" else int(prompts.iloc[row])
        chosen = values[-1:] if position == "last" else values[first:]
        if not len(chosen):
            raise UsageError(f"example {example_id} has no tokens", why=f'`position="{position}"`', hint="leave it out")
        chosen.mean(axis=0, dtype=np.float32, out=rows[row])
    return rows
