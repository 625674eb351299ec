"""Tables of head metrics as CSV: a row per head, and the thesis's `layer,head,entropy,sparsity,distance` in front."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from traceformer.analysis.head_tally import HeadMetrics
from traceformer.analysis.heads import METRICS
from traceformer.errors import NotFound, Unreadable
from traceformer.sites import ArrayKey

__all__ = ["HeadTable", "name_of", "read_heads", "write_heads"]

_ATTENTION = "attention"


def name_of(key: ArrayKey) -> str:
    """Returns what an attention is called: `dec.self`, `dec.cross`."""
    return f"{key.stack}.{key.attention}"


def write_heads(path: Path, metrics: Mapping[ArrayKey, HeadMetrics]) -> None:
    """Writes the table; a metric without a meaning, such as a distance across texts, is left blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "head", *METRICS, _ATTENTION])
        for key, found in metrics.items():
            for i, layer in enumerate(found.layers):
                for j, head in enumerate(found.heads):
                    values = (float(found.values[name][i, j]) for name in METRICS)
                    shown = ["" if math.isnan(value) else repr(value) for value in values]
                    writer.writerow([layer, head, *shown, name_of(key)])


@dataclass(frozen=True, slots=True)
class HeadTable:
    """The metrics of some heads, as read from a file; a cell without a number is NaN."""

    path: Path
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    attention: tuple[str, ...]
    values: Mapping[str, Float64[np.ndarray, "row"]]

    @property
    def names(self) -> tuple[str, ...]:
        """`L5H3` for each head, with its attention before it where there are several."""
        several = len(set(self.attention)) > 1
        rows = zip(self.layers, self.heads, self.attention, strict=True)
        return tuple(
            f"{attention} L{layer}H{head}" if several else f"L{layer}H{head}" for layer, head, attention in rows
        )

    def has_all(self, name: str) -> bool:
        """Whether every head has a number in this column."""
        return name in self.values and bool(np.isfinite(self.values[name]).all())

    def features(self, names: Sequence[str]) -> Float64[np.ndarray, "row feature"]:
        """Returns these columns side by side.

        Raises:
            Unreadable: there is no such column, or a head has no number there.
        """
        missing = [name for name in names if name not in self.values]
        if missing:
            has = ", ".join(self.values) or "none"
            raise Unreadable(
                f"{self.path} has no column {', '.join(missing)}",
                why=f"its metrics are {has}",
                hint="--features with these, or make the table with traceformer heads",
            )
        found = np.stack([self.values[name] for name in names], axis=1)
        if not np.isfinite(found).all():
            row, column = (int(index[0]) for index in np.nonzero(~np.isfinite(found)))
            several = len(set(self.attention)) > 1
            rows = int(np.count_nonzero(~np.isfinite(found).all(axis=1)))
            raise Unreadable(
                f"{self.path}: {self.names[row]} has no {names[column]}",
                why=f"a number is missing in {rows} of {len(found)} rows",
                hint=f"--attention {self.attention[0]}" if several else "--features with other metrics",
            )
        return found


def read_heads(path: Path, attention: str | None = None) -> HeadTable:
    """Returns the table in a file, or its rows of one attention. Columns of words are passed over.

    Raises:
        NotFound: there is no such file, or no such attention in it.
        Unreadable: it is no table of heads: a column is missing, a cell is not a number, a head is there twice.
    """
    header, rows = _read(path)
    for name in ("layer", "head"):
        if name not in header:
            raise Unreadable(f"{path} has no column {name}", why=f"its first line is {','.join(header)!r}")
    if attention is not None:
        there = ", ".join(sorted({row.get(_ATTENTION) or "" for _, row in rows} - {""}))
        rows = [(line, row) for line, row in rows if row.get(_ATTENTION) == attention]
        if not rows:
            raise NotFound(f"{path} has no attention {attention}", hint=f"it has {there or 'none'}")
    if not rows:
        raise Unreadable(f"{path} holds no heads")
    lines: dict[tuple[str, int, int], int] = {}
    for line, row in rows:
        kind, layer, head = row.get(_ATTENTION) or "", _whole(path, line, row, "layer"), _whole(path, line, row, "head")
        first = lines.setdefault((kind, layer, head), line)
        if first != line:
            name = " ".join(filter(None, (kind, f"L{layer}H{head}")))
            raise Unreadable(f"{path}: {name} is there twice", why=f"lines {first} and {line}")
    kinds, layers, heads = zip(*lines, strict=True)
    metrics = [name for name in header if name not in ("layer", "head", _ATTENTION) and not _is_words(rows, name)]
    values = {name: np.array([_number(path, line, row, name) for line, row in rows]) for name in metrics}
    return HeadTable(path, layers, heads, kinds, values)


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
    if not text.isdecimal():
        raise Unreadable(f"{path}, line {line}: the {name} is {text!r}", hint="a whole number from 0")
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
