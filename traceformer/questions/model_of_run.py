"""The model that a run was recorded with, once it is known to be the same as then."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from traceformer.errors import ConfigurationChanged, NotFound, NotRecorded, Unreadable, Unsupported, check_is
from traceformer.models.block_weights import BlockWeights, block_weights_of, open_block_weights
from traceformer.models.family import Architecture
from traceformer.models.head_weights import HeadWeights, head_weights_of, open_head_weights
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import Readout, open_readout, readout_of
from traceformer.models.weights import ADAPTER_CONFIG, adapter_digest, files_digest, find_model_folder, read_config
from traceformer.store.run import Run

__all__ = ["load_model_of", "open_block_weights_of", "open_head_weights_of", "open_readout_of"]


def open_readout_of(run: Run, model: str | Path | LoadedModel | None = None) -> Readout:
    """Returns the final norm and unembedding of a run's model, read from its folder without torch.

    Args:
        run: A run of a model that predicts a next token.
        model: Where the model's folder is now; where the run says by default. Or the model itself. An adapter that it
            had changes neither, but has to be the same, too.

    Raises:
        NotFound: its folder is not there.
        ConfigurationChanged: it is another model than when the run was recorded; both digests are named.
        Unsupported: an encoder, or a family whose readout is not known.
    """
    if run.arch == "enc":
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    if model is not None and not isinstance(model, str | Path):
        return readout_of(_at_hand(run, model))
    folder = _folder_of(run, model)
    _check_unchanged(run, folder)
    return open_readout(folder, read_config(folder), _row_of(run))


def open_block_weights_of(run: Run, model: str | Path | LoadedModel | None = None) -> BlockWeights:
    """Returns what the attentions of a run's model write with, read from its folder without torch.

    Arguments and errors as of `open_readout_of`; but an adapter changes them, and only a model at hand has it.
    """
    if model is not None and not isinstance(model, str | Path):
        return block_weights_of(_at_hand(run, model))
    folder = _folder_of(run, model)
    _check_unchanged(run, folder)
    return open_block_weights(folder, read_config(folder), _row_of(run))


def _at_hand(run: Run, model: LoadedModel) -> LoadedModel:
    """The model itself, built as it was recorded, once it is the run's."""
    check_is(model, LoadedModel, "a folder, a name, or what load_model gave")
    if model.digest != run.about.model_weights:
        raise _changed(model.name, "weights", model.digest, run.about.model_weights)
    return replace(model, architecture=_row_of(run) or model.architecture)


def open_head_weights_of(run: Run, model: str | Path | LoadedModel | None = None) -> HeadWeights:
    """Returns the weights of the heads of a run's model, read from its folder; arguments as of `open_readout_of`.

    Raises:
        NotFound, ConfigurationChanged: as of `open_readout_of`.
        Unsupported: no decoder; one whose heads are not known; or an adapter, whose weights lie beside the model's.
    """
    if model is not None and not isinstance(model, str | Path):
        return head_weights_of(_at_hand(run, model))
    if run.about.adapter is not None:
        why = "the weights of its adapter lie beside those of its folder"
        raise Unsupported("circuits of a run with an adapter", why=why, hint="`model=load_model_of(run)`, loaded")
    folder = _folder_of(run, model)
    _check_unchanged(run, folder)
    return open_head_weights(folder, _row_of(run))


def load_model_of(
    run: Run,
    *,
    model: str | Path | None = None,
    adapter: str | None = None,
    device: str | None = None,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Returns a run's model, loaded, with the adapter that it had.

    Args:
        run: The run.
        model: Where its folder is now; where the run says by default.
        adapter: Where the adapter's folder is now, likewise.
        device: The processor by default.
        allow_pickle: Whether its weights may be pickled.

    Raises:
        NotFound: it is not where it was.
        ConfigurationChanged: its weights have changed since the run.
    """
    from traceformer.models.load import load_model

    about = run.about
    source = str(model or about.model)
    if adapter is None and about.adapter is not None and about.adapter.get("source") != about.model:
        adapter = _adapter_source(about.adapter)
    loaded = load_model(
        source,
        adapter=adapter,
        revision=about.revision if model is None else None,
        device=device or "cpu",
        dtype=about.model_dtype,
        allow_pickle=allow_pickle,
    )
    recorded = run.about.model_weights
    if loaded.digest != recorded:
        raise _changed(source, "weights", loaded.digest, recorded)
    row = _row_of(run)
    return loaded if row is None else replace(loaded, architecture=row)


def _row_of(run: Run) -> Architecture | None:
    """The row that the model was recorded by, where that was not its family's."""
    stated = run.about.row
    if stated is None:
        return None
    try:
        return Architecture.from_json(stated["architecture"])
    except (KeyError, TypeError, AttributeError) as error:
        raise Unreadable("the run's row of its model is damaged", hint="record the run again") from error


def _folder_of(run: Run, moved_to: str | Path | None) -> Path:
    try:
        if moved_to is not None:
            return find_model_folder(str(moved_to))
        return find_model_folder(str(run.about.model), run.about.revision)
    except NotFound as error:
        hint = "" if moved_to is not None else "`model=FOLDER` says where it is now"
        raise NotFound(error.message, why=error.why, hint=hint) from error


def _check_unchanged(run: Run, folder: Path) -> None:
    adapter = run.about.adapter
    if adapter is not None:
        source = _adapter_source(adapter)
        now = adapter_digest(folder if source == run.about.model else _adapter_folder(source))
        if now != adapter["files"]:
            raise _changed(source, "adapter's files", now, adapter["files"])
    recorded: str | None = run.about.model_files
    if recorded is not None:
        what, now = "files", files_digest(folder)
    else:  # an older run, which knows the digest of the loaded weights only
        from traceformer.models.load import load_model

        recorded = run.about.model_weights
        if recorded is None:
            raise NotRecorded("this run does not say what weights its model had", hint="record it again")
        what, now = "weights", load_model(str(folder), dtype=run.about.model_dtype).digest
    if now != recorded:
        raise _changed(str(folder), what, now, recorded)


def _adapter_source(adapter: Mapping[str, str]) -> str:
    if "files" not in adapter:
        why = f"it was at hand with its adapter, {adapter.get('source')!r}"
        raise NotFound("the model of this run lies in no folder", why=why, hint="`model=MODEL`, the model itself")
    return adapter["source"]


def _adapter_folder(source: str) -> Path:
    try:
        return find_model_folder(source, config=ADAPTER_CONFIG)
    except NotFound as error:
        hint = "`adapter=FOLDER` says where it is now"
        raise NotFound(f"the adapter of this run is not at {source}", hint=hint) from error


def _changed(where: str, what: str, now: str, recorded: str | None) -> ConfigurationChanged:
    return ConfigurationChanged(
        f"the model in {where} is not the one that this run was recorded with",
        why=f"its {what} have digest {now}, the run's had {recorded}",
        hint="`model=FOLDER`, with the model as it was; or record the run again",
    )
