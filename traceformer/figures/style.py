"""What all pictures share: colours, how a token is written, and how a figure is saved or put into a page."""

import base64
import html
import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from traceformer.errors import UsageError
from traceformer.presentation import notebook
from traceformer.texts.shown import label

__all__ = ["CLUSTERS", "COLOURS", "check_format", "inline", "label", "save", "shown_in_notebooks", "titled"]

COLOURS = "magma"
"""The colours of numbers."""

CLUSTERS = colormaps["tab10"]
"""The colours of things that have no order."""


def check_format(path: Path) -> None:
    """Makes sure that a picture of this name can be written.

    Raises:
        UsageError: its ending names no format; the hint lists those there are.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    ending = path.suffix.removeprefix(".")
    if ending and ending not in formats:
        raise UsageError(f"no picture format {ending!r}", hint=f"end it in one of {' '.join(sorted(formats))}")


def titled(text: str) -> str:
    """Returns a title, of one line or several, as matplotlib prints it: names of files and examples are in it."""
    return "\n".join(map(label, text.split("\n")))


def save(figure: Figure, path: Path, *, dpi: int = 150) -> None:
    """Writes the figure in the format that the file's ending names, PNG if it has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _whatever_the_script():
        figure.savefig(path, dpi=dpi, format=path.suffix.removeprefix(".") or "png")


def inline(figure: Figure, *, alternative: str, dpi: int = 100) -> str:
    """Returns the figure as an HTML image that carries its own data; `alternative` says it in words."""
    data = base64.b64encode(_png(figure, dpi)).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def shown_in_notebooks() -> None:
    """Has a notebook show figures, as it does by itself once pyplot is imported, which nothing here needs."""
    shell = notebook()
    if shell is not None:
        formatters = shell.display_formatter.formatters
        if not any(Figure in formatter.type_printers for formatter in formatters.values()):
            formatters["image/png"].for_type(Figure, _png)


def _png(figure: Figure, dpi: int = 100) -> bytes:
    picture = io.BytesIO()
    with _whatever_the_script():
        figure.savefig(picture, dpi=dpi, format="png")
    return picture.getvalue()


@contextmanager
def _whatever_the_script() -> Generator[None]:
    """Tokens occur in every script; a box in place of a letter is all that happens."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield
