"""What a run looks like on disk: names, shapes, chunks, sizes. Writer and reader both ask here.

1. T, the tokens that fit one example, is the longest example rounded up to a multiple of 64, per stack.
2. B, the examples of one shard, is the largest power of two <= 256 whose arrays take <= 256 MiB at T.
3. Matrices have the axes (example, layer, head, query, key). One chunk is one head's square of one example, split
   into blocks of rows above 256 KiB; one shard is B examples with all layers and heads, split by layers above
   256 MiB. Patterns in which no query looks at a later key are packed triangles (example, layer, head, cell), as
   `triangles` has them, whose chunks are equal runs of cells. All are compressed (`codecs`); in runs of formats 1 and
   2 nothing is packed, and the compression is zstd.
4. Token arrays have the axes (layer[, head], token, feature) and hold packed tokens: shard k owns the slots
   k*S .. (k+1)*S - 1 with S = B*T and holds its true tokens back to back from k*S on. They are not compressed unless
   asked. One chunk is 512 slots of one layer and head; fewer where a slot is so wide that a chunk would pass 4 MiB, or
   where a shard holds so few tokens that its last, part-filled chunk would be more than a tenth of it.
5. Example arrays have the axes (example[, layer, head], feature): one row per example, whatever its length. One chunk
   is as many examples, with all layers and heads, as 256 KiB hold; one shard is B examples. They are compressed like
   token arrays. The row of an example without tokens, on which nothing was run, is NaN.
6. A layer of a token array that is another's, bit for bit, is not stored: see `aliases`.
7. Patterns by recipe are not stored either: see `recipes`. Their q and k are as wide as loses nothing of them.
8. Activations may be rounded to bytes (`q8`): then an array lies there as three, its codes under its own name, and
   beside them their scales and its massive channels, whose chunks have one channel each and are left out where none is.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from traceformer.errors import UsageError
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.aliases import Aliases, Lead, Piece, Rows, check_aliases, kept_arrays, pieces
from traceformer.store.names import Arch, AttnCodec, Codec, Dtype, MatrixCodec, RowsCodec, Stored, array_path
from traceformer.store.recipes import Recipe, check_recipes, operands_of
from traceformer.store.triangles import n_cells

__all__ = [
    "COMMITS",
    "EXAMPLES",
    "FORMAT_VERSION",
    "LEASES",
    "MANIFEST",
    "META",
    "OPEN_ENDED",
    "TOKENS",
    "TOKEN_SHARDS",
    "UNFINISHED",
    "RunLayout",
    "as_of",
]

FORMAT_VERSION = 3
META = "meta.json"
MANIFEST = "manifest.json"
TOKENS = "tokens.parquet"
EXAMPLES = "examples.index"
TOKEN_SHARDS = "tokens"
COMMITS = "commits"
LEASES = "leases"  # of who works on which shard; none is part of a run
UNFINISHED = "_tmp_"  # what the name of a run's folder begins with until the run is finished

SHARD_BYTES = 256 << 20
CHUNK_BYTES = 256 << 10
TOKEN_CHUNK_BYTES = 4 << 20
TOKEN_CHUNK_SLOTS = 512
FEWEST_CHUNK_SLOTS = 16
CHUNKS_PER_SHARD = 10
METRIC_CHUNK_EXAMPLES = 32
MOST_EXAMPLES = 256
OPEN_ENDED = 1_000_000_000  # examples that are declared where nobody knows how many will come
_STACKS: tuple[Stack, ...] = ("enc", "dec")
_WORDS: Mapping[str, Any] = {
    **{"arch": Arch, "dtype": Dtype, "attn_codec": AttnCodec, "codec": Codec},
    "matrix_codec": MatrixCodec,
    "rows_codec": RowsCodec,
}
_MOST = 1 << 48  # of anything: products of two such numbers still mean something to Python, and to nothing else
# What a layout states, by the format that it came with.
_SINCE: Mapping[str, int] = {"aliases": 3, "triangles": 3, "matrix_codec": 3, "recipes": 3}
_OF_LAYERS = ("layer", "hidden_layer")
_OF_HEADS = ("head", "kv_head")

_MATRIX_CODECS: Mapping[AttnCodec, MatrixCodec] = {
    "exact": "bitshuffle-lz4",
    "small": "shuffle-zstd",
    "sqrt8": "shuffle-zstd",
}


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The arrays of a run and how they are cut into shards and chunks.

    `n_examples` is the number of examples to write, `max_tokens` T per stack, `shard_examples` B. `dtype` and
    `codec` are those of token arrays; matrices have the same dtype, or bytes for the codec `sqrt8`. `chunk_slots` is
    the most token slots of one chunk, per stack. Ids are int32 and head metrics float32 whatever the dtype.
    `triangles` are the patterns of which only what lies on and below the diagonal is stored, `matrix_codec` how all
    matrices are compressed; what they are without being stated is what formats 1 and 2 have. `rows_codec` is `q8` where
    activations are rounded to bytes, and stated only then.

    `arrays` are what a reader sees. `aliases` are the layers of them that are another's, and `kept` is what is stored:
    the arrays with the layers that are no aliases. Where and how numbers lie on disk is asked of these. `recipes` are
    those of the patterns that are made anew when they are read, and not stored.
    """

    arch: Arch
    arrays: tuple[ArraySpec, ...]
    n_examples: int
    max_tokens: Mapping[Stack, int]
    shard_examples: int
    dtype: Dtype
    attn_codec: AttnCodec
    codec: Codec
    chunk_slots: Mapping[Stack, int]
    triangles: tuple[ArrayKey, ...] = ()
    matrix_codec: MatrixCodec = "zstd"
    aliases: Aliases = field(default_factory=dict[Rows, Rows])
    recipes: Mapping[ArrayKey, Recipe] = field(default_factory=dict[ArrayKey, Recipe])
    rows_codec: RowsCodec = "exact"
    _kept: Mapping[ArrayKey, ArraySpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        stored = [spec for spec in self.arrays if spec.key not in self.recipes]
        object.__setattr__(self, "_kept", kept_arrays(stored, self.aliases))

    @classmethod
    def plan(
        cls,
        *,
        arch: Arch,
        arrays: Sequence[ArraySpec],
        n_examples: int,
        longest: Mapping[Stack, int],
        mean: Mapping[Stack, float] | None = None,
        dtype: Dtype = "float16",
        attn_codec: AttnCodec = "exact",
        codec: Codec = "none",
        rows_codec: RowsCodec = "exact",
        shard_examples: int | None = None,
        triangles: Collection[ArrayKey] = (),
        recipes: Mapping[ArrayKey, Recipe] | None = None,
    ) -> "RunLayout":
        """Returns the layout for examples of at most `longest` tokens per stack, and of `mean` tokens on average.

        `triangles` are the patterns of which it is known that no query looks at a later key, `recipes` of those that
        are not stored how they are made.

        Raises:
            UsageError: no arrays, no examples, an array twice, one of a stack without a length, or no rows to round.
        """
        if not arrays or n_examples < 1:
            raise UsageError("nothing to store", why=f"{len(arrays)} arrays of {n_examples} examples")
        if len({spec.key for spec in arrays}) < len(arrays):
            raise UsageError("an array is listed twice", why=" ".join(str(spec.key) for spec in arrays))
        ragged = [spec.key for spec in arrays if not spec.site.is_per_example]
        needed = {stack for key in ragged for stack in (key.stack, key.token_stack, key.key_stack)}
        if needed - longest.keys():
            missing = " and ".join(sorted(needed - longest.keys()))
            raise UsageError(f"no length for {missing}", why="an array has rows there")
        if rows_codec == "q8" and not any(spec.site.holds_features for spec in arrays):
            kept = " ".join(str(spec.key) for spec in arrays)
            raise UsageError(
                "no rows to store as q8", why=f"{kept} are stored as they are", hint='`capture="resid"` has some'
            )
        max_tokens: dict[Stack, int] = {s: max(1, math.ceil(longest[s] / 64)) * 64 for s in _STACKS if s in longest}
        layout = cls(
            arch, tuple(arrays), n_examples, max_tokens, 1, dtype, attn_codec, codec, {}, rows_codec=rows_codec
        ).packed(triangles)
        layout = replace(layout, recipes=recipes or {})
        fitting = SHARD_BYTES // layout.bytes_per_shard()
        in_shard = shard_examples or min(MOST_EXAMPLES, 1 << max(0, fitting.bit_length() - 1))
        chunk_slots: dict[Stack, int] = {}
        for stack, tokens in (mean or longest).items():
            fitting = int(tokens * min(in_shard, n_examples)) // CHUNKS_PER_SHARD
            chunk_slots[stack] = min(TOKEN_CHUNK_SLOTS, max(FEWEST_CHUNK_SLOTS, 1 << max(0, fitting.bit_length() - 1)))
        return replace(layout, shard_examples=in_shard, chunk_slots=chunk_slots)

    def packed(self, triangles: Collection[ArrayKey]) -> "RunLayout":
        """Returns the same layout with these patterns as packed triangles, and all matrices compressed as now."""
        chosen = tuple(spec.key for spec in self.arrays if spec.key in triangles)
        return replace(self, triangles=chosen, matrix_codec=_MATRIX_CODECS[self.attn_codec])

    def spec(self, key: ArrayKey) -> ArraySpec | None:
        """Returns the spec of an array, or None if the run does not hold it."""
        return next((spec for spec in self.arrays if spec.key == key), None)

    @property
    def kept(self) -> tuple[ArraySpec, ...]:
        """What is stored: the arrays with the layers that are no aliases; an array without such a layer is none."""
        return tuple(self._kept.values())

    def pieces(self, spec: ArraySpec, lead: Lead) -> list[Piece]:
        """Returns the parts of kept arrays that `lead` of an array is made of, in order along its layers."""
        return pieces(spec, lead, self.aliases, self._kept)

    def read_for(self, spec: ArraySpec) -> tuple[ArraySpec, ...]:
        """Returns the arrays that are read for an array's numbers: itself, or q and k of patterns by recipe."""
        if spec.key not in self.recipes:
            return (spec,)
        operands = operands_of(spec.key)
        return tuple(other for other in self.arrays if other.key in operands)

    def array_path(self, key: ArrayKey) -> str:
        """Returns where the array lives inside the run's folder: `dec_self_attn.zarr/attn`."""
        return array_path(key, self.arch)

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks whose tokens the run holds."""
        return tuple(stack for stack in _STACKS if stack in self.max_tokens)

    @property
    def is_open(self) -> bool:
        """Whether nobody knows yet how many examples there will be: those of a stream."""
        return self.n_examples == OPEN_ENDED

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_examples / self.shard_examples)

    def shard_range(self, shard: int) -> range:
        """Returns the indices of the examples in a shard; the last one may hold fewer than B."""
        return range(shard * self.shard_examples, min((shard + 1) * self.shard_examples, self.n_examples))

    def shard_slots(self, stack: Stack) -> int:
        """Returns S = B*T, the token slots of a shard."""
        return self.shard_examples * self.max_tokens[stack]

    def stored(self, spec: ArraySpec) -> Stored:
        """Returns how the array's numbers are stored; `sqrt8` is for patterns only, scores have any size."""
        if spec.part:
            return "float16" if spec.part == "scale" else self.dtype
        if spec.site.holds_ids:
            return "int32"
        if spec.site.is_in_float32:
            return "float32"
        if spec.key.site in ("q", "k") and self.recipes:
            recipe = self.recipes.get(spec.key._replace(site="attn_pattern"))
            if recipe is not None:
                return recipe.stored
        if self.rows_codec == "q8" and spec.site.holds_features:
            return "q8"
        return "sqrt8" if self.attn_codec == "sqrt8" and spec.key.site == "attn_pattern" else self.dtype

    def held(self, spec: ArraySpec) -> Stored:
        """Returns how the array's numbers are held in an open shard: rows that will be rounded in the run's dtype."""
        stored = self.stored(spec)
        return self.dtype if stored == "q8" else stored

    def parts(self, spec: ArraySpec) -> tuple[ArraySpec, ...]:
        """Returns the arrays that a kept one is stored as: itself, and where these are codes what lies beside them."""
        if self.stored(spec) != "q8":
            return (spec,)
        from traceformer.store.q8 import most_massive, n_blocks

        scales, massive = n_blocks(spec.width), most_massive(spec.width)
        return spec, replace(spec, part="scale", width=scales), replace(spec, part="massive", width=massive)

    def path_of(self, spec: ArraySpec) -> str:
        """Returns where what is stored of an array lives inside the run's folder: scales in `dec_z.zarr/z_scale`."""
        return f"{self.array_path(spec.key)}{'_' if spec.part else ''}{spec.part}"

    def codec_of(self, spec: ArraySpec) -> Codec | MatrixCodec:
        """Returns how the array's chunks are compressed."""
        return self.matrix_codec if spec.site.is_matrix else self.codec

    def is_triangle(self, spec: ArraySpec) -> bool:
        """Returns whether only what lies on and below the diagonal of the array's squares is stored."""
        return spec.key in self.triangles

    def stored_axes(self, spec: ArraySpec) -> tuple[str, ...]:
        """Returns the dimension names on disk: those of `axes`, but one for the cells of a packed triangle.

        Of what lies beside codes the last one is for scales (`x_block`), or for channels (`x_massive`).
        """
        if spec.part:
            leaf = self.array_path(spec.key).split("/")[1]
            return (*self.axes(self._kept[spec.key])[:-1], f"{leaf}_{'block' if spec.part == 'scale' else spec.part}")
        axes = self.axes(spec)
        return (*axes[:-2], "cell") if self.is_triangle(spec) else axes

    def axes(self, spec: ArraySpec) -> tuple[str, ...]:
        """Returns the dimension names of what is read, each with one meaning within its zarr group.

        Where two arrays of a group would use a name for different layers, heads or widths, it is prefixed with
        the array's own name, since xarray refuses a group with one dimension of two sizes.
        """
        group, leaf = self.array_path(spec.key).split("/")
        neighbours = [other for other in self.arrays if self.array_path(other.key).split("/")[0] == group]
        others = [other for other in neighbours if other.key != spec.key]
        names: list[str] = []
        for name in self._own_axes(spec):
            meanings = {_labels(other, name) for other in (spec, *others) if name in self._own_axes(other)}
            names.append(name if len(meanings) == 1 else f"{leaf}_{name}")
        return tuple(names)

    def coordinates(self, spec: ArraySpec) -> dict[str, tuple[int, ...]]:
        """Returns the model's own numbers along each axis of the array that counts layers or heads, by its name."""
        named = zip(self.axes(spec), self._own_axes(spec), strict=True)
        return {name: _labels(spec, own) for name, own in named if own in (*_OF_LAYERS, *_OF_HEADS)}

    def _own_axes(self, spec: ArraySpec) -> tuple[str, ...]:
        axes = tuple(f"{spec.key.token_stack}_token" if axis == "position" else axis for axis in spec.site.axes)
        return axes if spec.site.is_per_token else ("example", *axes)

    def stored_shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Returns the shape of the array's part of one shard on disk: (B, layer, head, cell) of a packed triangle."""
        shape = self.buffer_shape(spec)
        return (*shape[:-2], n_cells(shape[-1])) if self.is_triangle(spec) else shape

    def buffer_shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Returns the shape of the array's part of one shard, as it is read.

        (B, layer, head, Tq, Tk), (layer[, head], S, d), or (B[, layer, head], d) with one row per example.
        """
        lead = (len(spec.layers),) * bool(spec.layers) + (len(spec.heads),) * bool(spec.heads)
        if spec.site.is_matrix:
            return (self.shard_examples, *lead, self.max_tokens[spec.key.stack], self.max_tokens[spec.key.key_stack])
        if spec.site.is_per_example:
            return (self.shard_examples, *lead, spec.width)
        return (*lead, self.shard_slots(spec.key.token_stack), spec.width)

    def array_shape(self, spec: ArraySpec, n_slots: int | None = None) -> tuple[int, ...]:
        """Returns the shape on disk; token arrays have room for all shards, or `n_slots` once the run is finished."""
        shape = list(self.stored_shape(spec))
        if not spec.site.is_per_token:
            shape[0] = self.n_examples
        else:
            shape[-2] = n_slots if n_slots is not None else shape[-2] * self.n_shards
        return tuple(shape)

    def shard_shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Returns the shape of one file: whole chunks of a shard, with fewer layers where it would pass 256 MiB."""
        shape = list(self.stored_shape(spec))
        size = self.itemsize(spec)
        if self.is_triangle(spec):
            shape[-1] = -(-shape[-1] // self._run_of_cells(spec)) * self._run_of_cells(spec)
        while spec.site.is_matrix and shape[1] > 1 and math.prod(shape) * size > SHARD_BYTES:
            shape[1] = math.ceil(shape[1] / 2)
        return tuple(shape)

    def chunk_shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Returns the shape of the smallest part that can be read alone."""
        shape = self.buffer_shape(spec)
        if spec.site.is_per_example:
            most = max(1, CHUNK_BYTES // (math.prod(shape[1:]) * self.itemsize(spec)))
            if spec.site.name == "head_metrics":  # all that such a run holds, and the last chunk is whole, too
                most = min(most, METRIC_CHUNK_EXAMPLES)
            return (_even_part(shape[0], most), *shape[1:])
        if self.is_triangle(spec):
            return (1, 1, 1, self._run_of_cells(spec))
        *_, rows, width = shape
        row = width * self.itemsize(spec)
        if spec.site.is_per_token:
            if spec.part:
                rows = self.chunk_shape(self._kept[spec.key])[-2]
                return (*(1,) * (len(shape) - 2), rows, 1 if spec.part == "massive" else width)
            most = min(self.chunk_slots[spec.key.token_stack], max(1, TOKEN_CHUNK_BYTES // row))
            rows = _even_part(rows, most)
        elif rows * row > CHUNK_BYTES:
            rows = _even_part(rows, max(1, CHUNK_BYTES // row))
        return (*(1,) * (len(shape) - 2), rows, width)

    def _run_of_cells(self, spec: ArraySpec) -> int:
        """Returns how many cells of a triangle are one chunk: equal runs, each a multiple of 64."""
        cells = self.stored_shape(spec)[-1]
        chunks = -(-cells * self.itemsize(spec) // CHUNK_BYTES)
        return -(-cells // (64 * chunks)) * 64

    def written_slots(self, spec: ArraySpec, used: int) -> int:
        """Returns the slots, or examples, that a shard with `used` of them writes: whole chunks, and at least one."""
        chunk = self.chunk_shape(spec)[0 if spec.site.is_per_example else -2]
        return max(1, math.ceil(used / chunk)) * chunk

    def shard_files(self, spec: ArraySpec, shard: int) -> tuple[str, ...]:
        """Returns the paths of the files, inside the run's folder, that hold the array's part of a shard."""
        path = self.path_of(spec)
        if not spec.site.is_matrix:
            rest = ".0" * (len(self.buffer_shape(spec)) - 2)
            return (f"{path}/c.{shard}{rest}.0" if spec.site.is_per_example else f"{path}/c{rest}.{shard}.0",)
        parts = math.ceil(len(spec.layers) / self.shard_shape(spec)[1])
        rest = ".0" * (len(self.stored_shape(spec)) - 2)
        return tuple(f"{path}/c.{shard}.{part}{rest}" for part in range(parts))

    def index_bytes(self, spec: ArraySpec) -> int:
        """Returns the size of the index that ends each file of the array: two numbers for each chunk, and a crc32c."""
        sizes = zip(self.shard_shape(spec), self.chunk_shape(spec), strict=True)
        return 16 * math.prod(size // chunk for size, chunk in sizes) + 4

    def itemsize(self, spec: ArraySpec) -> int:
        from traceformer.store.dtypes import ON_DISK

        return ON_DISK[self.stored(spec)].itemsize

    def bytes_per_shard(self) -> int:
        """Returns the memory of all arrays of one full shard, uncompressed, unpacked, padding included."""
        from traceformer.store.dtypes import ON_DISK

        return sum(math.prod(self.buffer_shape(spec)) * ON_DISK[self.held(spec)].itemsize for spec in self.kept)

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "arrays": [spec.to_json() for spec in self.arrays],
            "n_examples": self.n_examples,
            "max_tokens": dict(self.max_tokens),
            "shard_examples": self.shard_examples,
            "dtype": self.dtype,
            "attn_codec": self.attn_codec,
            "codec": self.codec,
            "chunk_slots": dict(self.chunk_slots),
            "triangles": [str(key) for key in self.triangles],
            "matrix_codec": self.matrix_codec,
            "aliases": {str(rows): str(one) for rows, one in self.aliases.items()},
            **({"recipes": {str(key): own.to_json() for key, own in self.recipes.items()}} if self.recipes else {}),
            **({} if self.rows_codec == "exact" else {"rows_codec": self.rows_codec}),  # which older versions refuse
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunLayout":
        """Returns the layout that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none; so does a SelectionError, of an array that there is not.
        """
        fields: dict[str, Any] = {**data, "max_tokens": dict(data["max_tokens"])}
        fields["arrays"] = tuple(ArraySpec.from_json(spec) for spec in data["arrays"])
        stated = data.get("aliases", {}).items()
        fields["aliases"] = {Rows.parse(rows): Rows.parse(one) for rows, one in stated}
        check_aliases(fields["aliases"], fields["arrays"])
        fields["triangles"] = tuple(ArrayKey.parse(key) for key in data.get("triangles", ()))
        recipes = data.get("recipes", {}).items()
        fields["recipes"] = {ArrayKey.parse(key): Recipe.from_json(recipe) for key, recipe in recipes}
        layout = cls(**fields)
        for name, kind in _WORDS.items():
            if getattr(layout, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(layout, name)!r}")
        sizes = (layout.n_examples, layout.shard_examples, *layout.max_tokens.values(), *layout.chunk_slots.values())
        if not all(type(size) is int and 0 < size < _MOST for size in sizes):
            raise ValueError("its sizes are no whole numbers from 1")
        with_tokens = [spec.key for spec in layout.arrays if not spec.site.is_per_example]
        stacks = {stack for key in with_tokens for stack in (key.token_stack, key.stack)}
        if (
            not layout.arrays
            or not stacks <= set(layout.stacks)
            or layout.chunk_slots.keys() < layout.max_tokens.keys()
        ):
            raise ValueError("it has no arrays, or no sizes of their stacks")
        if not {spec.key for spec in layout.arrays if spec.site.is_matrix}.issuperset(layout.triangles):
            raise ValueError("its triangles are no matrices of its own")
        check_recipes(layout.recipes, layout.arrays)
        return layout


def as_of(version: int, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run's configuration or layout states as one of format `version` does: without what came later."""
    return {name: value for name, value in stated.items() if _SINCE.get(name, 1) <= version}


def _even_part(rows: int, most: int) -> int:
    """Returns the largest power of two that is at most `most` and divides `rows`."""
    return min(1 << (most.bit_length() - 1), rows & -rows)


def _labels(spec: ArraySpec, axis: str) -> tuple[int, ...]:
    if axis in _OF_LAYERS:
        return spec.layers
    if axis in _OF_HEADS:
        return spec.heads
    return (spec.width,) if axis.startswith("d_") else ()
