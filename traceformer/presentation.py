"""Presentation bound from above: what shows a noun lies in a higher layer, and is loaded when the noun is shown.

No noun imports what draws it. The package's face binds `Run`'s page to a function of `figures`, say, by its dotted
name; the noun asks for "html" and knows no more.
"""

import math
import sys
from html import escape
from importlib import import_module
from typing import Any

__all__ = ["bind", "framed", "in_notebook", "notebook", "plain", "present"]

_HOMES: dict[tuple[str, str], tuple[str, str]] = {}


def bind(noun: str, way: str, module: str, function: str) -> None:
    """Says which function of which module shows a noun in one way (`html`, `figure`, ...)."""
    _HOMES[noun, way] = module, function


def present(value: object, way: str, *arguments: Any) -> Any:
    """Returns the value shown in one way, by the function that is bound to its class.

    Raises:
        LookupError: nothing is bound.
    """
    module, function = _HOMES[type(value).__name__, way]
    return getattr(import_module(module), function)(value, *arguments)


def in_notebook(value: object) -> str:
    """Returns the HTML that a notebook shows of a value; where that cannot be made, its one line, and why.

    A notebook shows a traceback in place of a value whose picture raises, be it over a file that was removed meanwhile.
    """
    try:
        return present(value, "html")
    except Exception as error:  # whatever it is, the value itself can still be told in a line
        why = f"{type(error).__name__}: {error}"
        return f"<pre>{escape(repr(value))}\n{escape(why)}</pre>"


def notebook() -> Any | None:
    """Returns the shell of the notebook that shows what this process displays; a plain IPython shell is a terminal."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def framed(page: str, *, height: int = 720) -> str:
    """Returns a page as a notebook shows it: the whole of it in a frame of its own, `height` pixels high."""
    looks = f'style="width:100%;height:{height}px;border:0" sandbox="allow-scripts allow-downloads"'
    return f'<iframe srcdoc="{escape(page, quote=True)}" {looks}></iframe>'


def plain(value: Any) -> Any:
    """Returns numbers, arrays, lists and dicts as JSON has them, which knows no NaN and no infinity: None."""
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
