"""The recorder: a `with` block in which a model's forward passes are observed and handed to a sink.

    with Recorder(model, arrays, sink) as recorder:
        recorder.run({"dec": [Span(0, 7)]}, input_ids=ids, attention_mask=mask)

It installs hooks on the modules that its family's row names and points the model's attention at the observed
function; when the block ends, hooks, implementation and training flags are what they were. A forward pass is cut
short as soon as everything asked for has been seen, so that nothing after it is computed.

    with Recorder(model, arrays) as recorder, recorder.growing(memory):
        model.generate(ids, attention_mask=mask)

observes passes that are not the recorder's own, each of which adds columns to the same sequences, to their end.
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn

from traceformer.capture.attention import Listener, Listening, observing
from traceformer.capture.own_attention import Watched, Watching
from traceformer.capture.passes import AttentionListener, EverythingSeen, ForwardPass, Growth, Wanted
from traceformer.capture.scores import Span
from traceformer.capture.sharing import Sharing
from traceformer.capture.sinks import Derived, Follows, GrowingSink, Reduced, Sink, Spans
from traceformer.capture.spots import place_of
from traceformer.capture.tensors import first_input, first_output, own_output, part_of, routing_in
from traceformer.errors import Unsupported, UsageError
from traceformer.models.dims import ModelDims, check_positions
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture, Tap
from traceformer.models.held import underneath
from traceformer.models.own_attention import OWN_ATTENTION
from traceformer.models.part import check_token_types, text_part
from traceformer.shapes import Int64
from traceformer.sites import OUTPUTS, SITES, ArrayKey, ArraySpec, Stack

__all__ = ["GrowingSink", "Growth", "Recorder", "Sink", "Span", "Spans"]


class _Delivery(NamedTuple):
    """What one hook hands over: which part of a module's tensor is which wanted array; the rest as of a `Spot`."""

    wanted: Wanted
    tap: Tap
    after: Stack | None = None
    scale: float = 1.0


_ROUTED = ("expert ids", "expert weights")

_recorded: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
_recorded_lock = threading.Lock()


