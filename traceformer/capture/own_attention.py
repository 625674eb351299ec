"""Attention modules that compute scores themselves, watched: the same calls reach the same listeners.

1. Hooks note what a module is given and what its projections make; where its family's function needs it, one of its
   methods is noted, too. All that runs is the module's own code, with its own results.
2. When the module is done, the family's function says what its scores were made of: an `AttentionCall`, as if it had
   passed through transformers' attention function.
3. What its output projection is given is the mixed values.
"""

import inspect
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from traceformer.capture.attention import Listener
from traceformer.capture.scores import AttentionCall
from traceformer.models.own_attention import ModuleCall, Operands, OwnAttention

__all__ = ["Watched", "Watching"]


class Watched(NamedTuple):
    """One attention: the module, the one that its mixed values go through, and who is told."""

    module: nn.Module
    out_proj: nn.Module
    d_head: int
    listener: Listener


class Watching:
    """Context manager: while it lasts, calls of these attention modules from this thread reach their listeners."""

    def __init__(self, own: OwnAttention, attentions: Sequence[Watched]) -> None:
        self._own = own
        self._attentions = attentions
        self._undo = ExitStack()

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        with ExitStack() as undo:
            for each in self._attentions:
                self._watch(each, undo)
            self._undo = undo.pop_all()

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _watch(self, each: Watched, undo: ExitStack) -> None:
        call, parameters = ModuleCall(each.module), inspect.signature(each.module.forward)

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            _forget(call)

        def end(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            if threading.get_ident() != self._thread:
                return
            given = parameters.bind(*args, **kwargs)
            given.apply_defaults()
            call.given = given.arguments
            try:
                each.listener.before(_call_of(self._own.operands(call)))
            finally:
                _forget(call)

        def mixed(module: nn.Module, args: tuple[Any, ...]) -> None:
            if threading.get_ident() == self._thread:
                try:
                    each.listener.after(args[0].unflatten(-1, (-1, each.d_head)))
                except BaseException:  # which may end the pass
                    _forget(call)
                    raise

        def note(name: str) -> Any:
            return lambda module, args, output: call.made.setdefault(name, []).append(output)

        undo.callback(_forget, call)
        undo.callback(each.module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for name, part in each.module.named_children():
            undo.callback(part.register_forward_hook(note(name)).remove)
        undo.callback(each.module.register_forward_hook(end, with_kwargs=True).remove)
        undo.callback(each.out_proj.register_forward_pre_hook(mixed).remove)
        if self._own.method:
            self._note_method(call, undo)

    def _note_method(self, call: ModuleCall, undo: ExitStack) -> None:
        module, name = call.module, self._own.method
        method = getattr(module, name)

        def noted(*args: Any) -> Any:
            result = method(*args)
            call.method = (args, result)
            return result

        setattr(module, name, noted)
        undo.callback(delattr, module, name)


def _forget(call: ModuleCall) -> None:
    """Nothing of the model's is kept alive between calls."""
    call.given, call.method = {}, None
    call.made.clear()


def _call_of(own: Operands) -> AttentionCall:
    shape = (own.query.shape[0], own.query.shape[1], own.query.shape[2], own.key.shape[2])

    def spread(tensor: Tensor | None) -> Tensor | None:
        """Over queries and keys; batch and heads may stay of size one."""
        if tensor is None:
            return None
        whole = tensor[(None,) * (4 - tensor.dim())]
        return whole.expand(*whole.shape[:2], *shape[2:])

    return AttentionCall(
        own.query,
        own.key,
        own.value,
        spread(own.mask),
        spread(own.bias),
        sinks=None,
        scaling=own.scaling,
        softcap=None,
        is_causal=False,
        window=None,
    )
