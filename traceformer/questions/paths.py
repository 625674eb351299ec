"""Which tokens led to a token: paths backward through the attention of a recorded run, or of a model and a text.

A recorded run needs no model and no torch, but for the weighting by value norms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np

from traceformer.analysis.paths.combining import HeadCombiner
from traceformer.analysis.paths.flow import value_products
from traceformer.analysis.paths.result import Paths
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, trace_paths
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.formats.results.path_traces import model_name
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, quiet
from traceformer.questions.live_paths import TracedModel, output_weights
from traceformer.questions.model_of_run import load_model_of
from traceformer.questions.recorded import check_asked
from traceformer.questions.vocabulary import shown_tokens
from traceformer.shapes import Float
from traceformer.sites import ArrayKey, ArraySpec, Attention, Stack
from traceformer.store.meta import Dims
from traceformer.store.room import check_matrices
from traceformer.store.run import Run

__all__ = ["OutputWeights", "StoredEdges", "paths", "stored_edges", "trace_stored"]

OutputWeights: TypeAlias = Callable[[Stack, Attention, int], Float[np.ndarray, "head d_head d_model"]]
"""W_O of an attention in a layer, which no run holds."""


def paths(
    source: Run | LoadedModel,
    example: int | str = 0,
    *,
    to: int = -1,
    layer: int | Literal["all"] | None = "all",
    stack: Stack | None = None,
    target_text: str | None = None,
    bos_token_id: int | None = None,
    device: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> Paths:
    """Returns the paths that lead to a token, best first: which tokens the model looked at, and which these looked at.

        paths(run, 0, to=-1)
        paths(load_model("byte"), "return the name of the na", layer=2, agg_heads=6)

    Args:
        source: A run that holds attention patterns, or a model.
        example: Of a run one of its examples, by number or id; of a model the text that it reads.
        to: Where the paths begin; negative counts from the end.
        layer: "all", for paths that go down one layer with every edge; a layer's number, negative counting from the
            last; or None for the last one, of a run the last one recorded.
        stack: Which stack of a recorded encoder-decoder; its decoder, if that was recorded.
        target_text: What an encoder-decoder's decoder reads: paths lead from there into the text.
        bos_token_id: At which tokens paths end; by default those that begin a text.
        device: Where a run's model is loaded, for value norms; the processor by default.
        allow_pickle: Whether the weights of a run's model may be pickled.
        options: Fields of `PathOptions`: `top_beam`, `top_k`, `min_attn`, `agg_heads` ("mean", "max", "none", or a
            head's number), `length_norm`, `stop_at_bos`, `search` ("beam", "exact"), `weighting` ("attention",
            "rollout", "value-norm"), `exclude_self`, `exclude_sink`, `max_flow`; and `certify`, which is True here:
            what was found is compared with the best paths there are.

    Raises:
        NotRecorded: the run lacks patterns, a layer or values that are needed.
        UsageError: a token or a layer that is not there, or options out of their range or that exclude each other.
        Unsupported: this model's attention cannot be recorded, or not searched in this way.
    """
    check_asked(source)
    known = [option.name for option in fields(PathOptions)]
    for option in options:
        if option not in known:
            raise UsageError(f"no option {option!r}", hint=" or ".join(get_close_matches(option, known) or known))
    chosen = PathOptions(**dict[str, Any](certify=True) | options)
    if layer is not None and layer != "all" and (isinstance(layer, bool) or not isinstance(layer, Integral)):
        raise UsageError(f"`layer={layer!r}`", hint='a whole number, or "all"')
    if isinstance(source, LoadedModel):
        if not isinstance(example, str):
            raise UsageError(f"{example} is no text", hint="a model reads a text, a run has examples")
        source = _with_row(source, example)
        traced = TracedModel(source.model, source.reader(), source.dims, source.architecture, source.has_sinks)
        decoder_ids = None if target_text is None else traced.decoder_ids_of(target_text)
        number = -1 if layer is None else layer
        ids = traced.ids_of(example)
        return traced.trace(ids, [to], number, chosen, bos_token_id=bos_token_id, decoder_input_ids=decoder_ids)[0]
    if target_text is not None:
        raise UsageError("a target text goes with a model", why="a run has texts of its own")
    weights = _output_weights(source, device, allow_pickle) if chosen.weighting == "value-norm" else None
    return trace_stored(
        source, example, [to], layer, chosen, stack=stack, bos_token_id=bos_token_id, output_weights=weights
    )[0]


def _with_row(model: LoadedModel, text: str) -> LoadedModel:
    """The model with a row that the text proves, where its family has none."""
    from traceformer.capture.encoding import Encoder
    from traceformer.capture.proofs.fit import fitted

    return fitted(model, Encoder(model, "auto", 64).encode([text]))


def _output_weights(run: Run, device: str | None, allow_pickle: bool) -> OutputWeights:
    """W_O of the model that a run was made with, found where it was found then."""
    loaded = load_model_of(run, device=device, allow_pickle=allow_pickle)

    def read(stack: Stack, attention: Attention, layer: int) -> Float[np.ndarray, "head d_head d_model"]:
        sizes = loaded.dims.stacks[stack].at(layer)
        return output_weights(loaded.model, stack, attention, layer, sizes.n_heads, loaded.architecture)

    return read


def trace_stored(
    store: Run,
    example: int | str,
    targets: Sequence[int],
    layer: int | Literal["all"] | None,
    options: PathOptions,
    *,
    stack: Stack | None = None,
    bos_token_id: int | None = None,
    output_weights: OutputWeights | None = None,
) -> list[Paths]:
    """Returns the paths that lead to each target in a recorded example.

    Args:
        store: A run that holds attention patterns.
        example: One of its examples, by number or id.
        targets: Where the paths begin; negative ones count from the end.
        layer: A layer's number in the model (negative: from the last), "all", or None for the last one recorded.
        options: How paths are searched.
        stack: Which stack of an encoder-decoder; its decoder, if that was recorded. Paths then lead into the source.
        bos_token_id: At which tokens paths end; by default at those that the tokenizer added.
        output_weights: Where W_O comes from, for the weighting `value-norm`.

    Raises:
        NotRecorded: the run lacks patterns, a layer or values that are needed.
        UsageError, Unsupported: as in `trace_paths`.
    """
    edges = stored_edges(
        store, example, layer, options, stack=stack, bos_token_id=bos_token_id, output_weights=output_weights
    )
    return trace_paths(edges.weights, edges.tokens, targets, options, source=edges.source, settings=edges.settings)


@dataclass(frozen=True, slots=True, eq=False)
class StoredEdges:
    """What is read of a recorded example before anything is searched: `trace_paths` takes it.

    Attributes:
        weights: Heads combined: one set, or one for each head.
        tokens: The tokens that look.
        source: Those that a decoder looks at in its encoder.
        settings: What else decides a result, to be stated in it.
    """

    weights: list[EdgeWeights]
    tokens: TokenRow
    source: TokenRow | None
    settings: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        arrays = [(one.matrices, one.chosen, one.source, one.source_chosen) for one in self.weights]
        return sum(array.nbytes for some in arrays for array in some if array is not None)


def stored_edges(
    store: Run,
    example: int | str,
    layer: int | Literal["all"] | None,
    options: PathOptions,
    *,
    stack: Stack | None = None,
    bos_token_id: int | None = None,
    output_weights: OutputWeights | None = None,
    progress: OnStep = quiet,
) -> StoredEdges:
    """Returns the edges of a recorded example, heads combined, as `trace_stored` reads them.

    Of the options only `agg_heads` and `weighting` count; the others may be changed from search to search.
    `progress` is told how many layers of how many are read.

    Raises:
        NotRecorded: the run lacks patterns, a layer or values that are needed.
        UsageError, Unsupported: there is no such search.
    """
    example_id = store.example_id(example)
    stack = stack or ("dec" if any(_pattern(store, "dec", kind) for kind in ("self", "cross")) else "enc")
    own, cross = _pattern(store, stack, "self"), _pattern(store, stack, "cross")
    spec = own or cross
    if spec is None and store.about.why_no_patterns is not None:
        raise NotRecorded("no attention patterns", why=store.about.why_no_patterns)
    if spec is None:
        names = ", ".join(str(each.key) for each in store.layout.arrays)
        raise NotRecorded("no attention patterns", why=f"the run holds {names}", hint='record it with `capture="attn"`')
    dims = store.about.dims_of(stack)
    numbers = _layers(spec, layer, dims)
    options.check("all" if layer == "all" else numbers[0], has_source=cross is not None)
    tokens = _tokens(store, example_id, stack, bos_token_id)
    source = None if cross is None else _tokens(store, example_id, "enc", None)
    lengths: dict[Attention, int] = {"self": len(tokens)}
    if source is not None:
        lengths["cross"] = len(source)
    n_ways = len(spec.heads) if options.agg_heads == "none" else 1
    for kind, keys in lengths.items():
        count = n_ways * len(numbers) + (len(spec.heads) if options.agg_heads != "none" else 0)
        wide, hint = np.dtype(np.float32), "a shorter text, or one layer"
        check_matrices(f"{stack}.{kind}, which paths are searched in,", count, len(tokens), keys, wide, hint)
    combiner = HeadCombiner(
        options,
        spec.heads if not isinstance(options.agg_heads, int) else (options.agg_heads,),
        layers=(dims.n_layers or 0) if layer == "all" else 1,
        queries=len(tokens),
        keys=lengths,
        has_sinks=bool(store.about.attention.sinks),
        passed=dims.without_attention if layer == "all" else (),
    )
    specs = [each for each in (own, cross) if each is not None]
    for index, (each, number) in enumerate(product(specs, numbers)):
        progress(index, len(specs) * len(numbers))
        place = number if layer == "all" else 0
        _read(store, example_id, each, place, number, options, combiner, output_weights)
    settings: dict[str, Any] = {
        "model": model_name(store.about.model or ""),
        "stack": stack,
        "run": store.about.run_id,
        "example_id": example_id,
        "stored_as": "sqrt8" if store.layout.attn_codec == "sqrt8" else store.dtype,
    }
    if layer == "all" and dims.without_attention:
        settings["without_attention"] = list(dims.without_attention)
    return StoredEdges(combiner.edge_weights("all" if layer == "all" else numbers[0]), tokens, source, settings)


def _pattern(store: Run, stack: Stack, kind: Attention) -> ArraySpec | None:
    key = ArrayKey(stack, kind, "attn_pattern")
    return next((spec for spec in store.layout.arrays if spec.key == key), None)


def _layers(spec: ArraySpec, layer: int | Literal["all"] | None, dims: Dims) -> tuple[int, ...]:
    """The numbers of the layers to read: across layers, all that have attention.

    Raises:
        SelectionError: no such layer in the model, or it has no attention; NotRecorded: not all that are needed are in
            the run.
    """
    stored = f"stored: {' '.join(map(str, spec.layers))}"
    n_layers, without = dims.n_layers or 0, dims.without_attention
    if layer is None:
        return (spec.layers[-1],)
    if layer == "all":
        if spec.layers != tuple(each for each in range(n_layers) if each not in without):
            raise NotRecorded("paths across layers need all of them", why=stored, hint="name one of these layers")
        return spec.layers
    if not -n_layers <= layer < n_layers:
        raise SelectionError(f"layer {layer} requested", why=f"the model has layers 0-{n_layers - 1}")
    if layer % n_layers in without:
        raise SelectionError(f"paths in layer {layer % n_layers}", why="it has no attention", hint=stored)
    if layer % n_layers not in spec.layers:
        raise NotRecorded(f"layer {layer % n_layers} is not in this run", why=stored)
    return (layer % n_layers,)


def _tokens(store: Run, example_id: str, stack: Stack, bos_token_id: int | None) -> TokenRow:
    encodings = store.encodings(example_id)
    prefix = "dec_" if stack == "dec" and store.arch == "encdec" else ""
    tokens = [str(each) for each in encodings[f"{prefix}tokens"]]
    # Runs that were imported may lack ids and places.
    ids = [int(each) for each in encodings.get(f"{prefix}input_ids") or [-1] * len(tokens)]
    offsets = encodings.get(f"{prefix}offset_mapping")
    pieces = shown_tokens(store, example_id, stack)
    if bos_token_id is not None:
        is_end = np.array([each == bos_token_id for each in ids], bool)
    else:  # tokens that are nowhere in the text were put there by the tokenizer
        is_end = np.array([start >= stop for start, stop in offsets or [(0, 1)] * len(ids)], bool)
    return TokenRow(ids, [each.text for each in pieces], [each.hex for each in pieces], is_end, np.ones(len(ids), bool))


def _read(
    store: Run,
    example_id: str,
    spec: ArraySpec,
    index: int,
    number: int,
    options: PathOptions,
    combiner: HeadCombiner,
    output_weights: OutputWeights | None,
) -> None:
    """Hands the patterns of a layer over, which is the one of this index among those that are read."""
    only = options.agg_heads if isinstance(options.agg_heads, int) else None
    heads = list(spec.heads if only is None else (only,))
    attention = spec.key.attention
    assert attention is not None
    patterns = store.get(example_id, spec.key, number, only)
    patterns = patterns[None] if only is not None else patterns
    products = None
    if options.weighting == "value-norm":
        if output_weights is None:
            raise UsageError("value-norm needs the model's W_O", why="no run holds it")
        values = np.stack([store.get(example_id, spec.key._replace(site="v"), number, head) for head in heads])
        products = value_products(values, output_weights(spec.key.stack, attention, number)[heads])
    _, queries, keys = patterns.shape
    combiner.add(attention, index, slice(0, queries), slice(0, keys), patterns, products)
