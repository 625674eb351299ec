"""The checkpoints of one training over the same texts: one run each, in one folder.

1. What is recorded, and of which checkpoints, is written to `checkpoints.json` first. Whoever goes on must mean the
   same; checkpoints that have come since are added.
2. The texts are encoded once, by the first model that is loaded. The others must have its tokenizer and its sizes.
3. Each checkpoint is loaded, recorded as any model is, and let go. A run that is finished is not recorded again, and
   one that was interrupted goes on.
"""

import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from traceformer.capture.encoding import tokenizer_digest
from traceformer.capture.extract import extract, read_texts
from traceformer.capture.provenance import text_configuration
from traceformer.capture.tokenizing import Rows, Texts, tokenize
from traceformer.errors import ConfigurationChanged, CorruptRun, NotFound, RunExists, Unsupported, UsageError
from traceformer.models.checkpoints import AskedCheckpoints, Checkpoint, find_checkpoints
from traceformer.models.dims import ModelDims
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnProgress, watched
from traceformer.sites import Numbers, Selection, Stack
from traceformer.store.commits import RunHead
from traceformer.store.files import canonical, durable_write, read_sealed, seal, sha256
from traceformer.store.layout import MANIFEST, META
from traceformer.store.locks import unfinished_folder
from traceformer.store.names import AttnCodec, Dtype, RowsCodec
from traceformer.store.objects.path import as_path
from traceformer.store.place import Place, Storage
from traceformer.store.recipes import Patterns
from traceformer.store.training import StepRun, TrainingRuns, folder_of_step, open_checkpoints
from traceformer.texts.cells import TextColumn
from traceformer.texts.load import Texts as AskedTexts

__all__ = ["PLAN", "extract_checkpoints", "record_checkpoints"]

PLAN = "checkpoints.json"
_FORMAT = "traceformer checkpoints 1"
_UNSAID: Mapping[str, str] = {"patterns": "stored", "rows_codec": "exact"}  # what is meant where a plan does not say


def record_checkpoints(
    checkpoints: AskedCheckpoints,
    texts: AskedTexts,
    capture: str | Iterable[str] | Selection = "attn",
    *,
    out: str | Path,
    model: str | None = None,
    layers: Numbers | Mapping[Stack, Numbers] = None,
    heads: Numbers | Mapping[Stack, Numbers] = None,
    targets: str | Path | Sequence[str] | None = None,
    split: str | None = None,
    text_column: TextColumn | None = None,
    ids_column: str | None = None,
    limit: int | None = None,
    max_seq_len: int | Literal["auto"] = "auto",
    dtype: Dtype = "float16",
    attn_codec: AttnCodec = "exact",
    rows_codec: RowsCodec = "exact",
    patterns: Patterns = "stored",
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    loading: Mapping[str, Any] | None = None,
    progress: OnProgress | None = None,
) -> TrainingRuns:
    """Returns the runs of the checkpoints of a training over the same texts, one for each step.

        runs = tf.record_checkpoints("models/tiny-dense-pydoc", "demo", out="traces/steps")
        tf.heads(runs).to_frame()    # every head at every step

    Args:
        checkpoints: A folder that holds them, as Hugging Face's Trainer or `traceformer train` leaves it, or
            nanochat's; a list of such folders; names of revisions, with `model`; or {step: folder or revision}.
        texts: As `record` takes them; encoded once.
        capture: As `record` takes it; so are `layers`, `heads`, and whatever else has its name there.
        patterns: As `record` takes it; `recipe` reads how patterns follow from q and k of each checkpoint anew.
        out: The folder of the runs: `step0`, `step512`, and so on.
        model: Whose revisions `checkpoints` are: a name of the Hub.
        resume: Go on where it was interrupted, and with checkpoints that have come since; what is finished stays.
        overwrite: Replace runs that are in the way.
        loading: How each is loaded, as `load_model` takes it: {"device": "cpu"}.
        progress: Told how far it is, checkpoint by checkpoint.

    Raises:
        NotFound: there are no checkpoints, or no such texts.
        UsageError: the step of a checkpoint is not known, or two are of one.
        Unsupported: a checkpoint has another tokenizer than the first, or other sizes.
        RunExists: `out` holds runs, and neither `resume` nor `overwrite` is meant.
        ConfigurationChanged: what is gone on with was begun with other texts or another selection.
        As `record` raises them: what it raises of a model, of texts, and of the disk.
    """
    found = find_checkpoints(checkpoints, model)
    selection = Selection.of(capture, layers=layers, heads=heads)
    asked = read_texts(
        texts,
        targets,
        split=split,
        text_column=text_column,
        ids_column=ids_column,
        limit=limit,
        max_seq_len=max_seq_len,
    )
    storage = Storage(dtype, attn_codec=attn_codec, rows_codec=rows_codec, patterns=patterns)
    place = Place(folder=as_path(out), resume=resume, overwrite=overwrite, storage=storage)
    with watched(progress) as shown:
        return extract_checkpoints(
            found,
            asked,
            selection,
            place,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            loading=loading,
            progress=shown,
        )


