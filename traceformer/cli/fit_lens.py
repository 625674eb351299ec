"""`traceformer fit-lens`: for each layer a map into the place of the last one, fitted and measured."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import FILE_ON_DISK, Indices, count
from traceformer.cli.choices import Loading
from traceformer.cli.terminal import table
from traceformer.errors import UsageError
from traceformer.progress import Totals, progress_shown, steps_shown
from traceformer.sites import parse_indices

if TYPE_CHECKING:
    from traceformer.analysis.translators import HeldOut, Translators
    from traceformer.models.loaded import LoadedModel
    from traceformer.store.run import Run

__all__ = ["fit_lens"]

_WHAT = Group.create_ordered("What is fitted")
_DERIVED = Group.create_ordered("Of a Jacobian lens")
_LIVE = Group.create_ordered("Of a model, without a run")
_WHERE = Group.create_ordered("Where it goes")


def fit_lens(
    run: Annotated[str | None, Parameter(name="RUN", group=_WHAT)] = None,
    /,
    *,
    kind: Annotated[Literal["tuned", "ridge", "jacobian"], Parameter(group=_WHAT)] = "tuned",
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    limit: Annotated[int | None, Parameter(group=_WHAT), count("N")] = None,
    steps: Annotated[int | None, Parameter(show_default="300", group=_WHAT), count("N")] = None,
    seed: Annotated[int, Parameter(group=_WHAT), count("N", least=0)] = 0,
    skip: Annotated[int | None, Parameter(show_default="16", group=_DERIVED), count("N", least=0)] = None,
    max_tokens: Annotated[int | None, Parameter(show_default="128", group=_DERIVED), count("N", least=2)] = None,
    batch_size: Annotated[int | None, Parameter(show_default="8", group=_DERIVED), count("N")] = None,
    model: Annotated[str | None, Parameter(group=_LIVE)] = None,
    dataset: Annotated[str | None, Parameter(group=_LIVE)] = None,
    split: Annotated[str | None, Parameter(group=_LIVE)] = None,
    loading: Loading = Loading(),  # noqa: B008
    output: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_WHERE)] = None,
    overwrite: Annotated[bool, Parameter(group=_WHERE)] = False,
    png: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_WHERE)] = None,
    json: Annotated[bool, Parameter(group=_WHERE)] = False,
) -> None:
    """Fit a lens: a map per layer that puts its rows in the place of the last layer's.

    What the model's own final norm and unembedding make of a translated row is nearer to what the model says in the end
    than the logit lens, which translates nothing. Fitted are the rows that a run holds, and the model is not run; or
    those of a --model that reads a --dataset. Shown is, layer by layer, the KL divergence from what is said in the end
    (nats) and how often the likeliest word is the same, on examples that neither fitting nor choosing has seen, beside
    the same of the logit lens.

    Example: `traceformer fit-lens latest --output lens.safetensors`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. It holds resid_post, or hidden, of all layers.
        kind: tuned minimises that KL divergence; ridge is the closed form nearest to the last layer's rows; jacobian is
            the mean derivative of the last layer's rows, for which the model reads the texts again.
        layers: Which layers; all that are stored by default.
        limit: The first N examples; all by default.
        steps: How many batches of 512 rows tuned takes for each layer.
        seed: Deals examples to what is fitted, chosen by and measured on, and draws batches.
        skip: How many of a text's first positions are left out.
        max_tokens: How many of a text's first tokens are read.
        batch_size: How many rows of a matrix are made at once, each from a copy of the text.
        model: A Hugging Face model name, a folder that holds a model, or byte. Beside a run: where its model's folder
            is now, if it was moved.
        dataset: What the model reads: a data set or a file, as in `traceformer extract`.
        split: Which part of the data set.
        output: The file to write, .safetensors; or .pt, a Jacobian lens as others publish theirs.
        overwrite: Replace a file that is in the way.
        png: Save a picture of both figures by layer, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.formats.results.translators import check_lens_file
    from traceformer.questions.fit_lens import check_settings
    from traceformer.questions.fit_lens import fit_lens as fit

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    settings: dict[str, Any] = {"steps": steps, "skip": skip, "max_tokens": max_tokens, "batch_size": batch_size}
    check_settings(kind, **settings)
    if output is not None:
        check_lens_file(output, kind, overwrite=overwrite)
    store, moved = _asked(run, model, dataset, split, limit, loading)
    with steps_shown("fitting") as progress:
        found = fit(
            store,
            kind=kind,
            layers=None if layers is None else parse_indices(layers),
            limit=limit,
            seed=seed,
            **settings,
            model=moved,
            progress=progress,
        )
    if output is not None:
        found.save(output, overwrite=overwrite)
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.translators(found), png)
    if json:
        print(json_text.dumps({**({} if output is None else {"file": str(output)}), **found.to_json()}, indent=2))
        return
    print(_told(found))
    made = [f"wrote {path}" for path in (output, png) if path is not None]
    print(f"{'; '.join([*made, ''])}next: traceformer {_next(run, model, dataset, output)}", file=sys.stderr)