class Recorder:
    """Observes the forward passes of one model from one thread, as long as the `with` block lasts.

    Args:
        model: a Hugging Face model (with or without a head) whose family has a row in `FAMILIES`; of a wrapper, such as
            DataParallel, the model underneath is run.
        arrays: what to record; layers and heads are the model's own numbers.
        sink: where the arrays of `run` go.
        architecture: another row than the family's own.
        derived: what those of the arrays are computed from that no module shows.
        follows: what is told of the attention calls of those patterns that are not computed.

    Raises:
        Unsupported: if it is no model that can be recorded; on entry or in the first pass, if something asked for is
            never seen.
        UsageError: on entry, if another recorder is at work on the same model.

    Attributes:
        arrays: What is recorded.
        sharing: Which rows may share a pass of this model.
    """

    def __init__(
        self,
        model: nn.Module,
        arrays: Sequence[ArraySpec],
        sink: Sink | None = None,
        architecture: Architecture | None = None,
        derived: Sequence[Derived | Reduced] = (),
        follows: Follows | None = None,
    ) -> None:
        self._model = underneath(model)
        config = self._model.config
        self._row = architecture or architecture_of(config)
        self.arrays = tuple(arrays)
        self._derived: dict[ArrayKey, Any] = {spec.key: each for each in derived for spec in each.specs}
        self._reduced: list[Any] = [each for each in derived if each.source.site == "attn_pattern"]
        self._follows = follows
        self._dims = ModelDims.of(self._model)
        self._wanted = frozenset(Wanted(spec, layer) for spec in arrays for layer in spec.layers or (None,))
        self._pass = ForwardPass(sink)
        self._undo = ExitStack()
        self.sharing = Sharing(self._model)

    def __enter__(self) -> Self:
        with _recorded_lock:
            # The base model stands for all: a model may be recorded with its head and without.
            if self._model.base_model in _recorded:
                raise UsageError("this model is already being recorded", hint="leave the other `with` block first")
            _recorded.add(self._model.base_model)
        with ExitStack() as undo:
            undo.callback(_recorded.discard, self._model.base_model)
            self._evaluate(undo)
            self._hook_modules(undo)
            self._observe_attention(undo)
            for reduced in self._reduced:
                undo.enter_context(reduced.at_work())
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def run(self, spans: Spans, **inputs: Any) -> None:
        """Runs the model on a batch, as far as is needed, and hands all that was asked for to the sink.

        Args:
            spans: for each stack, where each row of the batch has its true tokens.
            inputs: what the model's forward takes: `input_ids`, `attention_mask`, `decoder_input_ids`, ...

        Raises:
            Unsupported: the pass ended, and something asked for was never seen.
            UsageError: rows that may not share a pass, since one would change another's numbers; or a text that is
                longer than the model has positions for.
        """
        self.sharing.check(
            [dict(zip(spans, row, strict=True)) for row in zip(*map(_lengths, spans.values()), strict=True)]
        )
        check_positions(self._model, {stack: max(_lengths(own)) for stack, own in spans.items()})
        check_token_types(self._model, inputs)
        self.sharing.settle()
        tokens = _tokens(spans, inputs) if self._reduced else None
        self._pass.begin(self._wanted, spans, self._columns(spans, inputs), tokens)
        try:
            with torch.inference_mode():
                self._model(**inputs)
        except EverythingSeen:
            return
        finally:
            unseen = self._pass.end()
        self._refuse(unseen)

    def _columns(self, spans: Spans, inputs: Mapping[str, Any]) -> dict[Stack, int]:
        """How many positions each stack has in a pass, padding included."""
        columns: dict[Stack, int] = {}
        for stack, own in spans.items():
            prefix = "decoder_" if stack == "dec" and len(spans) > 1 else ""
            given = [inputs.get(f"{prefix}{name}") for name in ("input_ids", "inputs_embeds")]
            known = next((each for each in given if each is not None), None)
            columns[stack] = max(span.stop for span in own) if known is None else known.shape[1]
        return columns

    @contextmanager
    def growing(self, sink: GrowingSink) -> Generator[Growth]:
        """Observes every pass that the model makes in the block, as `generate` does with a cache, from start to end.

        Yields how far the sequences have grown. Scores of future keys are never computed there, so `attn_scores`
        cannot be recorded this way.

        Raises:
            Unsupported: from a pass that ended, and something asked for was never seen; or that repeats its context.
        """
        growth = Growth(sink, self.sharing)
        self.sharing.settle()
        with ExitStack() as undo:
            undo.callback(self._pass.end)
            undo.callback(setattr, self._pass, "growth", None)
            self._pass.growth = growth
            both = len(self._row.stacks) > 1
            passes: dict[Stack, nn.Module] = {list(self._row.stacks)[-1]: self._model}
            if both:
                passes["enc"] = self._model.get_encoder()
            for stack, module in passes.items():
                name = "decoder_input_ids" if both and stack == "dec" else "input_ids"
                begin = self._beginner(growth, stack, name)
                undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(self._end_of_pass).remove)
            yield growth

    def _beginner(self, growth: Growth, stack: Stack, name: str) -> Callable[..., Any]:
        mine = frozenset(wanted for wanted in self._wanted if wanted.spec.key.stack == stack)
        later = frozenset(wanted for wanted in mine if not wanted.of_other_stack)

        # Where last layers share keys, Gemma 4 runs a prompt's last token alone through them, unless all are asked for.
        leaves_out = any(hasattr(module, "_maybe_slice_kv_shared_inputs") for module in self._model.modules())

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            ids: Tensor = kwargs[name] if name in kwargs else args[0]
            check_token_types(self._model, kwargs)
            wanted = later if growth.seen.get(stack) else mine
            self._pass.begin_growing(wanted, growth, stack, ids.shape[1], batch=ids.shape[0])
            return (args, {**kwargs, "output_hidden_states": True}) if leaves_out else None

        return begin

    def _end_of_pass(self, *_: Any) -> None:
        unseen = self._pass.end()
        if unseen:
            self._refuse(unseen)

    def _refuse(self, unseen: Sequence[Wanted]) -> NoReturn:
        raise Unsupported(
            f"{type(self._model).__name__} never showed {', '.join(sorted({str(each.spec.key) for each in unseen}))}",
            why="its attention does not pass through transformers' attention function, or its row is wrong",
            hint="run `traceformer check` on the model to see what can be recorded",
        )

    def _evaluate(self, undo: ExitStack) -> None:
        for module in self._model.modules():
            if module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False

    def _hook_modules(self, undo: ExitStack) -> None:
        outputs: defaultdict[nn.Module, list[_Delivery]] = defaultdict(list)
        inputs: defaultdict[nn.Module, list[_Delivery]] = defaultdict(list)
        routings: defaultdict[nn.Module, list[_Delivery]] = defaultdict(list)
        for place in self._places.values():
            if place is not None:
                module, delivery = place
                seen = routings if delivery.tap.part in _ROUTED else inputs
                (outputs if delivery.tap.side == "output" else seen)[module].append(delivery)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = first_input(args, kwargs)
            if given is not None:
                self._deliver(module, inputs[module], given)

        def told(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._pass.is_observed:
                for part, tensor in zip(_ROUTED, routing_in(args, kwargs) or (), strict=False):
                    self._deliver(module, [each for each in routings[module] if each.tap.part == part], tensor)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            made = first_output(output)
            if made is not None:
                self._deliver(module, outputs[module], made)

        def head(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            made = own_output(output)
            if made is None:  # a bare model, whose last norm is taken for the whole of it
                made = first_output(output)
            assert made is not None
            self._deliver(module, outputs[module], made)

        # The marks come first: a delivery at the same module may end the pass.
        for stack, row in self._row.stacks.items():
            last = self._module(row.blocks)[-1]
            undo.callback(last.register_forward_hook(self._marker(stack)).remove)
        for module in inputs:
            undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        for module in routings:
            undo.callback(module.register_forward_pre_hook(told, with_kwargs=True).remove)
        for module in outputs:
            undo.callback(module.register_forward_hook(head if module is self._model else after).remove)

    def _marker(self, stack: Stack) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            if self._pass.is_observed:
                self._pass.finished.add(stack)

        return mark

    def _deliver(self, module: nn.Module, deliveries: Sequence[_Delivery], tensor: Tensor) -> None:
        if not self._pass.is_observed:
            return
        made: dict[Any, Mapping[ArrayKey, Tensor]] = {}
        for wanted, tap, after, scale in deliveries:
            if wanted in self._pass.pending and (after is None or after in self._pass.finished):
                rows = self._rows(module, wanted, tensor)
                part = part_of(rows, tap, self._dims.stacks[wanted.spec.key.stack].at(wanted.layer))
                part = part if scale == 1 else part * scale
                if wanted.spec.heads and part.dim() == 3:
                    part = part.unflatten(-1, (-1, wanted.spec.width)).transpose(1, 2)
                derived = self._derived.get(wanted.spec.key)
                if derived is not None:
                    assert wanted.layer is not None
                    if derived not in made:
                        made[derived] = derived.of(wanted.layer, part)
                    part = made[derived][wanted.spec.key]
                self._pass.take(wanted, part)

    def _rows(self, module: nn.Module, wanted: Wanted, tensor: Tensor) -> Tensor:
        """A module's tensor as (batch, position, width); (batch, width) where an array has one row per example.

        Some modules see a batch's tokens one after the other, as rows of one matrix. Nothing else is taken for what it
        may not be: with several residual streams, say, the first axis counts streams.
        """
        spec, batch = wanted.spec, self._pass.batch
        if spec.site.is_per_example:
            if tensor.dim() == 2 and len(tensor) == batch:
                return tensor
            expected = f"({batch}, width), a row for each text"
        else:
            columns = self._pass.columns[spec.key.token_stack]
            if tensor.dim() == 3 and tensor.shape[:2] == (batch, columns):
                return tensor
            # While sequences grow, a model computes the logits that it chooses by, and may leave out the others.
            few = self._pass.growth is not None and spec.site.name in OUTPUTS
            more = self._row.pads_texts and tensor.dim() == 3 and tensor.shape[1] > columns
            if tensor.dim() == 3 and len(tensor) == batch and (few or more):
                return tensor[:, :columns] if more else tensor
            if tensor.dim() == 2 and len(tensor) == batch * columns:
                return tensor.unflatten(0, (batch, columns))
            expected = f"({batch}, {columns}, width), batch by position"
        path = next((name for name, each in self._model.named_modules() if each is module), "")
        layer = "" if wanted.layer is None else f" of layer {wanted.layer}"
        raise Unsupported(
            f"what should be {spec.key}{layer} has shape {tuple(tensor.shape)}",
            why=f"{path or type(self._model).__name__} ({type(module).__name__}) hands it over, and {expected} was "
            "expected: the model may have several residual streams, or an axis of its own",
            hint="run `traceformer check` on the model to see what can be recorded",
        )

    @cached_property
    def _part(self) -> Any:
        return text_part(self._model)

    def _module(self, path: str) -> Any:
        """The module at a path from the base model."""
        try:
            return self._part.get_submodule(path)
        except AttributeError as error:
            raise Unsupported(
                f"{type(self._model).__name__} has no module {path}",
                why=f"the architecture row of {self._model.config.model_type!r} does not fit it",
                hint="run `traceformer check` on the model",
            ) from error

    @cached_property
    def _places(self) -> Mapping[Wanted, "tuple[nn.Module, _Delivery] | None"]:
        return {wanted: self._place(wanted) for wanted in self._wanted}

    def _place(self, wanted: Wanted) -> tuple[nn.Module, _Delivery] | None:
        """The module and side where a wanted array is seen; None for what passes through the attention function."""
        derived = self._derived.get(wanted.spec.key)
        key = wanted.spec.key if derived is None else derived.source
        (stack, _, site), layer = key, wanted.layer
        if not self._row.has(key):
            raise Unsupported(f"{self._model.config.model_type} has no {key}")
        if site in OUTPUTS:
            return self._model, _Delivery(wanted, Tap(""))
        spot = place_of(self._row, key, layer, len(self._module(self._row.stacks[stack].blocks)))
        return None if spot is None else (self._module(spot.path), _Delivery(wanted, *spot[1:]))

    def _observe_attention(self, undo: ExitStack) -> None:
        wanted_at: defaultdict[str, list[Wanted]] = defaultdict(list)
        for wanted in self._wanted:
            row = self._row.stacks[wanted.spec.key.stack]
            attention = row.attention_of(wanted.spec.key.attention)
            if attention is not None and self._places[wanted] is None:
                wanted_at[f"{row.blocks}.{wanted.layer}.{attention.module}"].append(wanted)
        if not wanted_at:
            return
        own = OWN_ATTENTION.get(self._row.own_attention)
        if own is not None and own.fits(self._module(next(iter(wanted_at)))):
            undo.enter_context(Watching(own, list(self._watched(wanted_at))))
            return
        if getattr(self._model.config, "reorder_and_upcast_attn", False):
            raise Unsupported("reorder_and_upcast_attn bypasses the attention function", hint="set it to False")
        listeners: dict[nn.Module, Listener] = {
            self._module(path): AttentionListener(self._pass, wanted, self._derived, self._follows)
            for path, wanted in wanted_at.items()
        }
        undo.enter_context(Listening(listeners))
        undo.enter_context(observing(self._model))

    def _watched(self, wanted_at: Mapping[str, Sequence[Wanted]]) -> Iterator[Watched]:
        """The attentions that compute scores themselves, by their paths."""
        for path, wanted in wanted_at.items():
            key = wanted[0].spec.key
            row = self._row.stacks[key.stack]
            attention = row.attention_of(key.attention)
            assert attention is not None
            out_proj = self._module(f"{row.blocks}.{wanted[0].layer}.{attention.out_proj}")
            width = self._dims.stacks[key.stack].width_of(SITES["z"])
            listener = AttentionListener(self._pass, wanted, self._derived, self._follows)
            yield Watched(self._module(path), out_proj, width, listener)


def _tokens(spans: Spans, inputs: Mapping[str, Any]) -> dict[Stack, list[Int64[np.ndarray, "_"]]]:
    """The token ids of each row of each stack, as far as the model is given ids."""
    found: dict[Stack, list[Int64[np.ndarray, "_"]]] = {}
    for stack, own in spans.items():
        ids = inputs.get("decoder_input_ids" if stack == "dec" and len(spans) > 1 else "input_ids")
        if ids is not None:
            rows = ids.cpu().numpy()
            found[stack] = [row[span.start : span.stop] for row, span in zip(rows, own, strict=True)]
    return found


def _lengths(spans: Sequence[Span]) -> list[int]:
    return [span.length for span in spans]
