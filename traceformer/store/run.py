"""TraceStore: everything a run holds, by example, site, the model's own layer, and head.

What is returned has true lengths: no padding, no gaps. float16 and float32 runs give their own dtype, bfloat16 and
sqrt8 runs give float32. Only the chunks that are needed are read.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from traceformer.errors import CorruptRun, ExampleNotFound, NotFound, NotRecorded, SelectionError, Unsupported
from traceformer.presentation import present
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store import columns
from traceformer.store.arrays import RunArrays, find_spec
from traceformer.store.commits import RunHead, read_commits, token_path
from traceformer.store.index import RunIndex
from traceformer.store.layout import MANIFEST, META, TOKENS, RunLayout
from traceformer.store.names import Arch, Dtype, public_name
from traceformer.store.zarr3 import reading

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray as xr

__all__ = ["TraceStore"]

_STAGES: Mapping[str, str] = {"pre_attn": "resid_pre", "post_attn": "resid_mid", "post_mlp": "resid_post"}
_ENCODINGS = ("input_ids", "attention_mask", "offset_mapping", "tokens", "dec_labels", "n_prompt")


class TraceStore:
    """A run, opened for reading. An unfinished one can be opened too: it shows its committed shards only.

        store = TraceStore("traces/20250101-120000_gpt2_demo_train_n64")
        store.attn(store.ids[0], layer=5, head=3)    # (query, key)

    `layer` and `head` are the model's own numbers; None means all that are stored. In grouped-query attention a
    head of `k` and `v` is an attention head, and what it reads is returned. `side` is the stack, `enc` or `dec`.
    Damage in the files that are read raises CorruptRun.

    Attributes:
        folder: Where the run lies.
        layout: Its arrays and sizes.
        meta: All of `meta.json`.
        finished: False for a run that is being written or was interrupted.
    """

    def __init__(self, run_dir: str | Path) -> None:
        """Opens the run in a folder.

        Raises:
            NotFound: there is no run; the hint names an unfinished one.
            Unreadable: a later version wrote it, or something else did.
            CorruptRun: its head or a commit record was changed or is missing.
        """
        self.folder = Path(run_dir)
        unfinished = self.folder.with_name(f"_tmp_{self.folder.name}")
        if not (self.folder / META).exists() and (unfinished / META).exists():
            raise NotFound(f"no run in {self.folder}", why="it is not finished", hint=f"open {unfinished}, or --resume")
        if not (self.folder / META).exists() and (runs := sorted(self.folder.glob(f"*/{META}"))):
            several = f"it is a folder of {len(runs)} run{'s' if len(runs) > 1 else ''}"
            raise NotFound(f"no run in {self.folder}", why=several, hint=f"open {runs[-1].parent}")
        head = RunHead.read(self.folder)
        self.layout: RunLayout = head.layout
        self.meta: dict[str, Any] = {
            **head.meta,
            "layout": head.layout.to_json(),
            "configuration": dict(head.configuration),
        }
        self.finished: bool = (self.folder / MANIFEST).exists()
        self._index = RunIndex.build(head.layout, read_commits(self.folder, head))
        if self.finished and len(self._index.shards) < head.layout.n_shards:
            raise CorruptRun(f"{self.folder} has lost commit records", hint="traceformer verify lists the damage")
        self._rows = {name: row for row, name in enumerate(self._index.ids)}
        self._arrays = RunArrays(self.folder, head.layout, self._index, self.meta.get("dims", {}))

    def __repr__(self) -> str:
        state = "" if self.finished else ", unfinished"
        return f"TraceStore({str(self.folder)!r}: {self.n} examples, {len(self.layout.arrays)} arrays{state})"

    # What the run is

    @property
    def arch(self) -> Arch:
        return self.layout.arch

    @property
    def dtype(self) -> Dtype:
        return self.layout.dtype

    @property
    def n(self) -> int:
        """The number of examples that can be read."""
        return len(self._index.ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The example ids, in the data set's order."""
        return self._index.ids

    @property
    def T(self) -> int:  # noqa: N802
        """The tokens that fit one example on disk: those of the encoder, if there is one."""
        return self.layout.max_tokens[self.layout.stacks[0]]

    @property
    def L(self) -> int:  # noqa: N802
        """The model's number of layers: those of the encoder, if there is one."""
        return self._dimension("n_layers")

    @property
    def H(self) -> int:  # noqa: N802
        """The model's number of attention heads: those of the encoder, if there is one."""
        return self._dimension("n_heads")

    @property
    def d_head(self) -> int:
        """The width of an attention head: of the encoder, if there is one."""
        return self._dimension("d_head")

    def _dimension(self, name: str) -> int:
        dims = self.meta.get("dims", {}).get(self.layout.stacks[0], {})
        if name not in dims:
            raise NotRecorded(f"this run does not say its model's {name}")
        return dims[name]

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Returns what is recorded: document 1's name of each array and its shape (N[, L][, H], T, ...).

        On disk, and so in what `attn` and the others return, an example takes only its own tokens of these T.
        """
        return {public_name(spec.key): self._shape(spec) for spec in self.layout.arrays}

    def _shape(self, spec: ArraySpec) -> tuple[int, ...]:
        shape = self.layout.buffer_shape(spec)
        if spec.site.is_matrix:
            return (self.n, *shape[1:])
        return (self.n, *shape[:-2], self.layout.max_tokens[spec.key.token_stack], shape[-1])

    def spec(
        self, site: str | ArrayKey, side: str | None = None, kind: str | None = None, *, prefer: Stack | None = None
    ) -> ArraySpec:
        """Returns the array that a site's name (`resid_mid`), a group's of one site (`attn`) or a key means.

        A key is written `dec.cross.q`. `kind` is `self` unless only cross-attention is recorded.

        Raises:
            SelectionError: there is no such site, or two stacks have it, and neither `side` nor `prefer` says which.
            NotRecorded: this run does not hold it.
        """
        return find_spec(self.layout, site, side, kind, prefer)

    # One example

    def has(self, example_id: str) -> bool:
        return example_id in self._rows

    def row(self, example_id: str) -> int:
        """Returns the example's row in `tokens`.

        Raises:
            ExampleNotFound: there is no such example.
            SelectionError: two examples have this id.
        """
        if len(self._rows) < self.n and self._index.ids.count(example_id) > 1:
            raise SelectionError(f"several examples have the id {example_id!r}")
        if example_id not in self._rows:
            near = difflib.get_close_matches(str(example_id), self._index.ids[:10_000], n=1)
            raise ExampleNotFound(
                f"no example {example_id!r}",
                why=f"this run holds {self.n}" + ("" if self.finished else " so far"),
                hint=f"did you mean {near[0]!r}?" if near else "store.ids lists them",
            )
        return self._rows[example_id]

    def length(self, example_id: str, side: Stack | None = None) -> int:
        """Returns the example's number of tokens: of the encoder, if there is one and `side` does not say."""
        return int(self._index.lengths[side or self.layout.stacks[0]][self.row(example_id)])

    def get(
        self,
        example_id: str,
        site: str | ArrayKey,
        layer: int | None = None,
        head: int | None = None,
        *,
        side: str | None = None,
        kind: str | None = None,
    ) -> Num[np.ndarray, "..."]:
        """Returns what a site held for an example: (layer, head, query, key), (layer[, head], token, d) or (token, d).

        A `layer` or `head` that is given is no axis of the result. `site` and `kind` as in `spec`.

        Raises:
            ExampleNotFound, NotRecorded: it is not in this run.
            SelectionError: nor is that layer or head; the message names the stored ones.
        """
        return self._arrays.example(self.spec(site, side, kind), self.row(example_id), layer, head)

    # Document 1's names for it

    def attn(
        self,
        example_id: str,
        layer: int | None = None,
        head: int | None = None,
        side: str | None = None,
        kind: str | None = None,
    ) -> Float[np.ndarray, "..."]:
        """Returns attention patterns ([layer,] [head,] query, key): rows are where each query looks.

        With two stacks that have them, `side` is `enc`.
        """
        return self.get(example_id, self.spec("attn_pattern", side, kind, prefer="enc").key, layer, head)

    def qkv(
        self,
        example_id: str,
        which: str = "q",
        layer: int | None = None,
        head: int | None = None,
        side: str | None = None,
        kind: str | None = None,
    ) -> Float[np.ndarray, "..."]:
        """Returns queries, keys or values ([layer,] [head,] token, d_head); see `attn` for `side`."""
        if which not in ("q", "k", "v"):
            raise SelectionError(f"no {which!r} in qkv", hint="q, k or v")
        return self.get(example_id, self.spec(which, side, kind, prefer="enc").key, layer, head)

    def hidden(
        self, example_id: str, side: str | None = None, layer: int | None = None
    ) -> Float[np.ndarray, "*entry token d_model"]:
        """Returns Hugging Face's hidden states ([L+1,] token, d_model), entry `layer` or all; see `attn` for `side`."""
        return self.get(example_id, self.spec("hidden", side, prefer="enc").key, layer)

    def resid_embed(self, example_id: str, side: str | None = None) -> Float[np.ndarray, "token d_model"]:
        """Returns what enters block 0; see `attn` for `side`."""
        return self.get(example_id, self.spec("embed", side, prefer="enc").key)

    def resid(
        self, example_id: str, stage: str, layer: int | None = None, side: str | None = None
    ) -> Float[np.ndarray, "*layer token d_model"]:
        """Returns the residual stream at `pre_attn`, `post_attn` or `post_mlp` ([layer,] token, d_model)."""
        site = _STAGES.get(stage, stage)
        if site not in _STAGES.values():
            raise SelectionError(f"no stage {stage!r}", hint=f"choose from {' '.join((*_STAGES, *_STAGES.values()))}")
        return self.get(example_id, self.spec(site, side, prefer="enc").key, layer)

    # TransformerLens's names for it

    def cache(self, example_id: str) -> dict[str, Float[np.ndarray, "batch ..."]]:
        """Returns what is recorded of an example as TransformerLens caches it: arrays by the names of its hooks.

        `store.cache(eid)["blocks.3.attn.hook_pattern"]` is (1, head, query, key). Sites without a hook are left out;
        the table is in `docs/formats.md`.

        Raises:
            NotRecorded: the run holds no site that has a hook.
            Unsupported: TransformerLens has no names for such a model.
        """
        return present(self, "transformer_lens", example_id)

    # Text and tokens

    @cached_property
    def tokens(self) -> "pd.DataFrame":
        """One row per example: example_id, text, input_ids, tokens, and what the data set adds."""
        return self._token_table().to_pandas()

    def _token_table(self) -> "pa.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        from traceformer.store.tables import common_schema, with_schema

        with reading(self.folder / TOKENS):
            if self.finished:
                return pq.read_table(self.folder / TOKENS)
            tables = [pq.read_table(self.folder / token_path(shard)) for shard in self._index.shards]
        if not tables:
            return pa.table({"example_id": []})
        schema = common_schema([table.schema for table in tables])
        return pa.concat_tables([with_schema(table, schema) for table in tables])

    def text(self, example_id: str) -> str:
        return self._token_row(example_id)["text"]

    def encodings(self, example_id: str) -> dict[str, Any]:
        """Returns the tokenizer's output for the example: input_ids, tokens, offsets, and the same as `dec_*`.

        Of a generation also `n_prompt`: where the response begins, in the decoder.
        """
        return {
            name: value
            for name, value in self._token_row(example_id).items()
            if name in _ENCODINGS or name.removeprefix("dec_") in _ENCODINGS
        }

    def _token_row(self, example_id: str) -> dict[str, Any]:
        import pyarrow.parquet as pq

        row = self.row(example_id)
        shard = int(self._index.shard_of[row])
        path = self.folder / token_path(shard)
        with reading(path):
            return pq.read_table(path).slice(row - self._index.rows_of(shard).start, 1).to_pylist()[0]

    # All examples

    def activations(
        self,
        site: str | ArrayKey,
        layer: int | None = None,
        head: int | None = None,
        *,
        side: str | None = None,
        kind: str | None = None,
    ) -> Num[np.ndarray, "token d"]:
        """Returns one layer's rows of all tokens of all examples, in the data set's order.

        Sites with heads give all of them side by side (d = heads * d_head, as `z` enters W_O), unless `head` is said.
        `token_examples` tells which row belongs to which example.

        Raises:
            SelectionError: the site has layers and none is named, or is a matrix.
        """
        column = self._arrays.column(self.spec(site, side, kind), layer, head)
        with reading(self.folder):
            return columns.gather(column)

    def stream(
        self,
        site: str | ArrayKey,
        layer: int | None = None,
        batch_tokens: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
        *,
        head: int | None = None,
        side: str | None = None,
        kind: str | None = None,
    ) -> Iterator[Num[np.ndarray, "token d"]]:
        """Yields the rows of `activations` in batches of `batch_tokens` (the last may be shorter), each a new array.

        Memory does not grow with the run. With `shuffle`, chunks of 512 tokens are read in random order into a
        window of 65,536 tokens, out of which batches are drawn; the order depends on `seed` and the run only.
        """
        if batch_tokens < 1:
            raise SelectionError(f"batches of {batch_tokens} tokens")
        column = self._arrays.column(self.spec(site, side, kind), layer, head)
        batches = (
            columns.shuffled_batches(column, batch_tokens, seed) if shuffle else columns.batches(column, batch_tokens)
        )
        return self._checked(batches)

    def _checked(self, arrays: Iterator[Num[np.ndarray, "..."]]) -> Iterator[Num[np.ndarray, "..."]]:
        while True:
            with reading(self.folder):
                array = next(arrays, None)
            if array is None:
                return
            yield array

    def token_examples(self, side: Stack | None = None) -> np.ndarray:
        """Returns for each row of `activations` the row of its example in `tokens`."""
        return np.repeat(np.arange(self.n), self._index.lengths[side or self.layout.stacks[0]])

    def head(
        self,
        site: str | ArrayKey,
        layer: int | None = None,
        head: int | None = None,
        *,
        side: str | None = None,
        kind: str | None = None,
    ) -> Iterator[tuple[str, Num[np.ndarray, "..."]]]:
        """Yields each example's id and its matrix (query, key) or rows (token, d) of one head, in the data set's order.

        Reads one shard ahead. The arrays are views of a block that holds one shard of this head: copy what you keep.
        """
        spec = self.spec(site, side, kind)
        return ((self._index.ids[row], values) for row, values in self._arrays.by_example(spec, layer, head))

    def to_xarray(self) -> "xr.DataTree":
        """Returns the run as named-dimension data sets, one per zarr group, read when used.

        Token axes have no gaps and carry `token_example` (a row of `tokens`) and `token_position`; `layer` and
        `head` are the model's numbers. Matrices keep their padding of zeros, beside `n_query` and `n_key`.
        """
        try:
            from traceformer.store.xarrays import data_tree
        except ModuleNotFoundError as error:
            raise Unsupported(f"{error.name} is not installed", hint="pip install 'traceformer[zarr]'") from error
        return data_tree(self.folder, self.layout, self._index, self._arrays)
