"""How much a run takes: what examples of some lengths fill and, beforehand, about how much of that is stored."""

from collections.abc import Mapping, Sequence

from traceformer.sites import ArraySpec, Stack
from traceformer.store.layout import RunLayout
from traceformer.store.names import AttnCodec
from traceformer.store.triangles import n_cells

__all__ = ["estimated_bytes", "estimated_files", "filled_bytes"]

# Stored bytes per byte of the filled part of a matrix, for the estimate of a dry run, by whether it is a triangle:
# measured on trained models.
_MATRIX_RATIO: Mapping[tuple[bool, AttnCodec], float] = {
    (True, "exact"): 0.74,
    (False, "exact"): 0.84,
    (True, "small"): 0.60,
    (False, "small"): 0.85,
    (True, "sqrt8"): 0.40,
    (False, "sqrt8"): 0.60,
}


def filled_bytes(
    layout: RunLayout, lengths: Mapping[Stack, Sequence[int]], arrays: Sequence[ArraySpec] | None = None
) -> int:
    """Returns the size of what examples of these lengths fill, uncompressed: never more is written for them.

    Of all arrays that are kept, or of these.
    """
    parts = (part for spec in (layout.kept if arrays is None else arrays) for part in layout.parts(spec))
    return sum(_filled(layout, part, lengths) for part in parts)


def estimated_bytes(layout: RunLayout, lengths: Mapping[Stack, Sequence[int]]) -> int:
    """Returns about how many bytes a run over examples of these lengths takes on disk."""
    total = 0.0
    for spec in layout.kept:
        ratio = _MATRIX_RATIO[layout.is_triangle(spec), _attn_codec_of(layout, spec)] if spec.site.is_matrix else 1
        parts = [part for part in layout.parts(spec) if part.part != "massive"]  # which few rows have
        total += sum(_filled(layout, part, lengths) for part in parts) * ratio
    return round(total)


def estimated_files(layout: RunLayout) -> int:
    """Returns how many files a finished run has, apart from a handful."""
    parts = [part for spec in layout.kept for part in layout.parts(spec) if part.part != "massive"]
    return layout.n_shards * (2 + sum(len(layout.shard_files(part, 0)) for part in parts))


def _attn_codec_of(layout: RunLayout, spec: ArraySpec) -> AttnCodec:
    """Returns what a matrix is stored like; only patterns are rounded."""
    return "small" if layout.attn_codec == "sqrt8" != layout.stored(spec) else layout.attn_codec


def _filled(layout: RunLayout, spec: ArraySpec, lengths: Mapping[Stack, Sequence[int]]) -> int:
    lead = max(1, len(spec.layers)) * max(1, len(spec.heads)) * layout.itemsize(spec)
    if spec.site.is_per_example:
        return lead * spec.width * len(next(iter(lengths.values())))
    if spec.site.is_matrix:
        if layout.is_triangle(spec):
            return lead * sum(map(n_cells, lengths[spec.key.stack]))
        pairs = zip(lengths[spec.key.stack], lengths[spec.key.key_stack], strict=True)
        return lead * sum(queries * keys for queries, keys in pairs)
    return lead * spec.width * sum(lengths[spec.key.token_stack])
