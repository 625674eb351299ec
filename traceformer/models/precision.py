"""Sums in float64, also of what lies on a device that has no such numbers."""

from torch import Tensor

__all__ = ["wide"]


def wide(tensor: Tensor) -> Tensor:
    """Returns the numbers in float64: where they lie, or on the processor if they lie on one of Apple's GPUs."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
