"""`traceformer heads`: the metrics of every attention head, of a run or of a model while it runs."""

import json as json_text
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from traceformer.analysis.conventions import SPARSITY, ConventionName
from traceformer.cli.arguments import FILE_ON_DISK, count
from traceformer.cli.choices import EngineChoice
from traceformer.cli.terminal import table
from traceformer.errors import NotFound, UsageError
from traceformer.progress import steps_shown
from traceformer.units import duration

if TYPE_CHECKING:
    from traceformer.analysis.head_metrics import HeadMetrics
    from traceformer.analysis.roles import Roles
    from traceformer.questions.training_texts import TrainingTexts
    from traceformer.store.objects.path import AnyPath
    from traceformer.texts.windows import FileWindows, Part

__all__ = ["heads"]

_WHAT = Group.create_ordered("What to measure")
_LIVE = Group.create_ordered("Of a model, without a run")
_WHERE = Group.create_ordered("Where it goes")

_BASIC = ("entropy", SPARSITY, "distance", "max_weight")
_SCORES = ("previous_token", "first_token", "self", "duplicate_token", "induction", "retrieval")
_STRONGEST = 4


def heads(
    run: Annotated[str | None, Parameter(name="RUN", group=_WHAT)] = None,
    /,
    *,
    convention: Annotated[ConventionName, Parameter(group=_WHAT)] = "exact",
    window: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 8,
    num_seqs: Annotated[int | None, Parameter(group=_WHAT), count("N")] = None,
    roles: Annotated[bool, Parameter(group=_WHAT)] = False,
    ablation: Annotated[Literal["mean", "zero", "resample"] | None, Parameter(group=_WHAT)] = None,
    model: Annotated[str | None, Parameter(group=_LIVE)] = None,
    model_path: Annotated[Path | None, Parameter(group=_LIVE)] = None,
    adapter: Annotated[str | None, Parameter(group=_LIVE, metavar="FOLDER|NAME")] = None,
    revision: Annotated[str | None, Parameter(group=_LIVE)] = None,
    like: Annotated[str | None, Parameter(group=_LIVE, metavar="FAMILY")] = None,
    allow_pickle: Annotated[bool, Parameter(group=_LIVE)] = False,
    dataset: Annotated[str | None, Parameter(group=_LIVE)] = None,
    data_path: Annotated[Path | None, Parameter(group=_LIVE)] = None,
    split: Annotated[str | None, Parameter(group=_LIVE)] = None,
    text_column: Annotated[str | None, Parameter(group=_LIVE, metavar="C|A,B")] = None,
    ids_column: Annotated[str | None, Parameter(group=_LIVE, metavar="COLUMN")] = None,
    targets_file: Annotated[Path | None, Parameter(group=_LIVE)] = None,
    seq_length: Annotated[int | None, Parameter(group=_LIVE), count("N")] = None,
    dtype: Annotated[Literal["float16", "float32"], Parameter(group=_LIVE)] = "float16",
    model_dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Parameter(group=_LIVE)] = None,
    batch_size: Annotated[int | None, Parameter(group=_LIVE), count("N")] = None,
    batch_tokens: Annotated[int | Literal["auto"] | None, Parameter(group=_LIVE), count("N|auto")] = None,
    device: Annotated[str | None, Parameter(group=_LIVE)] = None,
    output: Annotated[Path, FILE_ON_DISK, Parameter(group=_WHERE)] = Path("head_metrics.csv"),
    plot: Annotated[bool, Parameter(group=_WHERE)] = False,
    figure: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_WHERE)] = None,
    json: Annotated[bool, Parameter(group=_WHERE)] = False,
    engine: EngineChoice = EngineChoice(),  # noqa: B008
) -> None:
    """Measure every attention head: entropy, sparsity, distance, and what it looks for.

    Of a run that holds patterns, or of a model while it reads texts: then its patterns are reduced as they arise, and
    nothing is stored. Both give the same numbers. A model that is told no texts reads what `traceformer train` measured
    it on, or the texts of the demo.

    Example: `traceformer heads latest --plot`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. Of a folder of checkpoints (extract --checkpoints)
            every head is measured at every step, and --plot draws its curves.
        convention: What entropy and sparsity mean: exact counts what a query can see; thesis counts masked cells as
            sparse, adds 1e-9 in logarithms, and weighs examples, not queries; nanochat counts cells below 0.01, adds
            1e-8, and leaves rows as they are.
        window: How many tokens on either side `local_mass` counts.
        num_seqs: The first N examples; all of a run, 10 of a data set or file by default.
        roles: In place of all metrics, a line per head: what it looks for, what its weights copy, and how much of the
            residual stream is massive. No table is written.
        ablation: With --roles of a model, by how much its loss grows without each head: with its mean, zero, or another
            text's output in its place.
        model: A Hugging Face model name, or a folder that holds a model.
        model_path: A folder that holds a model; goes before --model.
        adapter: An adapter of PEFT for the model, in a folder or on the Hub.
        revision: The commit, tag or branch of the model on the Hub.
        like: Record it by the row of this family, such as llama, once every fact of it is proved on the texts.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        dataset: Texts, one example each: as in `traceformer extract`.
        data_path: One file, read in consecutive windows; byte by byte by a byte-level model.
        split: Which part of the data set; of a file: validation (its last tenth, the default), train or all.
        text_column: Where the text, its words or the messages of a chat are; A,B for pairs, a.b for a part of a column.
        ids_column: The column that holds token ids in place of texts; they need no tokenizer.
        targets_file: One target per line, for the decoder of an encoder-decoder; without it only the encoder runs.
        seq_length: Tokens of a window, or of a text at most; 1024, or what the model can read, by default.
        dtype: What patterns are rounded to first; float16 gives the numbers of a run stored as it is by default.
        model_dtype: What the model computes in; what its weights are stored in by default.
        batch_size: Examples per forward pass; 4 by default.
        batch_tokens: In its place, the most tokens per forward pass, of which 5 % at most are padding.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        output: The table, one row per head.
        plot: Save a picture beside the table: a map of layers and heads for every metric.
        figure: With --roles, save the card: one page for a name in .html, else a picture.
        json: Print a JSON object.
    """
    from traceformer.cli.role_card import told_roles
    from traceformer.cli.training_curves import are_checkpoints, told_curves
    from traceformer.questions import heads as questions
    from traceformer.questions.roles import roles as roles_of
    from traceformer.store.folders import find_runs
    from traceformer.store.run import Run

    _check_source(run, model, model_path, dataset, data_path)
    _check_card(roles, figure, ablation, run is not None, plot=plot)
    workers = engine.chosen()
    if workers is not None and (run is None or roles):
        raise UsageError(
            f"--engine {engine.engine} with {'--roles' if roles else 'a model'}",
            why="workers measure the heads of a run",
            hint="record it with --engine first" if run is None else "leave --roles or --engine",
        )
    started = time.perf_counter()
    measured: dict[Path, HeadMetrics] = {}
    if run is not None:
        folders = find_runs(run)
        local = [folder for folder in folders if isinstance(folder, Path)]
        if not roles and len(local) > 1 and are_checkpoints(local):
            told_curves(
                local[0].parent,
                output,
                plot=plot,
                json=json,
                convention=convention,
                window=window,
                limit=num_seqs,
            )
            return
        if roles:
            told_roles(_roles_of_run(folders, num_seqs), figure, json=json)
            return
        for folder in folders:
            place = output if len(folders) == 1 else output.with_suffix("") / f"{folder.name}{output.suffix}"
            with steps_shown("measuring") as progress:
                measured[place] = questions.heads(
                    Run(folder),
                    convention=convention,
                    window=window,
                    limit=num_seqs,
                    engine=workers,
                    progress=progress,
                )
    else:
        from traceformer.models.load import load_model

        source = str(model_path or model)
        loaded = load_model(
            source,
            adapter=adapter,
            revision=revision,
            device=device,
            dtype=model_dtype,
            allow_pickle=allow_pickle,
            like=like,
        )
        texts = _texts(source, revision, dataset, data_path, split)
        if roles:
            card = roles_of(
                loaded,
                texts,
                limit=num_seqs,
                split=split if data_path is None else None,
                text_column=text_column,
                ids_column=ids_column,
                seq_length=seq_length,
                batch_size=batch_size,
                batch_tokens=batch_tokens,
                ablation=ablation,
            )
            told_roles(card, figure, json=json)
            return
        with steps_shown("measuring") as progress:
            measured[output] = questions.heads(
                loaded,
                texts,
                convention=convention,
                window=window,
                limit=num_seqs,
                split=split if data_path is None else None,
                text_column=text_column,
                ids_column=ids_column,
                targets=targets_file,
                seq_length=seq_length,
                batch_size=batch_size,
                batch_tokens=batch_tokens,
                dtype=dtype,
                progress=progress,
            )
    made: list[Path] = []
    told: list[dict[str, Any]] = []
    for number, (place, found) in enumerate(measured.items()):
        found.write(place)
        pictures = _save_maps(found, place) if plot else []
        made += [place, *pictures]
        if json:
            files = {"output": str(place), "plot": [str(path) for path in pictures]}
            told.append({**files, **found.to_json()})
        else:
            if len(measured) > 1:
                print("\n" * bool(number) + found.about.source, end="\n\n")
            print("\n\n".join(_as_text(found.part(name)) for name in found.attentions))
    if json:
        print(json_text.dumps(told[0] if len(told) == 1 else {"runs": told}, indent=2))
        return
    tables = str(output) if len(measured) == 1 else f"--compare {' '.join(map(str, measured))}"
    took = duration(time.perf_counter() - started)
    print(f"wrote {' and '.join(map(str, made))} in {took}; next: traceformer cluster {tables} --plot", file=sys.stderr)


