"""The model that a run was recorded with, once it is known to be the same as then."""

from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.errors import ConfigurationChanged, NotFound, NotRecorded, Unsupported
from traceformer.models.readout import Readout, open_readout, readout_of
from traceformer.models.weights import files_digest, find_model_folder, read_config
from traceformer.store.run import Run

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["load_model_of", "open_readout_of"]


def open_readout_of(run: Run, model: "str | Path | LoadedModel | None" = None) -> Readout:
    """Returns the final norm and unembedding of a run's model, read from its folder without torch.

    Args:
        run: A run of a model that predicts a next token.
        model: Where the model's folder is now; where the run says by default. Or the model itself.

    Raises:
        NotFound: its folder is not there.
        ConfigurationChanged: it is another model than when the run was recorded; both digests are named.
        Unsupported: an encoder, or a family whose readout is not known.
    """
    if run.arch == "enc":
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    if model is not None and not isinstance(model, str | Path):
        if model.digest != run.about.model_weights:
            raise _changed(model.name, "weights", model.digest, run.about.model_weights)
        return readout_of(model)
    folder = _folder_of(run, model)
    _check_unchanged(run, folder)
    return open_readout(folder, read_config(folder))


def load_model_of(run: Run, *, device: str | None = None) -> "LoadedModel":
    """Returns a run's model, loaded; on the processor by default.

    Raises:
        NotFound: it is not where it was.
        ConfigurationChanged: its weights have changed since the run.
    """
    from traceformer.models.load import load_model

    source = str(run.about.model)
    loaded = load_model(source, revision=run.about.revision, device=device or "cpu")
    recorded = run.about.model_weights
    if loaded.digest != recorded:
        raise _changed(source, "weights", loaded.digest, recorded)
    return loaded


def _folder_of(run: Run, moved_to: str | Path | None) -> Path:
    try:
        if moved_to is not None:
            return find_model_folder(str(moved_to))
        return find_model_folder(str(run.about.model), run.about.revision)
    except NotFound as error:
        hint = "" if moved_to is not None else "`model=FOLDER` says where it is now"
        raise NotFound(error.message, why=error.why, hint=hint) from error


def _check_unchanged(run: Run, folder: Path) -> None:
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


def _changed(where: str, what: str, now: str, recorded: str | None) -> ConfigurationChanged:
    return ConfigurationChanged(
        f"the model in {where} is not the one that this run was recorded with",
        why=f"its {what} have digest {now}, the run's had {recorded}",
        hint="`model=FOLDER`, with the model as it was; or record the run again",
    )
