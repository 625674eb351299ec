"""How annotations are checked at run time in tests."""

from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar, get_args, is_typeddict, runtime_checkable

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

__all__ = ["checked"]

Function = TypeVar("Function", bound=Callable[..., Any])

_OVERRIDES: FrozenDict[Any, Any] = FrozenDict(
    {
        Self: Any,  # beartype knows what it means in a decorated class only, and the import hook decorates functions
        np.ndarray[Any, Any]: np.ndarray,  # beartype wants a dtype
    }
)
# An int is also a float, as PEP 484 and pyright have it.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_OVERRIDES))


def checked(function: Function) -> Function:
    """Returns the function with its annotations checked whenever it is called."""
    for hint in getattr(function, "__annotations__", {}).values():
        for protocol in _protocols(hint):
            runtime_checkable(protocol)  # beartype asks isinstance; the package itself has no need to
    return _check(function)


def _protocols(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and getattr(hint, "_is_protocol", False) and not is_typeddict(hint):
        yield hint
    for part in get_args(hint):
        yield from _protocols(part)
