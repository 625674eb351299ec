"""`traceformer heads`: the metrics of every attention head, of a run or of a model while it runs."""

import json as json_text
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from traceformer.analysis.choices import HeadConvention
from traceformer.cli.arguments import count, find_run
from traceformer.cli.progress import steps_shown
from traceformer.cli.terminal import table
from traceformer.cli.units import duration
from traceformer.errors import UsageError
from traceformer.sites import ArrayKey

if TYPE_CHECKING:
    from traceformer.analysis.head_tally import HeadMetrics

__all__ = ["heads"]

_WHAT = Group.create_ordered("What to measure")
_LIVE = Group.create_ordered("Of a model, without a run")
_WHERE = Group.create_ordered("Where it goes")

_NUM_SEQS = 10
_SCORES = ("previous_token", "first_token", "self", "duplicate_token", "induction")
_STRONGEST = 4


def heads(
    run: Annotated[str | None, Parameter(name="RUN", group=_WHAT)] = None,
    /,
    *,
    convention: Annotated[HeadConvention, Parameter(group=_WHAT)] = "valid",
    window: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 8,
    num_seqs: Annotated[int | None, Parameter(group=_WHAT), count("N")] = None,
    model: Annotated[str | None, Parameter(group=_LIVE)] = None,
    model_path: Annotated[Path | None, Parameter(group=_LIVE)] = None,
    revision: Annotated[str | None, Parameter(group=_LIVE)] = None,
    dataset: Annotated[str | None, Parameter(group=_LIVE)] = None,
    data_path: Annotated[Path | None, Parameter(group=_LIVE)] = None,
    split: Annotated[str | None, Parameter(group=_LIVE)] = None,
    text_column: Annotated[str | None, Parameter(group=_LIVE)] = None,
    targets_file: Annotated[Path | None, Parameter(group=_LIVE)] = None,
    seq_length: Annotated[int | None, Parameter(group=_LIVE), count("N")] = None,
    dtype: Annotated[Literal["float16", "float32"], Parameter(group=_LIVE)] = "float16",
    model_dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Parameter(group=_LIVE)] = None,
    batch_size: Annotated[int, Parameter(group=_LIVE), count("N")] = 4,
    device: Annotated[str | None, Parameter(group=_LIVE)] = None,
    output: Annotated[Path, Parameter(group=_WHERE)] = Path("head_metrics.csv"),
    plot: Annotated[bool, Parameter(group=_WHERE)] = False,
    json: Annotated[bool, Parameter(group=_WHERE)] = False,
) -> None:
    """Measure every attention head: entropy, sparsity, distance, and what it looks for.

    Of a run that holds patterns, or of a model while it reads texts: then its patterns are reduced as they arise, and
    nothing is stored. Both give the same numbers.

    Example: `traceformer heads latest --plot`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        convention: valid counts what a query can see; thesis is document 4's, which counts masked cells as sparse, adds
            1e-9 in logarithms, and weighs examples, not queries.
        window: How many tokens on either side `local_mass` counts.
        num_seqs: The first N examples; all of a run, 10 of a data set or file by default.
        model: A Hugging Face model name, or a folder that holds a model.
        model_path: A folder that holds a model; goes before --model.
        revision: The commit, tag or branch of the model on the Hub.
        dataset: Texts, one example each: as in `traceformer extract`.
        data_path: One file, read in consecutive windows; byte by byte by a byte-level model.
        split: Which part of the data set; of a file: validation (its last tenth, the default), train or all.
        text_column: The column that holds the text, where the data set does not say.
        targets_file: One target per line, for the decoder of an encoder-decoder; without it only the encoder runs.
        seq_length: Tokens of a window, or of a text at most; 1024, or what the model can read, by default.
        dtype: What patterns are rounded to first; float16 gives the numbers of a run stored as it is by default.
        model_dtype: What the model computes in; what its weights are stored in by default.
        batch_size: Examples per forward pass.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        output: The table, one row per head.
        plot: Save a picture beside the table: a map of layers and heads for every metric.
        json: Print a JSON object.
    """
    from traceformer.formats.head_tables import write_heads
    from traceformer.questions.heads import run_heads
    from traceformer.store.run import TraceStore

    _check_source(run, model, model_path, dataset, data_path)
    started = time.perf_counter()
    if run is not None:
        folder = find_run(run)
        source = str(folder)
        with steps_shown("measuring") as progress:
            store = TraceStore(folder)
            found = run_heads(store, convention=convention, window=window, limit=num_seqs, progress=progress)
    else:
        from traceformer.questions.live_heads import LiveRequest, live_heads

        source = str(model_path or model)
        request = LiveRequest(
            model=source,
            revision=revision,
            dataset=dataset,
            data_path=data_path,
            split=split,
            text_column=text_column,
            targets_file=targets_file,
            seq_length=seq_length,
            num_seqs=num_seqs or _NUM_SEQS,
            dtype=dtype,
            model_dtype=model_dtype,
            batch_size=batch_size,
            device=device,
        )
        with steps_shown("measuring") as progress:
            found = live_heads(request, convention=convention, window=window, progress=progress)
    write_heads(output, found)
    pictures = _save_maps(found, output, source) if plot else []
    if json:
        print(
            json_text.dumps({"source": source, "convention": convention, **_as_json(found, output, pictures)}, indent=2)
        )
        return
    print("\n\n".join(_as_text(key, each, convention) for key, each in found.items()))
    made = " and ".join(map(str, (output, *pictures)))
    took = duration(time.perf_counter() - started)
    print(f"wrote {made} in {took}; next: traceformer cluster {output} --plot", file=sys.stderr)


