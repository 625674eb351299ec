"""What all pictures share: colours, how a token is written, and how a figure is saved or put into a page."""

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np
from matplotlib import colormaps, rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.image import AxesImage

from traceformer.errors import UsageError, check_choice, check_is
from traceformer.texts.shown import label

__all__ = [
    "COLOURS",
    "SIGNED",
    "Theme",
    "blank",
    "category",
    "charts",
    "check_format",
    "faint",
    "headed",
    "in_light",
    "ink",
    "label",
    "placed",
    "quiet",
    "save",
    "sheet",
    "styled",
    "theme",
    "titled",
    "whatever_the_script",
    "written_on",
]

COLOURS = "magma"
"""The colours of numbers from zero on."""

SIGNED = "RdBu_r"
"""The colours of numbers on either side of zero: red is more, blue is less."""

# Okabe and Ito's, which remain distinct for the colour-blind; their yellow and black are not seen in one of the themes.
_CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8A00")

Theme: TypeAlias = Literal["light", "dark"]

_SHARED: Mapping[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # text that can be searched and edited
    "svg.fonttype": "none",
}


def _look(back: str, text: str, soft: str, line: str) -> dict[Any, Any]:
    plain = ("text.color", "axes.titlecolor")
    softer = ("axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "legend.labelcolor")
    backs = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    colours = {**dict.fromkeys(plain, text), **dict.fromkeys(softer, soft), **dict.fromkeys(backs, back)}
    return {**_SHARED, **colours, "grid.color": line}


_COLOURS: Mapping[Theme, tuple[str, str, str, str]] = {
    "light": ("#ffffff", "#1b1c1d", "#4b4e52", "#d8d8d4"),
    "dark": ("#15171a", "#e9e8e4", "#b6bac0", "#3a3f46"),
}
_LOOKS: Mapping[Theme, dict[Any, Any]] = {name: _look(*colours) for name, colours in _COLOURS.items()}
_theme: ContextVar[Theme] = ContextVar("theme", default="light")

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def theme(name: Theme) -> AbstractContextManager[None]:
    """Draws in a theme from now on, or as long as the `with` lasts.

        with traceformer.figures.theme("dark"):
            traceformer.figures.heads(metrics).savefig("heads-dark.png")

    Raises:
        UsageError: there is no such theme.
    """
    check_choice("theme", name, _LOOKS)
    before = _theme.set(name)

    @contextmanager
    def until_left() -> Generator[None]:
        try:
            yield
        finally:
            _theme.reset(before)

    return until_left()


def styled(draw: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """Has a function that draws do it in the theme."""

    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Value:
        with rc_context(_LOOKS[_theme.get()]):
            return draw(*arguments, **named)

    return drawn


def category(number: int) -> str:
    """Returns the colour of the `number`-th of things that have no order; there are seven."""
    return _CATEGORIES[number % len(_CATEGORIES)]


def in_light() -> tuple[str, str, str, str]:
    """Returns the colours of the light theme: behind everything, of text, of what is less, and of guiding lines."""
    return _COLOURS["light"]


def ink() -> str:
    """Returns the colour of text."""
    return rcParams["text.color"]


def quiet() -> str:
    """Returns the colour of what is less than text."""
    return rcParams["xtick.color"]


def faint() -> str:
    """Returns the colour of lines that only guide the eye."""
    return rcParams["grid.color"]


def blank(name: str) -> Colormap:
    """Returns a map of colours that leaves cells without a number as they are: they are NaN."""
    return colormaps[name].with_extremes(bad=(0, 0, 0, 0))


def written_on(image: AxesImage, value: float) -> str:
    """Returns black or white, whichever can be read on the colour of a value in an image."""
    red, green, blue, alpha = image.to_rgba(np.array([value]))[0]
    if not alpha:
        return ink()
    light = sum(
        share * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        for share, part in ((0.2126, red), (0.7152, green), (0.0722, blue))
    )  # relative luminance, WCAG 2
    return "black" if light > 0.179 else "white"


def placed(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Returns the axes to draw in and their figure: those given, or those of a new figure of that size in inches."""
    if ax is None:
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()
    check_is(ax, Axes, "axes of matplotlib, such as Figure.add_subplot gives")
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax


def charts(
    ax: Axes | None, rows: int, columns: int, width: float, height: float, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Returns rows of charts to draw, one row after the other, and their figure; the one `ax`, where it is given.

    Raises:
        UsageError: there are several, for one `ax`.
    """
    if ax is not None and rows * columns > 1:
        raise UsageError(f"{rows * columns} charts for one ax", hint="less of it, or none given")
    if ax is not None:
        figure, ax = placed(ax, width, height)
        return figure, [ax]
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()


def sheet(figure: Figure | SubFigure | None, width: float, height: float) -> tuple[Figure, Figure | SubFigure]:
    """Returns the figure, and what of it to draw in: that given, or a new one of that size in inches."""
    if figure is None:
        figure = Figure(figsize=(width, height), layout="constrained")
    check_is(figure, FigureBase, "a figure of matplotlib, or a part of one")
    root = figure.get_figure(root=True)
    assert root is not None
    return root, figure


def headed(figure: Figure, ax: Axes | None, text: str) -> None:
    """Sets the title over the chart that was given to draw in, or else over the whole figure."""
    if ax is None:
        figure.suptitle(titled(text), wrap=True)
    else:
        ax.set_title(titled(text))


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
    from traceformer.store.objects.path import disk_path

    path = disk_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whatever_the_script():
        figure.savefig(path, dpi=dpi, format=path.suffix.removeprefix(".") or "png")


@contextmanager
def whatever_the_script() -> Generator[None]:
    """Lets a figure be written without a warning: tokens occur in every script, and a box stands for a letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield
