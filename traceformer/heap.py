"""What the C library does with memory that a model has freed: kept for the next layer, or given back.

The layers of a model take and free the same activations over and over. glibc hands pieces of that size back to the
operating system, and takes them anew for the next layer: of every page the system then makes an empty one again.
"""

import os

__all__ = ["keep_freed_memory"]

# glibc's numbers of its settings, and the most that it takes for each.
_TRIM_THRESHOLD, _NEVER = -1, (1 << 31) - 1
_MMAP_THRESHOLD, _LARGEST = -3, 32 << 20


def keep_freed_memory() -> bool:
    """Returns whether this process keeps freed memory from now on, to use it again: True where glibc is the C library.

    Pieces of up to 32 MiB come from the heap, and the heap is not trimmed: a plain pass of GPT-2's shape faults a
    tenth as often or less. The price is that what was needed once stays with the process. The commands do this before
    they load a model; the functions of Python leave the process as it is, since it is not theirs: call this first.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):  # Windows has no such table
        return False
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST) and set_option(_TRIM_THRESHOLD, _NEVER))
