"""Tables out of characters; the same when piped into a file as on a screen."""

from collections.abc import Sequence

from rich.cells import cell_len

__all__ = ["table"]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """Returns rows aligned under their headers, the columns in `numeric` flush right."""
    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padding = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        padded = (pad + cell if i in numeric else cell + pad for i, (cell, pad) in enumerate(zip(cells, padding)))  # noqa: B905
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, (headers, *rows)))