def extract_checkpoints(
    checkpoints: Sequence[Checkpoint],
    texts: Texts,
    selection: Selection,
    place: Place,
    *,
    batch_size: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    loading: Mapping[str, Any] | None = None,
    progress: OnProgress,
) -> TrainingRuns:
    """Returns the runs of some checkpoints over the same texts, in the folder of `place`; see `record_checkpoints`."""
    if place.folder is None:
        raise UsageError("where do the runs of the checkpoints go?", hint="`out` is the folder of all of them")
    folder = place.folder
    if not isinstance(folder, Path):
        raise UsageError(
            f"checkpoints to {folder}", why="their runs lie in a folder", hint="`out` on a disk, then tf.sync"
        )
    with _taken_back(folder):
        since = _begin(folder, checkpoints, _stated(texts, selection, place.storage), place)
        bounds: dict[str, Any] = {"batch_size": batch_size, "batch_tokens": batch_tokens}
        _record_each(checkpoints, texts, selection, place, folder, since, bounds, loading or {}, progress)
    return open_checkpoints(folder)


@contextmanager
def _taken_back(folder: Path) -> Generator[None]:
    """Removes a folder that was begun, or its plan, if the block fails before anything else is in it."""
    was_there = folder.exists()
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    try:
        yield
    except BaseException:
        made = {path.name for path in folder.iterdir()} - before if folder.is_dir() else set[str]()
        if made == {PLAN}:
            (folder / PLAN).unlink()
            if not was_there:
                folder.rmdir()
        raise


def _record_each(
    checkpoints: Sequence[Checkpoint],
    texts: Texts,
    selection: Selection,
    place: Place,
    folder: Path,
    since: int,
    bounds: Mapping[str, Any],
    loading: Mapping[str, Any],
    progress: OnProgress,
) -> None:
    """Records one checkpoint after the other, but for those that are there."""
    rows: Rows | None = None
    first: _Reader | None = None
    steps = {checkpoint.step for checkpoint in checkpoints}
    done = {each.step for each in checkpoints if _is_finished(folder_of_step(folder, each.step), since)}
    for number, checkpoint in enumerate(checkpoints, 1):
        own = folder_of_step(folder, checkpoint.step)
        if checkpoint.step in done:
            continue
        loaded = checkpoint.load(with_head=selection.needs_head, **loading)
        if rows is None or first is None:
            first = _Reader.of(loaded)
            rows = tokenize(loaded, texts).keeping()
            staying = [each for each in _there(folder) if each.step in done or each.step not in steps]
            _check_staying(staying, rows)
        else:
            loaded = first.reading(loaded, checkpoint)
            rows = rows.read_by(loaded)  # and by none of those before, which are let go
        resumes = place.resume and (unfinished_folder(own) / META).exists()
        extract(
            loaded,
            rows,
            selection,
            replace(place, folder=own, resume=resumes),
            step=checkpoint.step,
            progress=_of_checkpoint(progress, f"step {checkpoint.step}, {number} of {len(checkpoints)}"),
            **bounds,
        )
        del loaded


def _stated(texts: Texts, selection: Selection, storage: Storage) -> dict[str, Any]:
    """What all of the runs have in common, as far as it is known before a model is loaded."""
    further = {"patterns": storage.patterns, "rows_codec": storage.rows_codec}
    return {
        "texts": texts.source.digest,
        "n_texts": len(texts.source.examples),
        "capture": list(selection.capture),
        "layers": {stack: _listed(own) for stack, own in selection.layers.items()},
        "heads": {stack: _listed(own) for stack, own in selection.heads.items()},
        "hidden_layers": _listed(selection.hidden_layers),
        "derived": sha256(repr(selection.derived).encode()) if selection.derived else None,
        "max_seq_len": texts.max_tokens,
        "dtype": storage.dtype,
        "attn_codec": storage.attn_codec,
        **{name: value for name, value in further.items() if value != _UNSAID[name]},
    }


def _listed(numbers: tuple[int, ...] | None) -> list[int] | None:
    return None if numbers is None else list(numbers)


