"""Head metrics of a model while it runs: its patterns are reduced block by block, and none is kept."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from traceformer.analysis.choices import HeadConvention
from traceformer.analysis.head_tally import HeadMetrics, Measurement
from traceformer.analysis.heads import Geometry
from traceformer.analysis.visibility import Visibility, visibility_of
from traceformer.errors import UsageError
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.attention import Span
    from traceformer.capture.tokenizing import Encoded
    from traceformer.models.loaded import LoadedModel

__all__ = ["LiveRequest", "live_heads"]

_SEQ_LENGTH = 1024  # document 4's, where the model can read as much


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """Which model reads what: a data set, or windows of a file. The fields are the flags of `traceformer heads`."""

    model: str
    dataset: str | None = None
    data_path: Path | None = None
    split: str | None = None
    text_column: str | None = None
    targets_file: Path | None = None
    seq_length: int | None = None
    num_seqs: int = 10
    batch_size: int = 4
    dtype: Literal["float16", "float32"] = "float16"
    model_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    revision: str | None = None
    device: str | None = None


class _Reading(NamedTuple):
    """A model, the patterns to measure, the tokens to read, and what `meta.json` would say of the model."""

    loaded: "LoadedModel"
    arrays: Sequence[ArraySpec]
    rows: "Sequence[Encoded]"
    meta: dict[str, Any]


def live_heads(
    request: LiveRequest,
    *,
    convention: HeadConvention = "valid",
    window: int = 8,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> dict[ArrayKey, HeadMetrics]:
    """Returns the metrics of every attention of a model, as `run_heads` gives them of a run stored in `request.dtype`.

    `progress` is told after every batch how many of how many examples are done.

    Raises:
        NotFound, Unreadable, UsageError, Unsupported: as extraction raises them.
    """
    import torch

    from traceformer.capture.reduce import reduce_squares

    loaded, arrays, rows, meta = _windows(request) if request.data_path is not None else _texts(request)

    @lru_cache(maxsize=3 * request.batch_size)  # those of the batch at hand, which all of its layers share
    def geometry(key: ArrayKey, sight: Visibility, example: int) -> Geometry:
        queries, keys = (rows[example].ids[stack] for stack in (key.stack, key.key_stack))
        aligned = key.attention == "self"
        return Geometry(len(queries), len(keys), sight, aligned, np.asarray(queries, np.int32) if aligned else None)

    with ExitStack() as stack:
        measurements = {
            spec.key: stack.enter_context(Measurement(spec.layers, spec.heads, convention=convention, window=window))
            for spec in arrays
        }

        def take(spec: ArraySpec, layer: int, example: int, queries: "Span", keys: "Span", block: "Tensor") -> None:
            copy: Any = block.to(getattr(torch, request.dtype), copy=True)
            measurements[spec.key].add(
                copy.numpy() if copy.device.type == "cpu" else copy,
                geometry(spec.key, visibility_of(meta, spec.key, layer), example),
                layer=layer,
                first=queries.start,
                stop=queries.stop,
            )

        reduce_squares(loaded, arrays, rows, take, batch_size=request.batch_size, progress=progress)
        return {key: measurement.metrics() for key, measurement in measurements.items()}


def _texts(request: LiveRequest) -> _Reading:
    """The texts of a data set, prepared as an extraction prepares them."""
    from traceformer.capture.prepare import ExtractRequest, prepare
    from traceformer.capture.provenance import describe_model

    assert request.dataset is not None
    prepared = prepare(
        ExtractRequest(
            selection=Selection(("attn_pattern",)),
            model=request.model,
            revision=request.revision,
            dataset=request.dataset,
            split=request.split,
            text_column=request.text_column,
            targets_file=request.targets_file,
            limit=request.num_seqs,
            max_seq_len=request.seq_length or _SEQ_LENGTH,
            dec_max_len=request.seq_length or _SEQ_LENGTH,
            batch_size=request.batch_size,
            dtype=request.dtype,
            model_dtype=request.model_dtype,
            device=request.device,
        )
    )
    rows = [row for shard in range(prepared.layout.n_shards) for row in prepared.shard(shard)[1]]
    meta = describe_model(prepared.loaded, prepared.plan, prepared.layout)
    return _Reading(prepared.loaded, prepared.plan.arrays, rows, meta)


def _windows(request: LiveRequest) -> _Reading:
    """Consecutive windows of a file; an encoder-decoder reads them with its encoder."""
    from traceformer.capture.plan import plan_arrays
    from traceformer.capture.provenance import describe_model
    from traceformer.capture.windows import file_windows
    from traceformer.models.families import architecture_of
    from traceformer.models.load import load_model
    from traceformer.store.layout import RunLayout

    assert request.data_path is not None
    part = request.split or "validation"
    if part not in ("validation", "train", "all"):
        raise UsageError(f"--split {part} of a file", hint="validation, its last tenth; train; or all")
    for flag, given in (("--text_column", request.text_column), ("--targets_file", request.targets_file)):
        if given is not None:
            raise UsageError(f"{flag} goes with --dataset", why="a file in windows is one long text")
    loaded = load_model(request.model, revision=request.revision, device=request.device, dtype=request.model_dtype)
    stack: Stack = "dec" if loaded.dims.arch == "dec" else "enc"
    length = request.seq_length or min(_SEQ_LENGTH, loaded.dims.stacks[stack].n_ctx or _SEQ_LENGTH)
    rows = file_windows(loaded, request.data_path, length, request.num_seqs, part)
    plan = plan_arrays(Selection(("attn_pattern",)), architecture_of(loaded.config), loaded.dims, stacks=(stack,))
    layout = RunLayout.plan(
        arch=loaded.dims.arch, arrays=plan.arrays, n_examples=len(rows), longest={stack: length}, dtype=request.dtype
    )
    return _Reading(loaded, plan.arrays, rows, describe_model(loaded, plan, layout))
