"""Passes of a model that begin at the block that is touched, where an untouched pass of the same text left off.

1. An untouched pass keeps what enters each block, and a cache of keys and values.
2. A touched pass is the model's own forward, with its own masks, positions and caches. Each block before the touched
   one hands on what it is given; what enters the touched one is put in its place, from the untouched pass.
3. Where a text's tokens do not depend on later ones, only those from the first touched one on are read, beside a cache
   that holds the keys and values of those before it. Rows of a batch may be of one text or of several of equal length.
4. Where heads' mixed values are touched, that layer's attention is not computed again: its output projection
   is given the untouched values with the new ones in them.
5. Logits are computed at the position that is looked at, where the model's forward can be told (`logits_to_keep`).

Whether a model is made so that this holds is not asked here but found out: `sweeping` compares with whole passes.
"""

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from traceformer.capture.edits.touching import Place, Touch, Touching
from traceformer.capture.sharing import Sharing
from traceformer.capture.tensors import first_input, own_output
from traceformer.errors import Unsupported
from traceformer.models.behaviour import evaluating
from traceformer.models.dims import check_positions
from traceformer.models.families import architecture_of
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import output_site, why_no_output
from traceformer.models.part import check_token_types, start_token_of, takes_positions, text_part
from traceformer.models.placed import input_device, refuse_elsewhere
from traceformer.sites import Stack

__all__ = ["WAYS", "Passes", "Untouched", "Way"]

Way: TypeAlias = Literal["positions", "layers", "whole"]

WAYS: Mapping[Way, str] = {
    "positions": "from the touched layer and position on",
    "layers": "from the touched layer on",
    "whole": "whole passes",
}
"""How touched passes are made, the least work first, and in words."""


@dataclass(frozen=True, slots=True, eq=False)
class Untouched:
    """What an untouched pass over some texts of equal length left.

    Attributes:
        ids: The texts: (text, position).
        logits: Of the position that is looked at, or of all: (text, position, vocabulary).
        entering: What enters each block: (text, position, ...); empty where passes cannot begin at one.
        returned: How many things each block returns: None for a tensor alone, n for a tuple of which it is the first.
        prefix: Keys and values of each layer, all positions; empty where there is no such cache.
        mixed: What each output projection of attention is given, and how many things its attention returns; where it
            was not asked for, or is not known, empty.
    """

    ids: Tensor
    logits: Tensor
    entering: tuple[Tensor, ...] = ()
    returned: tuple[int | None, ...] = ()
    prefix: tuple[tuple[Tensor, Tensor], ...] = ()
    mixed: tuple[tuple[Tensor, int | None], ...] = ()

    @property
    def way(self) -> Way:
        """The least work that it allows."""
        return "positions" if self.prefix else "layers" if self.entering else "whole"


@dataclass(slots=True, eq=False)
class _Seen:
    """What an untouched pass showed of its blocks."""

    entering: list[Tensor] = field(default_factory=list[Tensor])
    returned: list[int | None] = field(default_factory=list[int | None])
    is_plain: bool = True


