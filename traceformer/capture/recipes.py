"""How a model's patterns follow from its q and k, as its longest text shows: the recipes of a run.

1. Before the first batch the first tokens of that text run, and from each attention call is read what its scores are
   made of: scaling, softcap, sinks, which keys its queries see, and what is added to a score by where query and key
   are. If any of it is a tensor, a mask or a bias, and not said in a word, all of the text runs, which shows as much of
   it as any text will. What follows no rule that `store.recipes` knows is refused.
2. Some rows of its patterns are made anew by the recipe, and held against those that torch makes of the same call in
   float32.

While a run is recorded, `following` holds each call against its recipe.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from traceformer.capture.batches import BatchInputs
from traceformer.capture.edits.session import edits_of, unedited
from traceformer.capture.encoding import Encoded
from traceformer.capture.following import allowed_in, corner_of, operand_of, refused, stated_in
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.proofs.place import Rounding
from traceformer.capture.proofs.tested import tolerance_of
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import AttentionCall, Span
from traceformer.capture.tokenizing import Rows
from traceformer.capture.topk import KeepingTopK
from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.shapes import Bool
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack
from traceformer.store.rebuilding import rebuilt_of
from traceformer.store.recipes import Bias, LayerRecipe, Operand, Recipe, Seen

__all__ = ["Reading", "by_recipe", "with_operands"]

_FEW = 32  # tokens of the text that runs first
_WINDOWS = 64  # of different widths that are tried where columns are seen, too
_ROWS = 32  # of the first queries, and of the last ones, that are made anew


def by_recipe(plan: Plan, model: LoadedModel, rows: Rows) -> Plan:
    """Returns the plan with its patterns by recipe, and with the q and k that they are made of.

    Raises:
        UsageError: it has no patterns.
        Unsupported: they follow no recipe that is known.
    """
    if not _patterns(plan):
        largest = any(isinstance(each, KeepingTopK) for each in plan.derived)
        raise UsageError(
            'nothing to do for `patterns="recipe"`',
            why=f"no patterns are recorded{', but the largest keys of each query' if largest else ''}",
            hint="one of it and `store_topk`" if largest else '`capture="attn"` records them',
        )
    if rows.given is not None:
        raise refused("of a processor's batch", "which keys are seen there may depend on the batch")
    if any(edit.site in ("attn_scores", "attn_pattern") for edit in edits_of(model.model)):
        raise refused("that are edited", "they do not follow from q and k")
    plan = with_operands(plan, model)
    longest = _longest(rows)
    few = longest.cut(dict.fromkeys(longest.ids, _FEW))
    with unedited(model.model):
        seen = _read(plan, model, few)
        if not seen.is_said and few.lengths != longest.lengths:
            seen = _read(plan, model, longest)
    return replace(plan, recipes={spec.key: seen.recipe(spec) for spec in _patterns(plan)})


def _longest(rows: Rows) -> Encoded:
    """One text that is as long as the longest, in each stack.

    Raises:
        Unsupported: there is none with tokens in all of them.
    """
    longest: dict[Stack, int] = {
        stack: max(range(len(own)), key=own.__getitem__) for stack, own in rows.lengths.tokens.items() if len(own)
    }
    texts: dict[Stack, Encoded] = {
        stack: rows.part(range(number, number + 1))[1][0] for stack, number in longest.items()
    }
    if not texts or not all(text.ids[stack] for stack, text in texts.items()):
        raise refused("of texts without tokens", "how they are made is seen on one that has some")
    first = next(iter(texts.values()))
    return replace(first, ids={stack: texts[stack].ids[stack] for stack in first.ids})


def with_operands(plan: Plan, model: LoadedModel) -> Plan:
    """Returns the plan with q and k of the attentions whose patterns it has.

    Raises:
        Unsupported: q and k have not one shape in all of these layers.
    """
    arrays = list(plan.arrays)
    there = {spec.key for spec in arrays}
    for spec in _patterns(plan):
        stack = spec.key.stack
        asked = Selection(("q", "k"), layers={stack: spec.layers}, heads={stack: spec.heads})
        beside = plan_arrays(asked, model.model, stacks=tuple(model.dims.stacks), architecture=plan.architecture)
        for own in beside.arrays:
            if (own.key.stack, own.key.attention) != (stack, spec.key.attention):
                continue
            if own.layers != spec.layers:
                raise refused(f"of {spec.key}", f"{own.key} has another shape in some of its layers")
            if own.key not in there:
                arrays.insert(arrays.index(spec), own)
    return replace(plan, arrays=tuple(arrays))


def _patterns(plan: Plan) -> list[ArraySpec]:
    return [spec for spec in plan.arrays if spec.key.site == "attn_pattern"]


def _read(plan: Plan, model: LoadedModel, row: Encoded) -> "Reading":
    seen = Reading()
    with Recorder(model.model, _patterns(plan), None, plan.architecture, follows=seen) as recorder:
        inputs, spans = BatchInputs(model).to_run([row])
        recorder.run(spans, **inputs)
    return seen


class Reading:
    """Reads recipes from the calls of one pass over one text, and proves them there.

    Attributes:
        is_said: Whether all calls said in a word what queries see, and added nothing: what holds of any length.
    """

    def __init__(self) -> None:
        self.is_said = True
        self._layers: dict[tuple[ArrayKey, int], LayerRecipe] = {}
        self._stored: dict[ArrayKey, set[Operand]] = {}
        self._groups: dict[ArrayKey, set[int]] = {}
        self._biases: dict[ArrayKey, list[Bias]] = {}
        self._masks: dict[tuple[int, ArrayKey], tuple[object, tuple[Seen, ...]]] = {}

    def follows(self, key: ArrayKey) -> bool:
        return key.site == "attn_pattern"

    def follow(
        self, call: AttentionCall, spec: ArraySpec, layer: int, queries: Sequence[Span], keys: Sequence[Span]
    ) -> None:
        """Reads one call's recipe.

        Raises:
            Unsupported: its patterns follow none that is known, or are others by it.
        """
        heads, [of_queries], [of_keys] = list(spec.heads), queries, keys
        what = f"of layer {layer} of {spec.key}"
        seen = self._seen_in(call, spec, of_queries, of_keys, what)
        self.is_said = self.is_said and call.mask is None and call.bias is None
        biases = self._biases.setdefault(spec.key, [])
        bias = None
        if call.bias is not None:
            bias = _bias(corner_of(call.bias, 0, heads, of_queries, of_keys), len(heads), what)
        if bias is not None and bias not in biases:
            biases.append(bias)
        own = LayerRecipe(
            call.scaling,
            seen,
            call.softcap,
            None if call.sinks is None else tuple(call.sinks[heads].float().tolist()),
            None if bias is None else biases.index(bias),
        )
        _prove(call, spec, own, tuple(biases), of_queries, of_keys, what)
        self._layers[spec.key, layer] = own
        self._stored.setdefault(spec.key, set()).update(operand_of(each) for each in (call.query, call.key))
        self._groups.setdefault(spec.key, set()).add(call.query.shape[1] // call.key.shape[1])

    def _seen_in(self, call: AttentionCall, spec: ArraySpec, queries: Span, keys: Span, what: str) -> tuple[Seen, ...]:
        """Which keys a call's queries see; found out once of a mask that several layers share."""
        if call.mask is None:
            return (stated_in(call, what),)
        name = (id(call.mask), spec.key)
        if name not in self._masks:
            allowed = allowed_in(call, 0, list(spec.heads), queries, keys, what)
            seen = tuple(_seen(each, spec.key, what) for each in allowed)
            self._masks[name] = call.mask, seen[:1] if len(set(seen)) == 1 else seen
        return self._masks[name][1]

    def of_layer(self, key: ArrayKey, layer: int) -> Recipe:
        """Returns the recipe of one layer alone."""
        [group] = self._groups[key]
        return Recipe("float32", group, (self._layers[key, layer],), tuple(self._biases[key]))

    def recipe(self, spec: ArraySpec) -> Recipe:
        """Returns the recipe of an array whose layers all were read.

        Raises:
            Unsupported: they have not one.
        """
        stored, groups = self._stored[spec.key], self._groups[spec.key]
        if len(groups) > 1:
            raise refused(f"of {spec.key}", "not as many heads share their keys in all of its layers")
        layers = tuple(self._layers[spec.key, layer] for layer in spec.layers)
        kept = next(iter(stored)) if len(stored) == 1 else "float32"
        return Recipe(kept, next(iter(groups)), layers, tuple(self._biases[spec.key]))


