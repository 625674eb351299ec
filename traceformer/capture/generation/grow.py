"""The memory of one batch of growing sequences, until their lengths are known.

Every array has its place from the start: (layer, batch[, head], column, width), patterns (layer, batch, head, query
column, key column), in the stored dtype and on the model's device. The columns that a pass adds are cut out of all
layers at its beginning, since a pass of one token is short; it writes them layer by layer, all rows of the batch at
once. `pour` hands each row's true tokens to the shard when the batch has ended.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from traceformer.capture.scores import Span
from traceformer.capture.sinks import Sink, Spans
from traceformer.errors import Unsupported
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = ["BatchMemory"]


class BatchMemory:
    """A recorder's growing sink with room for a fixed number of columns per stack.

    Args:
        arrays: what will be recorded.
        batch: rows of the batch.
        columns: the most columns of each stack, padding included.
        dtype: as numbers will be stored; token ids are int32.
        device: the model's.

    Raises:
        Unsupported: scores are among the arrays; those of keys to come are never computed while a sequence grows.
    """

    def __init__(
        self, arrays: Sequence[ArraySpec], *, batch: int, columns: Mapping[Stack, int], dtype: torch.dtype, device: str
    ) -> None:
        self._arrays = arrays
        self._columns: dict[Stack, Span] = {}
        self._memory: dict[ArrayKey, Tensor] = {}
        self._begun: dict[ArrayKey, dict[int | None, Tensor]] = {}
        for spec in arrays:
            if spec.key.site == "attn_scores":
                raise Unsupported("attn_scores cannot be recorded token by token", hint="`replay=True`")
            heads = (len(spec.heads),) * bool(spec.heads)
            width = columns[spec.key.key_stack] if spec.site.is_matrix else spec.width
            shape = (max(1, len(spec.layers)), batch, *heads, columns[spec.key.token_stack], width)
            # Zeros: cells of a pattern that no query could look at are never written.
            stored = torch.int32 if spec.site.holds_ids else dtype
            self._memory[spec.key] = torch.zeros(shape, dtype=stored, device=device)

    def begin(self, stack: Stack, columns: Span) -> None:
        self._columns[stack] = columns
        for spec in self._arrays:
            if spec.key.token_stack == stack:
                begun = self._memory[spec.key].narrow(-2, columns.start, columns.length)
                self._begun[spec.key] = dict(zip(spec.layers or (None,), begun.unbind(), strict=True))

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        # Of the prompt a model computes the last logits only.
        length, added = rows.shape[-2], self._columns[spec.key.token_stack].length
        _cut(self._begun[spec.key][layer], added - length, length).copy_(rows)

    def squares(self, spec: ArraySpec, layer: int, queries: Span, keys: Span, block: Tensor) -> None:
        first = self._columns[spec.key.token_stack].start
        target = _cut(self._begun[spec.key][layer], queries.start - first, queries.length)
        target.narrow(-1, keys.start, keys.length).copy_(block)

    def pour(self, sink: Sink, spans: Spans) -> None:
        """Hands everything to a sink that was told these spans: where each row has its true tokens."""
        for spec in self._arrays:
            for layer, tensor in zip(spec.layers or (None,), self._memory[spec.key], strict=True):
                if not spec.site.is_matrix:
                    sink.rows(spec, layer, tensor)
                    continue
                assert layer is not None
                pairs = zip(spans[spec.key.stack], spans[spec.key.key_stack], strict=True)
                for example, (queries, keys) in enumerate(pairs):
                    square = tensor[example, :, queries.start : queries.stop, keys.start : keys.stop]
                    sink.square(spec, layer, example, Span(0, queries.length), Span(0, keys.length), square)


def _cut(columns: Tensor, start: int, length: int) -> Tensor:
    return columns if length == columns.shape[-2] else columns.narrow(-2, start, length)
