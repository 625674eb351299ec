"""The memory of one open shard: allocated once, filled by a recorder, written as it stands, used again."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from traceformer.errors import NumericError, UsageError
from traceformer.shapes import Int64, Shaped
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.appended import Appending, Scratch
from traceformer.store.codecs import Chunk
from traceformer.store.dtypes import ON_DISK, first_nonfinite, nan_of
from traceformer.store.layout import RunLayout
from traceformer.store.matrices import CompressedMatrices, Matrices, WholeMatrices
from traceformer.store.pages import zeros
from traceformer.store.q8 import LARGEST, Rounded, Rounding, encode, massive_chunks
from traceformer.store.shards import CutChunks, compress

__all__ = ["ShardBuffer"]

_ARRAYS_AT_A_TIME = 2  # beside a model that needs the cores itself


class ShardBuffer:
    """One shard's arrays, as they will be stored (bfloat16 as bits in uint16, sqrt8 as uint8), or rounded.

    Call `begin` with the shard's example lengths, then `put` all of each array for the example in each slot; or fill,
    of arrays that are no matrices, `part(spec, b)`, and hand matrices to `matrices` row by row.

    Attributes:
        arrays: Of those that are kept, token arrays (layer[, head], S, width), where an example's rows are
            `offsets[stack][b]` up to `offsets[stack][b + 1]`, and example arrays (B[, layer, head], width).
        matrices: What takes the matrices of each array.
        lengths: Per stack the tokens of each example.
        offsets: Per stack where each example's rows begin, and at the end where the last one's end.
        rounded: What `round` made: rows as codes.
        compressed: What `compress` made: for each file of an array, by its path, its chunks.
        cores: How many arrays are written at a time.
    """

    def __init__(self, layout: RunLayout, *, compresses: bool = True, scratch: Scratch | None = None) -> None:
        """Takes the memory; a buffer that does not compress is for runs that stay in memory.

        `scratch` is where matrices go that no memory holds.
        """
        self.layout = layout
        self._compresses = compresses
        self.arrays: dict[ArrayKey, Shaped[np.ndarray, "..."]] = {
            spec.key: zeros(layout.buffer_shape(spec), ON_DISK[layout.held(spec)])
            for spec in layout.kept
            if not spec.site.is_matrix
        }
        self.matrices: dict[ArrayKey, Matrices] = {
            spec.key: CompressedMatrices(layout, spec, scratch) if compresses else WholeMatrices(layout, spec)
            for spec in layout.kept
            if spec.site.is_matrix
        }
        self.lengths: dict[Stack, Int64[np.ndarray, "example"]] = {}
        self.offsets: dict[Stack, Int64[np.ndarray, "example+1"]] = {}
        self.rounded: dict[ArrayKey, Rounded] = {}
        self.compressed: dict[str, list[list[Chunk | None]]] = {}
        self._coded: dict[str, Shaped[np.ndarray, "..."]] = {}
        self.cores = _ARRAYS_AT_A_TIME
        self._finite: dict[ArrayKey, int] = {}

    @property
    def n_examples(self) -> int:
        return len(next(iter(self.lengths.values()), ()))

    def begin(self, lengths: Mapping[Stack, Sequence[int]]) -> None:
        """Makes room for a new shard: zeros all that the last one left outside the new examples' own parts.

        Raises:
            UsageError: a stack is missing, there are more than B examples, or one is longer than T.
        """
        layout = self.layout
        if lengths.keys() < layout.max_tokens.keys():
            raise UsageError(f"lengths for {' and '.join(lengths)} only", why=f"the run has {' '.join(layout.stacks)}")
        counts = {len(lengths[stack]) for stack in layout.stacks}
        if len(counts) != 1 or not 1 <= counts.pop() <= layout.shard_examples:
            raise UsageError(f"a shard has 1 to {layout.shard_examples} examples, the same number in every stack")
        for stack in layout.stacks:
            if max(lengths[stack]) > layout.max_tokens[stack] or min(lengths[stack]) < 0:
                raise UsageError(
                    f"an example of {max(lengths[stack])} {stack} tokens",
                    why=f"the run was laid out for 0 to {layout.max_tokens[stack]}",
                )
        self.forget()
        self.cores = _ARRAYS_AT_A_TIME
        self._finite.clear()
        self.lengths = {stack: np.asarray(lengths[stack], np.int64) for stack in layout.stacks}
        self.offsets = {stack: np.concatenate(([0], np.cumsum(own))) for stack, own in self.lengths.items()}
        for spec in layout.kept:
            if spec.site.is_matrix:
                queries, keys = self.lengths[spec.key.stack], self.lengths[spec.key.key_stack]
                self.matrices[spec.key].begin(queries.tolist(), keys.tolist())
            elif spec.site.is_per_token:
                self._clear_tail(spec)
            else:
                self._begin_rows(spec)

    def _clear_tail(self, spec: ArraySpec) -> None:
        used = int(self.offsets[spec.key.token_stack][-1])
        self.arrays[spec.key][..., used : self.layout.written_slots(spec, used), :] = 0

    def _begin_rows(self, spec: ArraySpec) -> None:
        self.arrays[spec.key][self.n_examples :] = 0
        for b in range(self.n_examples):
            if self.is_empty(b):
                self.arrays[spec.key][b] = nan_of(self.layout.stored(spec))

    def is_empty(self, b: int) -> bool:
        """Returns whether nothing can be run on the example in slot b, since it lacks tokens."""
        return not all(own[b] for own in self.lengths.values())

    def found_finite(self, key: ArrayKey, numbers: int) -> None:
        """Says that so many numbers which were put into an array, each once, are finite as they are stored."""
        self._finite[key] = self._finite.get(key, 0) + numbers

    def is_finite(self, spec: ArraySpec) -> bool:
        """Returns whether that was said of all that the examples fill of a token array."""
        if not spec.site.is_per_token:
            return False
        array, used = self.arrays[spec.key], int(self.offsets[spec.key.token_stack][-1])
        return self._finite.get(spec.key) == array.size // array.shape[-2] * used

    def filled(self, spec: ArraySpec) -> Shaped[np.ndarray, "..."]:
        """Returns the part of an array that goes to disk, as a view: no empty examples, whole chunks of token slots."""
        array = self.arrays[spec.key]
        if not spec.site.is_per_token:
            return array[: self.n_examples]
        used = int(self.offsets[spec.key.token_stack][-1])
        return array[..., : self.layout.written_slots(spec, used), :]

    def forget(self) -> None:
        """Lets go of what was made of the shard's arrays to be written."""
        self.rounded.clear()
        self.compressed.clear()

    def compress(self) -> None:
        """Rounds what is stored as codes, and compresses what is stored compressed, now and on all cores.

        What is done is not done again. `RunWriter.commit` sees to it. But beside a commit a model may be at work, whose
        cores wait for each other: on the CPU it is cheaper to do this between two passes, which then have all cores.

        Raises:
            NumericError: a value is too large for its scale.
        """
        for spec in self.layout.kept:
            if spec.key not in self.arrays:
                continue
            if self.layout.stored(spec) == "q8" and not self._is_fit(spec):
                return  # whoever keeps the shard looks where that is, and says so
            parts = self.parts(spec)
            if self._compresses and self.layout.codec_of(spec) == "zstd":
                for part in parts:
                    if self.layout.path_of(part) not in self.compressed:
                        made = [compress(chunks) for chunks in self._raw_chunks(part)]
                        self.compressed[self.layout.path_of(part)] = made

    def _is_fit(self, spec: ArraySpec) -> bool:
        return (
            spec.key in self.rounded
            or self.is_finite(spec)
            or first_nonfinite(self.filled(spec), self.layout.held(spec)) is None
        )

    def parts(self, spec: ArraySpec) -> list[ArraySpec]:
        """Returns the arrays that an array's rows are stored as: without that of massive channels where there is none.

        Raises:
            NumericError: a value is too large for its scale.
        """
        parts = self.layout.parts(spec)
        if len(parts) == 1:
            return [spec]
        has_massive = any(self.round(spec).channels)
        return [part for part in parts if part.part != "massive" or has_massive]

    def round(self, spec: ArraySpec) -> Rounded:
        """Returns the rows of an array that is stored as codes, which are finite; they are made once.

        Raises:
            NumericError: a value is too large for its scale.
        """
        if spec.key not in self.rounded:
            codes, scales = self._room_of(spec)
            try:
                self.rounded[spec.key] = encode(self.filled(spec), codes, scales)
            except OverflowError:
                raise NumericError(
                    f"{spec.key} does not fit into q8",
                    why=f"a value is beyond {LARGEST}, in more channels than are kept exactly",
                    hint='`rows_codec="exact"`',
                ) from None
        return self.rounded[spec.key]

    def put_rounded(self, spec: ArraySpec, rows: Rounded) -> None:
        """Takes all rows of the shard, of an array that is stored as codes, as another run stores them."""
        codes, scales = self._room_of(spec)
        used = rows.codes.shape[-2]
        for room, own in ((codes, rows.codes), (scales, rows.scales)):
            room[..., :used, :] = own
            room[..., used:, :] = 0
        behind = ((0, codes.shape[-2] - used), (0, 0))
        self.rounded[spec.key] = Rounded(codes, scales, [np.pad(own, behind) for own in rows.massive], rows.channels)

    def roundings(self) -> dict[str, Rounding]:
        """Returns what the shard's record says of the arrays that were rounded."""
        return {str(key): rows.rounding for key, rows in self.rounded.items()}

    def _room_of(self, spec: ArraySpec) -> list[Shaped[np.ndarray, "..."]]:
        """Returns the memory of an array's codes and scales, as much as is written."""
        found: list[Shaped[np.ndarray, "..."]] = []
        written = self.layout.written_slots(spec, int(self.offsets[spec.key.token_stack][-1]))
        for part in self.layout.parts(spec)[:2]:
            path = self.layout.path_of(part)
            if path not in self._coded:
                self._coded[path] = zeros(self.layout.buffer_shape(part), ON_DISK[self.layout.stored(part)])
            found.append(self._coded[path][..., :written, :])
        return found

    def stored_rows(self, spec: ArraySpec) -> Shaped[np.ndarray, "..."]:
        """Returns what goes to disk of an array that is no matrix, or of a part of one: whole chunks of token slots."""
        if spec.part == "massive":
            rows = self.rounded[spec.key]
            dense = np.zeros((*rows.codes.shape[:-1], spec.width), ON_DISK[self.layout.stored(spec)])
            for at, own in zip(np.ndindex(dense.shape[:-2]), rows.massive, strict=True):
                dense[at][:, : own.shape[1]] = own
            return dense
        if spec.part == "scale":
            return self.rounded[spec.key].scales
        return self.round(spec).codes if self.layout.stored(spec) == "q8" else self.filled(spec)

    def chunks(self, spec: ArraySpec) -> Sequence[Iterable[Chunk | None]]:
        """Returns, for each file of an array's shard, or of a part of it, its chunks as they go to disk."""
        matrices = self.matrices.get(spec.key)
        if isinstance(matrices, CompressedMatrices):
            return matrices.files()
        return self.compressed.get(self.layout.path_of(spec)) or self._raw_chunks(spec)

    def appending(self, spec: ArraySpec) -> Appending | None:
        """Returns the files that an array's matrices went to while they were recorded; None where they are kept."""
        matrices = self.matrices.get(spec.key)
        return matrices.appending if isinstance(matrices, CompressedMatrices) else None

    def close(self) -> None:
        """Removes what went to files and was never committed."""
        for spec in self.layout.kept:
            appending = self.appending(spec)
            if appending is not None:
                appending.close()

    def _raw_chunks(self, spec: ArraySpec) -> Sequence[Iterable[Chunk | None]]:
        if spec.part == "massive":
            rows, slots = self.layout.chunk_shape(spec)[-2], self.layout.shard_slots(spec.key.token_stack)
            return [massive_chunks(self.rounded[spec.key].massive, spec.width, rows, slots // rows)]
        if spec.site.is_per_example:  # chunks are whole, also the last
            filled, axis = self.arrays[spec.key][: self.layout.written_slots(spec, self.n_examples)], 0
        else:
            filled = self.stored_rows(spec)
            axis = filled.ndim - 2
        return [CutChunks(filled, axis, self.layout.chunk_shape(spec)[axis], self.layout.shard_shape(spec)[axis])]

    def put(self, spec: ArraySpec, b: int, values: Shaped[np.ndarray, "..."]) -> None:
        """Fills an array for the example in slot b with values as they are stored, of the shape of `shape`."""
        if not spec.site.is_matrix:
            self.part(spec, b)[...] = values
            return
        dtype = ON_DISK[self.layout.stored(spec)]
        for layer, block in enumerate(np.broadcast_to(values, self.shape(spec, b))):
            self.matrices[spec.key].take(b, layer, 0, np.ascontiguousarray(block, dtype))

    def shape(self, spec: ArraySpec, b: int) -> tuple[int, ...]:
        """Returns the shape of what the example in slot b must fill of an array.

        (layer, head, query, key), (layer[, head], n, width), or ([layer, head,] width) with one row per example.
        """
        if not spec.site.is_matrix:
            return self.part(spec, b).shape
        queries, keys = self.lengths[spec.key.stack][b], self.lengths[spec.key.key_stack][b]
        return (len(spec.layers), len(spec.heads), int(queries), int(keys))

    def part(self, spec: ArraySpec, b: int) -> Shaped[np.ndarray, "..."]:
        """Returns what the example in slot b must fill of an array that is no matrix, as a view."""
        return self.arrays[spec.key][b] if spec.site.is_per_example else self.rows(spec.key, b)

    def rows(self, key: ArrayKey, b: int) -> Shaped[np.ndarray, "..."]:
        """Returns the part of a token array that the example in slot b must fill, (layer[, head], n, width), a view."""
        offsets = self.offsets[key.token_stack]
        return self.arrays[key][..., offsets[b] : offsets[b + 1], :]
