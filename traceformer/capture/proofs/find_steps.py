"""What a block adds to the residual stream, one thing after the other, found by equality of tensors in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from traceformer.capture.proofs.block import Block, near, same
from traceformer.capture.proofs.watch import Call

__all__ = ["Step", "first_step", "last_step", "made_in", "steps_of"]


class Step(NamedTuple):
    """Something is added to the stream, and perhaps normed with it: what, to what, and what the stream is then."""

    added: Tensor
    stream: Tensor
    then: Tensor
    norm: Call | None


def made_in(block: Block) -> list[Tensor]:
    """Returns what may be added: all different tensors that modules made, as wide as the stream, in their order."""
    found: list[Tensor] = []
    for call in block.calls:
        rows = block.rows(call.made)
        if rows.shape == block.enters.shape and not any(same(rows, each) for each in (block.enters, *found)):
            found.append(rows)
    return found


def _read(block: Block, stream: Tensor) -> list[Tensor]:
    """What the stream may be next: what modules read, in their order, and what leaves the block."""
    found: list[Tensor] = []
    for call in sorted(block.calls, key=lambda call: call.began):
        rows = block.rows(call.given)
        if rows.shape == stream.shape and not any(same(rows, each) for each in (stream, *found)):
            found.append(rows)
    return found if any(same(block.leaves, each) for each in found) else [*found, block.leaves]


def steps_of(block: Block, made: Sequence[Tensor], stream: Tensor, most: int, scale: float = 1.0) -> list[Step] | None:
    """Returns what is added to the stream, one after the other, until it is what leaves; None where none is found.

    Each is `scale` times what a module made.
    """
    if same(stream, block.leaves):
        return []
    if most == 0:
        return None
    for is_sum in (same, near):
        for then in _read(block, stream):
            for added in made:
                if not is_sum(stream + (added if scale == 1 else added * scale), then):
                    continue
                rest = steps_of(block, made, then, most - 1, scale)
                if rest is not None:
                    return [Step(added, stream, then, None), *rest]
                for norm in block.reading(then):
                    after = block.rows(norm.made)
                    if after.shape == stream.shape:
                        rest = steps_of(block, made, after, most - 1, scale)
                        if rest is not None:
                            return [Step(added, stream, after, norm), *rest]
    return None


def first_step(block: Block, made: Sequence[Tensor]) -> Step | None:
    """Returns what is added first, where no module shows what is added later."""
    return _step(block, made, [block.enters], _between(block))


def last_step(block: Block, made: Sequence[Tensor]) -> Step | None:
    """Returns what is added last, where no module shows what is added before."""
    return _step(block, made, _between(block), [block.leaves])


def _between(block: Block) -> list[Tensor]:
    return [each for each in _read(block, block.enters) if not same(each, block.leaves)]


def _step(block: Block, made: Sequence[Tensor], streams: Sequence[Tensor], then: Sequence[Tensor]) -> Step | None:
    for is_sum in (same, near):
        for stream in streams:
            for after in then:
                for added in made:
                    if not same(added, after) and is_sum(stream + added, after):
                        return Step(added, stream, after, None)
    return None