def _check_source(
    run: str | None, model: str | None, model_path: Path | None, dataset: str | None, data_path: Path | None
) -> None:
    live = model is not None or model_path is not None
    texts = [flag for flag, given in (("--dataset", dataset), ("--data_path", data_path)) if given is not None]
    if run is not None and (live or texts):
        raise UsageError(f"a run and {texts[0] if texts else '--model'}", why="a run has its texts", hint="one of them")
    if run is None and not live:
        raise UsageError("neither a run nor a model", hint="traceformer heads latest, or --model MODEL --dataset demo")
    if len(texts) > 1:
        hint = "--dataset demo, or --data_path FILE"
        raise UsageError("a model reads either --dataset or --data_path", hint=hint)


def _check_card(roles: bool, figure: Path | None, ablation: str | None, is_run: bool, *, plot: bool) -> None:
    for flag, given in (("--figure", figure), ("--ablation", ablation)):
        if given is not None and not roles:
            hint = "--roles as well" if flag == "--ablation" else "--roles as well, or --plot"
            raise UsageError(f"{flag} without --roles", why="it is of the card of roles", hint=hint)
    if roles and plot:
        why = "no table is written, beside which it would lie"
        raise UsageError("--roles with --plot", why=why, hint="--figure FILE")
    if ablation is not None and is_run:
        raise UsageError("--ablation of a run", why="its model is not run", hint="--model MODEL --dataset demo")
    if figure is not None:
        from traceformer.cli.role_card import check_card

        check_card(figure)