def _prove(
    call: AttentionCall,
    spec: ArraySpec,
    own: LayerRecipe,
    biases: tuple[Bias, ...],
    queries: Span,
    keys: Span,
    what: str,
) -> None:
    """Holds some rows of what the recipe makes against torch's softmax in float32.

    Raises:
        Unsupported: they are further off than the rounding of float32 explains.
    """
    group = call.query.shape[1] // call.key.shape[1]
    recipe = Recipe("float32", group, (own,), biases)
    heads = torch.tensor(spec.heads, device=call.query.device)
    for first, stop in sorted({(0, min(_ROWS, queries.length)), (max(0, queries.length - _ROWS), queries.length)}):
        rows = Span(queries.start + first, queries.start + stop)
        scores = call.scores(0, heads, rows, keys)
        largest = float(scores.abs().max())
        expected = call.pattern(scores, 0, heads, rows, keys).cpu().numpy()
        for number, head in enumerate(spec.heads):
            query, key = _numbers(call.query[0, head], rows), _numbers(call.key[0, head // group], keys)
            made = rebuilt_of(recipe, 0, number, query, key, first=first)
            error = float(np.abs(made - expected[number]).max(initial=0))
            tolerance = tolerance_of(Rounding.SOFTMAX, torch.float32, largest)
            if not error <= tolerance:
                raise refused(what, f"head {head} is off by {error:.1e}, where rounding explains {tolerance:.0e}")


def _numbers(rows: Tensor, span: Span) -> np.ndarray:
    return rows[span.start : span.stop].float().contiguous().cpu().numpy()


def _seen(allowed: Bool[np.ndarray, "query key"], key: ArrayKey, what: str) -> Seen:
    """The rule by which a text's queries see keys.

    Raises:
        Unsupported: none that is known.
    """
    queries, keys = allowed.shape
    rules = [Seen()]
    if key.attention != "cross":
        places = np.arange(queries)
        before = int((places - allowed.argmax(axis=1)).max())
        behind = int((keys - 1 - allowed[:, ::-1].argmax(axis=1) - places).max())
        ahead = None if 0 < behind == queries - 1 else max(0, behind)
        rules = [Seen(None if before == queries - 1 else max(0, before), ahead)]
        if not behind:
            rules += [*_in_parts(allowed), *_with_columns(allowed)]
    for rule in rules:
        if np.array_equal(rule.allowed(range(queries), keys), allowed):
            return rule
    raise refused(what, "which keys its queries see follows no rule that is known")


def _in_parts(allowed: Bool[np.ndarray, "query key"]) -> list[Seen]:
    """The rule of texts in parts, whose first one ends where key 0 is seen no more."""
    ends = np.flatnonzero(~allowed[:, 0])
    return [Seen(behind=0, part=int(ends[0]))] if len(ends) else []


def _with_columns(allowed: Bool[np.ndarray, "query key"]) -> list[Seen]:
    """The rules of windows, the widest first, beside the columns that all queries behind them see."""
    unseen = np.flatnonzero(~allowed[-1])
    widest = len(allowed) - 2 - int(unseen[-1]) if len(unseen) else len(allowed) - 1
    columns = [column for column in range(len(allowed)) if allowed[column:, column].all()]
    return [
        Seen(before, 0, tuple(column for column in columns if column < len(allowed) - 1 - before))
        for before in range(widest, max(-1, widest - _WINDOWS), -1)
    ]


def _bias(part: Tensor, n_heads: int, what: str) -> Bias | None:
    """The rule of what is added to scores, (head, query, key); None where that is nothing.

    Raises:
        Unsupported: none that is known.
    """
    numbers = part.float().expand(n_heads, -1, -1).cpu().numpy()
    if not numbers.any():
        return None
    _, queries, keys = numbers.shape
    if queries > 1 and (numbers == numbers[:, :1]).all():
        return Bias.of("key", 0, numbers[:, 0])
    table = np.concatenate([numbers[:, :0:-1, 0], numbers[:, 0]], axis=1)
    distance = np.arange(keys) - np.arange(queries)[:, None]
    if not (table[:, distance + queries - 1] == numbers).all():
        raise refused(what, "what is added to its scores does not follow from where query and key are")
    return Bias.of("distance", 1 - queries, table)
