"""What a page asks for: a resource's name and texts by name, read as what they should be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from traceformer.errors import UsageError, check_choice

__all__ = ["Query"]

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a request, as text.

    Every reader raises UsageError for a value that is missing without a default, or is not what it should be.
    """

    values: Mapping[str, str] = field(default_factory=dict[str, str])

    def key(self, resource: str) -> str:
        """Returns what an exported page finds the answer by; `keyOf` in `web/src/source.ts` makes the same."""
        return "\n".join([resource, *(f"{name}={value}" for name, value in sorted(self.values.items()))])

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if value is None:
            raise UsageError(f"no {name} was given")
        return value

    def choice(self, name: str, choices: Iterable[str], default: str | None = None) -> str:
        value = self.text(name, default)
        check_choice(name, value, choices)
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        try:
            return int(self.text(name))
        except ValueError:
            raise UsageError(f"{name} is {value!r}", hint="a whole number") from None

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """Returns `0,3,5` as numbers; None where nothing was given, which means all."""
        value = self.values.get(name)
        if not value:
            return None
        try:
            return tuple(map(int, value.split(",")))
        except ValueError:
            raise UsageError(f"{name} is {value!r}", hint="whole numbers, such as 0,3,5") from None

    def fraction(self, name: str, default: float) -> float:
        value = self.values.get(name)
        try:
            return default if value is None else float(value)
        except ValueError:
            raise UsageError(f"{name} is {value!r}", hint="a number") from None
