"""Flags that several verbs share, said once: frozen dataclasses that the command line fills in, and what they mean.

The string under a field is its line in the help, as it stands. Nothing below the command line sees one of these.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import FILE_ON_DISK, FOLDER_ON_DISK, NAMED_FOLDER, Indices, count
from traceformer.cli.stopping import keeping
from traceformer.errors import UsageError
from traceformer.sites import Selection, Stack, parse_indices
from traceformer.store.names import TRACES

if TYPE_CHECKING:
    from traceformer.capture.derived import LensTopK, Traits
    from traceformer.capture.streaming import StreamedTexts
    from traceformer.capture.tokenizing import Texts
    from traceformer.capture.workers.engine import Ray
    from traceformer.models.loaded import LoadedModel
    from traceformer.store.place import Place

__all__ = [
    "DerivedChoice",
    "EngineChoice",
    "Loading",
    "PairChoice",
    "PlaceChoice",
    "SelectionChoice",
    "SweepPlace",
    "TextChoice",
    "numbers_of",
    "sites_in",
]

MODEL = Group.create_ordered("The model")
TEXTS = Group.create_ordered("The texts it reads")
PAIRS = Group.create_ordered("The texts, a pair or several")
PROMPTS = Group.create_ordered("What it answers")
CHOOSE = Group.create_ordered("How tokens are chosen")
RECORD = Group.create_ordered("What to record")
WHERE = Group.create_ordered("Where it goes")
HOW = Group.create_ordered("How it runs")
WORKERS = Group.create_ordered("Who does it")

SEVERAL = Parameter(consume_multiple=(1, None))


def sites_in(capture: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names in a list whose entries may hold several, with commas."""
    return tuple(name for names in capture for name in names.split(",") if name)


