"""One long file that is read in consecutive windows of tokens, as byte-level models are measured on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["FileWindows", "Part"]

Part: TypeAlias = Literal["validation", "train", "all"]


@dataclass(frozen=True, slots=True)
class FileWindows:
    """A file in windows; `validation` is its last tenth, `train` what stands before that."""

    path: Path
    part: Part = "validation"

    def __str__(self) -> str:
        return f"{self.path} {self.part}"
