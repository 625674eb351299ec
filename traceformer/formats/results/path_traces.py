"""Results of a trace as reverse-attention's trace.json: a file to hand on, which names no place on its machine."""

import json
import re
from pathlib import Path

from traceformer.analysis.paths.result import Paths
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.plain_json import parse_json
from traceformer.store.objects.path import disk_path

__all__ = ["load_trace", "model_name", "save_trace"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_name(source: str) -> str:
    """Returns what a result calls a model: a Hub name as it is; of a folder its own name, and not where it lies."""
    if source and Path(source).is_dir():
        return Path(source).resolve().name
    return source if _HUB_NAME.fullmatch(source) else re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def save_trace(result: Paths, path: str | Path) -> None:
    """Writes a result as JSON in reverse-attention's layout, with the settings added."""
    text = json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n"
    disk_path(path).write_text(text, encoding="utf-8", newline="\n")


def load_trace(path: str | Path) -> Paths:
    """Returns the result that `save_trace`, or the reverse-attention package, wrote.

    Raises:
        NotFound: there is no such file.
        Unreadable: it is something else.
    """
    try:
        data = parse_json(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise UsageError("it holds no JSON object")
        return Paths.from_json(data)
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}") from error
    except ValueError as error:  # UsageError is one, too
        raise Unreadable(f"{path} is no trace.json", why=str(error)) from error
