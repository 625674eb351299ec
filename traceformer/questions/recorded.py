"""A run to ask: the run itself, or one in memory of a model over texts."""

from typing import Any

from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Numbers
from traceformer.store.run import Run
from traceformer.texts.load import Texts

__all__ = ["Texts", "check_asked", "recorded"]


def check_asked(of: Any) -> None:
    """Makes sure that a question is asked of a run or of a model.

    Raises:
        UsageError: it is asked of something else, such as the name of one.
    """
    if not isinstance(of, Run | LoadedModel):
        raise UsageError(
            f"{type(of).__name__} is neither a run nor a model",
            hint="open_run(FOLDER) and record(MODEL, TEXTS) give a run, load_model(MODEL) gives a model",
        )


def recorded(
    of: Run | LoadedModel, texts: Texts | None, capture: str, layers: Numbers = None, *, limit: int | None = None
) -> Run:
    """Returns the run, or what a model's is over texts: in memory, in float32, so that nothing is rounded.

    `limit` is the first texts of a model only; a run is returned as it is.

    Raises:
        UsageError: a run with texts, or a model without.
        NotFound, Unreadable, Unsupported, OutOfSpace: as `record` raises them.
    """
    if isinstance(of, Run):
        if texts is not None:
            raise UsageError("a run and texts", why="a run has its texts", hint="one of them")
        return of
    check_asked(of)
    if texts is None:
        raise UsageError("what shall the model read?", hint='a list of texts, or a data set such as "demo"')

    from traceformer.capture.extract import record

    return record(of, texts, capture, layers=layers, hidden_layers=layers, limit=limit, dtype="float32")
