"""Paths in a model and a text, which is run as far as the attention that is asked for.

1. `TracedModel` makes tokens of the text, and of a target text what a decoder reads.
2. `record` runs them, and combines heads while they are recorded. Patterns come from the recorder in blocks of
   queries, and each block's heads become rows of one matrix at once: no more than one (query, key) matrix per layer is
   kept, except where each head is traced by itself.
3. Combined heads and tokens go to `analysis.paths`, which searches and knows nothing of models.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from traceformer.analysis.paths.combining import HeadCombiner
from traceformer.analysis.paths.flow import value_products
from traceformer.analysis.paths.result import Paths
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, trace_paths
from traceformer.errors import Unsupported, UsageError
from traceformer.formats.results.path_traces import model_name
from traceformer.models.part import start_token_of, takes_positions, text_part
from traceformer.shapes import Bool, Float, Int
from traceformer.sites import SITES, ArraySpec, Attention, Selection, Stack
from traceformer.texts.shown import pieces_decoded, unnamed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from traceformer.capture.scores import Span
    from traceformer.models.dims import ModelDims, StackDims
    from traceformer.models.family import Architecture

__all__ = ["Text", "TracedModel", "output_weights", "record"]


class Text(NamedTuple):
    """Token ids, and which of them are true tokens."""

    ids: Int[np.ndarray, "token"]
    allowed: Bool[np.ndarray, "token"]

    @property
    def part(self) -> slice:
        """What is run: padding before and after is left out, so that it can shift no position."""
        true = np.flatnonzero(self.allowed)
        return slice(int(true[0]), int(true[-1]) + 1)


@dataclass(frozen=True, slots=True)
class TracedModel:
    """A model through which attention is followed backward, with its tokenizer and its sizes.

    `architecture` and `has_sinks` are told of a model that is not recorded as its family is.
    """

    model: "PreTrainedModel"
    tokenizer: Any
    dims: "ModelDims"
    architecture: "Architecture | None" = None
    has_sinks: bool | None = None

    def ids_of(self, text: str) -> list[int]:
        """Returns a text's tokens as the model reads them."""
        return self.tokenizer(text)["input_ids"]

    def decoder_ids_of(self, target_text: str) -> list[int]:
        """Returns a target's tokens as a decoder reads them: shifted right, behind its start token.

        Raises:
            UsageError: the model has no decoder beside an encoder.
        """
        start = start_token_of(self.model.config)
        if start is None:
            raise UsageError("this model has no decoder beside an encoder", hint="leave the target text out")
        return [start, *self.tokenizer(text_target=target_text)["input_ids"]][:-1]

    def trace(
        self,
        input_ids: Any,
        targets: Sequence[int],
        layer: int | Literal["all"],
        options: PathOptions,
        *,
        attention_mask: Any = None,
        bos_token_id: int | None = None,
        decoder_input_ids: Any = None,
    ) -> list[Paths]:
        """Returns the paths that lead to each of some tokens of a text, from one pass of the model.

        Args:
            input_ids: Token ids, (1, token) or (token).
            targets: Where the paths begin; negative ones count from the end.
            layer: A layer's number, negative counting from the last; or "all".
            options: How paths are searched.
            attention_mask: One number per token, 0 for padding; else padding is known by its token, if that means
                nothing else.
            bos_token_id: At which tokens paths end; by default at the tokenizer's.
            decoder_input_ids: What the decoder of an encoder-decoder reads; paths then lead from there into the source.

        Raises:
            UsageError: an argument out of range, or shapes that do not fit.
            Unsupported: this model's attention cannot be recorded, or not searched in this way.
        """
        text, source = self._read(input_ids, attention_mask), None
        stack: Stack = "dec" if self.dims.arch == "dec" else "enc"
        if decoder_input_ids is not None:
            if self.dims.arch != "encdec":
                raise UsageError("this model has no decoder beside an encoder", hint="leave the target text out")
            source, stack = text, "dec"
            # Never padded: T5's start token is its padding token.
            text = self._read(decoder_input_ids, np.ones_like(_as_row(decoder_input_ids, "decoder_input_ids")))
        tokens = self._tokens(text, stack, bos_token_id)
        weights = record(self, text, layer, options, stack=stack, source=source)
        name = model_name(self.model.config.name_or_path or type(self.model).__name__)
        settings: dict[str, Any] = {"model": name, "stack": stack}
        own = self.dims.stacks[stack]
        if layer == "all" and own.attending is not None:
            settings["without_attention"] = [each for each in range(own.n_layers) if each not in own.attending]
        origin = None if source is None else self._tokens(source, "enc", None)
        return trace_paths(weights, tokens, targets, options, source=origin, settings=settings)

    def _read(self, ids: Any, mask: Any) -> Text:
        """The token ids and which of them are true tokens.

        Raises:
            UsageError: a shape that does not fit, no token at all, an id without an embedding, or too many tokens.
        """
        numbers = _as_row(ids, "input_ids")
        if not len(numbers):
            raise UsageError("there is no token to trace", hint="give a text that is not empty")
        n_embeddings = int(self.model.get_input_embeddings().weight.shape[0])  # pyright: ignore
        if not 0 <= numbers.min() <= numbers.max() < n_embeddings:
            raise UsageError("a token id has no embedding", why=f"the model knows ids 0-{n_embeddings - 1}")
        if mask is None:
            names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
            pad = self.tokenizer.pad_token_id
            # A padding token that means something else as well is no sign of padding.
            means_more = pad is None or pad in {getattr(self.tokenizer, name, None) for name in names}
            allowed = np.ones(len(numbers), bool) if means_more else numbers != pad
        else:
            allowed = _as_row(mask, "attention_mask") != 0
        if len(allowed) != len(numbers):
            raise UsageError(f"a mask of {len(allowed)} for {len(numbers)} tokens")
        if not allowed.any():
            raise UsageError("all tokens are padding")
        n_ctx = max(dims.n_ctx for dims in self.dims.stacks.values())
        if 0 < n_ctx < len(numbers):
            raise UsageError(f"{len(numbers)} tokens are more than the model's {n_ctx}", hint="trace a shorter text")
        return Text(numbers, allowed)

    def _tokens(self, text: Text, stack: Stack, bos_token_id: int | None) -> TokenRow:
        ids, tokenizer = text.ids.tolist(), self.tokenizer
        # A model may have embeddings that its tokenizer has no token for.
        known = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
        names = [unnamed(each) if name is None else name for each, name in known]
        pieces = pieces_decoded(
            names, [tokenizer.decode([each]) or name for each, name in zip(ids, names, strict=True)]
        )
        ends = {tokenizer.bos_token_id if bos_token_id is None else bos_token_id}
        if stack == "enc":
            ends |= {getattr(tokenizer, name, None) for name in ("cls_token_id", "sep_token_id", "eos_token_id")}
        is_end = np.array([each in ends for each in ids])
        return TokenRow(ids, [piece.text for piece in pieces], [piece.hex for piece in pieces], is_end, text.allowed)