def _asked(
    run: str | None, model: str | None, dataset: str | None, split: str | None, limit: int | None, loading: Loading
) -> "tuple[Run, LoadedModel | str | None]":
    """The run to fit, and its model or where that is; recorded now, and kept nowhere, where there is no run."""
    from traceformer.store.folders import open_run

    if run is not None:
        if dataset is not None or split is not None:
            raise UsageError("a run and --dataset", why="a run has its texts", hint="one of them")
        others = [name for name in loading.given() if name not in ("adapter", "allow_pickle")]
        if others:
            flag = f"--{others[0].replace('_', '-')}"
            raise UsageError(f"a run and {flag}", why="its model is not run", hint="--model MODEL --dataset TEXTS")
        store = open_run(run)
        if loading.adapter is None and not loading.allow_pickle:
            return store, model
        from traceformer.questions.model_of_run import load_model_of

        return store, load_model_of(store, model=model, adapter=loading.adapter, allow_pickle=loading.allow_pickle)
    if model is None or dataset is None:
        raise UsageError("what shall be fitted?", hint="a RUN, or --model MODEL --dataset TEXTS")
    from traceformer.capture.extract import record

    loaded = loading.load(model, with_head=True)
    with progress_shown(Totals()) as told:
        store = record(loaded, dataset, "resid_post", split=split, limit=limit, dtype="float32", progress=told)
    return store, loaded


def _told(found: "Translators") -> str:
    """A line per layer, and what it was measured on."""
    own = found.held_out
    assert own is not None, "it was fitted just now"
    rows = [
        (f"L{layer}", f"{own.kl[i]:.4f}", f"{own.logit_kl[i]:.4f}", *_shares(own, i), own.chosen[i])
        for i, layer in enumerate(found.layers)
    ]
    headers = ("layer", "KL", "logit lens", "top-1", "logit lens", "map")
    examples, fitted = found.about["examples"], found.about["rows"]["fit"]
    how = f"fitted on {fitted:,} rows of {examples['fit']} examples, chosen by {examples['validation']} others"
    if "n_prompts" in found.about:
        how = f"the mean of derivatives over {found.about['n_prompts']} examples"
    title = (
        f"{found.model}  {found.kind} lens of {found.about['site']}, {how};\n"
        f"KL (nats) and top-1 against what is said in the end, on {own.rows:,} rows of {own.examples} examples that "
        "neither has seen"
    )
    return f"{title}\n\n{table(headers, rows, numeric=range(1, 5))}"


def _shares(own: "HeldOut", layer: int) -> tuple[str, str]:
    return f"{100 * own.top1[layer]:.1f} %", f"{100 * own.logit_top1[layer]:.1f} %"


def _next(run: str | None, model: str | None, dataset: str | None, out: Path | None) -> str:
    source = (
        shlex.quote(run)
        if run is not None
        else f"--model {shlex.quote(model or '')} --dataset {shlex.quote(dataset or '')}"
    )
    if out is None:
        return f"fit-lens {source} --output lens.safetensors"
    return (
        f"lens {source} --with {shlex.quote(str(out))}" if run is not None else f"extract {source} --capture resid_post"
    )
