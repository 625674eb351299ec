"""Tiny random models of real classes: what the proofs run on when no checkpoint is at hand.

Those of families with a row are as the row says; of any other text model of transformers the config is shrunk.
"""

import difflib
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from traceformer.errors import NotFound
from traceformer.models.families import FAMILIES
from traceformer.models.shrunk import shrunk_config, text_types

__all__ = ["TINY", "tiny_model", "tiny_names"]

TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    name: (row.tiny.model, config)
    for family, row in FAMILIES.items()
    for name, config in row.tiny.builds(family).items()
}
"""Class and config of the tiny models of families with a row, by the family's name or that of another build of it."""

# Decays and steps of recurrences, which far from where they begin overflow.
_LEFT_AS_MADE = re.compile(r"a_log|dt_bias|\.d$|ssm|conv1d|time_(decay|first|mix)|lambda|rg_lru|recurrent")


def tiny_names() -> tuple[str, ...]:
    """Returns the names that `tiny_model` knows: those in `TINY`, and the text model types of transformers."""
    return tuple(dict.fromkeys((*TINY, *text_types())))


def tiny_model(family: str, *, seed: int = 0, task: str | None = None, **changes: Any) -> PreTrainedModel:
    """Returns a tiny random float32 model of the family's real class, in eval mode.

        tiny_model("falcon").config.hidden_size    # 32

    With a `task`, such as `SequenceClassification`, it is of the family's class for that.

    Its weights are ten times as spread as at initialisation: patterns are then far from uniform, so that a
    wrong scale, mask or bias shows.

    Raises:
        NotFound: no such family; the message names one that is spelt alike.
    """
    make: Any
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family in TINY:
            class_name, sizes = TINY[family]  # of transformers, or with its module in front
            module, _, class_name = class_name.rpartition(".")
            make = getattr(import_module(module or "transformers"), class_name)
            stated = {"model_type": make.config_class.model_type, **sizes, **changes}  # a class may serve several
            config = transformers.AutoConfig.for_model(**stated)
        elif family in text_types():
            make = getattr(transformers, text_types()[family]).from_config
            config = shrunk_config(family, **changes)
        else:
            near = difflib.get_close_matches(family, tiny_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "a model type of transformers, such as gpt2 or falcon"
            raise NotFound(f"no tiny model of family {family!r}", hint=hint)
        if task is not None:
            make = getattr(transformers, f"AutoModelFor{task}").from_config
        model: PreTrainedModel = make(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = ".ln_" in name or (parameter.dim() == 1 and "norm" in name.lower())
                if not parameter.is_floating_point() or _LEFT_AS_MADE.search(name.lower()):
                    continue
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.1 * noise if is_norm else 0.2 * noise)
    return model.float().eval()
