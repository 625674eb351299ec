"""A .safetensors file of arrays, as safetensors writes it, that others may read as they may any new file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from traceformer.shapes import Shaped

__all__ = ["write_tensor_file"]


def write_tensor_file(
    path: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays, and texts by their names.

    safetensors lets the owner of a file alone read it, whatever this process's other files are like.
    """
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(arrays), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(mode)
