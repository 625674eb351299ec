"""An example at a glance: which heads it has pictures of, and what the model expected at each position."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.head_tally import attention_name
from traceformer.analysis.statistics import logit_statistics
from traceformer.analysis.thumbnails import part_starts
from traceformer.questions.lens import recorded_lens
from traceformer.questions.statistics import targets_of
from traceformer.questions.thumbnails import pattern_arrays, thumbnail_groups
from traceformer.questions.vocabulary import token_texts
from traceformer.shapes import Num, Shaped
from traceformer.sites import ArraySpec
from traceformer.store.run import Run
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.library import Library
from traceformer.viewer.packets import Packet
from traceformer.viewer.query import Query
from traceformer.viewer.tokens import token_labels

__all__ = ["overview", "predictions"]

_TOP = 3
_MOST_LOGITS = 1 << 28  # numbers of one example that are read for a page


def overview(library: Library, query: Query) -> dict[str, Any]:
    """Returns the attentions of an example: how their thumbnails are grouped, and how many cells these have."""
    run, row = example_asked(library, query)
    return {"attentions": [_attention(run, row, spec) for spec in pattern_arrays(run)]}


def _attention(run: Run, row: int, spec: ArraySpec) -> dict[str, Any]:
    queries, keys = (run.length(row, stack) for stack in (spec.key.stack, spec.key.key_stack))
    return {
        "name": attention_name(spec.key),
        "queries": queries,
        "keys": keys,
        "rows": len(part_starts(queries)),
        "columns": len(part_starts(keys)),
        "groups": [[heads.start, heads.stop] for heads in thumbnail_groups(run, row, spec)],
    }


def predictions(library: Library, query: Query) -> Packet:
    """Returns what was expected at each position: from recorded logits, else from what was read out of the last layer.

    `about` names the tokens, which the arrays number; `missing` says what was not recorded. Ranks count from 1, and
    are 0 where they are not known, as probabilities and entropies are NaN.
    """
    run, row = example_asked(library, query)
    logits, read_out = (_decoders_first(run, site) for site in ("logits", "lens_topk"))
    if logits is not None:
        return _of_logits(run, row, logits)
    if read_out is not None:
        return _of_lens(run, row, read_out)
    missing = (
        'What the model expected is not known: no logits were recorded. tf.record(..., capture="logits") keeps them.'
    )
    return Packet({}, {"source": None, "missing": missing})


def _decoders_first(run: Run, site: str) -> ArraySpec | None:
    found = [spec for spec in run.layout.arrays if spec.key.site == site]
    return min(found, key=lambda spec: spec.key.stack != "dec", default=None)


def _of_logits(run: Run, row: int, spec: ArraySpec) -> Packet:
    stack = spec.key.token_stack
    size = run.length(row, stack) * spec.width
    about = {"stack": stack, "speaks_of": _speaks_of(run)}
    if size > _MOST_LOGITS:
        missing = (
            f"This example has {size:,} logits, more than are read for a page; tf.statistics(run, each=...) reads all."
        )
        return Packet({}, {**about, "source": None, "missing": missing})
    targets = targets_of(run)(run.example_id(row))
    found = logit_statistics(run.get(row, spec.key), targets, CONVENTIONS["exact"], top=min(_TOP, spec.width))
    arrays = {
        "entropy": found.entropy,
        "top": found.top_ids,
        "top_probability": found.top_probabilities,
        "target": targets,
        "target_probability": found.target_probability,
        "target_rank": found.target_rank,
    }
    return _packet(run, arrays, {**about, "source": "logits", "most": float(np.log(spec.width)), "missing": ""})


def _of_lens(run: Run, row: int, spec: ArraySpec) -> Packet:
    if run.length(row, spec.key.token_stack) == 0:
        return Packet({}, {"source": None, "missing": "This example has no tokens."})
    found, layer = recorded_lens(run, row, layers=spec.layers[-1:], top=min(_TOP, spec.width)), spec.layers[-1]
    arrays = {
        "entropy": found.entropy[0],
        "top": found.top_ids[0],
        "top_probability": found.top_probabilities[0],
        "target": found.targets,
        "target_probability": found.target_probability[0],
        "target_rank": found.target_rank[0],
    }
    missing = (
        f"Only the {spec.width} likeliest tokens after layer {layer} were recorded (`lens_top_k`): "
        "the entropy is not known, nor is the probability of a token that is not among them."
    )
    about = {"stack": "dec", "speaks_of": _speaks_of(run), "source": "lens", "layer": layer, "most": 0.0}
    return _packet(run, arrays, {**about, "missing": missing})


def _speaks_of(run: Run) -> str:
    """Which token a row of logits is about; see `targets_of`."""
    if run.arch == "enc":
        return "own"
    return "label" if run.arch == "encdec" and "dec_labels" in run.columns else "next"


def _packet(run: Run, arrays: Mapping[str, Num[np.ndarray, "..."]], about: Mapping[str, Any]) -> Packet:
    """The arrays with token ids as numbers of `tokens`."""
    ids = sorted({int(token) for name in ("top", "target") for token in arrays[name].flat if token >= 0})
    text = token_texts(run)
    number = {token: place for place, token in enumerate(ids)}
    sent: dict[str, Shaped[np.ndarray, "..."]] = {}
    for name, values in arrays.items():
        if name in ("top", "target"):
            sent[name] = np.array([number.get(int(token), -1) for token in values.flat], np.int32).reshape(values.shape)
        else:
            sent[name] = values.astype(np.int32 if name == "target_rank" else np.float32)
    return Packet(sent, {**about, "tokens": token_labels([text(token) for token in ids], None)})
