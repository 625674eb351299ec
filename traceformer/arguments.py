"""The arguments of a call against the annotations of what is called: a wrong type is refused in words.

1. Only what a builtin type says is looked at: numbers, True and False, text, paths, functions, and whether there is
   something to go through. An annotation that names anything else takes everything: whoever is given that refuses it.
2. Of a choice among names only that it is a name: the verb knows which there are.
3. A call that lacks an argument, or has one too many, is Python's to refuse.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from inspect import signature, unwrap
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

from traceformer.errors import UsageError

__all__ = ["checked", "kinds_of"]

P = ParamSpec("P")
R = TypeVar("R")

_SHOWN = (str, bytes, int, float, complex, NoneType)


class _Kind(NamedTuple):
    """One kind of values: whether a value is of it, and what it is called."""

    has: Callable[[Any], bool]
    words: str


def _is_truth(value: object) -> bool:
    """Whether it is True or False, numpy's, or the numbers that equal them; of a word, "no" would be true."""
    return type(value).__name__ in ("bool", "bool_") or (isinstance(value, Integral) and value in (0, 1))


_WHOLE = _Kind(lambda value: not isinstance(value, bool) and isinstance(value, Integral), "a whole number")
_NUMBER = _Kind(lambda value: not isinstance(value, bool) and isinstance(value, Real), "a number")
_YES_OR_NO = _Kind(_is_truth, "True or False")
_TEXT = _Kind(lambda value: isinstance(value, str), "text")
_PATH = _Kind(lambda value: isinstance(value, os.PathLike) or hasattr(value, "as_posix"), "a path")
_NOTHING = _Kind(lambda value: value is None, "None")
_SEVERAL = _Kind(lambda value: hasattr(value, "__iter__"), "a list")
_BY_NAME = _Kind(lambda value: hasattr(value, "keys"), "a dict")
_FUNCTION = _Kind(callable, "a function")

_OF_TYPE = {bool: _YES_OR_NO, int: _WHOLE, float: _NUMBER, str: _TEXT, Path: _PATH, NoneType: _NOTHING, None: _NOTHING}
_OF_ORIGIN = {
    **dict.fromkeys((Sequence, Iterable, Iterator, Collection, list, tuple), _SEVERAL),
    **dict.fromkeys((Mapping, dict), _BY_NAME),
    Callable: _FUNCTION,
    os.PathLike: _PATH,
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that makes sure of its arguments' types, and then does what it did.

    Its calls raise UsageError for an argument of another type than its parameter's.
    """
    return _checked(function)


@cache
def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    parameters = signature(function)
    kinds: dict[str, tuple[_Kind, ...]] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kinds:
            kinds.update(kinds_of(function))
        try:
            given = parameters.bind(*args, **kwargs).arguments
        except TypeError:
            given = {}
        for name, value in given.items():
            own = kinds.get(name, ())
            if own and not any(kind.has(value) for kind in own):
                what = f"={value!r}`" if isinstance(value, _SHOWN) else f"`: {type(value).__name__}"
                raise UsageError(f"`{name}{what}", hint=" or ".join(dict.fromkeys(kind.words for kind in own)))
        return function(*args, **kwargs)

    return call


def kinds_of(function: Callable[..., Any]) -> dict[str, tuple[_Kind, ...]]:
    """Returns the kinds that each parameter takes; none for one that takes everything."""
    names = getattr(unwrap(function), "__globals__", {})
    return {name: _kinds(each.annotation, names) for name, each in signature(function).parameters.items()}


def _kinds(annotation: Any, names: Mapping[str, Any]) -> tuple[_Kind, ...]:
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, dict(names))
        except NameError:  # imported for type checkers alone
            return ()
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        each = [_kinds(part, names) for part in get_args(annotation)]
        return tuple(kind for own in each for kind in own) if all(each) else ()
    if origin is Literal:
        choices = get_args(annotation)
        types = tuple({type(choice) for choice in choices})
        return (_Kind(lambda value: isinstance(value, types), " or ".join(map(str, choices))),)
    kind = _OF_ORIGIN.get(origin) if origin is not None else _OF_TYPE.get(annotation)
    return () if kind is None else (kind,)