def record(
    traced: TracedModel,
    text: Text,
    layer: int | Literal["all"],
    options: PathOptions,
    *,
    stack: Stack,
    source: Text | None = None,
) -> list[EdgeWeights]:
    """Returns the edge weights of one layer or all: one set, or one per head if each is traced by itself.

    Args:
        traced: The model, which runs as far as the last layer that is asked for.
        text: What the traced stack reads.
        layer: A number, negative counting from the last, or "all".
        options: How heads become weights.
        stack: Which stack is traced.
        source: What the encoder reads, if paths lead from a decoder into it.

    Raises:
        UsageError: there is no such layer or head.
        Unsupported: this model's attention cannot be recorded.
    """
    from traceformer.capture.plan import plan_arrays
    from traceformer.capture.recorder import Recorder
    from traceformer.models.families import family_of

    model, dims = traced.model, traced.dims
    n_layers = dims.stacks[stack].n_layers
    if layer != "all" and not -n_layers <= layer < n_layers:
        raise UsageError(f"layer {layer} requested", why=f"{model.config.model_type} has layers 0-{n_layers - 1}")
    options.check(layer, has_source=source is not None)
    layers = dims.stacks[stack].attention_layers if layer == "all" else (layer % n_layers,)
    if not layers:
        raise Unsupported(f"paths of {model.config.model_type!r}", why="this model has no attention")
    sites = ("attn_pattern", "v") if options.weighting == "value-norm" else ("attn_pattern",)
    heads = (options.agg_heads,) if isinstance(options.agg_heads, int) else None
    selection = Selection(sites, layers={stack: layers}, heads={stack: heads})
    if len(sites) > 1 and dims.stacks[stack].alike(SITES["v"], layers) != layers:
        why = f"layers of {model.config.model_type} have values of different widths or heads"
        raise Unsupported("value norms of all layers at once", why=why, hint="one layer, by its number")
    plan = plan_arrays(selection, model, stacks=(stack,), architecture=traced.architecture)
    arrays = [spec for spec in plan.arrays if source is not None or spec.key.attention == "self"]
    texts: dict[Attention, Text] = {"self": text}
    spans: dict[Stack, list[Span]] = {stack: [_span(text)]}
    if source is not None:
        texts["cross"], spans["enc"] = source, [_span(source)]
    combiner = HeadCombiner(
        options,
        next(spec.heads for spec in arrays if spec.site.is_matrix),
        layers=n_layers if layer == "all" else 1,
        queries=len(text.ids),
        keys={attention: len(each.ids) for attention, each in texts.items()},
        passed=tuple(each for each in range(n_layers) if each not in layers) if layer == "all" else (),
        has_sinks=family_of(model.config).sinks if traced.has_sinks is None else traced.has_sinks,
    )
    counted = tuple(range(n_layers)) if layer == "all" else layers
    sink = _Sink(traced, dims.stacks[stack], counted, texts, combiner)
    with Recorder(model, arrays, sink, traced.architecture) as recorder:
        recorder.run(spans, **_inputs(model, dims, text, source))
    return combiner.edge_weights("all" if layer == "all" else layers[0])