class Passes:
    """Forward passes of one model over texts of equal length, for what follows each position.

    Attributes:
        begins_at_mixed: Whether passes in which heads' mixed values are touched begin at the output projection.

    Args:
        model: A model that predicts tokens. Of an encoder-decoder the encoder reads the text, and the decoder its start
            token, so that the only position that is looked at is the first one of the answer.

    Raises:
        Unsupported: it predicts no tokens.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model: Any = model.model
        if output_site(model.model) != "logits":
            raise Unsupported(f"{model.name} predicts no tokens", why=why_no_output("logits", model.model))
        self.architecture = model.architecture
        self.stack: Stack = "dec" if model.dims.arch == "dec" else "enc"
        architecture = model.architecture or architecture_of(model.config)
        if architecture.pads_texts:
            raise Unsupported(f"sweeps of {model.name}", why="it pads texts, so that their positions are not its own")
        self._row = architecture.stacks[self.stack]
        self._blocks: list[nn.Module] = list(text_part(self._model).get_submodule(self._row.blocks))
        self._accepted = frozenset(inspect.signature(model.model.forward).parameters)
        self._is_causal = model.dims.arch == "dec"
        check_token_types(model.model, {})
        self._has_positions = takes_positions(model.model) and self._is_causal
        self._n_heads = model.dims.stacks[self.stack].n_heads
        in_every_layer = model.dims.stacks[self.stack].attending is None
        self.begins_at_mixed = self._row.attention.out_proj is not None and in_every_layer
        self._start: int | None = None
        if model.dims.arch == "encdec":
            self._start = start_token_of(model.config)
            if self._start is None:
                raise Unsupported("the model states no decoder_start_token_id", hint="set it in its config.json")
        self.sharing = Sharing(model.model)
        self.device, self.dtype = input_device(model.model), model.model.dtype

    def check_for_slopes(self) -> None:
        """Makes sure that a backward pass finds all weights on their devices.

        Raises:
            Unsupported: some are elsewhere until they are used.
        """
        refuse_elsewhere(self._model, "slopes")

    @property
    def n_layers(self) -> int:
        return len(self._blocks)

    def n_answers(self, length: int) -> int:
        """Returns at how many positions a text of this length is answered."""
        return length if self._start is None else 1

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """While it lasts, the model is in eval mode and keeps no gradients."""
        with evaluating(self._model), torch.inference_mode():
            yield

    def whole(self, ids: Tensor, at: int | None, touches: Mapping[Place, Touch] | None = None) -> Tensor:
        """Returns the logits of a whole pass, at one position or at all: (text, position, vocabulary)."""
        with Touching(self._model, touches or {}, self.architecture):
            return self._logits(ids, at)

    def untouched(self, ids: Tensor, at: int | None, *, way: Way, of_heads: bool = False) -> Untouched:
        """Returns what a pass leaves, as far as touched passes made in this way need it; see `Untouched.way`.

        `of_heads` says that heads' mixed values will be touched.

        Raises:
            UsageError: the texts are longer than the model has positions for.
        """
        check_positions(self._model, {self.stack: ids.shape[1]})
        if way == "whole":
            return Untouched(ids, self._logits(ids, at))
        cache = None
        if way == "positions" and self._is_causal and "past_key_values" in self._accepted:
            cache = DynamicCache(config=self._model.config)
            if len(cache.layers) not in (0, self.n_layers):  # Whisper's config counts the layers of its encoder
                cache = None
        seen, mixing = _Seen(), _Seen()
        with ExitStack() as undo:
            for attention, projection in self._attentions() if of_heads and self.begins_at_mixed else ():
                undo.callback(projection.register_forward_pre_hook(_noting_input(mixing, ids), with_kwargs=True).remove)
                undo.callback(attention.register_forward_hook(_noting_output(mixing)).remove)
            for block in self._blocks:
                undo.callback(block.register_forward_pre_hook(_noting_input(seen, ids), with_kwargs=True).remove)
                undo.callback(block.register_forward_hook(_noting_output(seen)).remove)
            logits = self._logits(ids, at, cache=cache)
        if not seen.is_plain or len(seen.entering) != len(self._blocks):
            return Untouched(ids, logits)
        is_mixed = mixing.is_plain and len(mixing.entering) == len(mixing.returned) == len(self._blocks)
        return Untouched(
            ids,
            logits,
            tuple(seen.entering),
            tuple(seen.returned),
            _prefix_of(cache, ids.shape[1]),
            tuple(zip(mixing.entering, mixing.returned, strict=True)) if is_mixed else (),
        )

    def _attentions(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each layer's attention and its output projection."""
        row = self._row.attention
        assert row.out_proj is not None
        return [(block.get_submodule(row.module), block.get_submodule(row.out_proj)) for block in self._blocks]

    def touched(
        self,
        base: Untouched,
        rows: Tensor,
        touches: Mapping[Place, Touch],
        at: int | None,
        *,
        layer: int,
        first: int,
        way: Way,
    ) -> Tensor:
        """Returns the logits of a touched pass, at one position or at all.

        Args:
            base: What the untouched pass left.
            rows: Which of its texts each row of the batch is.
            touches: What is touched, in this layer and later ones, from position `first` on.
            at: The position that is looked at; None for all.
            layer: The first one that is touched.
            first: The first position that is touched; there is nothing to see at earlier ones.
            way: How the pass is made.
        """
        ids = base.ids[rows]
        if way == "whole":
            return self.whole(ids, at, touches)
        first = 0 if way == "layers" else first if at is None else min(first, at)
        cache = None if first == 0 else self._filled(base, rows, layer, first)
        with ExitStack() as undo:
            for number in range(layer):
                _hand_on(self._blocks[number], base.returned[number], undo)
            entering = base.entering[layer][:, first:].index_select(0, rows)
            put = self._blocks[layer].register_forward_pre_hook(_putting(entering), with_kwargs=True)
            undo.callback(put.remove)
            own = next((place for place in touches if place[0].site == "z" and place[1] == layer), None)
            if base.mixed and own is not None:
                mixed, returned = base.mixed[layer]
                by_head = mixed[:, first:].index_select(0, rows).unflatten(-1, (self._n_heads, -1)).transpose(1, 2)
                new = touches[own](by_head).transpose(1, 2).flatten(-2)
                attention, projection = self._attentions()[layer]
                _replace(attention, lambda *_, **__: _several(projection(new), returned), undo)
                touches = {place: touch for place, touch in touches.items() if place != own}
            if touches:
                undo.enter_context(Touching(self._model, touches, self.architecture))
            logits = self._logits(ids, at, first, cache)
        return logits if at is not None or first == 0 else torch.cat([base.logits[rows, :first], logits], dim=1)

    def _filled(self, base: Untouched, rows: Tensor, layer: int, first: int) -> DynamicCache:
        """A cache of the positions before the first one. Layers that are skipped tell its length only."""
        cache = DynamicCache(config=self._model.config)
        for number, (keys, values) in enumerate(base.prefix):
            own = rows if number >= layer else rows[:1]
            cache.update(keys[own, :, :first], values[own, :, :first], number)
        return cache

    def _logits(self, ids: Tensor, at: int | None, first: int = 0, cache: DynamicCache | None = None) -> Tensor:
        self.sharing.settle()
        count, length = ids.shape
        inputs: dict[str, Any] = {"input_ids": ids[:, first:], "attention_mask": torch.ones_like(ids)}
        if self._start is not None:
            inputs["decoder_input_ids"] = torch.full((count, 1), self._start, device=ids.device)
        if self._has_positions:
            inputs["position_ids"] = torch.arange(first, length, device=ids.device).expand(count, -1)
        if "use_cache" in self._accepted:
            inputs["use_cache"] = cache is not None
        if cache is not None:
            inputs["past_key_values"] = cache
        is_told = at is not None and "logits_to_keep" in self._accepted
        if is_told and at is not None:
            inputs["logits_to_keep"] = torch.tensor([at - first], device=ids.device)
        logits = own_output(self._model(**inputs))
        assert logits is not None
        return logits if at is None or is_told else logits[:, at - first, None]