def _check_source(
    run: str | None, model: str | None, model_path: Path | None, dataset: str | None, data_path: Path | None
) -> None:
    live = model is not None or model_path is not None
    texts = [flag for flag, given in (("--dataset", dataset), ("--data_path", data_path)) if given is not None]
    if run is not None and (live or texts):
        raise UsageError(f"a run and {texts[0] if texts else '--model'}", why="a run has its texts", hint="one of them")
    if run is None and not live:
        raise UsageError("neither a run nor a model", hint="traceformer heads latest, or --model MODEL --dataset demo")
    if live and len(texts) != 1:
        raise UsageError(
            "a model reads either --dataset or --data_path" if texts else "what shall the model read?",
            hint="--dataset demo, or --data_path FILE",
        )


def _as_json(found: "Mapping[ArrayKey, HeadMetrics]", output: Path, pictures: list[Path]) -> dict[str, Any]:
    from traceformer.formats.head_tables import name_of

    return {
        "output": str(output),
        "plot": [str(path) for path in pictures],
        "attention": {
            name_of(key): {
                "layers": each.layers,
                "heads": each.heads,
                "examples": each.examples,
                "queries": each.queries,
                "metrics": {
                    name: [[None if math.isnan(value) else value for value in row] for row in values.tolist()]
                    for name, values in each.values.items()
                },
            }
            for key, each in found.items()
        },
    }


def _as_text(key: ArrayKey, found: "HeadMetrics", convention: HeadConvention) -> str:
    """Means and standard deviations over each layer's heads, and the heads with the highest scores."""
    import numpy as np

    from traceformer.formats.head_tables import name_of

    examples = f"{found.examples} example{'' if found.examples == 1 else 's'}"
    sizes = f"{len(found.layers)} layers of {len(found.heads)} heads, {examples}, {found.queries} queries"
    basic = [
        name for name in ("entropy", "sparsity", "distance", "max_weight") if not np.isnan(found.values[name]).all()
    ]
    rows = [
        (f"L{layer}", *(f"{found.values[name][i].mean():.3g} ± {found.values[name][i].std():.2g}" for name in basic))
        for i, layer in enumerate(found.layers)
    ]
    lines = [
        f"{name_of(key)}: {sizes}; {convention} convention, entropy in nats",
        "",
        table(("layer", *basic), rows, numeric=range(1, len(basic) + 1)),
        "",
        table(("highest", *("",) * _STRONGEST), list(_strongest(found))),
    ]
    return "\n".join(lines)


def _strongest(found: "HeadMetrics") -> Iterator[tuple[str, ...]]:
    import numpy as np

    for name in _SCORES:
        values = found.values[name]
        if np.isnan(values).all():
            continue
        order = np.argsort(-np.nan_to_num(values, nan=-1), axis=None, kind="stable")[:_STRONGEST]
        places = [np.unravel_index(index, values.shape) for index in order]
        cells = [f"L{found.layers[i]}H{found.heads[j]} {values[i, j]:.2f}" for i, j in places]
        yield name, *cells, *("",) * (_STRONGEST - len(cells))


def _save_maps(found: "Mapping[ArrayKey, HeadMetrics]", output: Path, source: str) -> list[Path]:
    from traceformer.figures.heads import metric_maps
    from traceformer.figures.style import save
    from traceformer.formats.head_tables import name_of

    made: list[Path] = []
    for key, each in found.items():
        stem = output.stem if len(found) == 1 else f"{output.stem}-{name_of(key)}"
        path = output.with_name(f"{stem}.png")
        save(metric_maps(each, title=f"{source}  {name_of(key)}, {each.queries} queries"), path)
        made.append(path)
    return made
