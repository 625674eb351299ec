"""Which layers of a model have a place: attention may be in some of them only, and so may an MLP of one kind."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from traceformer.models.dims import StackDims
from traceformer.models.family import Architecture
from traceformer.models.part import text_part
from traceformer.sites import SITES, ArrayKey, ArraySpec

__all__ = ["layers_having", "shared_width"]


def layers_having(model: PreTrainedModel, built: Architecture, dims: StackDims, key: ArrayKey) -> tuple[int, ...]:
    """Returns the layers that have a site of which there is one in a layer.

    Those of attention are where the model's config says that a layer has attention. Where the row names a module, a
    block that lacks it has no such site; if all of them do, none is left out, so that the recorder says what is wrong:
    but of experts, which a model may not have.
    """
    row = built.stacks[key.stack]
    layers = tuple(range(dims.n_layers)) if key.attention is None else dims.attention_layers
    layers = built.only.get(str(key), layers)
    attention = row.attention_of(key.attention)
    tap = row.mlp.get(key.site) if attention is None else attention.tap(key.site)
    if tap is None or not _has(text_part(model), row.blocks):
        return layers
    blocks = text_part(model).get_submodule(row.blocks)
    found = tuple(layer for layer in layers if _has(blocks.get_submodule(str(layer)), tap.path))
    return found if found or SITES[key.site].of_experts else layers


def shared_width(model: PreTrainedModel, built: Architecture, spec: ArraySpec) -> int:
    """Returns how wide the hidden layer is of the expert that all tokens share, in the first of an array's layers."""
    row = built.stacks[spec.key.stack]
    down: Any = text_part(model).get_submodule(f"{row.blocks}.{spec.layers[0]}.{row.mlp['shared_mid'].path}")
    return down.in_features


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