def _roles_of_run(folders: "Sequence[AnyPath]", limit: int | None) -> "Roles":
    from traceformer.questions.roles import roles
    from traceformer.store.run import Run

    if len(folders) > 1:
        raise UsageError(f"--roles of {len(folders)} runs", hint=f"one of them, such as {folders[0]}")
    return roles(Run(folders[0]), limit=limit)


def _texts(
    model: str, revision: str | None, dataset: str | None, data_path: Path | None, split: str | None
) -> "str | FileWindows | TrainingTexts":
    """What a model reads: what is named, else what it was measured on while it was trained, else the demo's texts."""
    if data_path is not None:
        from traceformer.texts.windows import FileWindows

        parts: dict[str | None, Part] = {None: "validation", "validation": "validation", "train": "train", "all": "all"}
        if split not in parts:
            raise UsageError(f"--split {split} of a file", hint="validation, its last tenth; train; or all")
        return FileWindows(data_path, parts[split])
    if dataset is not None:
        return dataset
    from traceformer.models.weights import find_model_folder
    from traceformer.questions.training_texts import training_texts

    why = "no training.json beside the model names its data"
    try:
        texts = training_texts(find_model_folder(model, revision))
        if texts is not None:
            print(f"reading {texts}: training.json names this data", file=sys.stderr)
            return texts
    except NotFound as error:
        why = error.message
    print(f"reading the demo: {why}", file=sys.stderr)
    return "demo"


def _as_text(found: "HeadMetrics") -> str:
    """Means and standard deviations over each layer's heads, and the heads with the highest scores."""
    import numpy as np

    (attention,), about = found.attentions, found.about
    examples = about.examples[attention]
    sizes = f"{len(found.layers)} layers of {len(found.heads)} heads, {examples} example{'' if examples == 1 else 's'}"
    basic = {found.column(name): found.grid(name) for name in _BASIC}
    basic = {name: grid for name, grid in basic.items() if not np.isnan(grid).all()}
    rows = [
        (f"L{layer}", *(f"{grid[i].mean():.3g} ± {grid[i].std():.2g}" for grid in basic.values()))
        for i, layer in enumerate(found.layers)
    ]
    lines = [
        f"{attention}: {sizes}, {about.queries[attention]} queries; {about.convention} convention, entropy in nats",
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
        order = np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")[:_STRONGEST]
        cells = [f"{found.rows[index]} {values[index]:.2f}" for index in order]
        yield name, *cells, *("",) * (_STRONGEST - len(cells))


def _save_maps(found: "HeadMetrics", output: Path) -> list[Path]:
    from traceformer import figures
    from traceformer.figures.style import save

    made: list[Path] = []
    for attention in found.attentions:
        stem = output.stem if len(found.attentions) == 1 else f"{output.stem}-{attention}"
        made.append(output.with_name(f"{stem}.png"))
        save(figures.heads(found, attention), made[-1])
    return made
