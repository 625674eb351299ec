"""Tensors of a model's forward passes, handed to callables that may put others in their place.

    with Touching(model, {(ArrayKey.parse("dec.resid_pre"), 3): lambda rows: 0 * rows}):
        model(ids)

1. Each place is that at which a recorder sees the array (`spots`), so that what is recorded meanwhile is what was put
   there.
2. Where a module makes or takes the tensor, a hook puts the new one in its place. Of the residual stream between blocks
   the tensor itself is overwritten: what else holds it, the stream behind a norm or a list of hidden states, is to have
   the new numbers, too.
3. Queries, keys, values, patterns and mixed values are those of the attention function. An edited pattern mixes the
   values of the rows that it changes; all others keep what the model's own kernel made of them.

A callable that returns the very tensor that it was given leaves the pass as it was, to the bit.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from traceformer.capture.attention import Changer, changing
from traceformer.capture.scores import AttentionCall, Span
from traceformer.capture.spots import Spot, place_of
from traceformer.capture.tensors import first_input, first_output, own_output, part_of
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture, Tap
from traceformer.models.held import underneath
from traceformer.models.outputs import output_site, why_no_output
from traceformer.models.own_attention import OWN_ATTENTION
from traceformer.models.part import text_part
from traceformer.sites import OUTPUTS, SITES, ArrayKey, Stack

__all__ = ["Place", "Touch", "Touching", "check_place"]

Place: TypeAlias = tuple[ArrayKey, int | None]
"""An array, and its layer where it has one."""

Touch: TypeAlias = Callable[[Tensor], Tensor]
"""Given the whole tensor of a pass, padding included, and returns what takes its place, of the same shape.

It is (batch, position, width); of q, k, v, z and the projections (batch, head, position, d_head); of scores and
patterns float32 (batch, head, query, key); of class logits (batch, label). Beside a cache, keys and values are those of
all tokens so far, positions and queries those of the pass.
"""

_OF_FUNCTION = ("q", "k", "v", "attn_scores", "attn_pattern", "z")
_STREAM = ("resid_pre", "resid_mid", "resid_post")


class Touching:
    """Context manager: while it lasts, every pass of the model hands the tensors of these places over.

    Args:
        model: A model of transformers, or a wrapper of one.
        touches: What each place is handed to.
        architecture: Another row than the family's own.

    Raises:
        Unsupported: on entry, if the model has no such place, or hides it.
    """

    def __init__(
        self, model: nn.Module, touches: Mapping[Place, Touch], architecture: Architecture | None = None
    ) -> None:
        self._model: Any = underneath(model)
        self._row = architecture or architecture_of(self._model.config)
        self._touches = dict(touches)
        self._dims = ModelDims.of(self._model)
        self._finished: set[Stack] = set()
        self._shapes: dict[Stack, tuple[int, int]] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._follow(undo)
            of_function: defaultdict[str, dict[str, Touch]] = defaultdict(dict)
            for place, touch in self._touches.items():
                check_place(self._model, self._row, *place)
                key, layer = place
                if key.site in _OF_FUNCTION:
                    row = self._row.stacks[key.stack]
                    attention = row.attention_of(key.attention)
                    assert attention is not None
                    path = f"{row.blocks}.{layer}."
                    if self._computes_itself(f"{path}{attention.module}"):
                        self._hook_mixed(self._module(f"{path}{attention.out_proj}"), key, touch, undo)
                    else:
                        of_function[f"{path}{attention.module}"][key.site] = touch
                elif key.site in OUTPUTS:
                    undo.callback(self._model.register_forward_hook(_changes_output(touch)).remove)
                else:
                    depth = len(self._module(self._row.stacks[key.stack].blocks))
                    spot = place_of(self._row, key, layer, depth)
                    assert spot is not None
                    self._hook(spot, key, layer, touch, undo)
            if of_function:
                changers: dict[nn.Module, Changer] = {
                    self._module(path): _AttentionTouches(touches) for path, touches in of_function.items()
                }
                undo.enter_context(changing(self._model, changers))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _module(self, path: str) -> Any:
        return text_part(self._model).get_submodule(path)

    def _computes_itself(self, path: str) -> bool:
        own = OWN_ATTENTION.get(self._row.own_attention)
        return own is not None and own.fits(self._module(path))

    def _follow(self, undo: ExitStack) -> None:
        """Notes the shape of each stack's pass, and when its blocks are done: a module may serve twice in one."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._finished.clear()
            if kwargs.get("encoder_outputs") is not None:
                self._finished.add("enc")

        for module in {self._model, self._model.base_model}:  # some heads call the decoder of their base model only
            undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for stack, row in self._row.stacks.items():
            blocks = self._module(row.blocks)

            def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stack: Stack = stack) -> None:
                rows = first_input(args, kwargs)
                if rows is not None and rows.dim() == 3:
                    self._shapes[stack] = (rows.shape[0], rows.shape[1])

            def leave(*_: Any, stack: Stack = stack) -> None:
                self._finished.add(stack)

            undo.callback(blocks[0].register_forward_pre_hook(enter, with_kwargs=True).remove)
            undo.callback(blocks[-1].register_forward_hook(leave).remove)

    def _hook(self, spot: Spot, key: ArrayKey, layer: int | None, touch: Touch, undo: ExitStack) -> None:
        module, dims = self._module(spot.path), self._dims.stacks[key.stack].at(layer)
        in_place = key.site in _STREAM and not (key.site == "resid_pre" and layer == 0)

        def changed(tensor: Tensor) -> Tensor | None:
            """What takes the tensor's place; None for itself, which may have been overwritten."""
            if spot.after is not None and spot.after not in self._finished:
                return None
            rows = self._by_position(tensor, key)
            part = part_of(rows, spot.tap, dims)
            by_head = part
            if _has_heads(key) and part.dim() == 3:
                by_head = part.unflatten(-1, (-1, dims.width_of(SITES[key.site]))).transpose(1, 2)
            new = touch(by_head) if spot.scale == 1 else _unscaled(by_head, touch, spot.scale)
            if new is by_head:
                return None
            _check_shape(new, by_head, key)
            if _has_heads(key) and part.dim() == 3:
                new = new.transpose(1, 2).flatten(-2)
            whole = _with_part(rows, spot.tap, dims, new).reshape(tensor.shape)
            if not in_place:
                return whole
            tensor.copy_(whole)
            return None

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = first_input(args, kwargs)
            new = None if given is None else changed(given)
            if new is None:
                return None
            placed = tuple(new if each is given else each for each in args)
            return placed, {name: new if each is given else each for name, each in kwargs.items()}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            made = first_output(output)
            new = None if made is None else changed(made)
            return None if made is None or new is None else _replaced(output, made, new)

        if spot.tap.side == "input":
            undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        else:
            undo.callback(module.register_forward_hook(after).remove)

    def _hook_mixed(self, out_proj: nn.Module, key: ArrayKey, touch: Touch, undo: ExitStack) -> None:
        """Where a module computes attention itself, mixed values are what its output projection is given."""
        width = self._dims.stacks[key.stack].width_of(SITES["z"])

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            mixed = args[0].unflatten(-1, (-1, width)).transpose(1, 2)
            new = touch(mixed)
            if new is mixed:
                return None
            _check_shape(new, mixed, key)
            return (new.transpose(1, 2).flatten(-2), *args[1:])

        undo.callback(out_proj.register_forward_pre_hook(before).remove)

    def _by_position(self, tensor: Tensor, key: ArrayKey) -> Tensor:
        """A module's tensor as (batch, position, width): some see a batch's tokens as rows of one matrix."""
        if tensor.dim() == 3:
            return tensor
        shape = self._shapes.get(key.stack)
        if tensor.dim() == 2 and shape is not None and len(tensor) == shape[0] * shape[1]:
            return tensor.unflatten(0, shape)
        raise Unsupported(
            f"what should be {key} has shape {tuple(tensor.shape)}",
            why="(batch, position, width) was expected",
            hint="run `traceformer check` on the model to see what it has",
        )


