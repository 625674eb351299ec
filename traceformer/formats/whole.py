"""Files that appear whole or not at all, and never in place of another unasked."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from traceformer.errors import RunExists

__all__ = ["appearing_whole", "refuse_to_replace"]


@contextmanager
def appearing_whole(path: Path) -> Generator[Path]:
    """Yields another name to write under: what is there takes the path's place at the end, or goes if writing failed.

    It may be a file or a folder, and replaces a file or a folder of the path's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        if path.is_dir():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def refuse_to_replace(path: Path, *, overwrite: bool) -> None:
    """Refuses to replace what is there, unless told to.

    Raises:
        RunExists: something is there.
    """
    if path.exists() and not overwrite:
        raise RunExists(f"{path} is there already", hint="`overwrite=True` replaces it")
