"""What the weights of a model say of its heads: no forward pass, and no torch for a model that lies in a folder."""

from pathlib import Path
from typing import Any

from traceformer.analysis.circuits import Circuits, circuits_of
from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.errors import UsageError, check_is
from traceformer.models.head_weights import HeadWeights, head_weights_of, open_head_weights
from traceformer.models.loaded import LoadedModel
from traceformer.models.weights import find_model_folder
from traceformer.progress import OnStep, steps_watched

__all__ = ["circuits"]


def circuits(
    model: str | Path | LoadedModel, *, measured: HeadMetrics | None = None, progress: OnStep | None = None
) -> Circuits:
    """Returns what the weights of a decoder say of its heads: copying, composition, ranks, and induction.

        circuits("byte").to_frame().sort_values("copying").tail(3)
        circuits("byte", measured=heads(load_model("byte"), "demo")).edges("K", top=5)

    The norm before each projection is folded into it; biases are left out, and so is what rotary positions turn.

    Args:
        model: A name or a folder with safetensors, of which the weights are read and nothing is run; or a model that is
            loaded, with its adapter.
        measured: The heads' metrics on some texts, whose `previous_token` says for `induction` which heads look at the
            token before; by default learned positions say it, and where there are none, nothing does.
        progress: Told how many of how many steps are done: blocks of words, then layers. A bar for None.

    Raises:
        NotFound: no such model, or no safetensors.
        Unsupported: no decoder, or one whose heads are not known to read the stream through a norm alone.
        UsageError: metrics of another model.
    """
    if measured is not None:
        check_is(measured, HeadMetrics, "what heads gave")
    weights = _opened(model)
    previous = None
    if measured is not None:
        attentions = [name for name in measured.attentions if name in ("dec.self", "")]
        if not attentions:
            raise UsageError(f"metrics of {' and '.join(measured.attentions)}", why="circuits are those of a decoder")
        previous = measured.grid("previous_token", attentions[0])
    with steps_watched("reading weights", progress) as told:
        return circuits_of(weights, previous, progress=told)


def _opened(model: Any) -> HeadWeights:
    if isinstance(model, LoadedModel):
        return head_weights_of(model)
    if not isinstance(model, str | Path):
        hint = 'a name or a folder, or load_model("byte")'
        raise UsageError(f"{type(model).__name__} is no model", hint=hint)
    return open_head_weights(find_model_folder(str(model)))
