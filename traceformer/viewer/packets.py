"""Arrays on their way to a page: a safetensors file, which a page reads as typed arrays without copying a number."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

from traceformer.presentation import plain
from traceformer.shapes import Shaped

__all__ = ["Packet"]


@dataclass(frozen=True, slots=True)
class Packet:
    """Arrays by name, and what is to be said of them; a page is sent `uint8` for pixels and `float32` for values."""

    arrays: Mapping[str, Shaped[np.ndarray, "..."]]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_bytes(self) -> bytes:
        """Returns the safetensors file; `about` is JSON in its metadata."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        return save(arrays, {"about": json.dumps(plain(dict(self.about)), ensure_ascii=False)})
