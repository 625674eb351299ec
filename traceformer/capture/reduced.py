"""What is made of patterns while the model runs, made ready for the texts and the store of one run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from traceformer.analysis.visibility import Visibility, visibility_of
from traceformer.capture.edits.session import edits_of, unedited
from traceformer.capture.measured import Measuring
from traceformer.capture.plan import Plan
from traceformer.capture.provenance import model_meta
from traceformer.capture.sight import few_tokens_of, looking_ahead
from traceformer.capture.tokenizing import Rows
from traceformer.capture.topk import KeepingTopK
from traceformer.errors import Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.meta import AttentionFacts
from traceformer.store.place import Storage

__all__ = ["LONG", "refuse_growing", "settled"]

LONG = 4096
"""Tokens of a text that is reduced in a pass of its own: padding would take a mask of a cell for every pair of them."""


def settled(plan: Plan, model: LoadedModel, rows: Rows, storage: Storage, longest: Mapping[Stack, int]) -> Plan:
    """Returns the plan with what reduces patterns told what these are rounded to, and which keys its queries see.

    Raises:
        Unsupported: it cannot be known which keys they see.
        UsageError: patterns would be stored in another way than what is made of them rounds them; or of each query more
            keys than the longest text has.
    """
    for spec in plan.arrays:
        _check_reduced(spec, storage, longest)
    own = getattr(torch, storage.dtype)
    if any(isinstance(each, Measuring) for each in plan.derived):
        facts, ahead = model_meta(model, plan).attention, _ahead(plan, model, rows)
    else:
        facts, ahead = AttentionFacts(), frozenset[tuple[ArrayKey, int]]()
    return replace(plan, derived=tuple(_settled(each, own, facts, ahead) for each in plan.derived))


def _check_reduced(spec: ArraySpec, storage: Storage, longest: Mapping[Stack, int]) -> None:
    if not spec.site.is_of_patterns:
        return
    if storage.attn_codec == "sqrt8":
        raise UsageError(
            f'`attn_codec="sqrt8"` and {spec.key}',
            why=f"it is how patterns are stored, and {spec.key} is made of patterns in {storage.dtype}",
            hint='`attn_codec="exact"`',
        )
    keys = longest.get(spec.key.key_stack, 0)
    if spec.key.site == "attn_topk" and spec.width > keys:
        raise UsageError(
            f"the {spec.width} largest keys of a query",
            why=f"no text has more than {keys} tokens",
            hint=f'`store_topk={max(1, keys)}`, or `capture="attn"`, which is all of them',
        )


def _settled(each: Any, dtype: torch.dtype, facts: AttentionFacts, ahead: frozenset[tuple[ArrayKey, int]]) -> Any:
    if isinstance(each, KeepingTopK):
        return replace(each, dtype=dtype)
    if not isinstance(each, Measuring):
        return each
    key = each.source
    sights: dict[int, Visibility] = {
        layer: visibility_of(facts, key, layer, ahead=(key, layer) in ahead) for layer in each.spec.layers
    }
    return replace(each, dtype=dtype, sights=sights)


def _ahead(plan: Plan, model: LoadedModel, rows: Rows) -> frozenset[tuple[ArrayKey, int]]:
    """The patterns in which a query looks at a later key, as a few tokens of a text show."""
    why, hint = "it has to be known which keys a query can see", 'record patterns: `capture="attn"`'
    if rows.given is not None:
        raise Unsupported("head metrics of a processor's batch", why=why, hint=hint)
    if any(edit.site in ("attn_scores", "attn_pattern") for edit in edits_of(model.model)):
        raise Unsupported("head metrics of edited patterns", why=why, hint=hint)
    few = few_tokens_of(rows)
    with unedited(model.model):
        return looking_ahead(model, few, tuple(few[0].ids) if few else None)


def refuse_growing(plan: Plan) -> None:
    """Refuses to reduce the patterns of texts that are being generated.

    Raises:
        Unsupported: the plan does so.
    """
    reduced = [spec for spec in plan.arrays if spec.site.is_of_patterns]
    if reduced:
        raise Unsupported(
            f"{reduced[0].key} of answers",
            why="it is made of whole texts, and these are being written",
            hint="record the finished texts with tf.record",
        )