def numbers_of(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else parse_indices(text)


@Parameter(name="*", group=HOW)
@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a model is loaded."""

    adapter: Annotated[str | None, Parameter(group=MODEL, metavar="FOLDER|NAME")] = None
    """An adapter of PEFT for the model, in a folder or on the Hub."""
    revision: Annotated[str | None, Parameter(group=MODEL)] = None
    """The commit, tag or branch of the model on the Hub."""
    like: Annotated[str | None, Parameter(group=MODEL, metavar="FAMILY")] = None
    """Record it by the row of this family, such as llama, once every fact of it is proved on the texts."""
    allow_pickle: Annotated[bool, Parameter(group=MODEL)] = False
    """Load weights from pickle files, which can run code of whoever made them."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the fastest there is by default."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """In place of a device: spread a model that none has room for over all of them, memory and disk."""
    offload_folder: Annotated[Path | None, FOLDER_ON_DISK, Parameter(metavar="FOLDER")] = None
    """Where what neither a GPU nor memory has room for is kept until it is used."""
    model_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What the model computes in; what its weights are stored in by default."""

    def load(self, name: str, *, with_head: bool) -> "LoadedModel":
        from traceformer.models.load import load_model

        return load_model(name, revision=self.revision, with_head=with_head, **self.settings())

    def given(self) -> tuple[str, ...]:
        """Returns the names of what was said."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) != each.default)

    def settings(self) -> dict[str, Any]:
        """Returns what `load_model` is told of any model."""
        return {
            "adapter": self.adapter,
            "device": self.device,
            "device_map": self.device_map,
            "offload_folder": self.offload_folder,
            "dtype": self.model_dtype,
            "allow_pickle": self.allow_pickle,
            "like": self.like,
        }


@Parameter(name="*", group=WORKERS)
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which processes do the work."""

    engine: Literal["ray"] | None = None
    """ray has workers share the work, on this machine or a cluster; needs the extra traceformer[ray]."""
    ray_address: Annotated[str | None, Parameter(metavar="auto|ADDRESS")] = None
    """The cluster; this machine alone by default."""
    workers: Annotated[int, count("N")] = 2
    """How many workers."""
    gpus_per_worker: Annotated[float, Parameter(metavar="N")] = 0
    """How many GPUs each has."""
    threads_per_worker: Annotated[int, count("N")] = 1
    """How many threads each computes with."""

    def chosen(self) -> "Ray | None":
        """Returns the engine; None for this process.

        Raises:
            UsageError: it is told how workers are, and not that there are any; or that makes no sense.
        """
        if self.engine is None:
            given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
            if given:
                flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
                raise UsageError(f"{flags} without --engine", hint="--engine ray")
            return None
        from traceformer.capture.workers.engine import Ray

        ray = Ray(
            workers=self.workers,
            address=self.ray_address,
            gpus_per_worker=self.gpus_per_worker,
            threads_per_worker=self.threads_per_worker,
        )
        ray.check()
        return ray


@Parameter(name="*", group=TEXTS)
@dataclass(frozen=True, slots=True, kw_only=True)
class TextChoice:
    """Which texts a model reads, and where they are cut."""

    dataset: str = "ud_ewt"
    """demo, ud_ewt, go_emotions, csqa, wikitext, hf:NAME[:CONFIG]; .txt .json .jsonl .csv .tsv .parquet .conllu, .gz"""
    split: Annotated[str | None, Parameter(show_default="validation")] = None
    """Which part of the data set."""
    text_column: Annotated[str | None, Parameter(metavar="C|A,B")] = None
    """Where the text, its words or the messages of a chat are; A,B for pairs of texts, a.b for a part of a column."""
    ids_column: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    """The column that holds token ids in place of texts; they need no tokenizer."""
    targets_file: Path | None = None
    """One target per line, for the decoder of an encoder-decoder; without it only the encoder runs."""
    limit: Annotated[int | Literal["all"], count("N|all")] = 32
    """The first N texts."""
    max_seq_len: Annotated[int | Literal["auto"], count("N|auto")] = 128
    """Cut texts after N tokens; auto is the longest text, up to what the model can take."""
    dec_max_len: Annotated[int, count("N")] = 64
    """Cut targets after N tokens."""
    streaming: bool = False
    """Read texts as they come, in bounded memory; --dataset may be a pattern such as 'shards/*.tar'."""
    shuffle: Annotated[int | None, count("SEED", least=0)] = None
    """Of a stream, put texts in an order by this seed, --shuffle-buffer at a time."""
    shuffle_buffer: Annotated[int, count("N", least=2)] = 10_000
    """How many texts are held for that."""

    def read(self) -> "Texts | StreamedTexts":
        from traceformer.capture.extract import asked_texts

        return asked_texts(self.dataset, **self._asked())

    def read_listed(self) -> "Texts":
        """The texts, all of them known; a stream is refused."""
        from traceformer.capture.extract import listed_texts

        return listed_texts(self.dataset, **self._asked())

    def _asked(self) -> dict[str, Any]:
        return {
            "targets": self.targets_file,
            "split": self.split,
            "text_column": self.text_column,
            "ids_column": self.ids_column,
            "limit": None if self.limit == "all" else self.limit,
            "max_seq_len": self.max_seq_len,
            "dec_max_len": self.dec_max_len,
            "streaming": self.streaming,
            "shuffle": self.shuffle,
            "shuffle_buffer": self.shuffle_buffer,
        }


@Parameter(name="*", group=PAIRS)
@dataclass(frozen=True, slots=True, kw_only=True)
class PairChoice:
    """Texts that differ in what is asked for, and what should follow the first one."""

    clean: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """A text."""
    corrupt: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """Another one of as many tokens."""
    answer: Annotated[str | None, Parameter(metavar="TOKEN")] = None
    """What should follow the clean text, one token."""
    wrong: Annotated[str | None, Parameter(metavar="TOKEN")] = None
    """What should not."""
    pairs: Annotated[str | None, Parameter(metavar="FILE|NAME")] = None
    """In place of these: repeats, indirect_object, agreement, or a file with an object per line."""
    answer_token: Literal["only", "first"] = "only"
    """Take the first token of an answer of several, or refuse it."""

    def given(self) -> dict[str, Any]:
        """Returns them as `patch` and `edges` take them."""
        return {name: getattr(self, name) for name in PairChoice.__slots__}

    def typed(self) -> str:
        """Returns the flags that say the same."""
        import shlex

        given = {name: value for name, value in self.given().items() if value not in (None, "only")}
        return " ".join(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in given.items())


@Parameter(name="*", group=RECORD)
@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedChoice:
    """What is computed from rows while the model runs."""

    project: Annotated[tuple[Path, ...], Parameter(metavar="FILE..."), SEVERAL] = ()
    """Record projections onto the trait vectors in these files; alone, unless more is asked for."""
    project_site: Annotated[str, Parameter(metavar="SITE")] = "resid_post"
    """What to project."""
    lens_top_k: Annotated[int | None, count("K")] = None
    """Record the K likeliest next tokens of each layer (lens); alone, unless more is asked for."""

    @property
    def is_asked(self) -> bool:
        return bool(self.project) or self.lens_top_k is not None

    def derived(self) -> "tuple[Traits | LensTopK, ...]":
        if not self.is_asked:
            return ()
        from traceformer.capture.derived import LensTopK, Traits
        from traceformer.formats.results.directions import read_all_directions

        made: list[Traits | LensTopK] = []
        if self.project:
            files = read_all_directions(self.project)
            made.append(Traits({name: file.by_layer for name, file in files.items()}, self.project_site))
        if self.lens_top_k is not None:
            made.append(LensTopK(self.lens_top_k))
        return tuple(made)


@Parameter(name="*", group=RECORD)
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionChoice:
    """Which sites, layers and heads are recorded."""

    capture: Annotated[tuple[str, ...], Parameter(metavar="SITE...", show_default="attn qkv"), SEVERAL] = ()
    """Groups attn qkv hidden resid mlp norms internals logits heads all, or names of sites."""
    layers: Indices = None
    """Which layers, in both stacks; all of them by default."""
    heads: Indices = None
    """Which heads, in both stacks; all of them by default."""
    layers_enc: Indices = None
    """Which layers of the encoder."""
    heads_enc: Indices = None
    """Which heads of the encoder."""
    layers_dec: Indices = None
    """Which layers of the decoder."""
    heads_dec: Indices = None
    """Which heads of the decoder."""
    hidden_layers: Indices = None
    """Which entries of hidden; all layers and the embedding by default."""
    store_topk: Annotated[int | None, count("K")] = None
    """Store the K largest keys of each query in place of patterns, and what all others have together."""

    def selection(self, derived: tuple[Any, ...]) -> Selection:
        sites = sites_in(self.capture) or (() if derived else ("attn", "qkv"))
        layers: dict[Stack, str | None] = {
            "enc": self.layers_enc or self.layers,
            "dec": self.layers_dec or self.layers,
        }
        heads: dict[Stack, str | None] = {"enc": self.heads_enc or self.heads, "dec": self.heads_dec or self.heads}
        selection = Selection.of(sites, layers=layers, heads=heads, hidden_layers=self.hidden_layers, derived=derived)
        if self.store_topk is None:
            return selection
        from traceformer.capture.topk import AttentionTopK

        return replace(selection, derived=(*derived, AttentionTopK(self.store_topk)))


@Parameter(name="*", group=WHERE)
@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceChoice:
    """Where a run goes."""

    out_dir: Annotated[Path | None, NAMED_FOLDER] = None
    """The run's folder, in place of one in ./traces that is named after time, model and texts; or s3://BUCKET/NAME."""
    dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    """How values are stored; one that float16 cannot hold stops the run."""
    rows_codec: Literal["exact", "q8"] = "exact"
    """q8 stores activations in a byte each, to 0.4 % of the largest of 32 neighbours, massive channels exactly."""
    resume: bool = False
    """Go on with an interrupted run of the same configuration."""
    overwrite: bool = False
    """Replace a finished run that is in the way."""
    keep_duplicates: bool = False
    """Store rows that are equal to another array's once more."""
    thumbnails: bool = False
    """Draw all heads in small at the end, for the viewer."""

    def place(self, parent: Path = TRACES, **storage: Any) -> "Place":
        """Returns the place, after finding out what cannot work there; `parent` is for runs without a folder."""
        place = self.unchecked(parent, **storage)
        place.check()
        return place

    def unchecked(self, parent: Path = TRACES, **storage: Any) -> "Place":
        """Returns the place as it is asked for."""
        import shlex
        import sys

        from traceformer.store.objects.path import as_path
        from traceformer.store.place import Place, Storage

        return Place(
            folder=None if self.out_dir is None else as_path(self.out_dir),
            parent=None if self.out_dir is not None else parent,
            resume=self.resume,
            overwrite=self.overwrite,
            writer=storage.pop("writer", (0, 1)),
            storage=Storage(self.dtype, keep_duplicates=self.keep_duplicates, rows_codec=self.rows_codec, **storage),
            command_line=shlex.join(["traceformer", *sys.argv[1:]]),
            thumbnails=self.thumbnails,
        )


@Parameter(name="*", group=WHERE)
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlace:
    """Where effects go."""

    out_dir: Annotated[Path | None, FOLDER_ON_DISK] = None
    """A folder to write effects to, text by text or pair by pair."""
    resume: bool = False
    """Go on with an interrupted sweep of the same settings there."""
    png: Annotated[Path | None, FILE_ON_DISK] = None
    """Save a map, in the format that the ending names."""
    json: bool = False
    """Print a JSON object."""

    def keeping(self) -> AbstractContextManager[None]:
        """Returns the context in which a sweep may be interrupted: with a folder, what is there is kept."""
        return keeping("what was measured is kept", resumes=self.out_dir is not None)

    def check(self) -> None:
        """Makes sure that a picture of this name can be written, before anything is computed."""
        if self.png is not None:
            from traceformer.figures.style import check_format

            check_format(self.png)
