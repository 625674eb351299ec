"""What can be said of an export or an import, whatever the format."""

from dataclasses import dataclass, field
from pathlib import Path

from traceformer.errors import RunExists
from traceformer.formats.whole import refuse_to_replace
from traceformer.progress import OnStep, quiet

__all__ = ["ExportOptions", "ImportOptions"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Which examples (None for all), and what else a format is asked for.

    Attributes:
        steps: Whether what was captured at each step of a generation is written out, step by step; None does what
            the run was recorded for.
        overwrite: Whether files of the same names may be replaced.
        lossless: Whether what the format has no place for is added to it.
        layout: Which of the format's layouts to write, where it has several; None for its first.
        layers: Which layers to write, by the model's numbers; None for all that are stored.
        progress: Told after every example how many of how many are done.
    """

    example_ids: tuple[str, ...] | None = None
    steps: bool | None = None
    lossless: bool = False
    overwrite: bool = False
    progress: OnStep = quiet
    layout: str | None = None
    layers: tuple[int, ...] | None = None
    _claimed: dict[str, list[Path]] = field(
        default_factory=dict[str, list[Path]], init=False, repr=False, compare=False
    )

    def claimed(self, path: Path) -> Path:
        """Returns the path, if this export may write there.

        Raises:
            RunExists: something is there that may not be replaced, or that this export wrote for another example.
        """
        refuse_to_replace(path, overwrite=self.overwrite)
        alike = self._claimed.setdefault(str(path).casefold(), [])
        if any(_are_one(path, other) for other in alike):
            raise RunExists(f"two examples would be written to {path}", hint="write each to a folder of its own")
        alike.append(path)
        return path


def _are_one(path: Path, written: Path) -> bool:
    """Whether two names are of one file, as they are where a file system does not tell capitals from small letters."""
    return path == written or (path.exists() and written.exists() and path.samefile(written))


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Where the run goes (a folder in ./traces by default), and whether it may replace one."""

    out_dir: Path | None = None
    overwrite: bool = False
    progress: OnStep = quiet
