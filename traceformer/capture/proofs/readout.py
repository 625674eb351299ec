"""Whether the readout of another family is a model's own: what is behind the last block, run and read out.

1. One pass shows what the first, the middle and the last block leave in the residual stream.
2. Each of these streams then stands where the last block leaves its own, in a pass of the model. What the model
   predicts is what the readout must say; early layers, whose streams are small, show a norm's epsilon.
"""

from typing import Any

import torch
from torch import Tensor, nn

from traceformer.analysis.lens import normed, read_out
from traceformer.capture.proofs.check import Example, batch_of
from traceformer.capture.proofs.tested import is_exact
from traceformer.capture.tensors import first_output, own_output
from traceformer.errors import TraceformerError
from traceformer.models.behaviour import evaluating
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import text_part
from traceformer.models.readout import readout_of

__all__ = ["readout_holds"]

_TOP = 5
_FLOAT32, _FEW_BITS = 1e-4, 3e-2  # of a probability: what rounding explains in float32, and below it


def readout_holds(model: LoadedModel, example: Example) -> bool:
    """Returns whether the readout of a model's row says what the model predicts from the streams of a text."""
    try:
        readout = readout_of(model)
    except TraceformerError:
        return False
    own: Any = model.model
    row = model.built.stacks["dec"]
    blocks = list(text_part(own).get_submodule(row.blocks))
    inputs, _ = batch_of(own, [example])
    streams: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        made = first_output(output)
        assert made is not None
        streams.append(made)

    with torch.inference_mode(), evaluating(own):
        hooks = [blocks[n].register_forward_hook(keep) for n in sorted({0, len(blocks) // 2, len(blocks) - 1})]
        try:
            own(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for stream in streams:
            predicted = _predicted_from(own, blocks[-1], stream, inputs)
            said = read_out(normed(stream[0].float().cpu().numpy(), readout), readout, top=min(_TOP, readout.d_vocab))
            likeliest = predicted.topk(said.top_ids.shape[1]).values
            at_ids = predicted.gather(1, torch.from_numpy(said.top_ids))
            probabilities = torch.from_numpy(said.top_probabilities).double()
            far = max((probabilities - other).abs().max().item() for other in (likeliest, at_ids))
            if not far <= (_FLOAT32 if is_exact(own) else _FEW_BITS):
                return False
    return True


def _predicted_from(model: Any, last: nn.Module, stream: Tensor, inputs: Any) -> Tensor:
    """The probabilities of all next tokens, (position, word), if the last block left this stream."""

    def put(module: nn.Module, args: Any, output: Any) -> Any:
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    hook = last.register_forward_hook(put)
    try:
        logits = own_output(model(**inputs))
    finally:
        hook.remove()
    assert logits is not None
    return logits[0].cpu().double().softmax(-1)