def check_place(model: Any, row: Architecture, key: ArrayKey, layer: int | None) -> None:
    """Refuses a place that a model lacks, or where nothing could be put.

    Raises:
        Unsupported: it is so, and why.
    """
    kind, site = model.config.model_type, SITES[key.site]
    if key.site == "hidden":
        raise Unsupported(
            "hidden cannot be edited", why="it only lists the stream", hint="edit resid_pre or resid_post"
        )
    if site.is_derived:
        raise Unsupported(f"{key.site} cannot be edited", why="it is computed beside the pass", hint="edit resid_post")
    if site.is_routing:
        raise Unsupported(
            f"{key.site} cannot be edited",
            why="the router chooses within itself",
            hint="edit mlp_norm, which it reads, or mlp_out",
        )
    if key.site in OUTPUTS and output_site(model) != key.site:
        raise Unsupported(f"this model has no {key.site}", why=why_no_output(key.site, model))
    if not row.has(key):
        raise Unsupported(f"{kind} has no {key}", why=row.refused.get(str(key), "its family has no such place"))
    if str(key) in row.unedited:
        raise Unsupported(f"{key} of {kind} cannot be edited", why=row.unedited[str(key)])
    if key.site not in _OF_FUNCTION or key.site == "z":
        return
    own = OWN_ATTENTION.get(row.own_attention)
    attention = row.stacks[key.stack].attention_of(key.attention)
    assert attention is not None
    path = f"{row.stacks[key.stack].blocks}.{layer}.{attention.module}"
    if own is not None and own.fits(text_part(model).get_submodule(path)):
        raise Unsupported(
            f"{key.site} of {kind} cannot be edited",
            why="its attention module computes scores and patterns within itself, and hands them to nobody",
            hint="edit z, q_proj, k_proj or v_proj",
        )


