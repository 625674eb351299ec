"""`traceformer probe`: what can be read off a run's activations by planes, layer by layer."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from traceformer.analysis.methods import Position
from traceformer.cli.arguments import FILE_ON_DISK, Indices, count
from traceformer.cli.terminal import table
from traceformer.progress import steps_shown
from traceformer.sites import parse_indices

if TYPE_CHECKING:
    from traceformer.analysis.probes import Probes

__all__ = ["probe"]

_WHAT = Group.create_ordered("What is probed")
_HOW = Group.create_ordered("How")
_OUTPUT = Group.create_ordered("Output")


def probe(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    label: Annotated[str, Parameter(group=_WHAT, metavar="COLUMN|FILE")],
    site: Annotated[str, Parameter(group=_WHAT)] = "resid_post",
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    heads: Annotated[str | None, Parameter(group=_WHAT, metavar="I,J-K|all")] = None,
    offset: Annotated[int, Parameter(group=_WHAT, metavar="N", allow_leading_hyphen=True)] = 0,
    position: Annotated[Position, Parameter(group=_WHAT)] = "mean",
    limit: Annotated[int | None, Parameter(group=_WHAT), count("N", least=2)] = None,
    penalty: Annotated[float, Parameter(group=_HOW)] = 1.0,
    held_out: Annotated[float, Parameter(group=_HOW, metavar="SHARE")] = 0.25,
    draws: Annotated[int, Parameter(group=_HOW), count("N")] = 1,
    seed: Annotated[int, Parameter(group=_HOW), count("N", least=0)] = 0,
    output: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_OUTPUT)] = None,
    overwrite: Annotated[bool, Parameter(group=_OUTPUT)] = False,
    png: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_OUTPUT)] = None,
    json: Annotated[bool, Parameter(group=_OUTPUT)] = False,
) -> None:
    """What can be read off a run's activations by planes: a linear probe of a label at each layer.

    A probe is a logistic regression of standardised rows, fitted on some texts and tried on others. Beside its accuracy
    stand those of its controls: the same with shuffled labels; with a random label for each kind of token (the control
    task, over which the probe's selectivity is counted); and on random rows. Intervals (95 %) are over texts.

    Example: `traceformer probe latest --label upos --png upos.png`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        label: A column of the token table, with a value for each text, each token or each word; or a .json file: an
            object from texts' ids to a label, or to a list of one for each token.
        site: Where to look for it, a site with a row for each token.
        layers: Which layers; all that are stored by default.
        heads: Of sites with heads, which have a probe each; by default all are one row, side by side.
        offset: Whose label a token's row is asked for: 1 for that of the next token, -1 for that of the previous one.
        position: What stands for a text, where the label is of texts: the mean over its tokens, its last token, or the
            mean over its response.
        limit: The first N texts; all by default.
        penalty: That of the weights: half of it times their squares is added to the loss, summed over rows.
        held_out: The share of texts that are held out.
        draws: How often the labels of each control are drawn; their mean is shown.
        seed: Of the split, of controls and of intervals.
        output: Save the probes, with their weights, as a .safetensors file.
        overwrite: Replace a file that is in the way.
        png: Save a picture of all layers, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.formats.results.probes import check_probe_file
    from traceformer.questions.probes import fit_probe
    from traceformer.store.folders import find_run
    from traceformer.store.run import Run

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    if output is not None:
        check_probe_file(output, overwrite=overwrite)
    store = Run(find_run(run))
    labels, name = _labels(label)
    with steps_shown("probing") as progress:
        found = fit_probe(
            store,
            labels,
            site=site,
            layers=None if layers is None else parse_indices(layers),
            heads=heads if heads in (None, "all") else parse_indices(heads),
            offset=offset,
            position=position,
            penalty=penalty,
            held_out=held_out,
            draws=draws,
            seed=seed,
            limit=limit,
            name=name,
            progress=progress,
        )
    if output is not None:
        found.save(output, overwrite=overwrite)
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.probes(found), png)
    if json:
        print(json_text.dumps({"folder": str(store.folder), **found.to_json()}, indent=2))
        return
    print(_as_text(found))
    made = " and ".join(str(path) for path in (output, png) if path is not None)
    again = f"traceformer probe {shlex.quote(str(store.folder))} --label {shlex.quote(label)}"
    again += f" --offset {offset}" * bool(offset)
    then = " --png probe.png" if png is None else _another(store, found)
    print(f"{f'wrote {made}; ' if made else ''}next: {again}{then}", file=sys.stderr)


def _labels(label: str) -> tuple[Any, str | None]:
    """A column's name, or what a file says, and what that is called."""
    if not label.endswith(".json"):
        return label, None
    from traceformer.errors import NotFound, Unreadable
    from traceformer.plain_json import parse_json

    path = Path(label)
    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unreadable(f"{path} is no JSON", why=str(error)) from error
    if not isinstance(found, dict):
        raise Unreadable(f"{path} holds no labels", why="it is an object from texts' ids to labels that is read")
    return found, path.stem


def _another(store: Any, found: "Probes") -> str:
    """Another array of the run that has rows of tokens; where there is none, more of the same."""
    for spec in store.layout.arrays:
        site = spec.site
        if str(spec.key) != found.about.site and site.is_per_token and not (site.is_derived or site.holds_ids):
            return f" --site {spec.key}"
    return f" --draws {found.about.draws + 9}"


def _as_text(found: "Probes") -> str:
    about = found.about
    held = f"{about.train_rows:,} rows of {about.train_texts:,} texts, held out {about.rows:,} rows of {about.texts:,}"
    title = f"{about.named}: {len(found.classes)} classes of {about.of}s, {about.site}; fitted on {held}"
    with_control = about.of == "token"
    headers = ("", "accuracy", "95 %", "selectivity", "95 %", *(("control",) if with_control else ()), "shuffled")
    rows = [
        (
            own.place or about.site,
            f"{own.scores.accuracy:.3f}",
            f"{own.scores.low:.3f} to {own.scores.high:.3f}",
            f"{own.scores.selectivity:.3f}",
            f"{own.scores.selectivity_low:.3f} to {own.scores.selectivity_high:.3f}",
            *((f"{own.scores.control:.3f}",) if own.scores.control is not None else ()),
            f"{own.scores.shuffled:.3f}",
        )
        for own in found
    ]
    beside = [f"random rows {about.random:.3f}", f"most frequent class {about.majority:.3f}"]
    if about.by_token is not None:
        beside.append(f"most frequent class of its token {about.by_token:.3f}")
    return f"{title}\n\n{table(headers, rows, numeric=range(1, len(headers)))}\n\n{', '.join(beside)}"
