"""`traceformer paths`: which tokens led to a token, in a recorded run or in a model and a text."""

import json as json_text
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Group, Parameter, Token

from traceformer.cli.arguments import FILE_ON_DISK, count, open_example, parse_head
from traceformer.errors import UsageError
from traceformer.presentation import present

if TYPE_CHECKING:
    from traceformer.analysis.paths.result import Paths

__all__ = ["paths"]

_RUN = Group.create_ordered("A recorded text")
_MODEL = Group.create_ordered("Or a model and a text")
_FROM = Group.create_ordered("Where the paths begin")
_SEARCH = Group.create_ordered("How they are found")
_OUTPUT = Group.create_ordered("Output")

LayerChoice: TypeAlias = int | Literal["all"]


def _layer(_: object, tokens: Sequence[Token]) -> LayerChoice:
    text = tokens[0].value
    if text == "all":
        return "all"
    if not text.removeprefix("-").isdecimal():
        raise ValueError("it takes a layer's number (-1 is the last), or all")
    return int(text)


def paths(
    run: Annotated[str | None, Parameter(group=_RUN, name="RUN")] = None,
    /,
    *,
    example: Annotated[str | None, Parameter(group=_RUN)] = None,
    model: Annotated[str | None, Parameter(group=_MODEL)] = None,
    text: Annotated[str | None, Parameter(group=_MODEL)] = None,
    target_text: Annotated[str | None, Parameter(group=_MODEL)] = None,
    target_pos: Annotated[int, Parameter(group=_FROM)] = -1,
    layer: Annotated[
        LayerChoice | None, Parameter(group=_FROM, metavar="L|all", show_choices=False, converter=_layer, n_tokens=1)
    ] = None,
    head: Annotated[str | None, Parameter(group=_FROM, metavar="LxHy")] = None,
    agg_heads: Annotated[Literal["mean", "max", "none"], Parameter(group=_FROM)] = "mean",
    top_beam: Annotated[int, Parameter(group=_SEARCH), count("N")] = 5,
    top_k: Annotated[int, Parameter(group=_SEARCH), count("N")] = 5,
    min_attn: Annotated[float, Parameter(group=_SEARCH)] = 0.0,
    length_norm: Annotated[str, Parameter(group=_SEARCH, metavar="none|avg_logprob|sqrt|pow:A")] = "avg_logprob",
    search: Annotated[Literal["beam", "exact"], Parameter(group=_SEARCH)] = "beam",
    weighting: Annotated[Literal["attention", "rollout", "value-norm"], Parameter(group=_SEARCH)] = "attention",
    exclude_self: Annotated[bool, Parameter(group=_SEARCH)] = False,
    exclude_sink: Annotated[bool, Parameter(group=_SEARCH)] = False,
    pass_bos: Annotated[bool, Parameter(group=_SEARCH)] = False,
    bos_token_id: Annotated[int | None, Parameter(group=_SEARCH), count("ID", least=0)] = None,
    stack: Annotated[Literal["enc", "dec"] | None, Parameter(group=_RUN)] = None,
    max_flow: Annotated[bool, Parameter(group=_SEARCH)] = False,
    html: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_OUTPUT)] = None,
    png: Annotated[Path | None, FILE_ON_DISK, Parameter(group=_OUTPUT)] = None,
    open_browser: Annotated[bool, Parameter(group=_OUTPUT)] = False,
    device: Annotated[str | None, Parameter(group=_MODEL)] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Parameter(group=_MODEL)] = None,
    adapter: Annotated[str | None, Parameter(group=_MODEL, metavar="FOLDER|NAME")] = None,
    revision: Annotated[str | None, Parameter(group=_MODEL)] = None,
    like: Annotated[str | None, Parameter(group=_MODEL, metavar="FAMILY")] = None,
    allow_pickle: Annotated[bool, Parameter(group=_MODEL)] = False,
    json: Annotated[bool, Parameter(group=_OUTPUT)] = False,
) -> None:
    """Which tokens led to a token: paths backward through attention.

    RUN --example ID reads recorded attention; --model M --text TEXT runs a model as far as is needed. From the target
    each path goes to a token that was attended to, from there to one that token attended to, and so on, to the
    beginning. What the search found is compared with the best paths there are.

    Example: `traceformer paths --model byte --text "def add(a, b): return a" --html paths.html`

    Args:
        run: A folder, the name of a run in ./traces, or `latest`.
        example: An example's id, or its row number; the first one by default.
        model: A folder or a Hub name, instead of a run.
        text: What the model reads.
        target_text: What an encoder-decoder's decoder reads: paths lead from there into the text.
        target_pos: Where the paths begin; negative counts from the end.
        layer: The layer, -1 for the last; or all: one layer down with every edge.
        head: One head, such as L5H3.
        agg_heads: How heads become one; none traces each by itself.
        top_beam: How many paths are kept, and shown.
        top_k: How many edges of each token are tried.
        min_attn: Leave weaker edges out.
        length_norm: How the score depends on the number of edges.
        search: exact finds the best paths of all, whatever --top-k.
        weighting: value-norm weighs by what is moved; rollout, across layers, adds the residual stream.
        exclude_self: Take each token's attention to itself out, and bring rows back to their sum.
        exclude_sink: The same for the first token and those that begin or end a text.
        pass_bos: Do not end paths at tokens that begin a text.
        bos_token_id: Which token that is.
        stack: Which stack of a recorded encoder-decoder; the decoder by default.
        max_flow: Across layers, also the largest flow from each token: slow for long texts.
        html: Save a page that shows the paths, complete in one file.
        png: Save a picture, in the format that the ending names.
        open_browser: Show the page.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        dtype: What the model computes in; as it is stored by default.
        adapter: An adapter of PEFT for the model, in a folder or on the Hub.
        revision: The commit, tag or branch of the model on the Hub.
        like: Record it by the row of this family, such as llama, once every fact of it is proved on the texts.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them; also a run's model, for
            --weighting value-norm.
        json: Print the result as JSON, in the layout of reverse-attention's trace.json.
    """
    from traceformer.analysis.paths.trace import PathOptions
    from traceformer.cli.paths_report import report
    from traceformer.questions.paths import paths as find_paths

    if (run is None) == (model is None):
        raise UsageError("which attention?", hint="traceformer paths RUN --example ID, or --model M --text TEXT")
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    number = None if layer == "all" else layer
    if head is not None:
        if layer == "all" or agg_heads != "mean":
            raise UsageError("--head is one head of one layer", hint="--head L5H3 alone")
        number, one = parse_head(number, head)
        layer = number
    else:
        one = None
    options: dict[str, Any] = {
        "top_beam": top_beam,
        "top_k": top_k,
        "min_attn": min_attn,
        "agg_heads": agg_heads if one is None else one,
        "length_norm": length_norm,
        "stop_at_bos": not pass_bos,
        "search": search,
        "weighting": weighting,
        "exclude_self": exclude_self,
        "exclude_sink": exclude_sink,
        "max_flow": max_flow,
    }
    PathOptions(**options)  # what is out of its range is refused before anything is loaded
    if run is not None:
        if text is not None:
            raise UsageError("--text goes with --model", why="a run has texts of its own", hint="--example ID")
        source, given = open_example(run, example)
    else:
        assert model is not None
        if text is None:
            raise UsageError("--model needs --text", hint='--text "The quick brown fox"')
        from traceformer.models.load import load_model

        print("loading", file=sys.stderr)
        source, given = (
            load_model(
                model,
                adapter=adapter,
                device=device,
                dtype=dtype,
                revision=revision,
                allow_pickle=allow_pickle,
                like=like,
            ),
            text,
        )
    result = find_paths(
        source,
        given,
        to=target_pos,
        layer=layer,
        stack=stack,
        target_text=target_text,
        bos_token_id=bos_token_id,
        device=device,
        allow_pickle=allow_pickle,
        **options,
    )
    print(json_text.dumps(result.to_json(), indent=2, ensure_ascii=False) if json else report(result))
    _save(result, html, png, open_browser)


def _save(result: "Paths", html: Path | None, png: Path | None, open_browser: bool) -> None:
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.paths(result), png)
        print(f"wrote {png}", file=sys.stderr)
    if open_browser and html is None:
        html = Path("paths.html")
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(present(result, "page"), encoding="utf-8", newline="\n")
        print(f"wrote {html}; next: open it in a browser, or send it to someone", file=sys.stderr)
        if open_browser:
            webbrowser.open(html.resolve().as_uri())
    elif png is None:
        print("next: the same with --html paths.html, which draws it", file=sys.stderr)
