"""Every error that Traceformer raises on purpose.

    TraceformerError
    ├── UsageError (ValueError)                 the call makes no sense as written           exit 2
    │   └── SelectionError                      a site, layer or head that cannot be meant
    ├── NotFound (FileNotFoundError)            a model, data set, file or run is not there  exit 3
    │   └── ExampleNotFound (KeyError)          no such example in this run
    ├── Unreadable (ValueError)                 it is there, but it is not what it should be exit 3
    │   └── CorruptRun                          a run whose checksums or records disagree
    ├── RunExists (FileExistsError)             something finished or in use is in the way   exit 3
    ├── ConfigurationChanged (ValueError)       an unfinished run was begun differently      exit 3
    ├── NotRecorded (RuntimeError, KeyError)    the run does not hold what was asked for     exit 3
    ├── Unsupported (NotImplementedError)       this model has no such place                 exit 4
    ├── NumericError (ArithmeticError)          a value that the run cannot hold             exit 4
    ├── Unreachable (ConnectionError)           a bucket does not answer, or refuses         exit 3
    └── OutOfSpace (OSError)                    the disk or the memory is full               exit 5

Each class is also the builtin that a caller would expect, so `except KeyError` works without
knowing this file. A message has up to three parts: what was asked and why it cannot be
(`str(error)`), and what would work instead (`error.hint`).
"""

from collections.abc import Iterable
from math import isfinite
from numbers import Integral, Real
from typing import Any

__all__ = [
    "ConfigurationChanged",
    "CorruptRun",
    "ExampleNotFound",
    "NotFound",
    "NotRecorded",
    "NumericError",
    "OutOfSpace",
    "RunExists",
    "SelectionError",
    "TraceformerError",
    "Unreachable",
    "Unreadable",
    "Unsupported",
    "UsageError",
    "check_choice",
    "check_is",
    "check_number",
    "check_whole",
]


class TraceformerError(Exception):
    """Base of all errors here; `hint` says what would work, `exit_code` is the command line's."""

    exit_code = 1

    def __init__(self, message: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return "; ".join(part for part in (self.message, self.why, self.hint) if part)


class UsageError(TraceformerError, ValueError):
    """The call makes no sense as written."""

    exit_code = 2


class SelectionError(UsageError):
    """A site, layer, head or token that cannot be meant."""


class NotFound(TraceformerError, FileNotFoundError):
    """A model, data set, file or run is not there."""

    exit_code = 3


class ExampleNotFound(NotFound, KeyError):
    """There is no such example in this run."""


class Unreadable(TraceformerError, ValueError):
    """It is there, but it is not what it should be."""

    exit_code = 3


class CorruptRun(Unreadable):
    """A run whose checksums or records disagree."""


class RunExists(TraceformerError, FileExistsError):
    """Something finished, or in use, is in the way."""

    exit_code = 3


class ConfigurationChanged(TraceformerError, ValueError):
    """An unfinished run was begun differently, or a model is another one than the run's."""

    exit_code = 3


class NotRecorded(TraceformerError, RuntimeError, KeyError):
    """The run does not hold what was asked for."""

    exit_code = 3


class Unsupported(TraceformerError, NotImplementedError):
    """This model has no such place, or cannot be recorded or asked in this way."""

    exit_code = 4


class NumericError(TraceformerError, ArithmeticError):
    """A value that is no finite number, or that the run cannot hold."""

    exit_code = 4


class Unreachable(TraceformerError, ConnectionError):
    """A bucket does not answer, or refuses."""

    exit_code = 3


class OutOfSpace(TraceformerError, OSError):
    """The disk or the memory is full."""

    exit_code = 5


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Makes sure that a parameter is one of a few names.

    Raises:
        UsageError: it is not.
    """
    choices = [*choices]
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"no {name} {value!r}", hint=" or ".join(choices))


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Makes sure that a parameter is a whole number, and not too small.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and int(value) < least):
        raise UsageError(f"`{name}={value!r}`", hint="a whole number" + ("" if least is None else f", {least} or more"))


def check_number(name: str, value: Any) -> None:
    """Makes sure that a parameter is a finite number.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise UsageError(f"`{name}={value!r}`", hint="a finite number")


def check_is(value: Any, kind: type, hint: str) -> None:
    """Makes sure that a value is of a kind; `hint` says what gives one.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise UsageError(f"{type(value).__name__} where {article} {kind.__name__} is wanted", hint=hint)
