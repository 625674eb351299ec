"""English text that every Python has: the help topics of pydoc, and the standard library's docstrings."""

import ast
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

__all__ = ["VERSION", "pydoc_texts"]

VERSION = platform.python_version()
"""The documents differ from one Python to the next."""

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
"""Not of the standard library, or not in every installation of it."""


def pydoc_texts(library: Path | None = None) -> Iterator[bytes]:
    """Yields one document per help topic, then one per module: its docstrings in the order of the source.

    A docstring that stands in several places is taken where it comes first.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name].strip().encode()
    library = library or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            new = [text for text in _docstrings(path) if text not in seen]
            seen.update(new)
            if new:
                yield "\n\n".join(dict.fromkeys(new)).encode()


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # samples of wrong code
        return
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(tree) if isinstance(node, owners)]
    for node in sorted(found, key=lambda node: getattr(node, "lineno", 0)):
        text = (ast.get_docstring(node) or "").strip()
        if text:
            yield text.encode("utf-8", "replace").decode()
