"""Run: everything that was recorded, by example, site, the model's own layer, and head.

What is returned has true lengths: no padding, no gaps. Numbers come in float32, whatever they are stored in, since
sums over float16 are soon wrong or infinite; `dtype="stored"` gives float16 where the run is float16. Only the chunks
that are needed are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from traceformer.arguments import checked
from traceformer.errors import NotRecorded, SelectionError, Unsupported, check_whole
from traceformer.presentation import in_notebook, present
from traceformer.shapes import Float, Int64, Num
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store import columns
from traceformer.store.arrays import Numbers, RunArrays, Shape, find_array, one_number
from traceformer.store.commits import configuration_digest
from traceformer.store.dtypes import SQRT8_ERROR, ReadDtype
from traceformer.store.examples import find_row, no_example
from traceformer.store.folder import RunFolder
from traceformer.store.hosts import Computed, computed_by
from traceformer.store.layout import RunLayout
from traceformer.store.meta import RunMeta
from traceformer.store.names import Arch, Dtype, public_name
from traceformer.store.objects.path import AnyPath, ObjectPath, as_path
from traceformer.store.source import Source
from traceformer.store.squares import Crop, Squares
from traceformer.store.topk import TopKeys
from traceformer.store.verification import Verification, verify_folder
from traceformer.store.zarr3 import reading

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray as xr

    from traceformer.store.training_data import TrainingData

__all__ = ["Run", "TraceStore"]

_STAGES: Mapping[str, str] = {"pre_attn": "resid_pre", "post_attn": "resid_mid", "post_mlp": "resid_post"}
_ENCODINGS = (
    *("input_ids", "attention_mask", "offset_mapping", "tokens", "dec_labels", "n_prompt"),
    *("token_type_ids", "sequence_ids", "word", "kind"),
)


class Run:
    """A run, opened for reading, on disk, in a bucket or in memory. Of an unfinished one what is committed can be read.

        run = Run("traces/20250101-120000_gpt2_demo_train_n64")
        run.attn(0, layer=5, head=3)    # (query, key)

    An example is named by its number, which counts from the end where it is negative, or by its id; digits that are
    no example's id are a number.

    `layer` and `head` are the model's own numbers; None means all that are stored. In grouped-query attention a
    head of `k` and `v` is an attention head, and what it reads is returned. `side` is the stack, `enc` or `dec`.
    Numbers are float32, which holds float16 and bfloat16 exactly; with `dtype="stored"` float16 stays float16
    (bfloat16, sqrt8 and q8, for which numpy has no type, are float32 then, too).
    Damage in the files that are read raises CorruptRun. A worker process is given the run itself, which opens it anew;
    one that is forked after arrays were read raises Unsupported instead of reading (`docs/runs.md` has the ways on).

    Attributes:
        layout: Its arrays and sizes.
        about: What it says of its model, texts and settings.
        meta: All of `meta.json`, as it is written.
        finished: False for a run that is being written or was interrupted.
    """

    def __init__(self, run_dir: str | AnyPath | Source) -> None:
        """Opens the run in a folder, in a bucket (`s3://bucket/run`), or in what a `MemoryWriter` kept.

        Raises:
            NotFound: there is no run; the hint names an unfinished one.
            Unreachable: the bucket does not answer, or refuses.
            Unreadable: a later version wrote it, or something else did.
            CorruptRun: its head or a commit record was changed or is missing.
        """
        source = RunFolder.open(as_path(run_dir)) if isinstance(run_dir, str | Path | ObjectPath) else run_dir
        self._source: Source = source
        self.layout: RunLayout = source.head.layout
        self.meta: dict[str, Any] = source.head.to_json()
        self.about: RunMeta = RunMeta.from_json(self.meta)
        self.finished: bool = source.finished
        self._index = source.index
        self._arrays = RunArrays(source, self.about)

    def __repr__(self) -> str:
        place = "in memory" if self._source.folder is None else repr(self._source.name)
        state = "" if self.finished else ", unfinished"
        return f"Run({place}: {self.n} examples, {len(self.layout.arrays)} arrays{state})"

    def _repr_html_(self) -> str:
        return in_notebook(self)

    def show(self, example: int | str = 0) -> None:
        """Shows an example: in the notebook, or in a browser."""
        present(self, "browser", example)

    def widget(self, example: int | str = 0) -> Any:
        """Returns a notebook's widget that shows an example; its `selection` is the head and token that were clicked.

        Setting `selection` selects. Needs the extra `notebook`.

        Raises:
            NotFound: anywidget is not installed.
        """
        return present(self, "widget", example)

    def __reduce__(self) -> tuple[type["Run"], tuple[AnyPath]]:
        """Pickled, a run is its folder: a worker process opens it anew."""
        return Run, (self.on_disk().folder.absolute(),)

    # What the run is

    @property
    def folder(self) -> AnyPath | None:
        """Where the run lies, on disk or in a bucket; None in memory."""
        return self._source.folder

    @property
    def name(self) -> str:
        """What to call the run: its folder's name, or the name it was given in memory."""
        folder = self._source.folder
        return self.about.run_id or "a run in memory" if folder is None else folder.name or str(folder)

    @property
    def arch(self) -> Arch:
        """`enc`, `dec` or `encdec`: which stacks the model has."""
        return self.layout.arch

    @property
    def dtype(self) -> Dtype:
        """How numbers are stored."""
        return self.layout.dtype

    @property
    def n(self) -> int:
        """The number of examples that can be read."""
        return self._index.n

    @property
    def ids(self) -> tuple[str, ...]:
        """The example ids, in the data set's order."""
        return self._index.ids

    @property
    def computed(self) -> tuple[Computed, ...]:
        """Which shards were computed by which kind of host, as far as the run says."""
        return computed_by(self._index.hosts)

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
        size: int | None = getattr(self.about.dims_of(self.layout.stacks[0]), name)
        if size is None:
            raise NotRecorded(f"this run does not say its model's {name}")
        return size

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Returns what is recorded: the padded store's name of each array and its shape, `(N[, L][, H], T, ...)`.

        On disk, and so in what `attn` and the others return, an example takes only its own tokens of these T.
        """
        return {public_name(spec.key): self._shape(spec) for spec in self.layout.arrays}

    def _shape(self, spec: ArraySpec) -> tuple[int, ...]:
        shape = self.layout.buffer_shape(spec)
        if not spec.site.is_per_token:
            return (self.n, *shape[1:])
        return (self.n, *shape[:-2], self.layout.max_tokens[spec.key.token_stack], shape[-1])

    def spec(
        self,
        site: str | ArrayKey,
        side: str | None = None,
        kind: str | None = None,
        *,
        prefer: Stack | None = None,
        shape: Shape = "any",
    ) -> ArraySpec:
        """Returns the array that a site's name (`resid_mid`), a group's of one site (`attn`) or a key means.

        A key is written `dec.cross.q`. `kind` is `self` unless only cross-attention is recorded. `shape` is `rows` for
        an activation with one row per token, `matrix` for (query, key).

        Raises:
            SelectionError: there is no such site, two stacks have it and neither `side` nor `prefer` says which, or it
                has another shape.
            NotRecorded: this run does not hold it.
        """
        return find_array(self.layout, site, side, kind, prefer=prefer, shape=shape)

    def largest_error(self, site: str | ArrayKey, side: str | None = None, kind: str | None = None) -> float:
        """Returns the most that a number of a site is off what the run would hold if nothing were rounded to bytes.

        It is 0 unless `rows_codec="q8"` was asked for, or of patterns `attn_codec="sqrt8"`.
        """
        spec = self.spec(site, side, kind)
        if self.layout.stored(spec) == "sqrt8":
            return SQRT8_ERROR
        if self.layout.stored(spec) != "q8":
            return 0.0
        kept = [piece.spec for piece in self.layout.pieces(spec, ())]
        return max(
            (self._index.rounding(one, shard).error for one in kept for shard in self._index.shards), default=0.0
        )

    # One example

    def has(self, example: int | str) -> bool:
        """Whether there is an example of this number or id."""
        return find_row(self._index, example) is not None

    def row(self, example: int | str) -> int:
        """Returns the example's row in `tokens`, which is its number.

        Raises:
            ExampleNotFound: there is no such example.
            SelectionError: two examples have this id, or it is no number and no id.
        """
        row = find_row(self._index, example)
        if row is None:
            raise no_example(self._index, example, so_far=not self.finished)
        return row

    def is_id(self, name: str) -> bool:
        """Whether an example has this id."""
        return bool(self._index.rows_with(name))

    def example_id(self, example: int | str) -> str:
        """Returns the id of an example that is named by its number or its id.

        Raises:
            ExampleNotFound: there is no such example.
            SelectionError: two examples have this id.
        """
        return self._index.id(self.row(example))

    def length(self, example: int | str, side: Stack | None = None) -> int:
        """Returns the example's number of tokens: of the encoder, if there is one and `side` does not say."""
        return self._index.length(self.row(example), side or self.layout.stacks[0])

    def lengths(self, side: Stack | None = None) -> Int64[np.ndarray, "example"]:
        """Returns every example's number of tokens, in the data set's order; `side` as in `length`."""
        return self._index.lengths[side or self.layout.stacks[0]].copy()

    def get(
        self,
        example: int | str,
        site: str | ArrayKey,
        layer: int | None = None,
        head: int | None = None,
        *,
        side: str | None = None,
        kind: str | None = None,
        dtype: ReadDtype = "float32",
        queries: slice | None = None,
    ) -> Num[np.ndarray, "..."]:
        """Returns what a site held for an example: (layer, head, query, key), (layer[, head], token, d) or (token, d).

        Of a site with one row per example it is (d) or (layer, head, d), and NaN for an example without tokens. A
        `layer` or `head` that is given is no axis of the result. `site` and `kind` as in `spec`. Of matrices `queries`
        are the rows to read, `slice(-1, None)` the last one: no more is in memory.

        Raises:
            ExampleNotFound, NotRecorded: it is not in this run.
            SelectionError: nor is that layer or head; the message names the stored ones.
            OutOfSpace: matrices that are larger than the memory.
        """
        return self._arrays.example(self.spec(site, side, kind), self.row(example), layer, head, dtype, queries)

    def rows(
        self,
        example: int | str,
        site: str | ArrayKey,
        positions: Sequence[int],
        layer: int | None = None,
        *,
        dtype: ReadDtype = "float32",
    ) -> Num[np.ndarray, "position d"]:
        """Returns what an array with a row per token held at some positions of an example: no more is in memory.

        Raises:
            ExampleNotFound, NotRecorded: it is not in this run.
            SelectionError: nor is that layer, or a position; or it has no row per token.
        """
        spec, length = self.spec(site), self.length(example, self.spec(site).key.token_stack)
        if np.ndim(positions) != 1 or any(
            isinstance(each, bool) or not isinstance(each, Integral) for each in positions
        ):
            raise SelectionError(f"`positions={positions!r}`", hint="several whole numbers, such as [0, 3]")
        missing = [position for position in positions if not 0 <= position < length]
        if missing or spec.site.is_per_example:
            why = f"this example has positions 0-{length - 1}" if missing else "it has a row per example"
            raise SelectionError(f"{spec.key} at positions {', '.join(map(str, missing or positions))}", why=why)
        return self._arrays.rows(spec, self.row(example), positions, layer, dtype)

    # The padded store's names for it

    def attn(
        self,
        example: int | str,
        layer: int | None = None,
        head: int | None = None,
        side: str | None = None,
        kind: str | None = None,
        *,
        dtype: ReadDtype = "float32",
        queries: slice | None = None,
    ) -> Float[np.ndarray, "..."]:
        """Returns attention patterns `([layer,] [head,] query, key)`: rows are where each query looks.

        With two stacks that have them, `side` is `enc`. `queries` are the rows to read, all by default.
        """
        key = self.spec("attn_pattern", side, kind, prefer="enc").key
        return self.get(example, key, layer, head, dtype=dtype, queries=queries)

    def attn_topk(
        self,
        example: int | str,
        layer: int | None = None,
        head: int | None = None,
        side: str | None = None,
        kind: str | None = None,
    ) -> TopKeys:
        """Returns the largest keys of each query `([layer,] [head,] query, rank)`, their weights, and what others have.

        Of a run that was recorded with `store_topk`; see `attn` for `side`.
        """
        key = self.spec("attn_topk", side, kind, prefer="enc").key
        keys, weights, rest = (
            self.get(example, key._replace(site=site), layer, head)
            for site in ("attn_topk", "attn_topk_weight", "attn_topk_rest")
        )
        return TopKeys(keys, weights, rest[..., 0])

    def qkv(
        self,
        example: int | str,
        which: str = "q",
        layer: int | None = None,
        head: int | None = None,
        side: str | None = None,
        kind: str | None = None,
        *,
        dtype: ReadDtype = "float32",
    ) -> Float[np.ndarray, "..."]:
        """Returns queries, keys or values `([layer,] [head,] token, d_head)`; see `attn` for `side`."""
        if which not in ("q", "k", "v"):
            raise SelectionError(f"no {which!r} in qkv", hint="q, k or v")
        return self.get(example, self.spec(which, side, kind, prefer="enc").key, layer, head, dtype=dtype)

    def hidden(
        self,
        example: int | str,
        side: str | None = None,
        layer: int | None = None,
        *,
        dtype: ReadDtype = "float32",
    ) -> Float[np.ndarray, "*entry token d_model"]:
        """Returns Hugging Face's hidden states ([L+1,] token, d_model), entry `layer` or all; see `attn` for `side`."""
        return self.get(example, self.spec("hidden", side, prefer="enc").key, layer, dtype=dtype)

    def resid_embed(
        self, example: int | str, side: str | None = None, *, dtype: ReadDtype = "float32"
    ) -> Float[np.ndarray, "token d_model"]:
        """Returns what enters block 0; see `attn` for `side`."""
        return self.get(example, self.spec("embed", side, prefer="enc").key, dtype=dtype)

    def resid(
        self,
        example: int | str,
        stage: str,
        layer: int | None = None,
        side: str | None = None,
        *,
        dtype: ReadDtype = "float32",
    ) -> Float[np.ndarray, "*layer token d_model"]:
        """Returns the residual stream at `pre_attn`, `post_attn` or `post_mlp` ([layer,] token, d_model)."""
        site = _STAGES.get(stage, stage)
        if site not in _STAGES.values():
            raise SelectionError(f"no stage {stage!r}", hint=f"choose from {' '.join((*_STAGES, *_STAGES.values()))}")
        return self.get(example, self.spec(site, side, prefer="enc").key, layer, dtype=dtype)

    def class_logits(self, example: int | str, *, dtype: ReadDtype = "float32") -> Float[np.ndarray, "label"]:
        """Returns what a classifier or reward model says of an example's text; `about.labels` names the entries.

        NaN for an example without tokens.
        """
        return self.get(example, "class_logits", dtype=dtype)

    # TransformerLens's names for it

    def cache(self, example: int | str, *, dtype: ReadDtype = "float32") -> dict[str, Float[np.ndarray, "batch ..."]]:
        """Returns what is recorded of an example as TransformerLens caches it: arrays by the names of its hooks.

        `run.cache(0)["blocks.3.attn.hook_pattern"]` is (1, head, query, key). Sites without a hook are left out;
        the table is in `docs/formats.md`.

        Raises:
            NotRecorded: the run holds no site that has a hook.
            Unsupported: TransformerLens has no names for such a model.
        """
        return present(self, "transformer_lens", self.example_id(example), dtype)

    # Text and tokens

    @cached_property
    def table(self) -> "pa.Table":
        """The token table in Arrow, with the types and values that were recorded."""
        return self._source.token_table()

    def table_of(self, examples: Sequence[int | str]) -> "pa.Table":
        """Returns the rows of `table` of these examples; of a finished run of many shards no others are read.

        Raises:
            ExampleNotFound: there is no such example.
        """
        from traceformer.store.tables import taken

        rows = [self.row(example) for example in examples]
        found = None if "table" in self.__dict__ else self._source.token_rows(rows)
        return taken(self.table, rows) if found is None else found

    def columns_of(self, names: Sequence[str]) -> "pa.Table":
        """Returns those of these columns of `table` that there are; of a finished run no others are read."""
        if "table" in self.__dict__:
            return self.table.select([name for name in names if name in self.table.column_names])
        return self._source.token_table(names)

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns of `table`."""
        known = None if "table" in self.__dict__ else self._source.token_columns()
        return self.table.column_names if known is None else known

    @cached_property
    def tokens(self) -> "pd.DataFrame":
        """One row per example: example_id, text, input_ids, tokens, and what the data set adds.

        Whole numbers beside a missing one stay whole numbers, in a column of objects: as floats they would end at 2^53.
        """
        return self.table.to_pandas(integer_object_nulls=True)

    def text(self, example: int | str) -> str:
        """Returns an example's text."""
        return self._token_row(example)["text"]

    def encodings(self, example: int | str) -> dict[str, Any]:
        """Returns the tokenizer's output for the example: input_ids, tokens, offsets, and the same as `dec_*`.

        Of a generation also `n_prompt`: where the response begins, in the decoder. Of pairs of texts `sequence_ids`
        and, where the model was given them, `token_type_ids`; `word` where it is known which word a token is of; `kind`
        where a processor made the tokens: what each stands for, `text`, `image`, `audio` or `video`.
        """
        return {
            name: value
            for name, value in self._token_row(example).items()
            if name in _ENCODINGS or name.removeprefix("dec_") in _ENCODINGS
        }

    def tokens_of(self, example: int | str, side: Stack | None = None) -> list[str]:
        """Returns an example's tokens as the tokenizer writes them; without `side`, the encoder's if there is one."""
        column = "dec_tokens" if side == "dec" and self.arch == "encdec" else "tokens"
        return [str(token) for token in self.encodings(example)[column]]

    def _token_row(self, example: int | str) -> dict[str, Any]:
        return self._source.token_row(self.row(example))

    # All examples

    def activations(
        self,
        site: str | ArrayKey,
        layer: int | None = None,
        head: int | None = None,
        *,
        side: str | None = None,
        kind: str | None = None,
        dtype: ReadDtype = "float32",
    ) -> Num[np.ndarray, "token d"]:
        """Returns one layer's rows of all tokens of all examples, in the data set's order.

        Of a site with one row per example it is these: (example, d). Sites with heads give all of them side by side
        (d = heads * d_head, as `z` enters W_O), unless `head` is said.
        `token_examples` tells which row belongs to which example.

        Raises:
            SelectionError: the site has layers and none is named, or is a matrix.
        """
        column = self._arrays.column(self.spec(site, side, kind), layer, head, dtype)
        with reading(self._source.name):
            return columns.gather(column)

    @overload
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
        dtype: ReadDtype = "float32",
        size: None = None,
    ) -> Iterator[Num[np.ndarray, "token d"]]: ...

    @overload
    def stream(
        self,
        site: str | ArrayKey,
        layer: Numbers = None,
        batch_tokens: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
        *,
        head: Numbers = None,
        side: str | None = None,
        kind: str | None = None,
        dtype: ReadDtype = "float32",
        size: int,
        crop: Crop = "first",
        pad: bool = False,
    ) -> Iterator[Squares]: ...

    @checked
    def stream(
        self,
        site: str | ArrayKey,
        layer: Numbers = None,
        batch_tokens: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
        *,
        head: Numbers = None,
        side: str | None = None,
        kind: str | None = None,
        dtype: ReadDtype = "float32",
        size: int | None = None,
        crop: Crop = "first",
        pad: bool = False,
    ) -> Iterator[Any]:
        """Yields the rows of `activations` in batches of `batch_tokens` (the last may be shorter), each a new array.

        Memory does not grow with the run. With `shuffle`, chunks of 512 tokens are read in random order into a
        window of 65,536 tokens, out of which batches are drawn; the order depends on `seed` and the run only.

        With `size` these are `Squares` of matrices, of all layers and heads that are meant, `batch_tokens // size` at a
        time: see `training_data`, whose epoch 0 they are.
        """
        if batch_tokens < 1:
            raise SelectionError(f"batches of {batch_tokens} tokens", hint="`batch_tokens=1`, or more")
        check_whole("seed", seed, 0)
        if size is not None or crop != "first" or pad:
            return self.training_data(
                site,
                layer,
                max(1, batch_tokens // max(1, size or 1)),
                head=head,
                side=side,
                kind=kind,
                dtype=dtype,
                shuffle=shuffle,
                seed=seed,
                size=size,
                crop=crop,
                pad=pad,
            ).batches()
        layer, head = one_number("layer", layer), one_number("head", head)
        column = self._arrays.column(self.spec(site, side, kind), layer, head, dtype)
        batches = (
            columns.shuffled_batches(column, batch_tokens, seed) if shuffle else columns.batches(column, batch_tokens)
        )
        return self._checked(batches)

    @checked
    def training_data(
        self,
        site: str | ArrayKey,
        layer: Numbers = None,
        batch_size: int | None = None,
        *,
        head: Numbers = None,
        side: str | None = None,
        kind: str | None = None,
        dtype: ReadDtype = "float32",
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        size: int | None = None,
        crop: Crop = "first",
        pad: bool = False,
    ) -> "TrainingData":
        """Returns the rows of `activations`, or squares of matrices, as data for a training: for torch, for `datasets`.

            data = run.training_data("resid_post", layer=2, batch_size=4096)
            loader = DataLoader(data.to_torch(), batch_size=None, num_workers=2)

        With `size`, patterns (or scores) become `Squares` of so many queries and keys: of each text the first ones, or
        with `crop="random"` a stretch that is another one in each epoch. Shorter texts are left out, or with
        `pad` filled with zeros. `layer` and `head` are then one, several (`[0, 3]`, `"0,3-5"`) or all.

        Args:
            batch_size: How many rows, or squares, a batch has: 4096, or squares of 4096 tokens, unless it is said.
            shuffle: Whether each epoch has an order of its own, by `seed`; else it is that of the run.
            drop_last: Whether a last batch that would not be full is left out.

        Raises:
            SelectionError: as `activations` does; or no text is as long as a square.
        """
        from traceformer.store.training_data import training_data

        spec = self.spec(site, side, kind)
        chosen = {"layer": layer, "head": head, "batch_size": batch_size, "dtype": dtype, "shuffle": shuffle}
        chosen |= {"seed": seed, "drop_last": drop_last, "size": size, "crop": crop, "pad": pad}
        digest = configuration_digest(self._source.head.configuration)[:16]
        return training_data(self, self._arrays, spec, digest, chosen)

    def pieces(
        self, site: str | ArrayKey, layer: int | None = None, *, dtype: ReadDtype = "float32"
    ) -> Iterator[Num[np.ndarray, "token d"]]:
        """Yields the rows of `activations` as they are read, each piece a new array of up to 8,192 tokens."""
        column = self._arrays.column(self.spec(site), layer, None, dtype)
        return self._checked(columns.in_pieces(column))

    def _checked(self, arrays: Iterator[Num[np.ndarray, "..."]]) -> Iterator[Num[np.ndarray, "..."]]:
        while True:
            with reading(self._source.name):
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
        dtype: ReadDtype = "float32",
    ) -> Iterator[tuple[str, Num[np.ndarray, "..."]]]:
        """Yields each example's id and its matrix (query, key) or rows (token, d) of one head, in the data set's order.

        Reads one shard ahead. The arrays are views of a block that holds one shard of this head: copy what you keep.
        """
        spec = self.spec(site, side, kind)
        return ((self._index.id(row), values) for row, values in self._arrays.by_example(spec, layer, head, dtype))

    def verify(self) -> Verification:
        """Returns whether every file is there and as it was written: reads all of them. See `Verification`."""
        return verify_folder(self.on_disk().folder)

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False) -> "Run":
        """Returns this run in the folder `path`, where it is written durably: from memory, or as a copy.

        Raises:
            RunExists: something is at `path`, and `overwrite` is False or it is no run.
            UsageError: this run is not finished.
            Unsupported: `path` is in a bucket, where `tf.sync` copies it from a disk.
            OutOfSpace: the disk is full.
        """
        from traceformer.store.saving import save_run

        return Run(save_run(self._source, as_path(path), overwrite=overwrite))

    def on_disk(self) -> RunFolder:
        """Returns the files of the run.

        Raises:
            Unsupported: it is in memory.
        """
        if not isinstance(self._source, RunFolder):
            raise Unsupported("this run is in memory", why="it has no files", hint="run.save(path) first")
        return self._source

    def to_xarray(self, *, dtype: ReadDtype = "float32") -> "xr.DataTree":
        """Returns the run as named-dimension data sets, one per zarr group, read when used.

        Token axes have no gaps and carry `token_example` (a row of `tokens`) and `token_position`; `layer` and
        `head` are the model's numbers. Matrices keep their padding of zeros, beside `n_query` and `n_key`.
        """
        source = self.on_disk()
        try:
            from traceformer.store.xarrays import data_tree
        except ModuleNotFoundError as error:
            raise Unsupported(f"{error.name} is not installed", hint="pip install 'traceformer[zarr]'") from error
        return data_tree(source, dtype)


TraceStore = Run
"""Its other name."""
