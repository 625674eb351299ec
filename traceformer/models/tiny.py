"""Tiny random models of each family's real class: what the proofs run on when no checkpoint is at hand."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from traceformer.errors import NotFound
from traceformer.models.families import FAMILIES

__all__ = ["TINY", "tiny_model"]

TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    name: (row.tiny.model, config)
    for family, row in FAMILIES.items()
    for name, config in row.tiny.builds(family).items()
}
"""Class and config of every tiny model that can be made, by its family's name or that of another build of it."""


def tiny_model(family: str, *, seed: int = 0, task: str | None = None, **changes: Any) -> PreTrainedModel:
    """Returns a tiny random float32 model of the family's real class, in eval mode.

    With a `task`, such as `SequenceClassification`, it is of the family's class for that.

    Its weights are ten times as spread as at initialisation: patterns are then far from uniform, so that a
    wrong scale, mask or bias shows.

    Raises:
        NotFound: no such family; the message lists those there are.
    """
    if family not in TINY:
        raise NotFound(f"no tiny model of family {family!r}", hint=f"there are {', '.join(TINY)}")
    class_name, sizes = TINY[family]  # of transformers, or with its module in front
    module, _, class_name = class_name.rpartition(".")
    model_class = getattr(import_module(module or "transformers"), class_name)
    stated = {"model_type": model_class.config_class.model_type, **sizes, **changes}  # a class may serve several
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(**stated)
        made = model_class if task is None else getattr(transformers, f"AutoModelFor{task}").from_config
        model = made(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = ".ln_" in name or (parameter.dim() == 1 and "norm" in name.lower())
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.1 * noise if is_norm else 0.2 * noise)
    return model.float().eval()
