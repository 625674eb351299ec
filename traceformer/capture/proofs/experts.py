"""Claims about mixtures of experts: where tokens go, what outputs are multiplied by, and the expert that all share.

A router may choose by anything: softmax or sigmoid, all experts or a few groups, with a correction that no weight
shows. What is recorded is what the experts were told, so that its proof is one for all: each chosen expert alone, times
its weight, added up and put in the place of what the experts gave, makes the MLP give what it gave.
"""

from typing import Any

import torch
from torch import Tensor, nn

from traceformer.capture.gaps import layers_having
from traceformer.capture.proofs.place import Claim, NotHere, Place, Rounding, Sides
from traceformer.capture.proofs.stream import input_of_mlp
from traceformer.models.placed import onloaded
from traceformer.sites import ArrayKey

__all__ = ["EXPERT_CLAIMS"]


def _matrix_of(place: Place) -> tuple[Tensor, Tensor | None]:
    """The one matrix of the router that has a row for each expert, and the bias beside it."""
    shape = (place("router_logits").shape[-1], input_of_mlp(place).shape[-1])
    found: list[tuple[Tensor, Tensor | None]] = []
    for module in place.module(place.row.mlp["router_logits"].path).modules():
        with onloaded(module):
            weight: Any = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.shape == shape:
                found.append((weight, getattr(module, "bias", None)))
    if len(found) != 1:
        raise NotHere
    return found[0]


def _router_matrix(place: Place) -> Sides:
    recorded, (weight, bias) = place("router_logits"), _matrix_of(place)
    logits = input_of_mlp(place).to(weight.dtype) @ weight.T
    return recorded, logits if bias is None else logits + bias


def _own_logits(place: Place) -> Sides:
    recorded, scene = place("router_logits"), place.scene
    _matrix_of(place)  # what some models return under this name are probabilities
    returned = scene.reference.router.get(place.stack, ())
    there = layers_having(scene.model, scene.row, place.dims, ArrayKey(place.stack, None, "router_logits"))
    if len(returned) != len(there):
        raise NotHere
    assert place.layer is not None
    own = returned[there.index(place.layer)]
    return recorded, own.reshape(len(scene.ids), -1, own.shape[-1])[place.example, : len(recorded)]


def _largest(place: Place) -> Sides:
    logits, ids = place("router_logits"), place("expert_topk").long()
    if _has_correction(place, logits.shape[-1]):
        raise NotHere
    chosen = logits.gather(1, ids)
    return chosen.sort(dim=1, descending=True).values, logits.topk(ids.shape[1]).values


def _has_correction(place: Place, n_experts: int) -> bool:
    """Whether something beside the router's logits has a say in the choice: groups, or a number for each expert."""
    if (getattr(place.config, "n_group", None) or 1) > 1:
        return True
    numbers = (*_within(place).named_parameters(), *_within(place).named_buffers())
    own = _matrix_of(place)
    if any(each.is_meta for _, each in numbers):  # kept elsewhere until it is used
        raise NotHere
    return any(
        each.numel() == n_experts and not any(each is other for other in own) and bool(each.any())
        for _, each in numbers
    )


def _within(place: Place) -> nn.Module:
    """The module that the experts lie in, beside their router and what else tokens go through."""
    outer = place.row.mlp["expert_topk"].path.rpartition(".")[0]
    if not outer:
        raise NotHere
    return place.module(outer)


def _weighted_sum(place: Place) -> Sides:
    recorded, ids, weights = place("mlp_out"), place("expert_topk").long(), place("expert_weight")
    experts, outer = place.module(place.row.mlp["expert_topk"].path), _within(place)

    def added_up(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        ones = torch.ones_like(weights[:, :1])
        each = [experts.forward(args[0], ids[:, rank : rank + 1], ones) for rank in range(ids.shape[1])]
        return (torch.stack(each, dim=1) * weights[..., None]).sum(dim=1).reshape(output.shape)

    handle = experts.register_forward_hook(added_up)
    try:
        made = outer(input_of_mlp(place)[None])
    finally:
        handle.remove()
    rows = (made[0] if isinstance(made, tuple) else made).reshape(recorded.shape)
    return recorded, place.normed(place.row.mlp["mlp_out"].path, rows) * place.scale


def _falling(place: Place) -> Sides:
    weights = place("expert_weight")
    return weights, weights.sort(dim=1, descending=True).values


def _shared_up(place: Place) -> Sides:
    return place("shared_up"), place.apply(place.row.mlp["shared_up"].path, input_of_mlp(place))


def _shared_mid(place: Place) -> Sides:
    return place("shared_mid"), place("shared_act") * place("shared_up")


def _shared_down(place: Place) -> Sides:
    return place("shared_out"), place.apply(place.row.mlp["shared_mid"].path, place("shared_mid"))


def _shared_out(place: Place) -> Sides:
    return place("shared_out"), place.apply(place.row.mlp["shared_out"].path, input_of_mlp(place))


_SUM = "gives mlp_out: the outputs of the experts that it names, each times its weight, added up"
EXPERT_CLAIMS = (
    Claim("router_logits", "equals the router's matrix times the MLP's input", _router_matrix, Rounding.MODEL),
    Claim("router_logits", "equals the model's own output_router_logits", _own_logits, Rounding.NONE),
    Claim("expert_topk", "names the experts of the largest router_logits", _largest, Rounding.NONE),
    Claim("expert_topk", _SUM, _weighted_sum, Rounding.MODEL),
    Claim("expert_weight", "gives mlp_out with expert_topk, as a sum", _weighted_sum, Rounding.MODEL),
    Claim("expert_weight", "falls from the first expert to the last", _falling, Rounding.NONE),
    Claim("shared_up", "equals the up projection of the MLP's input", _shared_up, Rounding.MODEL),
    Claim("shared_act", "gives shared_mid, times shared_up", _shared_mid, Rounding.MODEL),
    Claim("shared_mid", "gives shared_out through the down projection", _shared_down, Rounding.MODEL),
    Claim("shared_out", "equals the shared expert's output for the MLP's input", _shared_out, Rounding.MODEL),
)
