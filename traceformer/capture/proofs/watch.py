"""One pass of a model watched, to find out which module plays which part: what each reads, what it makes, and when.

All blocks are watched from outside, and one of each stack from inside, or one of each kind where attention is in some
layers only: more would be memory for nothing, since a row says the same of every block, and the proofs go through all
of them.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from traceformer.capture.attention import Listening, observed_name
from traceformer.capture.proofs.check import Example, batch_of, implementation_of, using_attention
from traceformer.capture.scores import AttentionCall
from traceformer.capture.tensors import first_input, first_output, routing_in
from traceformer.errors import Unsupported
from traceformer.models.dims import StackDims
from traceformer.models.part import text_part
from traceformer.models.placed import input_device
from traceformer.sites import Stack

__all__ = ["Attended", "Call", "Watched", "insides", "is_list_of_blocks", "parts_of", "watch"]

_MOST_TOKENS = 24
_MOST_KINDS = 4


class Call(NamedTuple):
    """One call of a module: its path from the base model, what it reads and makes first, when it began and ended.

    `routing` is of experts: the numbers of those that each token goes to, and their weights, as `routing_in` has them.
    `chosen` is the first that it makes of whole numbers, as routers do.
    """

    path: str
    module: nn.Module
    given: Tensor
    made: Tensor
    began: int
    ended: int
    routing: tuple[Tensor, Tensor] | None = None
    chosen: Tensor | None = None


class Attended(NamedTuple):
    """One call of the attention function, by the module that made it; `mixed` is (batch, position, head, d_head)."""

    path: str
    query: Tensor
    key: Tensor
    value: Tensor
    mixed: Tensor


@dataclass(slots=True)
class Watched:
    """What one pass showed.

    Attributes:
        ids: What each stack read: (batch, position), without padding.
        calls: In the order in which they ended.
        attended: In the order in which they were made.
        last: What the base model gives, and of two stacks what its encoder gives.
        obstacle: Why the calls of the attention function could not be understood.
    """

    ids: Mapping[Stack, Tensor]
    calls: list[Call] = field(default_factory=list[Call])
    attended: list[Attended] = field(default_factory=list[Attended])
    last: dict[Stack, Tensor] = field(default_factory=dict[Stack, Tensor])
    obstacle: str = ""

    def of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def within(self, path: str) -> Iterator[Call]:
        """Yields the calls of a module's parts that were made once, since one that serves twice is no site."""
        for call in self.calls:
            if call.path.startswith(f"{path}.") and len(self.of(call.path)) == 1:
                yield call


def is_list_of_blocks(module: nn.Module, n_layers: int) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential) and len(module) == n_layers


def insides(blocks: Any, sizes: StackDims) -> list[int]:
    """Returns which blocks are watched from inside: one, and of a stack that has attention in some layers only more.

    The first of them has attention if any has; not that of layer 0, if there is a choice: it may be built otherwise, as
    ModernBERT's is. The others are one for each further way to build a block, a few at most.
    """
    second = min(1, sizes.n_layers - 1)
    if sizes.attending is None:
        return [second]
    attending = sizes.attending or range(sizes.n_layers)
    found = [second if second in attending else attending[0]]
    built = {parts_of(blocks[layer]) for layer in found}
    for layer in (second, *range(sizes.n_layers)):
        parts = parts_of(blocks[layer])
        if parts not in built and len(found) < _MOST_KINDS:
            built.add(parts)
            found.append(layer)
    return found


def parts_of(block: nn.Module) -> tuple[tuple[str, type[nn.Module]], ...]:
    """Returns the modules of a block, in which blocks of one kind are alike."""
    return tuple((name, type(module)) for name, module in block.named_modules())


