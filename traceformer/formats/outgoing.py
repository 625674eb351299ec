"""What an export tells of its run and of each example, so that an import can give them back."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from traceformer.errors import Unsupported
from traceformer.formats.incoming import common_dtype
from traceformer.formats.rows import row_values, types_text
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.names import Dtype
from traceformer.store.run import Run
from traceformer.texts.shown import unnamed

__all__ = ["Passage", "described_run", "key_of", "lossless_arrays", "plain_row", "row_types", "written_dtype"]

_OF_A_RUN = (
    *("run_id", "model", "model_name", "model_type", "model_dtype", "revision", "step", "adapter", "arch", "dataset"),
    "split",
    *("dims", "attention", "capture", "category", "generation", "labels", "projection", "time", "versions"),
    *("unknown_rows", "row"),
)
_PLACES = ("shard", "slot", "dec_slot")


def described_run(store: Run) -> dict[str, Any]:
    """Returns what `meta.json` says of model, texts and settings."""
    return {name: store.meta[name] for name in _OF_A_RUN if name in store.meta}


def written_dtype(store: Run, arrays: Iterable[ArraySpec]) -> Dtype:
    """Returns the one dtype that holds all numbers of some arrays of a run.

    It need not be the run's: what is stored as bytes is read as float32, and q and k that patterns are made of are
    stored as the model has them.
    """
    return common_dtype({store.layout.stored(spec) for spec in arrays})


def lossless_arrays(store: Run, files: str) -> tuple[ArraySpec, ...]:
    """Returns all arrays of a run that `files` of floating-point numbers can hold; warns of those that are left out."""
    ranked = [str(spec.key.site) for spec in store.layout.arrays if spec.site.is_ranked]
    if ranked:
        warnings.warn(f"{' and '.join(ranked)} are left out: {files} hold no ids of layers", stacklevel=2)
    whole = [str(spec.key) for spec in store.layout.arrays if spec.site.is_per_example]
    if whole:
        warnings.warn(f"{', '.join(whole)} left out: {files} hold rows of tokens, not of whole texts", stacklevel=2)
    return tuple(spec for spec in store.layout.arrays if not spec.site.is_ranked and not spec.site.is_per_example)


def plain_row(store: Run, example_id: str) -> dict[str, Any]:
    """Returns the example's row of the token table as plain values, without where it lies in this run.

    Raises:
        Unsupported: a column is of a type that no export can hold.
    """
    return row_values(_told(store, [example_id]), 0)


def row_types(store: Run) -> str:
    """Returns the types of the columns that `plain_row` tells, as text."""
    return types_text(_told(store, []).schema)


def _told(store: Run, examples: Sequence[str]) -> pa.Table:
    table = store.table_of(examples)
    return table.drop_columns([name for name in _PLACES if name in table.column_names])


def key_of(site: str, stack: Stack) -> ArrayKey:
    """Returns a site's key in a stack, in self-attention where it has to be said."""
    attention = "self" if ArraySpec(ArrayKey(stack, None, site)).site.of_attention else None
    return ArrayKey(stack, attention, site)


@dataclass(frozen=True, slots=True)
class Passage:
    """An example of one stack, as a prompt and a response; a text that nothing was generated for is all prompt.

    Attributes:
        row: What the token table says of it, as plain values.
        n_prompt: How many of its tokens are the prompt.
    """

    example_id: str
    stack: Stack
    row: Mapping[str, Any]
    ids: tuple[int, ...]
    n_prompt: int

    @classmethod
    def of(cls, store: Run, example_id: str, files: str) -> "Passage":
        """Returns an example as the format's `files` need it.

        Raises:
            Unsupported: the run is an encoder-decoder's.
        """
        if store.arch == "encdec":
            raise Unsupported("the run is an encoder-decoder's", why=f"{files} have one sequence of tokens")
        row = plain_row(store, example_id)
        ids = tuple(map(int, row["input_ids"]))
        n_prompt = row.get("n_prompt")
        return cls(example_id, store.layout.stacks[0], row, ids, len(ids) if n_prompt is None else int(n_prompt))

    @property
    def prompt(self) -> str:
        own = self.row.get("prompt")
        return str(self.row.get("text") or "") if own is None else str(own)

    @property
    def response(self) -> str:
        return str(self.row.get("response") or "")

    @property
    def tokens(self) -> list[str]:
        """Each token as the tokenizer writes it, or `#id` where the run does not say."""
        return [str(token) for token in self.row.get("tokens") or map(unnamed, self.ids)]
