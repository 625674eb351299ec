"""One block as it was watched in a pass, and by what its tensors and modules are told apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from traceformer.capture.proofs.watch import Attended, Call

__all__ = ["Block", "has_matrix", "is_leaf", "is_norm", "near", "norm_making", "same"]


@dataclass(frozen=True, slots=True)
class Block:
    """One block as it was watched: what enters, what leaves, its modules' calls, and what an encoder gave before it."""

    path: str
    module: nn.Module
    enters: Tensor
    leaves: Tensor
    calls: Sequence[Call]
    memory: Tensor | None

    def tap_path(self, call: Call | Attended) -> str:
        return call.path.removeprefix(f"{self.path}.")

    def rows(self, tensor: Tensor) -> Tensor:
        """(batch, position, width), also of what lies as one row of tokens after the other."""
        batch, length = self.enters.shape[-3:-1]
        is_flat = tensor.dim() == 2 and len(tensor) == batch * length
        return tensor.unflatten(0, (batch, length)) if is_flat else tensor

    def making(self, tensor: Tensor) -> list[Call]:
        """The calls that made these numbers, the innermost first."""
        return [call for call in self.calls if same(self.rows(call.made), tensor)]

    def reading(self, tensor: Tensor) -> list[Call]:
        return [call for call in self.calls if same(self.rows(call.given), tensor)]


def same(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors hold the very same numbers."""
    return one.shape == other.shape and torch.equal(one, other)


def near(one: Tensor, other: Tensor) -> bool:
    """Returns whether two sums may be of the same terms, in another order."""
    if one.shape != other.shape or not one.is_floating_point():
        return False
    own, of_other = one.cpu().double(), other.cpu().double()
    return bool((own - of_other).abs().max() <= 4 * torch.finfo(one.dtype).eps * of_other.abs().max())


def norm_making(block: Block, stream: Tensor, made: Tensor) -> Call | None:
    """Returns the module that makes this of the stream; None where it is the stream itself, or comes from elsewhere."""
    if same(stream, made):
        return None
    return next((call for call in block.reading(stream) if same(block.rows(call.made), made)), None)


def is_norm(call: Call) -> bool:
    """Returns whether the name of a module says that it is a norm."""
    return "norm" in type(call.module).__name__.lower()


def is_leaf(call: Call) -> bool:
    """Returns whether a module has no others in it."""
    return not list(call.module.children())


def has_matrix(call: Call) -> bool:
    """Returns whether a module has a matrix of its own, as a projection has."""
    return any(parameter.dim() == 2 for parameter in call.module.parameters(recurse=False))
