"""`traceformer attribute`: what each part of a model adds to a logit."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from traceformer.cli.arguments import FILE_ON_DISK, count, open_example
from traceformer.cli.terminal import table
from traceformer.texts.shown import printable, visible

if TYPE_CHECKING:
    from traceformer.analysis.attribution import Attribution

__all__ = ["attribute"]

_KINDS = {
    "embed": "embedding",
    "head": "heads",
    "attn": "attention",
    "mlp": "MLPs",
    "bias": "biases",
    "norm": "biases of norms",
}


def attribute(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    example: str | None = None,
    to: Annotated[str | None, Parameter(metavar="TOKEN", allow_leading_hyphen=True)] = None,
    against: Annotated[str | None, Parameter(metavar="TOKEN", allow_leading_hyphen=True)] = None,
    position: Annotated[str, Parameter(metavar="N|WORD", allow_leading_hyphen=True)] = "-1",
    by_source: Annotated[str | None, Parameter(metavar="L5H3")] = None,
    top_k: Annotated[int, count("K")] = 15,
    model: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    adapter: Annotated[str | None, Parameter(metavar="FOLDER|NAME")] = None,
    allow_pickle: bool = False,
    figure: Annotated[Path | None, FILE_ON_DISK] = None,
    json: bool = False,
) -> None:
    """What each head, MLP and bias adds to a logit (direct logit attribution).

    A logit, or with --against the difference of two, is the sum of what the embedding, every head, every MLP and every
    bias added to the residual stream, through the final norm at the scale that it had there. Shown are the largest
    parts, what each kind adds together, and the remainder, which storing the run left. The model is not run; its files
    must be those that the run was recorded with. A softcap is left away.

    Example: `traceformer attribute latest --example 0 --to e --by-source L2H5`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`. It holds z, mlp_out, embed and resid_post.
        example: An example's id, or its row number; the first one by default.
        to: The token whose logit it is, spaces included, or #ID; the likeliest next one by default.
        against: The token whose logit is subtracted.
        position: Where the logit is read: a number, negative from the end, or a word of the text.
        by_source: Heads to split by source token, such as L5H3,L7H1; the run holds attn_pattern and v as well.
        top_k: How many of the largest parts to list.
        model: Where the model's folder is now, if it was moved.
        adapter: Where the folder of its adapter is now, likewise.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        figure: Save a picture of all parts, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.questions.attribute import attribute as read_attribution

    store, example_id = open_example(run, example)
    if figure is not None:
        from traceformer.figures.style import check_format

        check_format(figure)
    at_hand = None
    if adapter is not None or allow_pickle or store.about.adapter is not None:
        from traceformer.questions.model_of_run import load_model_of

        at_hand = load_model_of(store, model=model, adapter=adapter, allow_pickle=allow_pickle)
    found = read_attribution(
        store,
        example_id,
        to=to,
        against=against,
        position=int(position) if position.removeprefix("-").isdecimal() else position,
        by_source=False if by_source is None else by_source.replace(",", " ").split(),
        model=at_hand or model,
    )
    if figure is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.attribution(found, title=store.name), figure)
    if json:
        print(json_text.dumps({"run": str(store.folder), **found.to_json()}, indent=2))
        return
    print(_told(found, top_k))
    named = shlex.quote(printable(found.example_id))
    made = "" if figure is None else f"wrote {figure}; "
    then = f"--figure {store.name}-parts.png" if figure is None else f"--position {found.position} --json"
    print(f"{made}next: traceformer attribute {store.folder} --example {named} {then}", file=sys.stderr)


def _told(found: "Attribution", top_k: int) -> str:
    likeliest = ", the likeliest next token" if found.is_likeliest else ""
    lines = [
        f"example {printable(found.example_id)}, position {found.position}, {visible(found.token)}: "
        f"the {found.what}{likeliest}"
    ]
    if found.softcap is not None:
        lines.append(f"before the softcap of {found.softcap:g}, which the model's own logits have")
    pairs = sorted(zip(found.parts, found.contributions.tolist(), strict=True), key=lambda pair: -abs(pair[1]))
    rows = [(str(part), f"{value:+.4f}") for part, value in pairs[:top_k]]
    lines += ["", table(("largest", "adds"), rows, numeric=(1,))]
    sums = [(_KINDS[kind], f"{value:+.4f}") for kind, value in found.sums().items()]
    sums += [("remainder", f"{found.remainder:+.1e}"), ("total", f"{found.total:+.4f}")]
    lines += ["", table(("together", "adds"), sums, numeric=(1,))]
    for part, values in found.sources.items():
        tokens = found.source_tokens[part.attention or "self"]
        order = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:top_k]
        rows = [(str(i), visible(tokens[i]), f"{values[i]:+.4f}") for i in order]
        lines += ["", table((str(part), "source", "adds"), rows, numeric=(0, 2))]
    return "\n".join(lines)
