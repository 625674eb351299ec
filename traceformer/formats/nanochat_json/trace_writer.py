"""Writes files of nanochat traces: streaming, and whole or not at all.

It goes tensor by tensor, a block of rows at a time, into a file of another name that is renamed at the end. Every
number has the fewest digits that give it back; a tensor that came from a file is copied as it stood there.
"""

import json
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from traceformer.errors import UsageError
from traceformer.filenames import MOST, is_plain
from traceformer.formats.nanochat_json.traces import Captures, Tensor, Trace
from traceformer.formats.whole import appearing_whole
from traceformer.shapes import Float
from traceformer.store.system import sync

__all__ = ["check_trace_id", "write_trace"]

_AT_ONCE = 1 << 18  # numbers that become text together
_pc: Any = pyarrow.compute  # its functions are made when it is imported, where no type checker sees them


def check_trace_id(trace_id: str) -> str:
    """Returns the trace id, if it may become the name of a file.

    Raises:
        UsageError: it may not.
    """
    if not is_plain(trace_id):
        raise UsageError(
            f"{trace_id!r} is no trace id", why=f"up to {MOST} letters, digits, dots, dashes and underscores make one"
        )
    return trace_id


def write_trace(path: Path, trace: Trace) -> None:
    """Writes a trace, whole or not at all.

    Raises:
        UsageError: the trace id is no plain name.
    """
    check_trace_id(trace.head.trace_id)
    with appearing_whole(path) as part, part.open("wb") as file:
        _Writer(file).trace(trace)
        file.flush()
        sync(file.fileno())


class _Writer:
    """Writes the members of JSON objects one after the other, each on its own line."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file = file
        self._depth = 0
        self._is_first = True

    def trace(self, trace: Trace) -> None:
        head = trace.head
        with self._object():
            for name in ("trace_id", "timestamp", "prompt", "response", "category", "metadata"):
                self._plain(name, getattr(head, name))
            tokens = {"input_tokens": list(trace.input_tokens), "output_tokens": list(trace.output_tokens)}
            self._plain("tokens", tokens)
            with self._object("model_data"):
                self._captures(trace.model_data)
            if trace.steps is None:
                self._plain("intermediate_steps", None)
            else:
                with self._object("intermediate_steps", b"[]"):
                    for step, captures in enumerate(trace.steps):
                        with self._object(None):
                            self._plain("step", step)
                            self._captures(captures)
            if trace.further:
                with self._object("traceformer"), self._object("arrays"):
                    for name, tensor in trace.further.items():
                        self._tensor(name, tensor)
        self._file.write(b"\n")

    def _captures(self, captures: Captures) -> None:
        self._tensor("token_embeddings", captures.token_embeddings)
        self._tensor("output_logits", captures.output_logits)
        with self._object("attention_weights"):
            for layer, tensor in captures.attention.items():
                self._tensor(f"layer_{layer}", tensor)
        with self._object("layer_activations"):
            for layer, tensors in captures.activations.items():
                with self._object(f"layer_{layer}"):
                    for name, tensor in tensors.items():
                        self._tensor(name, tensor)

    @contextmanager
    def _object(self, name: str | None = None, brackets: bytes = b"{}") -> Generator[None]:
        self._begin(name)
        self._file.write(brackets[:1])
        self._depth, self._is_first = self._depth + 1, True
        yield
        self._depth -= 1
        if not self._is_first:
            self._file.write(b"\n" + b"  " * self._depth)
        self._file.write(brackets[1:])
        self._is_first = False

    def _begin(self, name: str | None) -> None:
        if self._depth:
            self._file.write((b"\n" if self._is_first else b",\n") + b"  " * self._depth)
        if name is not None:
            self._file.write(json.dumps(name).encode() + b": ")
        self._is_first = False

    def _plain(self, name: str, value: Any) -> None:
        self._begin(name)
        self._file.write(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))

    def _tensor(self, name: str, tensor: Tensor | None) -> None:
        if tensor is None:
            return self._plain(name, None)
        with self._object(name):
            self._begin("data")
            if tensor.text is not None:
                self._file.write(tensor.text)
            else:
                self._numbers(tensor)
            self._plain("shape", list(tensor.shape))
            self._plain("dtype", tensor.dtype)

    def _numbers(self, tensor: Tensor) -> None:
        """Writes nested lists, one line per row of the last axis."""
        *outer, width = tensor.shape
        rows, row = math.prod(outer), 0
        margin = b",\n" + b"  " * (self._depth + 1)
        if not rows or not width:
            self._file.write(json.dumps(np.zeros(tensor.shape).tolist()).encode())
            return
        for block in tensor.blocks():
            flat = block.reshape(-1, width)
            for start in range(0, len(flat), max(1, _AT_ONCE // width)):
                for text in _rows_as_text(flat[start : start + max(1, _AT_ONCE // width)]):
                    opening, closing = _brackets(row, outer)
                    self._file.write((margin if row else b"") + opening + text + closing)
                    row += 1
        if row != rows:
            raise UsageError(f"a tensor of shape {list(tensor.shape)} came in {row} rows")


def _brackets(row: int, outer: Sequence[int]) -> tuple[bytes, bytes]:
    """Returns how many lists begin before a row and end behind it, the row's own among them."""
    opening = closing = 1
    span = 1
    for size in reversed(outer):
        span *= size
        opening += row % span == 0
        closing += (row + 1) % span == 0
    return b"[" * opening, b"]" * closing


def _rows_as_text(rows: Float[np.ndarray, "row column"]) -> Iterator[bytes]:
    """Yields each row's numbers with commas between them: the fewest digits that give a float32 back."""
    values = rows if rows.dtype == np.float64 else rows.astype(np.float32)
    flat = np.ascontiguousarray(values).reshape(-1)
    texts = _pc.cast(pa.array(flat, from_pandas=False), pa.string())
    if not np.isfinite(flat).all():  # as Python's own writer spells them
        for own, python in (("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity")):
            texts = _pc.if_else(_pc.equal(texts, own), python, texts)
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    for line in _pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ","):
        yield line.as_py().encode()