def watch(model: PreTrainedModel, examples: Sequence[Example], stacks: Mapping[Stack, StackDims]) -> Watched:
    """Returns what a pass over these examples shows, each cut to the shortest, so that nothing is padding.

    Args:
        model: Any model.
        examples: Their tokens; two or more, or a batch could not be told from its texts.
        stacks: The sizes of each stack.
    """
    cut = _cut(examples)
    ids: dict[Stack, Tensor] = {
        stack: torch.tensor([each[stack] for each in cut], device=input_device(model)) for stack in cut[0]
    }
    watched = Watched(ids)
    base = text_part(model)
    inputs, _ = batch_of(model, cut)
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs = {**inputs, "use_cache": False}
    try:
        with using_attention(model, observed_name(implementation_of(model))):
            _run(model, inputs, watched, {module: path for path, module in _watchable(base, stacks)})
    except Unsupported as error:
        watched = Watched(ids, obstacle=error.message)
        _run(model, inputs, watched, {module: path for path, module in _watchable(base, stacks)})
    return watched


def _cut(examples: Sequence[Example]) -> list[dict[Stack, Sequence[int]]]:
    """As many tokens of each, and in a decoder beside an encoder one less than there, to tell which is which."""
    stacks = list(examples[0])
    most = {stack: min(_MOST_TOKENS, *(len(each[stack]) for each in examples)) for stack in stacks}
    if len(stacks) > 1 and most["enc"] == most["dec"] > 1:
        most["dec"] -= 1
    return [{stack: each[stack][: most[stack]] for stack in stacks} for each in examples]


def _watchable(base: nn.Module, stacks: Mapping[Stack, StackDims]) -> Iterator[tuple[str, nn.Module]]:
    lists = {
        path: (sizes.n_layers, insides(module, sizes))
        for path, module in base.named_modules()
        for sizes in stacks.values()
        if is_list_of_blocks(module, sizes.n_layers)
    }
    outer = {path: own for path, own in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    others = [f"{where}.{n}." for where, (depth, inside) in outer.items() for n in range(depth) if n not in inside]
    for path, module in base.named_modules():
        if not any(path.startswith(other) for other in others):
            yield path, module


class _Listener:
    """Notes the calls of the attention function that one module makes."""

    def __init__(self, path: str, watched: Watched) -> None:
        self._path, self._watched = path, watched
        self._call: AttentionCall | None = None

    def before(self, call: AttentionCall) -> None:
        self._call = call

    def after(self, output: Tensor) -> None:
        call = self._call
        assert call is not None
        self._watched.attended.append(Attended(self._path, call.query, call.key, call.value, output.clone()))
        self._call = None


def _tensors(output: Any) -> list[Tensor]:
    return [each for each in output if isinstance(each, Tensor)] if isinstance(output, tuple) else []


def _run(model: PreTrainedModel, inputs: Mapping[str, Any], watched: Watched, paths: Mapping[nn.Module, str]) -> None:
    began: dict[nn.Module, list[tuple[int, Tensor | None, tuple[Tensor, Tensor] | None]]] = {}
    clock = iter(range(1 << 30))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = first_input(args, kwargs)
        began.setdefault(module, []).append(
            (next(clock), None if given is None else given.clone(), routing_in(args, kwargs))
        )

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        (start, given, routing), made = began[module].pop(), first_output(output)
        if made is not None and given is not None:
            chosen = next((each for each in _tensors(output) if not each.is_floating_point()), None)
            watched.calls.append(Call(paths[module], module, given, made.clone(), start, next(clock), routing, chosen))

    listeners = {module: _Listener(path, watched) for path, module in text_part(model).named_modules()}
    encoder = model.get_encoder() if len(watched.ids) > 1 else None

    def last_of(stack: Stack) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            made = first_output(output)
            if made is not None:
                watched.last[stack] = made.clone()

        return note

    with ExitStack() as undo:
        for module in paths:
            undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(after).remove)
        undo.callback(text_part(model).register_forward_hook(last_of("dec" if "dec" in watched.ids else "enc")).remove)
        if encoder is not None:
            undo.callback(encoder.register_forward_hook(last_of("enc")).remove)
        undo.enter_context(Listening(dict(listeners)))
        with torch.inference_mode():
            model(**inputs)
