"""Where stream and MLPs are seen, and which of their arrays are one tensor, so that a run keeps one of them.

What is seen at one spot is equal by construction: `hidden[3]` is taken where `resid_post[2]` is, and in some families
`mlp_down` where `mlp_out` is. What a block makes is what the next one takes in most models, but this is measured,
before a recording (`proofs/handed_on.py`) and, in every batch, where both are seen (`pipeline`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from traceformer.models.family import Architecture, StackRow, Tap
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.aliases import Aliases, Rows, each_once

__all__ = ["Spot", "aliases_of", "place_of", "scale_of", "seen_twice", "spot_of"]


class Spot(NamedTuple):
    """A module, by its path from the base model, and which of its tensors.

    `after` names a stack whose blocks must all have run before: a module may serve twice in one pass
    (NanoChat norms its embeddings with its final norm; encoder and decoder may share an embedding). `scale` is what the
    tensor is multiplied by before it is what is meant.
    """

    path: str
    tap: Tap
    after: Stack | None = None
    scale: float = 1.0


def spot_of(row: StackRow, key: ArrayKey, layer: int | None, depth: int) -> Spot | None:
    """Returns where an array of the stream or of an MLP is seen in a stack of `depth` blocks; None for other arrays."""
    site = key.site
    if site == "hidden":
        assert layer is not None
        if layer == depth and row.final_norm is not None:
            site = "final_norm"
        elif layer == 0:
            site = "embed"
        else:
            site, layer = "resid_post", layer - 1
    if site == "final_norm":
        assert row.final_norm is not None
        return Spot(row.final_norm, Tap(""), after=key.stack)
    if site == "embed":
        return Spot(f"{row.blocks}.0", Tap("", "input"))
    if site in ("resid_pre", "resid_post"):
        return Spot(f"{row.blocks}.{layer}", Tap("", "input" if site == "resid_pre" else "output"))
    tap = row.mlp.get(site)
    scale = scale_of(row) if site == "mlp_out" else 1.0
    return None if tap is None else Spot(f"{row.blocks}.{layer}.{tap.path}", tap, scale=scale)


def scale_of(row: StackRow) -> float:
    """Returns what sublayers' outputs are multiplied by before they are added, of a row whose numbers are known."""
    assert not isinstance(row.scale, str)
    return row.scale


def place_of(built: Architecture, key: ArrayKey, layer: int | None, depth: int) -> Spot | None:
    """Returns where any array but a model's own output is seen; None for what passes through the attention function."""
    row = built.stacks[key.stack]
    if key.site == "token_embed":
        is_shared = key.stack == "dec" and "enc" in built.stacks
        return Spot(row.token_embed, Tap(""), after="enc" if is_shared else None)
    spot = spot_of(row, key, layer, depth)
    if spot is not None:
        return spot
    attention = row.attention_of(key.attention)
    tap = None if attention is None else attention.tap(key.site)
    scale = scale_of(row) if key.site == "attn_out" else 1.0
    return None if tap is None else Spot(f"{row.blocks}.{layer}.{tap.path}", tap, scale=scale)


def aliases_of(
    arrays: Sequence[ArraySpec],
    row: Architecture,
    depths: Mapping[Stack, int],
    handed_on: Collection[tuple[Stack, int]],
) -> dict[Rows, Rows]:
    """Returns which of the layers to record are another one's.

    Args:
        arrays: What is recorded.
        row: Where it is seen.
        depths: How many blocks each stack has.
        handed_on: The blocks that take what the block before them made.
    """

    def are_equal(kept: Rows, other: Rows) -> bool:
        stack = kept.key.stack
        here, there = (spot_of(row.stacks[stack], *each, depths[stack]) for each in (kept, other))
        return here == there or (kept.key.site == "resid_pre" and (stack, kept.layer) in handed_on)

    return each_once(arrays, {stack: depths[stack] for stack in row.stacks}, are_equal)


def seen_twice(aliases: Aliases) -> dict[Rows, Rows]:
    """Returns the kept layers that are seen at a second spot, too, and an alias that is seen there.

    These are the inputs of blocks, all but the first, and what the blocks before them made.
    """
    found: dict[Rows, Rows] = {}
    for alias, kept in aliases.items():
        if kept.key.site == "resid_pre" and kept.layer:
            found.setdefault(kept, alias)
    return found
