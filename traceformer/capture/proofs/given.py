"""What is proved of a processor's batch before it is recorded.

A model is proved on the words alone of its first examples, as any is. With images or sounds among them a pass goes
other ways: features take the place of embeddings, positions count along several axes, an image may look at all of
itself. So the first batch is run once more as it is: each entry of `hidden` must be the model's own, to the bit, and in
the middle layer values mixed by the recorded patterns must be what the attention gave.
"""

import torch
from torch import Tensor

from traceformer.capture.encoding import Encoded
from traceformer.capture.given import Given
from traceformer.capture.plan import plan_arrays
from traceformer.capture.proofs.place import Reference, Scene
from traceformer.capture.proofs.tested import Errors, Kept, prove, tolerance_of
from traceformer.capture.recorder import Recorder
from traceformer.capture.sharing import Sharing
from traceformer.capture.sinks import Spans
from traceformer.errors import Unsupported
from traceformer.models.behaviour import evaluating
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Selection, Stack

__all__ = ["prove_given"]

_MOST_BYTES = 256 << 20  # of patterns, in float32; larger batches are proved by their hidden states alone


def prove_given(model: LoadedModel, row: Encoded) -> None:
    """Proves of the batch that a row came in that what is recorded of it is the model's own.

    Raises:
        Unsupported: it is not.
    """
    given = row.given
    assert given is not None
    own, built = model.model, model.built
    [(stack, sizes)] = model.dims.stacks.items()
    longest = max(span.length for span in given.spans)
    few = 4 * sizes.n_heads * longest**2 * len(given.spans) <= _MOST_BYTES
    sites = ("hidden", "attn_pattern", "v", "z") if few else ("hidden",)
    every = plan_arrays(Selection(("all",), layers={stack: (sizes.n_layers // 2,)}), own, architecture=built).arrays
    specs = [spec for spec in every if spec.key.site in sites]
    spans: Spans = {stack: list(given.spans)}
    inputs, kept = given.on(str(own.device)), Kept(spans)
    errors: Errors = {}
    with torch.inference_mode(), evaluating(own):
        Sharing(own).settle()
        hidden = getattr(own(**inputs, output_hidden_states=True), "hidden_states", None)
        with Recorder(own, specs, kept, built) as recorder:
            recorder.run(spans, **inputs)
        ids: list[dict[Stack, Tensor]] = [{stack: torch.tensor(given.ids(n))} for n in range(len(given.spans))]
        whole: dict[Stack, tuple[Tensor, ...]] = (
            {} if hidden is None else {stack: tuple(_from_first_token(each, given) for each in hidden)}
        )
        prove(Scene(own, built, model.dims, tuple(ids), kept.arrays, Reference(None, whole, {})), specs, errors)
    for (key, fact, rounding), error in errors.items():
        if not error <= (tolerance := tolerance_of(rounding, own.dtype, 1.0)):
            raise Unsupported(
                f"{model.name}: it does not hold that {key} {fact} on a processor's batch",
                why=f"it is off by {error:.1e}, where rounding explains {tolerance:.0e}; nothing was recorded",
                hint="its text alone can be recorded; `traceformer check` on the model says what holds",
            )


def _from_first_token(rows: Tensor, given: Given) -> Tensor:
    """(batch, position, width) with each row's true tokens at its beginning."""
    return torch.stack([row.roll(-span.start, 0) for row, span in zip(rows, given.spans, strict=True)])
