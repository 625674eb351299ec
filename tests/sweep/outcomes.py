"""What became of a family: the words for it, and all that the sweep keeps."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["OUTCOMES", "WRONG", "Outcome", "Result"]

Outcome: TypeAlias = Literal["PROVED", "PARTLY", "REFUSED", "CANNOT BUILD", "WRONG NUMBERS", "TRACEBACK"]

OUTCOMES: Mapping[Outcome, str] = {
    "PROVED": "every fact about what is recorded holds, and all of it that the model itself returns is the same: the "
    "residual stream at least, and patterns where attention passes through transformers' attention function",
    "PARTLY": "what is recorded is the same as what the model itself returns, but a fact fails, or the stream or the "
    "patterns are not among it",
    "REFUSED": "nothing is recorded, and the error says why",
    "CANNOT BUILD": "no tiny random model of it runs on tokens alone",
    "WRONG NUMBERS": "something was recorded that is not what the model itself returns",
    "TRACEBACK": "an error that is none of Traceformer's, or none at all",
}
WRONG: tuple[Outcome, ...] = ("WRONG NUMBERS", "TRACEBACK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one family.

    Attributes:
        made_by: The automatic class of transformers that makes it.
        why: What was refused, cannot be built, or went wrong, and how.
        row: `own` where the package has one, else `found`, or `like FAMILY` where that was the row of another.
        facts: How many hold; `failed` are those that do not.
        recorded: The sites that are recorded.
        refused: The sites that are not, and why.
        errors: Site -> how far what is recorded is from what the model itself returns, relative to max(1, |expected|).
        generated: Whether it answered a prompt; None where it generates no text.
    """

    family: str
    made_by: str = ""
    outcome: Outcome
    why: str = ""
    row: str = ""
    facts: int = 0
    failed: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    errors: Mapping[str, float] = field(default_factory=dict[str, float])
    generated: bool | None = None
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        stated: dict[str, Any] = json.loads(text)
        lists: dict[str, Any] = {name: tuple(stated.pop(name)) for name in ("failed", "recorded")}
        return cls(**stated, **lists)