def _noting_input(seen: _Seen, ids: Tensor) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = first_input(args, kwargs)
        if rows is None or rows.shape[:2] != ids.shape:
            seen.is_plain = False
        else:
            seen.entering.append(rows.clone())

    return note


def _noting_output(seen: _Seen) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            seen.returned.append(None)
        elif isinstance(output, tuple) and isinstance(output[0], Tensor) and all(each is None for each in output[1:]):
            seen.returned.append(len(output))
        else:
            seen.is_plain = False

    return note


def _prefix_of(cache: DynamicCache | None, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values of all layers; none where a layer has another kind of cache, or no longer all of the text."""
    if cache is None:
        return ()
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or not layer.is_initialized:
            return ()
        if layer.keys.dim() != 4 or layer.keys.shape[2] != length:
            return ()
    return tuple((layer.keys, layer.values) for layer in layers)


def _hand_on(block: nn.Module, returned: int | None, undo: ExitStack) -> None:
    """Has a block hand on what it is given, as long as it is not undone."""
    _replace(block, lambda *args, **kwargs: _several(first_input(args, kwargs), returned), undo)


def _several(rows: Any, returned: int | None) -> Any:
    """The rows as a module returns them: alone, or as the first of several."""
    return rows if returned is None else (rows, *[None] * (returned - 1))


def _replace(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Has a module do something else, as long as it is not undone."""
    own = vars(module)
    if "forward" in own:
        undo.callback(setattr, module, "forward", own["forward"])
    else:
        undo.callback(delattr, module, "forward")
    module.forward = forward


def _putting(entering: Tensor) -> Callable[..., Any]:
    def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = first_input(args, kwargs)
        placed = tuple(entering if each is given else each for each in args)
        return placed, {name: entering if each is given else each for name, each in kwargs.items()}

    return put
