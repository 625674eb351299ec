"""The compiled library: which variant of it this processor runs, and how to go without.

`TRACEFORMER_CORE` in the environment says so: `off` for numpy and torch alone, or the name of a variant.
"""

import ctypes
import os
from functools import cache
from typing import Any, NamedTuple

from traceformer.core.building import INTERFACE, LIBRARY
from traceformer.errors import UsageError

__all__ = ["SWITCH", "Core", "core", "described", "variants"]

SWITCH = "TRACEFORMER_CORE"
_OFF = ("off", "0")
_PATTERNS = 1  # rises when patterns may come out otherwise than before


class Core(NamedTuple):
    """The library in one of its variants: `plain`, `avx2`, `avx512` or `neon`."""

    library: ctypes.CDLL
    variant: str

    @property
    def kernel(self) -> str:
        """What made a pattern. The variants with a fused multiply-add give equal bits, and have one name."""
        return f"compiled {_PATTERNS}{', plain' if self.variant == 'plain' else ''}"

    def function(self, name: str) -> Any:
        """Returns one of the library's functions; it runs without the interpreter's lock."""
        return _function(self, name)


@cache
def _function(core: Core, name: str) -> Any:
    return getattr(core.library, f"{name}_{core.variant}")


def core() -> Core | None:
    """Returns the compiled core, or None where there is none, or it is switched off.

    Raises:
        UsageError: the environment names a variant that is not there.
    """
    return _chosen(os.environ.get(SWITCH, ""))


@cache
def _chosen(asked: str) -> Core | None:
    if asked in _OFF:
        return None
    there = variants()
    if asked and asked not in there:
        raise UsageError(
            f"{SWITCH}={asked}",
            why="there is no such variant here",
            hint=f"one of {' '.join((*there, 'off'))}, or leave it out",
        )
    library = _library()
    return None if library is None else Core(library, asked or there[0])


@cache
def variants() -> tuple[str, ...]:
    """Returns the variants that this processor can run, the fastest first; none without a library."""
    library = _library()
    if library is None:
        return ()
    level: int = library.tf_processor()
    if hasattr(library, "patterns_neon"):
        return ("neon", "plain")[level < 2 :]
    return ("avx512", "avx2", "plain")[2 - level :]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # it was not built, or for another machine
        return None
    if library.tf_interface() != INTERFACE:
        return None
    library.tf_prepare()
    return library


def described() -> str:
    """Returns in words what computes here."""
    there = core()
    return "without a compiled core" if there is None else f"compiled core, {there.variant}"
