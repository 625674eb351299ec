"""Whether one pass over a finished text gives the numbers that a model had when it chose the text's tokens."""

from collections.abc import Sequence

from traceformer.capture.encoding import Encoded
from traceformer.capture.sharing import Sharing
from traceformer.capture.sight import looking_ahead
from traceformer.errors import Unsupported
from traceformer.models.loaded import LoadedModel

__all__ = ["check_replay"]

_ASKED = "a replay of its answers (`replay`, beams, several responses, guidance and attn_scores are replayed)"


def check_replay(model: LoadedModel, sharing: Sharing, prompts: Sequence[Encoded], max_tokens: int) -> None:
    """Makes sure that a replay is true, whatever the answers to these prompts will be.

    Raises:
        Unsupported: it would give other numbers, since the model is quantised, has other rotary frequencies for the
            finished text, or lets tokens look at later ones.
    """
    if sharing.quantised is not None:
        raise Unsupported(
            f"{model.name}: {_ASKED}",
            why=f"it is quantised, {sharing.quantised}, and rounds a whole text otherwise than token by token",
            hint="record token by token: `replay=False`, one beam, one response",
        )
    decoded = [prompt.lengths.get("dec", 1) for prompt in prompts]
    for length in sorted(set(decoded)):
        if model.dims.arch == "dec" and (last := sharing.changes_after(length, length + max_tokens)) is not None:
            raise Unsupported(
                f"{model.name}: {_ASKED}",
                why=f"its rotary frequencies change after {last} tokens, and of its prompts one has {length}: up to "
                "there it would have chosen by other numbers than one pass over the whole text has",
                hint=f"`max_tokens={last - length}`" if last > length else "record token by token: `replay=False`",
            )
    if "dec" in prompts[0].ids and any(key.stack == "dec" for key, _ in looking_ahead(model, prompts)):
        raise Unsupported(
            f"{model.name}: {_ASKED}",
            why="its tokens look at later ones, which were not there when it chose",
            hint="record token by token: `replay=False`, one beam, one response",
        )
