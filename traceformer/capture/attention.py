"""The attention function that is registered with transformers.

1. A recorder points the model's configs at `traceformer_<implementation>` instead of `<implementation>`.
2. transformers then calls `_observed` for every attention of that model. It calls the implementation that the
   model had before, with the same arguments, so that the output is the same to the bit.
3. Beside it, for the layers and heads that a recorder wants, scores and patterns are computed (`scores`).
4. A `Changer` of a module comes before that: it may put other tensors in the place of those of a call, and another
   pattern in the place of the one that they make. What listens then hears the changed call.

Nothing here decides what is wanted or where it goes: the recorder registers a `Listener` per attention module, and
edits register changers.
"""

import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from traceformer.capture.scores import AttentionCall, OwnMask
from traceformer.errors import Unsupported, UsageError

__all__ = [
    "Changer",
    "Listener",
    "Listening",
    "changing",
    "observed_name",
    "observing",
]

_PREFIX = "traceformer_"
_EAGER = "eager_attention_forward"  # what transformers' own code calls its eager attention

# What models pass along that cannot change the scores of a forward pass in eval mode.
_HARMLESS = frozenset(
    (
        "cache_position",
        "deterministic",
        "dropout",
        "labels",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "target_dtype",
        "tokenizer",
        "use_cache",
    )
)
_KNOWN = _HARMLESS | {"scaling", "is_causal", "sliding_window", "softcap", "s_aux", "position_bias"}


_MASKED_BY_INDEX = ("eager", "sdpa")


class Listener(Protocol):
    """What a recorder registers for one attention module."""

    def before(self, call: AttentionCall) -> None: ...
    def after(self, output: Tensor) -> None: ...


