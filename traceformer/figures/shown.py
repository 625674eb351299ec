"""Figures in a notebook, where nobody can tell whether it is light or dark: clear behind, and grey where ink was black.

Only what is shown there is changed, and only for as long as it is drawn. A figure that was drawn in the dark theme
stays as it is.
"""

import base64
import html
import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from matplotlib.artist import Artist
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from traceformer.figures.style import in_light, whatever_the_script
from traceformer.presentation import notebook

__all__ = ["inline", "shown_in_notebooks"]

_GREY = "#7a7f86"  # as far from white as from what dark themes have behind outputs: 4 to 1
_CLEAR = (0.0, 0.0, 0.0, 0.0)
_COLOURS = ("color", "facecolor", "edgecolor", "markeredgecolor", "markerfacecolor")


def shown_in_notebooks() -> None:
    """Has a notebook show figures, as it does by itself once pyplot is imported, which nothing here needs."""
    shell = notebook()
    if shell is not None:
        formatters = shell.display_formatter.formatters
        if not any(Figure in formatter.type_printers for formatter in formatters.values()):
            formatters["image/png"].for_type(Figure, _png)


def inline(figure: Figure, *, alternative: str) -> str:
    """Returns the figure as an HTML image that carries its own data; `alternative` says it in words."""
    data = base64.b64encode(_png(figure)).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    with whatever_the_script(), _on_any_background(figure):
        figure.savefig(picture, dpi=100, format="png")
    return picture.getvalue()


@contextmanager
def _on_any_background(figure: Figure) -> Generator[None]:
    """Paints what has the light theme's own colours anew, and after that as it was."""
    back, plain, soft, line = (to_rgba(colour) for colour in in_light())
    lines = {plain: to_rgba(_GREY), soft: to_rgba(_GREY), line: to_rgba(_GREY, 0.35)}
    changed: list[tuple[Callable[[Any], None], Any]] = []
    behind = {figure.patch, *(axes.patch for axes in figure.axes)}
    for artist in figure.findobj():
        for get, put in _painted(artist):
            before = get()
            try:
                colour = to_rgba(before)
            except (TypeError, ValueError):  # a colour for each of many points: those are the data's
                continue
            instead = _CLEAR if artist in behind and colour == back else lines.get(colour)
            if instead is not None:
                put(instead)
                changed.append((put, before))
    try:
        yield
    finally:
        for put, before in changed:
            put(before)


def _painted(artist: Artist) -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How each colour of something drawn is read, and set."""
    names = (name for name in _COLOURS if hasattr(artist, f"get_{name}") and hasattr(artist, f"set_{name}"))
    return [(getattr(artist, f"get_{name}"), getattr(artist, f"set_{name}")) for name in names]
