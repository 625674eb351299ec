"""`traceformer analyze`: statistics of attention, activations and logits."""

import json as json_text
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from traceformer.analysis.conventions import CONVENTIONS, ConventionName
from traceformer.cli.arguments import FILE_ON_DISK, count, find_example
from traceformer.cli.choices import EngineChoice
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.progress import steps_shown
from traceformer.texts.shown import printable

if TYPE_CHECKING:
    from traceformer.analysis.run_statistics import ExampleLogits, RunStatistics
    from traceformer.capture.workers.engine import Ray
    from traceformer.store.objects.path import AnyPath
    from traceformer.store.run import Run

__all__ = ["analyze"]

_TRACE = ".json"


def analyze(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    example: str | None = None,
    layer: Annotated[int | None, count("L", least=0)] = None,
    convention: ConventionName = "exact",
    top: Annotated[int, count("N")] = 5,
    png: Annotated[Path | None, FILE_ON_DISK] = None,
    parquet: Annotated[Path | None, FILE_ON_DISK] = None,
    json: bool = False,
    engine: EngineChoice = EngineChoice(),  # noqa: B008
) -> None:
    """Statistics of attention, activations and logits.

    Per layer and head: mean, max, entropy (nats) and sparsity of attention; per layer: mean, std, min, max and
    sparsity of each activation; of the logits: entropy, and the probability and rank of the token that came. With
    --example these stand at every position, beside what was most likely there.

    Example: `traceformer analyze latest --png entropy.png`

    Args:
        run: A folder, the name of a run in ./traces, `latest`, or a nanochat trace (.json). Of a folder of
            several runs (an experiment), one after the other.
        example: An example's id, or its row number; all examples by default.
        layer: Show the heads of this layer, one by one.
        convention: What entropy, sparsity and std mean: exact; nanochat, which counts masked cells, has 1e-8 in every
            logarithm, and divides by n - 1; thesis, as in `traceformer heads`, of attention only.
        top: How many of the most likely tokens to list.
        png: Save a picture of the entropy of every head, in the format that the ending names.
        parquet: Save a table with a row per head, per layer of an array and per position of the logits.
        json: Print a JSON object.
    """
    from traceformer.cli.statistics import as_text, positions_as_text
    from traceformer.questions.vocabulary import token_texts
    from traceformer.store.run import Run

    workers = engine.chosen()
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    with ExitStack() as stack:
        folders = _find(run, stack)
        only_one = {"--example": example, "--png": png, "--parquet": parquet}
        for option, value in only_one.items():
            if value is not None and len(folders) > 1:
                raise UsageError(f"{option}, and {run} holds {len(folders)} runs", hint=f"one, such as {folders[0]}")
        told: list[dict[str, Any]] = []
        following = ""
        for number, folder in enumerate(folders):
            store = Run(folder)
            found, positions = _analyze(store, example, layer, convention, top, parquet, workers)
            if png is not None:
                _save_entropy(found, png)
            name = run if run.endswith(_TRACE) else str(folder)
            following = _next(found, name, png)
            if json:
                shown = [{"tokens": _tokens(store, own), **own.to_json()} for own in positions]
                told.append({"run": name, **found.to_json(), "positions": shown})
                continue
            print(*([""] if number else []), _title(store, name, found), as_text(found, layer), sep="\n\n")
            for own in positions:
                print("", positions_as_text(own, _tokens(store, own), token_texts(store)), sep="\n")
        if json:
            print(json_text.dumps(told[0] if len(told) == 1 else {"runs": told}, indent=2))
            return
        made = " and ".join(str(path) for path in (png, parquet) if path is not None)
        print(f"{f'wrote {made}; ' if made else ''}next: traceformer {following}", file=sys.stderr)


def _tokens(store: "Run", of: "ExampleLogits") -> list[str]:
    from traceformer.questions.vocabulary import shown_tokens

    return [piece.text for piece in shown_tokens(store, of.example_id, of.key.stack)]


def _find(run: str, stack: ExitStack) -> "list[AnyPath]":
    """Returns the folders that are meant; a trace is imported into one that goes when the stack is left."""
    from traceformer.store.folders import find_runs

    if not run.endswith(_TRACE):
        return find_runs(run)
    from traceformer.formats.registry import import_run

    folder = Path(stack.enter_context(TemporaryDirectory()))
    import_run(run, "json", folder / Path(run).stem)
    return [folder / Path(run).stem]


def _analyze(
    store: "Run",
    example: str | None,
    layer: int | None,
    convention: ConventionName,
    top: int,
    parquet: Path | None,
    workers: "Ray | None",
) -> "tuple[RunStatistics, list[ExampleLogits]]":
    """Returns the statistics of a run, and of one example those of every position; saves the table if asked to."""
    from traceformer.questions.statistics import statistics

    if not store.ids:
        raise NotRecorded(f"{store.folder} holds no example yet")
    ids = None if example is None else (find_example(store, example),)
    if layer is not None and not any(layer in spec.layers for spec in store.layout.arrays):
        stored = sorted({number for spec in store.layout.arrays for number in spec.layers})
        raise SelectionError(f"--layer {layer}", why=f"this run holds layers {', '.join(map(str, stored))}")
    positions: list[ExampleLogits] = []
    with ExitStack() as stack:
        file = None
        if parquet is not None:
            from traceformer.formats.results.statistics_tables import StatisticsFile

            file = stack.enter_context(StatisticsFile(parquet, CONVENTIONS[convention]))

        def each(found: "ExampleLogits") -> None:
            if file is not None:
                file.add(found.rows())
            if ids is not None:
                positions.append(found)

        progress = stack.enter_context(steps_shown("analyzing"))
        found = statistics(
            store, examples=ids, convention=convention, top=top, each=each, engine=workers, progress=progress
        )
        if file is not None:
            file.add(found.rows())
    return found, positions


def _title(store: "Run", name: str, found: "RunStatistics") -> str:
    stack = store.layout.stacks[-1]
    tokens = sum(store.length(example_id, stack) for example_id in found.example_ids)
    what = (
        f"example {printable(found.example_ids[0])}"
        if len(found.example_ids) == 1
        else f"{len(found.example_ids)} examples"
    )
    unfinished = "" if store.finished else ", unfinished"
    return f"{name}{unfinished}: {what}, {tokens} {stack} tokens; {found.convention} convention, entropy in nats"


def _next(found: "RunStatistics", name: str, png: Path | None) -> str:
    """Returns the command that looks closer: at all heads, then at the one that is surest where to look."""
    import numpy as np

    if name.endswith(_TRACE) and png is not None:
        return f"import {name}"
    if found.attention and png is not None:
        entropy = found.attention[0].entropy
        layer, head = np.unravel_index(int(entropy.argmin()), entropy.shape)
        place = f"L{found.attention[0].layers[layer]}H{found.attention[0].heads[head]}"
        return f"inspect {name} --site {found.attention[0].key} --head {place}"
    if found.attention:
        return f"analyze {name} --png entropy.png"
    return f"analyze {name} --example 0" if found.logits else f"inspect {name}"


def _save_entropy(found: "RunStatistics", path: Path) -> None:
    from traceformer.figures.entropy_maps import entropy_figure
    from traceformer.figures.style import save

    if not found.attention:
        raise NotRecorded("this run holds no attention patterns", hint="--capture attn when it is made")
    save(entropy_figure(found), path)
