"""Models whose weights are codes: which modules hold such, and the weights that they multiply by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from traceformer.errors import Unsupported
from traceformer.models.placed import onloaded
from traceformer.shapes import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["holds_codes", "quantisation_of", "refuse_codes", "weights_of"]


def quantisation_of(model: "PreTrainedModel") -> str | None:
    """Returns how a model is quantised, `bitsandbytes (Linear8bitLt)`; None if all of its weights are plain numbers.

    Found by what its config states (`quantization_config`), and by the tensors that its modules hold.
    """
    kinds = sorted({type(module).__name__ for module in model.modules() if _is_quantised(module)})
    stated = getattr(model.config, "quantization_config", None)
    if stated is None and not kinds:
        return None
    method = stated.get("quant_method") if isinstance(stated, Mapping) else getattr(stated, "quant_method", None)
    name = str(getattr(method, "value", method or "quantised"))
    return f"{name} ({', '.join(kinds)})" if kinds else name


def _is_quantised(module: nn.Module) -> bool:
    return any(holds_codes(parameter) for parameter in module.parameters(recurse=False))


def holds_codes(tensor: Tensor) -> bool:
    """Returns whether a weight's numbers are not those that its module multiplies by.

    They are of 8 bits or less, or a quantiser's own kind of tensor (torchao's states the dtype that it stands for).
    """
    own = type(tensor).__module__.partition(".")[0] not in ("torch", "transformers")
    return own or not (tensor.is_floating_point() or tensor.is_complex()) or tensor.element_size() == 1


def refuse_codes(tensors: Mapping[str, Tensor], what: str) -> None:
    """Makes sure that these weights can be computed with.

    Raises:
        Unsupported: some of them are codes.
    """
    codes = [name for name, tensor in tensors.items() if holds_codes(tensor)]
    if codes:
        raise Unsupported(
            f"{what} needs {codes[0]}, which is quantised",
            why="its numbers are codes, not the weights that the model multiplies by",
            hint="load the model without quantising this module",
        )


def weights_of(module: Any) -> Float[Tensor, "d_in d_out"]:
    """Returns the weights that a linear module multiplies its input by, in float32.

    Of any but a plain one (quantised, or with an adapter around it) they are what it makes of the unit vectors, less
    what it makes of zero: whatever it holds, and whatever it does with it.
    """
    with onloaded(module):
        return _weights_of(module)


def _weights_of(module: Any) -> Float[Tensor, "d_in d_out"]:
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = module.weight
    if type(module) in (nn.Linear, Conv1D) and not holds_codes(weight):
        return (weight if isinstance(module, Conv1D) else weight.T).detach().float()
    dtype = _computed_in(module) if holds_codes(weight) else weight.dtype
    with torch.inference_mode():
        # One vector at a time: such a module may round all vectors of a pass by the largest.
        units = torch.eye(module.in_features, device=weight.device, dtype=dtype)
        rows = [module(unit[None])[0] for unit in (torch.zeros_like(units[0]), *units)]
    return torch.stack(rows[1:]).float() - rows[0].float()


def _computed_in(module: nn.Module) -> torch.dtype:
    """The dtype of its bias, if it has one, or the default; the input's decides where neither is stated."""
    bias = getattr(module, "bias", None)
    return bias.dtype if bias is not None and bias.is_floating_point() else torch.float32
