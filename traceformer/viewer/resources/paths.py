"""Paths through the stored attention of an example, searched as a page's controls say."""

from typing import Any, Literal

from traceformer.analysis.paths.trace import PathOptions, search_paths, searchable
from traceformer.errors import Unsupported
from traceformer.questions.paths import StoredEdges, stored_edges
from traceformer.viewer.arrays import example_asked, pattern_asked
from traceformer.viewer.kept import Pending
from traceformer.viewer.library import Library
from traceformer.viewer.path_payloads import paths_payload
from traceformer.viewer.query import Query

__all__ = ["paths"]

Json = dict[str, Any]


def paths(library: Library, query: Query) -> Json:
    """Returns the paths to the token `q` (the last one by default), as `tf.paths` finds them with the same options.

    Beside `run` and `ex` a query names `attn` (whose stack is searched), `layer` (a number, or `all`, the default) and
    what differs from the defaults of `PathOptions`, 1 for yes. Patterns are read, and heads combined, once.

    Raises:
        Unsupported: value norms, for which a model must be loaded; or as in `trace_stored`.
        NotRecorded, UsageError: as in `trace_stored`.
    """
    run, row = example_asked(library, query)
    options = _options(query)
    if options.weighting == "value-norm":
        raise Unsupported(
            "value norms cannot be searched on this page",
            why="they need W_O of the model, and the viewer loads none",
            hint=f'`tf.paths(run, {row}, weighting="value-norm")`, which does'
        )
    layer: int | Literal["all"] = "all" if query.text("layer", "all") == "all" else query.number("layer")
    stack = pattern_asked(run, query).key.stack if query.text("attn", "") else None
    name = query.text("run")
    key = (name, library.state(name), row, stack, layer, options.agg_heads)
    edges: StoredEdges | Pending = library.later(
        ("paths", *key), lambda tell: stored_edges(run, row, layer, options, stack=stack, progress=tell)
    )
    if isinstance(edges, Pending):
        return edges.to_json()
    weights = edges.weights
    if options.exclude_self or options.exclude_sink or options.weighting != "attention":
        weights = library.once(
            ("searchable", *key, options.exclude_self, options.exclude_sink, options.weighting),
            lambda: [searchable(each, edges.tokens, options, source=edges.source) for each in edges.weights],
        )
    target = query.number("q", -1)
    (result,) = search_paths(weights, edges.tokens, [target], options, source=edges.source, settings=edges.settings)
    return paths_payload(result.to_json())


def _options(query: Query) -> PathOptions:
    heads = query.text("agg_heads", "mean")
    return PathOptions(
        top_beam=query.number("top_beam", 5),
        top_k=query.number("top_k", 5),
        min_attn=query.fraction("min_attn", 0.0),
        agg_heads=int(heads) if heads.isdecimal() else heads,
        length_norm=query.text("length_norm", "avg_logprob"),
        stop_at_bos=_yes(query, "stop_at_bos", "1"),
        search=query.text("search", "beam"),
        weighting=query.text("weighting", "attention"),
        exclude_self=_yes(query, "exclude_self", "0"),
        exclude_sink=_yes(query, "exclude_sink", "0"),
        certify=_yes(query, "certify", "0"),
    )


def _yes(query: Query, name: str, default: str) -> bool:
    return query.choice(name, ("0", "1"), default) == "1"
