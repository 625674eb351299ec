"""A recording whose patterns are by recipe: each attention call is held against its recipe.

One that says something else stops the run, so that nothing is stored of which other patterns would be made. Masks and
biases that layers of a pass share are looked at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from traceformer.capture.scores import AttentionCall, Span
from traceformer.errors import Unsupported
from traceformer.shapes import Bool
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.recipes import Bias, Operand, Recipe, Seen

__all__ = ["Following", "allowed_in", "corner_of", "operand_of", "refused", "stated_in"]

_HINT = '`patterns="stored"` stores them cell by cell'
_OPERANDS: Mapping[torch.dtype, Operand] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Following:
    """Holds the calls of a recording against the recipes of its patterns."""

    def __init__(self, recipes: Mapping[ArrayKey, Recipe]) -> None:
        self._recipes = recipes
        self._held: dict[tuple[int, int], tuple[object, object]] = {}
        self._spans: object = None

    def follows(self, key: ArrayKey) -> bool:
        return key in self._recipes

    def follow(
        self, call: AttentionCall, spec: ArraySpec, layer: int, queries: Sequence[Span], keys: Sequence[Span]
    ) -> None:
        """Makes sure that a call's scores are made as the recipe says.

        Raises:
            Unsupported: they are not.
        """
        recipe, heads = self._recipes[spec.key], list(spec.heads)
        own, what = recipe.layers[spec.layers.index(layer)], f"of layer {layer} of {spec.key}"
        sinks = None if call.sinks is None else tuple(call.sinks[heads].float().tolist())
        if (call.scaling, call.softcap, sinks) != (own.scaling, own.softcap, own.sinks):
            raise refused(what, "in this text scores are scaled or capped otherwise than in the longest one")
        if recipe.stored != "float32" and {operand_of(call.query), operand_of(call.key)} != {recipe.stored}:
            raise refused(what, f"its q and k are {call.query.dtype} and {call.key.dtype} in this text")
        if self._spans is not queries:
            self._held.clear()
            self._spans = queries
        stated = stated_in(call, what)
        is_stated = call.mask is None and own.seen == (stated,)
        if not is_stated and not self._was_held(call.mask, (own.seen, stated)):
            for example, spans in enumerate(zip(queries, keys, strict=True)):
                _hold_seen(call, own.seen, example, heads, *spans, what)
        bias = None if own.bias is None else recipe.biases[own.bias]
        if (call.bias is not None or bias is not None) and not self._was_held(call.bias, bias):
            for example, spans in enumerate(zip(queries, keys, strict=True)):
                _hold_bias(call.bias, bias, example, heads, *spans, what)

    def _was_held(self, tensor: object, rule: object) -> bool:
        """Whether something of a call was held against a rule already in this pass; it is kept, and so is its name."""
        name = (id(tensor), hash(rule))
        if name in self._held:
            return True
        self._held[name] = (tensor, rule)
        return False


def stated_in(call: AttentionCall, what: str) -> Seen:
    """Returns what a call without a mask says of where its queries may look.

    Raises:
        Unsupported: its pattern is edited.
    """
    if call.edited_scores is not None or call.edited_pattern is not None:
        raise refused(what, "they are edited, and do not follow from q and k")
    window = call.window if call.is_causal else None
    return Seen(None if window is None else window - 1, 0 if call.is_causal else None)


def _hold_seen(
    call: AttentionCall, seen: tuple[Seen, ...], example: int, heads: list[int], queries: Span, keys: Span, what: str
) -> None:
    allowed = allowed_in(call, example, heads, queries, keys, what)
    rows = range(queries.length)
    for number in range(max(len(seen), len(allowed))):
        rule = seen[number if len(seen) > 1 else 0].allowed(rows, keys.length)
        if not np.array_equal(allowed[number if len(allowed) > 1 else 0], rule):
            raise refused(what, "in this text queries see other keys than by the rule of the longest one")


def _hold_bias(
    bias: Tensor | None, rule: Bias | None, example: int, heads: list[int], queries: Span, keys: Span, what: str
) -> None:
    given = None if bias is None else corner_of(bias, example, heads, queries, keys).float().cpu().numpy()
    if rule is None:
        fits = given is None or not given.any()
    elif given is None or not rule.covers(queries.length, keys.length):
        fits = False
    elif rule.by == "key":
        fits = bool((rule.table[:, None, : keys.length] == given).all())
    else:
        distance = np.arange(keys.length) - np.arange(queries.length)[:, None]
        fits = bool((rule.table[:, distance - rule.first] == given).all())
    if not fits:
        raise refused(what, "in this text something else is added to scores than in the longest one")


def allowed_in(
    call: AttentionCall, example: int, heads: list[int], queries: Span, keys: Span, what: str
) -> Bool[np.ndarray, "head query key"]:
    """Returns where a text's queries may look: by head, or for all heads together.

    Raises:
        Unsupported: that is not all that its mask says, or the pattern is edited.
    """
    stated, mask = stated_in(call, what), call.mask
    if mask is None:
        return stated.allowed(range(queries.length), keys.length)[None]
    if isinstance(mask, Tensor):
        part = corner_of(mask, example, heads, queries, keys)
        if part.dtype != torch.bool:
            hidden = part <= torch.finfo(part.dtype).min / 2
            if not bool((hidden | (part == 0)).all()):
                raise refused(what, "its mask adds numbers to scores by no rule that is known")
            part = ~hidden
    else:
        rows, columns = (torch.arange(*span, device=call.query.device) for span in (queries, keys))
        part = mask.allowed(example, torch.tensor(heads, device=call.query.device), rows, columns)
    return part.cpu().numpy()


def corner_of(tensor: Tensor, example: int, heads: list[int], queries: Span, keys: Span) -> Tensor:
    """Returns the (head or 1, query, key) part of a mask or bias, of which any axis but the last may have size one."""
    part = tensor[example if tensor.shape[0] > 1 else 0]
    part = part[heads] if part.shape[0] > 1 else part
    part = part[:, queries.start : queries.stop] if part.shape[1] > 1 else part.expand(-1, queries.length, -1)
    return part[..., keys.start : keys.stop]


def operand_of(tensor: Tensor) -> Operand:
    """Returns what q or k are stored as without loss."""
    return _OPERANDS.get(tensor.dtype, "float32")


def refused(what: str, why: str) -> Unsupported:
    """Returns the error for patterns that follow no recipe."""
    return Unsupported(f"patterns by recipe {what}", why=why, hint=_HINT)
