"""The limits that a config names, such as a window or the length of first training, and both sides of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from traceformer.capture.proofs.check import Example
from traceformer.models.dims import ModelDims
from traceformer.models.part import text_config

__all__ = ["limits_of", "straddling"]

_LIMIT = re.compile(r"max_position|n_positions|n_ctx|window|local_attention|chunk_size|floor_scale")
_OF_LAYERS = re.compile(r"layer|pattern")  # which layers have a window is no length
_MOST_BYTES = 64 << 20  # of the patterns of one example, in float32


def limits_of(config: Any) -> dict[str, int]:
    """Returns the lengths beyond which a model may compute otherwise, by the names that its config has for them."""
    found: dict[str, int] = {}
    for name, value in _named(config.to_dict()):
        if _LIMIT.search(name) and not _OF_LAYERS.search(name) and value > 1:
            found.setdefault(name, value)
    return found


def _named(values: Mapping[Any, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif isinstance(name, str) and isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def straddling(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[list[Example], dict[str, str]]:
    """Returns the examples and, for each limit that all of them lie on one side of, one as long and one longer.

    These repeat the tokens of the longest one. The second value are limits with both sides that are too far off to be
    tested, and why.
    """
    stacks = ModelDims.of(model).stacks
    n_ctx = min((dims.n_ctx for dims in stacks.values() if dims.n_ctx), default=None)
    longest = max(examples, key=lambda example: sum(map(len, example.values())))
    grown, untested = [*examples], dict[str, str]()
    for name, limit in sorted(limits_of(text_config(model.config)).items(), key=lambda named: named[1]):
        most = limit + 1 if n_ctx is None else min(limit + 1, n_ctx)
        if max(min(map(len, example.values())) for example in grown) >= most:
            continue
        if sum(4 * dims.n_layers * dims.n_heads * most**2 for dims in stacks.values()) > _MOST_BYTES:
            if most > limit:
                untested[f"beyond {name}={limit}"] = "texts of that length take too long to prove everything of"
            continue
        for length in sorted({min(limit, most), most}):
            grown.append({stack: [ids[i % len(ids)] for i in range(length)] for stack, ids in longest.items()})
    return grown, untested
