"""`traceformer edges`: what one part of a model adds, changed in what one other part reads."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import FILE_ON_DISK, count
from traceformer.cli.choices import WHERE, Loading, PairChoice
from traceformer.cli.terminal import table
from traceformer.progress import steps_shown

if TYPE_CHECKING:
    from traceformer.analysis.edges import EdgeEffects

__all__ = ["edges"]

_WHAT = Group.create_ordered("What is looked at, and how")


def edges(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    texts: PairChoice = PairChoice(),  # noqa: B008
    metric: Annotated[
        Literal["logit_difference", "log_prob", "probability", "loss", "kl"], Parameter(group=_WHAT)
    ] = "logit_difference",
    how: Annotated[Literal["denoise", "noise"], Parameter(group=_WHAT)] = "denoise",
    steps: Annotated[int, Parameter(group=_WHAT), count("N")] = 1,
    exact_top: Annotated[int, Parameter(group=_WHAT), count("K", least=0)] = 0,
    top: Annotated[int, Parameter(group=WHERE), count("N")] = 12,
    png: Annotated[Path | None, FILE_ON_DISK, Parameter(group=WHERE)] = None,
    json: Annotated[bool, Parameter(group=WHERE)] = False,
    batch_size: Annotated[int, count("N")] = 8,
    loading: Loading = Loading(),  # noqa: B008
) -> None:
    """What one part of a decoder adds to the stream, changed in what one other part reads.

    An edge leads from the embedding, a head or an MLP to the queries, keys or values of a head, an MLP, or the logits.
    Its effect is what becomes of the corrupt text's metric if that receiver alone reads what the sender adds to the
    clean text, as a share of the difference between both. All are estimated from slopes, and the largest measured.

    Example: `traceformer edges byte --pairs repeats --exact-top 20`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        metric: What is looked at.
        how: denoise runs the corrupt text with what is added to the clean one, noise the other way round.
        steps: At how many points of the way from one text to the other slopes are taken.
        exact_top: How many edges, those of the largest estimates, to measure as well.
        top: How many edges to list.
        png: Save a map of all edges, in the format that the ending names.
        json: Print a JSON object, with every edge.
        batch_size: Edges that are measured at a time.
    """
    from traceformer.questions.edges import edges as read_edges

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    loaded = loading.load(model, with_head=True)
    with steps_shown("edges") as progress:
        found = read_edges(
            loaded,
            **texts.given(),
            metric=metric,
            how=how,
            steps=steps,
            exact_top=exact_top,
            batch_size=batch_size,
            progress=progress,
        )
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.edges(found), png)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
        return
    print(_told(found, top))
    named = f"{shlex.quote(model)} {texts.typed()}"
    made = "" if png is None else f"wrote {png}; "
    then = f"patch {named} --site z --over layer,head" if exact_top else f"edges {named} --exact-top 20"
    print(f"{made}next: traceformer {then}", file=sys.stderr)


def _told(found: "EdgeEffects", top: int) -> str:
    about, measured = found.about, found.agreement.measured
    pairs = f"{len(found.pairs)} pair{'s' * (len(found.pairs) != 1)}"
    points = "" if about.steps == 1 else f" at {about.steps} points of the way"
    lines = [f"{about.model}: {about.how} edges, {about.metric}, {pairs}; estimated from slopes{points}"]
    lines += [str(found.agreement)] if measured else []
    frame = found.to_frame().sort_values("estimate", key=abs, ascending=False, kind="stable").head(top)
    shown = ["estimate", *(["exact"] if measured else []), *(["spread"] if len(found.pairs) > 1 else [])]
    rows = [
        (row["sender"], row["receiver"], *("" if row[name] != row[name] else f"{row[name]:.4f}" for name in shown))
        for row in frame.to_dict("records")
    ]
    lines += ["", table(("sender", "receiver", *shown), rows, numeric=range(2, 2 + len(shown)))]
    n_edges = int(found.is_edge.sum())
    if n_edges > len(rows):
        lines += ["", f"the {len(rows)} largest of {n_edges}; --json has all"]
    return "\n".join(lines)