def _span(text: Text) -> "Span":
    from traceformer.capture.scores import Span

    return Span(0, text.part.stop - text.part.start)


def _inputs(model: "PreTrainedModel", dims: "ModelDims", text: Text, source: Text | None) -> dict[str, Any]:
    """What the model's forward takes: the true tokens, their mask (which may have holes), explicit positions."""
    import torch

    from traceformer.models.placed import input_device

    accepted, device = inspect.signature(model.forward).parameters, input_device(model)
    inputs: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    named = {"": text} if source is None else {"": source, "decoder_": text}
    for prefix, each in named.items():
        inputs[f"{prefix}input_ids"] = torch.from_numpy(each.ids[each.part])[None].to(device)
        inputs[f"{prefix}attention_mask"] = torch.from_numpy(each.allowed[each.part])[None].long().to(device)
    if dims.arch == "dec" and takes_positions(model):
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1], device=device)[None]
    return inputs


class _Sink:
    """Where the recorder's arrays go."""

    def __init__(
        self,
        traced: TracedModel,
        dims: "StackDims",
        layers: tuple[int, ...],
        texts: Mapping[Attention, Text],
        combiner: HeadCombiner,
    ) -> None:
        self._traced = traced
        self._dims = dims
        self._layers = layers
        self._texts = texts  # whose tokens the keys are
        self._combiner = combiner
        self._values: dict[tuple[Attention, int], tuple[tuple[int, ...], Float[np.ndarray, "kv_head key d_head"]]] = {}

    def rows(self, spec: ArraySpec, layer: int | None, rows: "Tensor") -> None:
        """Takes values (batch, kv_head, key, d_head); they come before their patterns."""
        assert spec.key.attention is not None
        assert layer is not None
        self._values[spec.key.attention, layer] = (spec.heads, rows[0].float().cpu().numpy())

    def square(self, spec: ArraySpec, layer: int, example: int, queries: "Span", keys: "Span", block: "Tensor") -> None:
        """Takes some query rows of all heads' patterns."""
        attention = spec.key.attention
        assert attention is not None
        first_query, first_key = self._texts["self"].part.start, self._texts[attention].part.start
        self._combiner.add(
            attention,
            self._layers.index(layer),
            slice(first_query + queries.start, first_query + queries.stop),
            slice(first_key + keys.start, first_key + keys.stop),
            block.float().cpu().numpy(),
            self._products(spec, attention, layer),
        )

    def _products(self, spec: ArraySpec, attention: Attention, layer: int) -> Float[np.ndarray, "key head head"] | None:
        if (attention, layer) not in self._values:
            return None
        kv_heads, values = self._values[attention, layer]
        dims = self._dims.at(layer)
        group = dims.n_heads // dims.n_kv_heads
        own = values[[kv_heads.index(head // group) for head in spec.heads]]
        row = self._traced.architecture
        w_o = output_weights(self._traced.model, spec.key.stack, attention, layer, dims.n_heads, row)
        return value_products(own, w_o[list(spec.heads)])


def output_weights(
    model: "PreTrainedModel",
    stack: Stack,
    attention: Attention,
    layer: int,
    n_heads: int,
    architecture: "Architecture | None" = None,
) -> Float[np.ndarray, "head d_head d_model"]:
    """Returns W_O of one attention, head by head: what each head's mix of values becomes in the residual stream.

    Raises:
        Unsupported: no output projection is known of it.
    """
    from traceformer.models.block_weights import why_no_output
    from traceformer.models.families import architecture_of
    from traceformer.models.quantised import weights_of

    row = (architecture or architecture_of(model.config)).stacks[stack]
    own = row.attention_of(attention)
    assert own is not None
    if own.out_proj is None:
        raise Unsupported("value norms of this model", why=why_no_output(own))
    module: Any = text_part(model).get_submodule(f"{row.blocks}.{layer}.{own.out_proj}")
    array = weights_of(module).cpu().numpy() * np.float32(row.scale)
    return array.reshape(n_heads, -1, array.shape[1])


def _as_row(values: Any, name: str) -> Int[np.ndarray, "token"]:
    """One text's numbers, from (1, token) or (token).

    Raises:
        UsageError: another shape, or no whole numbers.
    """
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise UsageError(f"{name} of shape {array.shape}", hint="one text at a time: (1, token) or (token)")
    if array.size and array.dtype.kind not in "iub":
        raise UsageError(f"{name} are {array.dtype}, not whole numbers")
    return array.astype(np.int64)
