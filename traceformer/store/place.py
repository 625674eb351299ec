"""Where a run goes, and how its values are stored there: a folder of its own, a folder of runs, or memory."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from traceformer.errors import NotRecorded, Unsupported, UsageError, check_choice
from traceformer.presentation import present
from traceformer.progress import OnStep, quiet
from traceformer.sites import Stack
from traceformer.store.aliases import Aliases
from traceformer.store.begun import check_free, has_head, is_begun
from traceformer.store.commits import RunHead
from traceformer.store.layout import MANIFEST, RunLayout
from traceformer.store.leased import LeasedWriter
from traceformer.store.locks import begun_head, find_unfinished, timestamped_folder
from traceformer.store.memory import MemoryWriter, check_memory
from traceformer.store.meta import RunMeta
from traceformer.store.names import AttnCodec, Dtype, RowsCodec
from traceformer.store.objects.path import AnyPath, ObjectPath
from traceformer.store.recipes import Patterns
from traceformer.store.replacing import check_place
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

__all__ = ["Place", "Storage", "Writer"]

Writer: TypeAlias = RunWriter | LeasedWriter | MemoryWriter
"""What a run is written with, wherever it goes."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How values are stored; the choices are `docs/runs.md`'s. `shard_examples` None lets the store choose.

    `keep_duplicates` stores rows that are equal to another array's once more. `patterns` says whether these are stored,
    or made anew of q and k when they are read.
    """

    dtype: Dtype = "float16"
    codec: Literal["none", "zstd", "lz4"] = "none"
    attn_codec: AttnCodec = "exact"
    shard_examples: int | None = None
    keep_duplicates: bool = False
    patterns: Patterns = "stored"
    rows_codec: RowsCodec = "exact"

    def once(self, layout: RunLayout, aliases: Aliases) -> RunLayout:
        """Returns the layout with these aliases, or as it is where everything is to be stored."""
        return layout if self.keep_duplicates else replace(layout, aliases=aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run goes: to `folder`; under `parent`, by a name that says when and what; or, with neither, to memory.

    Attributes:
        folder: The run's own folder, or its place in a bucket.
        parent: A folder of runs.
        resume: Go on with an unfinished run of the same configuration.
        overwrite: Replace a finished run that is in the way.
        writer: (w, W) when W processes share one run, each with its part; with leases W is 0 where
            somebody hands out the shards.
        claims: `lease` when any number of processes share one run, each taking the next shard that nobody has; an
            unfinished run of the same configuration is joined. `own` when a shard is its writer's from the start.
        storage: How values are stored.
        command_line: What is stated of how the run came about.
        thumbnails: Draw its heads in small once it is finished, and keep that beside it for the viewer.
    """

    folder: AnyPath | None = None
    parent: Path | None = None
    resume: bool = False
    overwrite: bool = False
    writer: tuple[int, int] = (0, 1)
    claims: Literal["own", "lease"] = "own"
    storage: Storage = field(default_factory=Storage)
    command_line: str = ""
    thumbnails: bool = False

    def check(self) -> None:
        """Finds out what cannot work before a model is loaded, not after.

        Raises:
            RunExists: a run is in the way, or something that is none.
            UsageError: no such dtype or codec; writers that share a run must know its folder; or that is none that a
                run can be put at; thumbnails of a run in memory.
        """
        check_choice("dtype", self.storage.dtype, get_args(Dtype))
        check_choice("codec", self.storage.codec, ("none", "zstd", "lz4"))
        check_choice("attn_codec", self.storage.attn_codec, get_args(AttnCodec))
        check_choice("rows_codec", self.storage.rows_codec, get_args(RowsCodec))
        check_choice("patterns", self.storage.patterns, get_args(Patterns))
        if self.storage.patterns == "recipe" and self.storage.attn_codec != "exact":
            raise UsageError(
                f'`attn_codec="{self.storage.attn_codec}"` and `patterns="recipe"`',
                why="patterns by recipe are not stored, so that nothing of them is compressed or rounded",
                hint="one of the two",
            )
        if self.storage.shard_examples is not None and self.storage.shard_examples < 1:
            raise UsageError(f"{self.storage.shard_examples} texts per shard", hint="give 1 or more")
        check_choice("claims", self.claims, ("own", "lease"))
        if self.is_shared and self.folder is None:
            raise UsageError("several writers need to know their common run", hint="give all of them the same `out`")
        if self.thumbnails and self.folder is None and self.parent is None:
            raise UsageError("thumbnails of a run in memory", why="they lie beside a run's folder", hint="give `out`")
        if self.thumbnails and isinstance(self.folder, ObjectPath):
            raise UsageError("thumbnails of a run in a bucket", why="they lie beside a run's folder on disk")
        if isinstance(self.folder, ObjectPath) and self.folder.scheme == "hf":
            why = "it has no writes on a condition, which tell two writers apart"
            hint = "write it on a disk, then copy it there: tf.sync(run, place)"
            raise Unsupported(f"a run cannot be written to {self.folder}", why=why, hint=hint)
        if self.folder is not None:
            if isinstance(self.folder, Path):
                check_place(self.folder)
            if self.is_done_by_others:
                return
            check_free(self.folder, overwrite=self.overwrite, resume=self.resume, joins=self.is_shared)

    @property
    def is_done_by_others(self) -> bool:
        """Whether one of several writers comes to go on with a run that the others have finished."""
        goes_on = self.resume and self.is_shared and not self.overwrite
        return goes_on and self.folder is not None and (self.folder / MANIFEST).is_file()

    def finished(self, layout: RunLayout, configuration: Mapping[str, Any]) -> Run:
        """Returns the run that others have finished.

        Raises:
            ConfigurationChanged: it is another one.
        """
        assert self.folder is not None
        begun_head(self.folder, RunHead.of({}, layout, _stated(layout, configuration)))
        return Run(self.folder)

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write the same run."""
        return self.writer[1] != 1 or self.claims == "lease"

    def made_absolute(self) -> "Place":
        """Returns the same place for processes that may be in other folders."""
        folder = None if self.folder is None else self.folder.absolute()
        return replace(self, folder=folder, parent=None if self.parent is None else self.parent.absolute())

    def open(
        self,
        name: str,
        layout: RunLayout,
        meta: RunMeta,
        configuration: Mapping[str, Any],
        lengths: Mapping[Stack, Sequence[int]],
    ) -> Writer:
        """Returns the writer of the run, begun or resumed.

        Args:
            name: What the run is called, behind its time, where it has no folder of its own.
            layout: What goes into it.
            meta: What the run states of model and texts.
            configuration: What must be equal to resume, but for the layout.
            lengths: Tokens of each example, or the most that it can have.

        Raises:
            OutOfSpace: there is not so much memory.
            NotRecorded: thumbnails of a run without patterns.
            RunExists: something is in the way.
            ConfigurationChanged: the run to resume was begun with another model, selection, text or setting.
        """
        if self.thumbnails and all(spec.key.site != "attn_pattern" for spec in layout.arrays):
            raise NotRecorded("thumbnails without attention patterns", hint='`capture="attn"` records these')
        configuration = _stated(layout, configuration)
        if self.folder is None and self.parent is None:
            check_memory(layout, lengths)
            return MemoryWriter(layout, self._complete(name, meta, layout), digest=configuration)
        parent = self.parent or Path()
        folder = self.folder or timestamped_folder(parent, name)
        kind = LeasedWriter if self.claims == "lease" or isinstance(folder, ObjectPath) else RunWriter
        begin = partial(kind.create, overwrite=self.overwrite)
        if self.claims == "lease":
            begin = partial(LeasedWriter.create, overwrite=self.overwrite, joins=True)
        if self.resume:
            unfinished = self.folder or find_unfinished(parent, configuration)
            if unfinished is not None and is_begun(unfinished) and (not self.is_shared or has_head(unfinished)):
                folder, begin = unfinished, partial(kind.resume, overwrite=self.overwrite)
            else:
                warnings.warn("nothing to resume: starting anew", stacklevel=2)
        stated = self._complete(folder.name, meta, layout)
        return begin(folder, layout, stated, digest=configuration, writer=self.writer)

    def _complete(self, run_id: str, meta: RunMeta, layout: RunLayout) -> dict[str, Any]:
        """What `meta.json` says, with what is known of the place and its layout."""
        n_examples = None if layout.is_open else layout.n_examples
        place = {"n_examples": n_examples, "dtype": layout.dtype, "command_line": self.command_line}
        return replace(meta, run_id=run_id, **place).to_json()

    def finish(self, writer: Writer, progress: OnStep = quiet) -> Run:
        """Returns the run that a writer has finished (the unfinished one while other writers are still at work).

        `progress` is told how many of how many examples have their thumbnails.
        """
        made = writer.finish()
        run = made if isinstance(made, Run) else Run(made)
        if self.thumbnails and run.finished:
            present(run, "thumbnails", progress)
        return run


def _stated(layout: RunLayout, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for a run to be gone on with: a configuration, and how the run is laid out."""
    return {**configuration, **{key: of for key, of in layout.to_json().items() if key != "arrays"}}