def _is_finished(run: Path, since: int) -> bool:
    """Whether a run was finished since the recording of all of them was begun: one before is to be replaced."""
    manifest = run / MANIFEST
    return manifest.exists() and manifest.stat().st_mtime_ns >= since


def _begin(folder: Path, checkpoints: Sequence[Checkpoint], stated: Mapping[str, Any], place: Place) -> int:
    """Writes what is going to be recorded, once it is known to be what was begun there; returns when it was begun."""
    since = time.time_ns()
    plan, listed = folder / PLAN, {checkpoint.step: str(checkpoint) for checkpoint in checkpoints}
    if plan.exists() and place.resume:
        begun = _read_plan(plan)
        was, now = {**_UNSAID, **begun["stated"]}, {**_UNSAID, **stated}
        changed = [name for name in now if canonical(was.get(name)) != canonical(now[name])]
        if changed:
            raise ConfigurationChanged(
                f"{folder} was begun with another {' and '.join(changed)}",
                why="; ".join(f"{name} was {was.get(name)!r}, is {now[name]!r}" for name in changed),
                hint="another `out`, or what it was begun with",
            )
        before = {int(step): name for step, name in begun["checkpoints"].items()}
        moved = [step for step in listed if before.get(step, listed[step]) != listed[step]]
        if moved:
            step = moved[0]
            raise ConfigurationChanged(
                f"{folder} was begun with another checkpoint of step {step}",
                why=f"it was {before[step]}, is {listed[step]}",
                hint="another `out`, or what it was begun with",
            )
        listed, since = before | listed, int(begun["since"])
    elif plan.exists() and not place.overwrite:
        raise RunExists(
            f"{folder} holds runs of checkpoints", hint="`resume=True` goes on, `overwrite=True` begins anew"
        )
    elif place.resume:
        warnings.warn("nothing to resume: starting anew", stacklevel=4)
    elif folder.exists() and not folder.is_dir():
        raise RunExists(f"{folder} is a file", hint="choose another `out`")
    folder.mkdir(parents=True, exist_ok=True)
    by_step = {str(step): listed[step] for step in sorted(listed)}
    told = {"format": _FORMAT, "since": since, "stated": dict(stated), "checkpoints": by_step}
    durable_write(plan, seal(told))
    return since


def _read_plan(path: Path) -> Mapping[str, Any]:
    plan = read_sealed(path)
    known = all(isinstance(plan.get(part), dict) for part in ("stated", "checkpoints"))
    if plan.get("format") != _FORMAT or not known or type(plan.get("since")) is not int:
        raise CorruptRun(f"{path} does not say which checkpoints are recorded")
    return plan


class _Reader(NamedTuple):
    """What all checkpoints must have in common to read the same tokens.

    A tokenizer that has been used has another digest than one that has not, so all of them have the first one's.
    """

    tokenizer: Any
    digest: str
    dims: ModelDims
    source: str

    @classmethod
    def of(cls, loaded: LoadedModel) -> "_Reader":
        return cls(loaded.tokenizer, tokenizer_digest(loaded.tokenizer), loaded.dims, loaded.source)

    def reading(self, loaded: LoadedModel, checkpoint: Checkpoint) -> LoadedModel:
        """Returns another model with this tokenizer.

        Raises:
            Unsupported: it differs.
        """
        other = self.of(loaded)
        what = "tokenizer" if other.digest != self.digest else "sizes" if other.dims != self.dims else ""
        if what:
            why = f"{checkpoint} differs from {self.source}"
            raise Unsupported(f"the checkpoints have not the same {what}", why=why, hint="record them apart")
        return replace(loaded, tokenizer=self.tokenizer)


def _there(folder: Path) -> Sequence[StepRun]:
    try:
        return open_checkpoints(folder).all
    except NotFound:
        return ()


def _check_staying(staying: Sequence[StepRun], rows: Rows) -> None:
    """Makes sure that the runs that stay read what is read now."""
    wanted = {**text_configuration(rows), "tokenizer": tokenizer_digest(rows.encoder.tokenizer)}
    for each in staying:
        begun = RunHead.read(each.folder).configuration
        changed = [name for name in wanted if canonical(begun.get(name)) != canonical(wanted[name])]
        if changed:
            raise ConfigurationChanged(
                f"{each.folder} stays, and has another {' and '.join(changed)}",
                why="the runs of one training read the same",
                hint="choose another `out`, or remove that run",
            )


def _of_checkpoint(progress: OnProgress, which: str) -> OnProgress:
    return lambda told: progress(replace(told, message=f"{which}: {told.message}"))
