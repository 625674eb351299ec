"""The attention function that is registered with transformers, and the mathematics of scores and patterns.

1. A recorder points the model's configs at `traceformer_<implementation>` instead of `<implementation>`.
2. transformers then calls `_observed` for every attention of that model. It calls the implementation that the
   model had before, with the same arguments, so that the output is the same to the bit.
3. Beside it, for the layers and heads that a recorder wants, scores and patterns are computed in float32 from
   the very q, k, bias and mask of that call, in blocks of queries whose size is bounded.

4. A `Changer` of a module comes before that: it may put other tensors in the place of those of a call, and another
   pattern in the place of the one that they make. What listens then hears the changed call.

Nothing here decides what is wanted or where it goes: the recorder registers a `Listener` per attention module, and
edits register changers.
"""

import inspect
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from traceformer.errors import Unsupported, UsageError

__all__ = [
    "AttentionCall",
    "Changer",
    "Listener",
    "Listening",
    "OwnMask",
    "Span",
    "blocks_of_queries",
    "changing",
    "observed_name",
    "observing",
]

_PREFIX = "traceformer_"
_EAGER = "eager_attention_forward"  # what transformers' own code calls its eager attention
_BLOCK_BYTES = 8 << 20  # of float32 scores in flight

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


class Span(NamedTuple):
    """The true tokens of one row of a padded batch: `start` .. `stop`-1 are not padding."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def counted_from(self, origin: int) -> "Span":
        return Span(self.start - origin, self.stop - origin)


@runtime_checkable
class OwnMask(Protocol):
    """A mask that an attention implementation keeps in a form of its own. It never lets a query look ahead."""

    def allowed(self, example: int | None, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Returns where these queries of these heads may look, boolean: (head, query, key).

        For `example` None (batch or 1, head, query, key). `queries` and `keys` are indices of the call's tensors.
        """
        ...


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one call of the attention function decided its scores from; tensors are the model's own.

    Shapes: `query` (batch, head, position, d_head); `key`, `value` (batch, kv_head, position, d_head); `mask` None,
    boolean (True = may look) or additive, (batch or 1, head or 1, query, key), like `bias`, or an implementation's own.
    `edited_scores` and `edited_pattern`, (batch, head, query, key), stand in the place of what the others make.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | OwnMask | None
    bias: Tensor | None
    sinks: Tensor | None
    scaling: float
    softcap: float | None
    is_causal: bool
    window: int | None
    edited_scores: Tensor | None = None
    edited_pattern: Tensor | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether some query may look at a later key; if not, what lies above the diagonal need not be computed."""
        if self.edited_pattern is not None:
            return True
        if self.mask is None:
            return not self.is_causal
        if self.query.shape[2] != self.key.shape[2]:
            return True
        if not isinstance(self.mask, Tensor):
            return False
        allowed = self.mask if self.mask.dtype == torch.bool else self.mask > torch.finfo(self.mask.dtype).min / 2
        return bool(allowed.triu(1).any())

    def scores(self, example: int | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
        """Returns the scores before the mask, float32 (head, query, key): scaled, softcapped, with position bias.

        For `example` None all rows of the batch: (batch, head, query, key). `queries` and `keys` are indices of this
        call's tensors.
        """
        if self.edited_scores is not None:
            return _cut(self.edited_scores, example, heads, queries, keys).clone()
        query = self.query if example is None else self.query[example]
        key = self.key if example is None else self.key[example]
        group = query.shape[-3] // key.shape[-3]
        q = _choose(_narrow(query, queries), heads).float()
        k = _narrow(key, keys)
        k = (k if heads.shape[0] == query.shape[-3] else k.index_select(-3, heads // group)).float()
        if q.shape[-3] == k.shape[-3]:
            scores = torch.matmul(q, k.transpose(-2, -1)).mul_(self.scaling)
        else:  # heads that share a kv_head are one product with it
            shared = q.unflatten(-3, (-1, group)).flatten(-3, -2)
            scores = torch.matmul(shared, k.transpose(-2, -1)).mul_(self.scaling)
            scores = scores.unflatten(-2, (group, -1)).flatten(-4, -3)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            scores += _cut(self.bias, example, heads, queries, keys)
        return scores

    def pattern(self, scores: Tensor, example: int | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
        """Returns softmax(scores after the mask), float32 and of the shape of `scores`. Overwrites `scores`.

        With attention sinks a row sums to less than one: the sink's share is left out, not redistributed.
        """
        if self.edited_pattern is not None:
            return _cut(self.edited_pattern, example, heads, queries, keys)
        if self.mask is not None:
            mask = _cut_mask(self.mask, example, heads, queries, keys)
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        elif self.is_causal:
            ahead = torch.arange(keys.start, keys.stop, device=scores.device)
            here = torch.arange(queries.start, queries.stop, device=scores.device)[:, None]
            hidden = ahead > here
            if self.window is not None:
                hidden |= ahead <= here - self.window
            scores = scores.masked_fill_(hidden, -torch.inf)
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks[heads].float()[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]


def _cut_mask(mask: Tensor | OwnMask, example: int | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    if isinstance(mask, Tensor):
        return _cut(mask, example, heads, queries, keys)
    rows, columns = (torch.arange(*span, device=heads.device) for span in (queries, keys))
    return mask.allowed(example, heads, rows, columns)


def _choose(tensor: Tensor, heads: Tensor) -> Tensor:
    """Those heads of (.., head, position, d_head); the tensor itself where they are all of them."""
    return tensor if heads.shape[0] == tensor.shape[-3] else tensor.index_select(-3, heads)


def _narrow(tensor: Tensor, span: Span) -> Tensor:
    """Those positions of (.., position, d_head); the tensor itself where they are all of them."""
    return tensor if span.length == tensor.shape[-2] else tensor.narrow(-2, span.start, span.length)


def _cut(tensor: Tensor, example: int | None, heads: Tensor, queries: Span, keys: Span) -> Tensor:
    """The (head or 1, query, key) corner of a mask or bias whose batch and head axes may have size one.

    That of one example, or of all rows for None.
    """
    part = tensor if example is None else tensor[example if tensor.shape[0] > 1 else 0]
    part = _choose(part, heads) if part.shape[-3] > 1 else part
    return part[..., queries.start : queries.stop, keys.start : keys.stop]


def blocks_of_queries(span: Span, n_heads: int, n_keys: int) -> Iterator[Span]:
    """Yields consecutive parts of `span` whose float32 scores over all keys stay within a fixed memory."""
    if span.length == 1:
        yield span
        return
    rows = max(1, _BLOCK_BYTES // (4 * n_heads * max(1, n_keys)))
    for start in range(span.start, span.stop, rows):
        yield Span(start, min(start + rows, span.stop))


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
