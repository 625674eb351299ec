"""Statistics as a Parquet file: one row per head, per layer of an array, and per position of an example's logits."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from traceformer.analysis.conventions import Convention
from traceformer.presentation import plain

__all__ = ["StatisticsFile"]


class StatisticsFile:
    """A Parquet file that rows are added to; columns that a row has no use for are null.

        with StatisticsFile(path, CONVENTIONS["exact"]) as file:
            file.add(statistics(run).rows())

    Written under another name, and renamed when the block ends well.
    """

    def __init__(self, path: Path, convention: Convention) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.part")
        self._schema = _schema(convention)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, in a group of their own."""
        told = [{name: plain(value) for name, value in row.items()} for row in rows]
        self._writer.write_table(pa.Table.from_pylist(told, schema=self._schema))


def _schema(convention: Convention) -> pa.Schema:
    sparsities = [convention.sparsity]
    if convention.sparse_value is not None:
        sparsities.append(convention.value_sparsity)
    return pa.schema(
        [
            ("array", pa.string()),
            ("layer", pa.int32()),
            ("head", pa.int32()),
            ("example_id", pa.string()),
            ("position", pa.int32()),
            ("count", pa.int64()),
            *((name, pa.float64()) for name in ("mean", "std", "min", "max", "entropy", *sparsities)),
            ("target_id", pa.int32()),
            ("target_probability", pa.float64()),
            ("target_rank", pa.int32()),
            ("top_ids", pa.list_(pa.int32())),
            ("top_probabilities", pa.list_(pa.float64())),
        ]
    )
