"""Tables of head metrics as CSV: a row per head, and the thesis's `layer,head,entropy,sparsity,distance` in front.

Behind the metrics, in every row, stand the head's attention and how it was measured: convention, window, source (the
run), model, examples, queries, texts, and what a cell is sparse below. Whoever reads a table by the names of its
columns, as the thesis's own code does, never sees them; a table that lacks them, such as the thesis's own, is read too.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, ConventionName
from traceformer.analysis.head_clusters import HeadClusters
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.errors import NotFound, Unreadable
from traceformer.store.objects.path import disk_path

__all__ = ["read_heads", "write_clusters", "write_heads"]

_ABOUT = ("attention", "convention", "window", "source", "model", "examples", "queries", "texts", "sparse_below")

_DIGITS = 12  # of a layer, or a count


def write_heads(metrics: HeadMetrics, path: str | Path) -> None:
    """Writes the table; a metric without a meaning, such as a distance across texts, is left blank."""
    path, about = disk_path(path), metrics.about
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "head", *metrics.values, *_ABOUT])
        for row, *values in zip(metrics.rows, *metrics.values.values(), strict=True):
            shown = ["" if math.isnan(value) else repr(float(value)) for value in values]
            counts = about.examples.get(row.attention), about.queries.get(row.attention)
            how = (row.attention, about.convention, about.window, about.source, about.model, *counts)
            how += about.texts, about.sparse_below
            writer.writerow([row.layer, row.head, *shown, *how])


def read_heads(path: str | Path, attention: str | None = None) -> HeadMetrics:
    """Returns the table in a file, or its rows of one attention. Columns of words are passed over.

    A table that names no source has the file for it.

    Raises:
        NotFound: there is no such file, or no such attention in it.
        Unreadable: it is no table of heads: a column is missing, a cell is not a number, a head is there twice, or its
            rows are measured in different ways.
    """
    path = Path(path)
    header, rows = _read(path)
    for name in ("layer", "head"):
        if name not in header:
            raise Unreadable(f"{path} has no column {name}", why=f"its first line is {','.join(header)!r}")
    if not rows:
        raise Unreadable(f"{path} holds no heads")
    lines: dict[HeadName, int] = {}
    for line, row in rows:
        kind = row.get("attention") or ""
        head = HeadName(kind, _whole(path, line, row, "layer"), _whole(path, line, row, "head"))
        first = lines.setdefault(head, line)
        if first != line:
            raise Unreadable(f"{path}: {f'{kind} {head}'.strip()} is there twice", why=f"lines {first} and {line}")
    names = [name for name in header if name not in ("layer", "head", *_ABOUT) and not _is_words(rows, name)]
    values = {name: np.array([_number(path, line, row, name) for line, row in rows]) for name in names}
    metrics = HeadMetrics(tuple(lines), values, _about(path, rows))
    return metrics if attention is None else metrics.part(attention)


def _about(path: Path, rows: "Sequence[tuple[int, _Row]]") -> Measured:
    """What the columns behind the metrics say."""

    def only(name: str) -> str | None:
        said = sorted({row.get(name) or "" for _, row in rows})
        if len(said) > 1:
            raise Unreadable(f"{path}: its rows have different things for {name}", why=", ".join(map(repr, said)))
        return said[0] or None

    def counts(name: str) -> dict[str, int]:
        return {row.get("attention") or "": _whole(path, line, row, name) for line, row in rows if row.get(name)}

    convention, window, below = only("convention"), only("window"), only("sparse_below")
    known: ConventionName | None = next((name for name in CONVENTIONS if name == convention), None)
    if convention is not None and known is None:
        raise Unreadable(f"{path}: no convention {convention!r}", hint=f"one of {', '.join(CONVENTIONS)}")
    return Measured(
        source=only("source") or str(path),
        model=only("model"),
        convention=known,
        window=None if window is None else _whole(path, *rows[0], "window"),
        examples=counts("examples"),
        queries=counts("queries"),
        texts=only("texts"),
        sparse_below=None if below is None else _number(path, *rows[0], "sparse_below"),
    )


_Row: TypeAlias = Mapping[str, str | None]


def _read(path: Path) -> tuple[list[str], list[tuple[int, _Row]]]:
    """The names of the columns, and every row with its line."""
    if not path.is_file():
        raise NotFound(f"no file {path}", hint="traceformer heads makes one")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{path} is not a CSV file", why=str(error)) from error


def _is_words(rows: Sequence[tuple[int, _Row]], name: str) -> bool:
    cells = [row[name] for _, row in rows if row[name]]
    return bool(cells) and not any(map(_is_number, cells))


def _whole(path: Path, line: int, row: _Row, name: str) -> int:
    text = (row[name] or "").strip()
    if not text.isdecimal() or len(text) > _DIGITS:
        raise Unreadable(f"{path}, line {line}: the {name} is {text[:40]!r}", hint="a whole number from 0")
    return int(text)


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, row: _Row, name: str) -> float:
    text = (row[name] or "").strip()
    if text and not _is_number(text):
        raise Unreadable(f"{path}, line {line}: the {name} is {text!r}", hint="a number, or nothing")
    return float(text) if text else math.nan


def write_clusters(clusters: HeadClusters, path: str | Path) -> None:
    """Writes a row per head: where it is, its cluster at the best k, its silhouette, the metrics that decided."""
    path = disk_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clusters.to_frame().to_csv(path, index=False, lineterminator="\n")