class _AttentionTouches:
    """What is to be done to one attention module's calls, by site."""

    def __init__(self, touches: Mapping[str, Touch]) -> None:
        self._touches = touches
        self._before: Tensor | None = None

    def operands(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._touched("q", query), self._touched("k", key), self._touched("v", value)

    def matrices(self, call: AttentionCall) -> AttentionCall:
        self._before = None
        if "attn_scores" not in self._touches and "attn_pattern" not in self._touches:
            return call
        heads = torch.arange(call.query.shape[1], device=call.query.device)
        queries, keys = Span(0, call.query.shape[2]), Span(0, call.key.shape[2])
        where = (None, heads, queries, keys)
        scores = call.scores(*where)
        new_scores = self._touched("attn_scores", scores)
        if new_scores is not scores:
            before = call.pattern(scores.clone(), *where)
            call = replace(call, edited_scores=new_scores, edited_pattern=None)
            pattern = call.pattern(new_scores.clone(), *where)
        else:
            before = pattern = call.pattern(scores, *where)
        new = self._touched("attn_pattern", pattern)
        if new is not before:
            self._before = before
            call = replace(call, edited_pattern=new)
        return call

    def mixed(self, call: AttentionCall, output: Tensor) -> Tensor:
        if self._before is not None and call.edited_pattern is not None:
            output = _mixed_anew(self._before, call, output)
            self._before = None
        mixed = output.transpose(1, 2)
        new = self._touched("z", mixed)
        return output if new is mixed else new.transpose(1, 2).contiguous()

    def _touched(self, site: str, tensor: Tensor) -> Tensor:
        touch = self._touches.get(site)
        new = tensor if touch is None else touch(tensor)
        if new is not tensor:
            assert new.shape == tensor.shape, f"{site} has another shape"
        return new


def _mixed_anew(before: Tensor, call: AttentionCall, output: Tensor) -> Tensor:
    """The attention function's output, (batch, position, head, d_head), with the rows whose pattern is another one."""
    assert call.edited_pattern is not None
    value = call.value.repeat_interleave(call.query.shape[1] // call.value.shape[1], dim=1)
    mixed = (call.edited_pattern @ value.to(call.edited_pattern.dtype)).to(output.dtype)
    # What padding sees may be no number; where both are none nothing was edited.
    differs = (before != call.edited_pattern) & ~(before.isnan() & call.edited_pattern.isnan())
    changed = differs.any(-1, keepdim=True)
    return torch.where(changed.transpose(1, 2), mixed.transpose(1, 2), output)


def _unscaled(made: Tensor, touch: Touch, scale: float) -> Tensor:
    """What a module is to make, so that this many times it is what a touch gives; what it leaves stays to the bit."""
    scaled = made * scale
    new = touch(scaled)
    return made if new is scaled else torch.where(new == scaled, made, new / scale)


def _has_heads(key: ArrayKey) -> bool:
    return SITES[key.site].axes[1:2] in (("head",), ("kv_head",))


def _check_shape(new: Tensor, old: Tensor, key: ArrayKey) -> None:
    assert new.shape == old.shape, f"{key} has shape {tuple(old.shape)}, not {tuple(new.shape)}"


def _with_part(rows: Tensor, tap: Tap, dims: StackDims, new: Tensor) -> Tensor:
    """The rows of a module, with a part of them replaced."""
    if tap.part == "whole":
        return new
    whole = rows.clone()
    if tap.fused == "per_head" and tap.part in ("q", "k", "v"):
        group = dims.n_heads // dims.n_kv_heads
        first, last = {"q": (0, group), "k": (group, group + 1), "v": (group + 1, group + 2)}[tap.part]
        grouped = whole.unflatten(-1, (dims.n_kv_heads, group + 2, -1))
        by_head = new if new.dim() == 4 else new.unflatten(-1, (-1, dims.d_head)).transpose(1, 2)
        grouped[..., first:last, :] = by_head.transpose(1, 2).unflatten(-2, (dims.n_kv_heads, last - first))
    elif tap.part in ("heads' first half", "heads' second half"):
        halves = whole.unflatten(-1, (dims.n_heads, 2, -1))
        halves.select(-2, int(tap.part == "heads' second half")).copy_(new.unflatten(-1, (dims.n_heads, -1)))
    else:
        part_of(whole, tap, dims).copy_(new)
    return whole


def _replaced(output: Any, made: Tensor, new: Tensor) -> Any:
    """A module's output with one of its tensors replaced, wherever it lies in it."""
    if output is made:
        return new
    if isinstance(output, tuple):
        return tuple(new if each is made else each for each in output)
    for name, each in output.items():
        if each is made:
            output[name] = new
    return output


def _changes_output(touch: Touch) -> Callable[..., Any]:
    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if hasattr(output, "start_logits"):
            both = own_output(output)
            assert both is not None
            new = touch(both)
            if new is not both:
                output["start_logits"], output["end_logits"] = new.unbind(-1)
            return None
        logits = own_output(output)
        if logits is None:
            logits = first_output(output)
        assert logits is not None
        new = touch(logits)
        return None if new is logits else _replaced(output, logits, new)

    return after
