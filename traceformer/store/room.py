"""The memory that there is, and what is refused because it would take more."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.errors import OutOfSpace

__all__ = ["amount", "available_memory", "check_matrices"]

_MEMINFO = Path("/proc/meminfo")
_SMALL = 256 << 20  # bytes that nobody is asked about


def available_memory() -> int | None:
    """Returns the bytes of memory that can be had now, or else all that the machine has; None if nobody says."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def amount(size: int) -> str:
    """Returns a size in words, as memory is counted."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


def check_matrices(
    name: str,
    count: int,
    queries: int,
    keys: int,
    dtype: np.dtype[Any],
    hint: str = "some rows at a time: run.attn(example, layer, head, queries=slice(0, 1000))",
) -> None:
    """Makes sure that so many matrices of (query, key) fit into memory.

    Raises:
        OutOfSpace: they do not; the message says what they take and what there is.
    """
    size = count * queries * keys * dtype.itemsize
    free = available_memory() if size > _SMALL else None
    if free is not None and size > free:
        of = f"{count} matrices" if count > 1 else "a matrix"
        raise OutOfSpace(
            f"{of} of {name} of {queries} queries and {keys} keys take {amount(size)}, {amount(free)} are free",
            hint=hint,
        )