class Changer(Protocol):
    """What an edit registers for one attention module."""

    def operands(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what takes the place of these."""
        ...

    def matrices(self, call: AttentionCall) -> AttentionCall:
        """Returns the call with what takes the place of its scores and its pattern, if anything does."""
        ...

    def mixed(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Returns what takes the place of the attention function's output, (batch, position, head, d_head)."""
        ...


_listeners: dict[int, tuple[int, Listener]] = {}  # id(module) -> (thread, listener)
_changers: dict[int, list[Changer]] = {}  # id(module) -> those of all edits, in their order
_changed_configs: list[int] = []  # ids of the configs whose attention is observed for an edit
_lock = threading.Lock()


class Listening:
    """Context manager: while it lasts, calls of these attention modules from this thread reach their listeners."""

    def __init__(self, listeners: dict[nn.Module, Listener]) -> None:
        self._listeners = listeners

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with _lock:
            _listeners.update({id(module): (thread, listener) for module, listener in self._listeners.items()})

    def __exit__(self, *_: object) -> None:
        with _lock:
            for module in self._listeners:
                del _listeners[id(module)]


@contextmanager
def changing(model: nn.Module, changers: dict[nn.Module, Changer]) -> Generator[None]:
    """While it lasts, calls of these attention modules of a model go through their changers, from whatever thread."""
    with ExitStack() as undo:
        for config in _configs_of(model):
            _changed_configs.append(id(config))
            undo.callback(_changed_configs.remove, id(config))
        undo.enter_context(observing(model))
        for module, changer in changers.items():
            registered = _changers.setdefault(id(module), [])
            registered.append(changer)
            undo.callback(_forget_changer, id(module), changer)
        yield


def _forget_changer(module: int, changer: Changer) -> None:
    _changers[module].remove(changer)
    if not _changers[module]:
        del _changers[module]


@contextmanager
def observing(model: nn.Module) -> Generator[None]:
    """While it lasts, the attention of a model is the observed one; that of a model with edits is so already.

    Raises:
        Unsupported, UsageError: as of `observed_name`.
    """
    name = "_attn_implementation_internal"  # the public setter would also check and dispatch
    with ExitStack() as undo:
        for config in _configs_of(model):
            before = getattr(config, name)
            if id(config) in _changed_configs and (before or "").startswith(_PREFIX):
                continue
            undo.callback(setattr, config, name, before)
            setattr(config, name, observed_name(before or "eager"))
        yield


def _configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """Every config object that a module of the model reads its attention implementation from, each once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


def observed_name(implementation: str) -> str:
    """Returns the registered name under which calls of this implementation are observed.

    Raises:
        Unsupported: transformers knows no mask function for it, so the mask could not be kept the same.
        UsageError: it is such a name itself: the model shares its config with one that is being recorded.
    """
    if implementation.startswith(_PREFIX):
        raise UsageError(
            "this model shares its config object with one that is being recorded",
            hint="give it a copy of the config, or leave the other `with` block first",
        )
    name = _PREFIX + implementation
    masks = AttentionMaskInterface()
    if implementation not in masks.valid_keys():
        raise Unsupported(
            f"attention implementation {implementation!r} cannot be observed",
            hint="load the model with attn_implementation='sdpa' or 'eager'",
        )
    if name not in AttentionInterface().valid_keys():
        AttentionMaskInterface.register(name, masks[implementation])
        AttentionInterface.register(name, _Observed(implementation))
    return name


def _implementation(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that a module would call under this implementation; eager's lives beside the code that calls it."""
    if name != "eager":
        return AttentionInterface()[name]
    forward: Any = inspect.unwrap(type(module).forward)  # may be inherited from a class that lies elsewhere
    if _EAGER not in forward.__globals__:
        raise Unsupported(
            f"the eager attention of {type(module).__name__} cannot be observed",
            why=f"{forward.__module__} has no function called {_EAGER}",
            hint="load the model with attn_implementation='sdpa'",
        )
    return forward.__globals__[_EAGER]


class _Observed:
    """The registered attention function for one implementation."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        thread, listener = _listeners.get(id(module), (None, None))
        changers = _changers.get(id(module), ())
        inner = _implementation(self.implementation, module)
        if kwargs.get("indices") is not None and self.implementation in _MASKED_BY_INDEX:
            attention_mask = _masked_by_index(attention_mask, kwargs["indices"], query, key)
            kwargs = {**kwargs, "indices": None}
        if thread != threading.get_ident():
            listener = None
        if listener is None and not changers:
            return inner(module, query, key, value, attention_mask, **kwargs)
        for changer in changers:
            query, key, value = changer.operands(query, key, value)
        call = _read_call(module, query, key, value, attention_mask, kwargs)
        for changer in changers:
            call = changer.matrices(call)
        if listener is not None:
            listener.before(call)
        output = inner(module, query, key, value, attention_mask, **kwargs)
        for changer in changers:
            output = (changer.mixed(call, output[0]), *output[1:])
        if listener is not None:
            listener.after(output[0])
        return output


def _masked_by_index(mask: Tensor, indices: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask without the keys that an indexer did not pick, as models make it under `_MASKED_BY_INDEX` themselves.

    Under any other name, and so under an observed one, they leave that to the attention function: `indices` are those
    of the picked keys, (batch, query, picked).
    """
    others = indices.new_ones((*indices.shape[:2], key.shape[2]), dtype=torch.bool)
    others = others.scatter(-1, indices.long(), False).unsqueeze(1)
    return mask & ~others if mask.dtype == torch.bool else mask.masked_fill(others, torch.finfo(query.dtype).min)


def _read_call(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
) -> AttentionCall:
    scaling, is_causal, window = kwargs.get("scaling"), kwargs.get("is_causal"), kwargs.get("sliding_window")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [name for name, given in kwargs.items() if given is not None and name not in _KNOWN]
    if unknown:
        raise Unsupported(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to attention",
            why="it may change the scores in a way that is not understood here",
            hint="record sites outside attention, or ask for support of this family",
        )
    if not (mask is None or (mask.dim() == 4 if isinstance(mask, Tensor) else isinstance(mask, OwnMask))):
        raise Unsupported(
            "the attention mask is not a (batch, head, query, key) tensor",
            hint="load the model with attn_implementation='sdpa' or 'eager'",
        )
    if mask is None and window is not None and not is_causal and key.shape[2] >= window:
        raise Unsupported("bidirectional local attention without a mask", hint="use attn_implementation='sdpa'")
    return AttentionCall(
        query,
        key,
        value,
        mask,
        kwargs.get("position_bias"),
        kwargs.get("s_aux"),
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        kwargs.get("softcap"),
        # One query beside a cache sees all keys, as in transformers' own implementations.
        bool(is_causal) and query.shape[2] > 1,
        window,
    )
