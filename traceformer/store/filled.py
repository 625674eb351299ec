"""What a shard's memory must be before it is kept: the examples of that shard, and finite numbers."""

from typing import TYPE_CHECKING

from traceformer.errors import NumericError, UsageError
from traceformer.sites import ArraySpec
from traceformer.store.buffer import ShardBuffer
from traceformer.store.dtypes import first_nonfinite

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["check_finite", "example_ids"]


def example_ids(shard: int, buffer: ShardBuffer, tokens: "pa.Table") -> list[str]:
    """Returns the ids of a shard's examples.

    Raises:
        UsageError: buffer or table hold another number of examples than the shard has, or an id occurs twice.
    """
    layout = buffer.layout
    expected = buffer.n_examples if layout.is_open else len(layout.shard_range(shard))
    if not expected == buffer.n_examples == tokens.num_rows:
        raise UsageError(
            f"shard {shard} has {expected} examples",
            why=f"the buffer was begun for {buffer.n_examples}, the table has {tokens.num_rows} rows",
        )
    ids: list[str] = tokens.column("example_id").to_pylist()
    if len(set(ids)) < len(ids):
        raise UsageError(f"an example id occurs twice in shard {shard}")
    return ids


def check_finite(shard: int, spec: ArraySpec, buffer: ShardBuffer, *, nan_is_unknown: bool) -> None:
    """Looks through what the examples of a shard fill of an array.

    An imported run may lack rows, which are NaN (`nan_is_unknown`); its importer has looked for any other NaN. So is
    what is told of an example without tokens.

    Raises:
        NumericError: a value is inf or NaN.
    """
    stored = buffer.layout.held(spec)
    matrices = buffer.matrices.get(spec.key)
    if matrices is None and buffer.is_finite(spec):
        return  # it was found when it was cast
    if matrices is None and first_nonfinite(buffer.filled(spec), stored) is None:
        return  # most often; else it is looked for example by example
    for b in range(buffer.n_examples):
        if spec.site.is_per_example and buffer.is_empty(b):
            continue
        found = first_nonfinite(buffer.part(spec, b), stored) if matrices is None else matrices.nonfinite(b)
        is_answer = (nan_is_unknown or spec.site.may_be_nan) and buffer.layout.stored(spec) != "q8"
        if found is None or (found.kind == "nan" and is_answer):
            continue
        where = f"layer {spec.layers[found.at[0]]} of {spec.key}" if spec.layers else str(spec.key)
        example = buffer.layout.shard_range(shard)[b]
        if found.kind == "inf" and stored == "float16":
            raise NumericError(
                f"{where} does not fit into float16",
                why=f"a value of example {example} is beyond 65504",
                hint='`dtype="float32"`, or `dtype="bfloat16"`',
            )
        raise NumericError(
            f"{where} is {'infinite' if found.kind == 'inf' else 'NaN'} in example {example}",
            why="the model itself produced it",
            hint="check its weights and the dtype it runs in",
        )
