"""A model that the user holds already: what lies under its wrappers, if it can be recorded. Nothing of it is changed.

1. What a wrapper holds is found: torch.compile's, PEFT's, and those that copy a model to several devices.
2. What could not be recorded truly is refused by name: what is not transformers', adapters that do more than stand
   around the modules of blocks, weights that are elsewhere, modules that run compiled, encoders made causal.
3. The tokenizer is copied, and the copy set up for padding.
"""

import copy
from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from traceformer.errors import Unsupported, UsageError
from traceformer.models.adapters import adapter_of, check_adapters, is_of_peft, underneath_peft
from traceformer.models.dims import ModelDims, arch_of
from traceformer.models.loaded import LoadedModel, short_name, weights_digest, with_padding
from traceformer.models.placed import elsewhere

__all__ = ["hold", "own_tokenizer", "underneath"]

_WOULD_WORK = "a model of transformers, such as AutoModelForCausalLM.from_pretrained gives, or the name of one"


def hold(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    """Returns a model that is at hand, ready to be recorded, with a tokenizer that `own_tokenizer` gave, if any.

    Raises:
        Unsupported: it cannot be recorded.
        UsageError: it is no model.
    """
    found = underneath(model)
    source = str(found.config.name_or_path or found.config.model_type)
    return LoadedModel(
        found,
        tokenizer,
        ModelDims.of(found),
        short_name(source),
        source,
        None,
        weights_digest(found),
        held=True,
        adapter=adapter_of(found),
    )


def underneath(model: Any) -> PreTrainedModel:
    """Returns the model of transformers that this is, or that a wrapper holds.

    Raises:
        Unsupported: there is none, or none that can be recorded.
        UsageError: this is no model.
    """
    found = _unwrapped(model)
    _check(found)
    return found


def _unwrapped(model: Any) -> PreTrainedModel:
    name = type(model).__name__
    if isinstance(model, PreTrainedModel):
        return model
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} is no model", hint=_WOULD_WORK)
    if is_of_peft(model):
        return _unwrapped(underneath_peft(model))
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(model.module)
    compiled = dict(model.named_children()).get("_orig_mod")  # torch.compile's OptimizedModule
    if compiled is not None:
        return _unwrapped(compiled)
    raise Unsupported(f"{name} is no model of transformers", why="where its layers are is not known", hint=_WOULD_WORK)


def own_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer, set up for padding.

    Raises:
        UsageError: it is no tokenizer of transformers.
        Unsupported: it has neither a padding nor an end token.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UsageError(
            f"{type(tokenizer).__name__} is no tokenizer",
            hint="a tokenizer of transformers, such as AutoTokenizer.from_pretrained gives",
        )
    return with_padding(copy.deepcopy(tokenizer))


def _check(model: PreTrainedModel) -> None:
    """Refuses a model whose weights are not there, or that does not run as its family and its modules have it."""
    name = type(model).__name__
    if arch_of(model.config) == "enc" and getattr(model.config, "is_decoder", False):
        raise Unsupported(f"{name} is no encoder any more", why="its config says is_decoder, so that it runs causally")
    tensors = chain(model.named_parameters(), model.named_buffers())
    missing = sorted({path for path, tensor in tensors if tensor.is_meta}.difference(elsewhere(model)))
    if missing:
        raise Unsupported(
            f"{len(missing)} weights of {name} are on no device, {missing[0]} among them",
            why="they were never loaded",
            hint="load it with its weights",
        )
    if any(map(is_of_peft, model.modules())):
        check_adapters(model)
    compiled = [path for path, module in model.named_modules() if _runs_compiled(module)]
    if compiled:
        raise Unsupported(
            f"{name} is compiled {f'at {compiled[0]}' if compiled[0] else 'in place'}",
            why="what runs there is no longer its modules",
            hint="record it before that; what torch.compile(model) returns has the model as it was underneath",
        )


def _runs_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called, or it is what `torch.compile` made of a part of the model."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules  # pyright: ignore[reportPrivateUsage]
