"""Adapters of PEFT: put onto a model as layers around its own modules, and proved to run as PEFT's own model does.

1. `find_adapter` finds out whether a name or folder holds an adapter.
2. `adapt` has PEFT put its layers in; every weight of the adapter must have found its place.
3. `underneath_peft` takes the model out of PEFT's wrapper. One pass of each must give the same bits, so that what
   wraps more than modules, such as a prompt of vectors, is refused.
4. `check_adapters` refuses layers where the model's folder alone says what is there: embeddings, final norm, head.

The layers stay beside the weights, as they were trained: merged into weights of 16 bits they would be rounded.
"""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.behaviour import evaluating
from traceformer.models.loaded import Adapter
from traceformer.models.weights import ADAPTER_CONFIG, adapter_digest, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["adapt", "adapter_of", "base_of", "check_adapters", "find_adapter", "is_of_peft", "underneath_peft"]

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def find_adapter(source: str, revision: str | None, *, local_only: bool) -> Path | None:
    """Returns the folder in which an adapter of this name lies, fetched if need be; None if it has none.

    Raises:
        Unsupported: it has one, and peft is not installed.
        Unreadable: its configuration is no JSON object, or only its weights are pickled.
    """
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    config = find_adapter_config_file(source, revision=revision, local_files_only=local_only)
    if config is None:
        return None
    read_json(Path(config))
    _need_peft(source)
    missing_is_none: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    for name in _WEIGHTS:
        if cached_file(source, name, revision=revision, local_files_only=local_only, **missing_is_none):
            return Path(config).parent
    raise Unreadable(f"the adapter in {source} has no weights", why=f"there is no {_WEIGHTS[0]}")


def base_of(folder: Path) -> tuple[str | None, str | None]:
    """Returns the name of the model that an adapter was made for, and its revision, as its configuration has them."""
    config = read_json(folder / ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    return (name if isinstance(name, str) else None) or None, revision if isinstance(revision, str) else None


def adapt(
    model: "PreTrainedModel", own: str, folder: Path, source: str, *, allow_pickle: bool
) -> "tuple[PreTrainedModel, Adapter]":
    """Returns a model with an adapter's layers in it (the model itself, which is changed), and what the adapter is.

    Warns if the adapter says that it was made for a model of another name.

    Args:
        model: The adapter's base model.
        own: The name that it was loaded under.
        folder: Where the adapter lies.
        source: The name that it was asked for under.
        allow_pickle: Whether its weights may be pickled.

    Raises:
        Unreadable: it does not fit the model, or has pickled weights only.
        Unsupported: a kind of adapter that cannot be recorded truly.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    if not allow_pickle and not (folder / _WEIGHTS[0]).is_file():
        raise Unreadable(
            f"the adapter in {source} has no safetensors weights",
            why="pickled weights can run code when they are read",
            hint="convert them to safetensors, or load them with `allow_pickle=True` if you trust them",
        )
    base = base_of(folder)[0]
    made_for = f"it was made for {base}" if base else "it does not say which model it was made for"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT says of weights without a place is raised below
            config: Any = PeftConfig.from_pretrained(str(folder))
            _refuse_kind(config, source)
            config.inference_mode = True
            renamed = _with_or_without_head(model)
            wrapped: Any = PeftModel(model, config)
            result = wrapped.load_adapter(str(folder), "default", key_mapping=renamed)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        if isinstance(error, Unsupported | torch.OutOfMemoryError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"the adapter in {source} does not fit {own}", why=f"{made_for}; {why}") from error
    strays = [*result.missing_keys, *result.unexpected_keys]
    if strays:
        told = f"{made_for}; {len(strays)} weights have no counterpart, {strays[0]} among them"
        raise Unreadable(f"the adapter in {source} does not fit {own}", why=told)
    if base and source != own and Path(base).name != Path(own).name:
        warnings.warn(f"the adapter in {source} was made for {base}, and is put on {own}", stacklevel=2)
    found = underneath_peft(wrapped)
    check_adapters(found)
    made = adapter_of(found)
    kind = made.kind if made is not None else str(config.peft_type.value).lower()
    return found, Adapter(source, kind, base, adapter_digest(folder))


def _with_or_without_head(model: "PreTrainedModel") -> dict[str, str]:
    """What renames an adapter's weights if it was trained with the model's head and is loaded without, or reversed."""
    if model.base_model is model:
        return {rf"^{model.base_model_prefix}\.": ""}
    parts = "|".join(re.escape(name) for name, _ in model.base_model.named_children())
    return {rf"^(?=(?:{parts})\.)": f"{model.base_model_prefix}."}


def underneath_peft(model: Any) -> Any:
    """Returns the model that PEFT's wrapper holds, with the adapter's layers in it.

    Raises:
        Unsupported: it alone does not compute what the wrapper does.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    for config in configs.values():
        _refuse_kind(config, type(model).__name__)
    found = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "model", model)
    if is_of_peft(found):
        raise Unsupported(f"{type(model).__name__} holds no model of transformers", hint=_MERGE)
    try:
        same = _give_the_same(model, found)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise Unsupported(f"{type(model).__name__} does not run on token ids alone", why=why, hint=_MERGE) from error
    if not same:
        why = f"{type(found).__name__} underneath gives other numbers than it does"
        raise Unsupported(f"{type(model).__name__} computes more than its modules do", why=why, hint=_MERGE)
    return found


_MERGE = "model.merge_and_unload() gives a model without adapters, where its kind of adapter can be merged"


def _refuse_kind(config: Any, where: str) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower().replace("_", " ")
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise Unsupported(
            f"{where} is an adapter of the kind {kind}",
            why="it puts vectors beside the tokens, which are at no position of the text",
            hint="adapters around a model's layers, such as LoRA",
        )
    if getattr(config, "bias", "none") == "all":
        raise Unsupported(
            f"{where} is an adapter with bias='all'",
            why="it changes biases outside of the blocks, such as the final norm's",
            hint="model.merge_and_unload().save_pretrained(FOLDER), and record that",
        )


def check_adapters(model: "PreTrainedModel") -> None:
    """Makes sure that adapters stand around single modules within blocks, where the family's row has them.

    A classifier's own head may be adapted as well: nothing here reads its weights.

    Raises:
        Unsupported: they stand elsewhere.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    is_classifier = type(model).__name__.endswith("Classification")
    inside = model.base_model_prefix + "." if model.base_model is not model else ""
    seen: list[str] = []
    for path, module in model.named_modules():
        if not is_of_peft(module) or any(path.startswith(f"{above}.") for above in seen):
            continue
        seen.append(path)
        if is_classifier and not path.startswith(inside):
            continue
        around_one = isinstance(module, BaseTunerLayer) and not list(module.get_base_layer().children())
        if around_one and re.search(r"(^|\.)\d+\.", path):
            continue
        raise Unsupported(
            f"the adapter of {type(model).__name__} changes {path}",
            why="what can be recorded are adapters around the projections and norms of its blocks",
            hint="model.merge_and_unload().save_pretrained(FOLDER), and record that",
        )


def adapter_of(model: nn.Module) -> Adapter | None:
    """Returns what adapters are at work in a model, by their names in it; None if there are none."""
    layers = [module for module in model.modules() if is_of_peft(module) and hasattr(module, "active_adapters")]
    working: list[Any] = [layer for layer in layers if not layer.disable_adapters or layer.merged_adapters]
    names = {name for layer in working for name in (layer.merged_adapters or layer.active_adapters)}
    kinds = {type(layer).__module__.removeprefix("peft.tuners.").partition(".")[0] for layer in working}
    return Adapter(", ".join(sorted(names)), ", ".join(sorted(kinds))) if names else None


def is_of_peft(module: Any) -> bool:
    return any(each.__module__.partition(".")[0] == "peft" for each in type(module).__mro__)


def _need_peft(source: str) -> None:
    try:
        import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise Unsupported(
            f"{source} holds an adapter, and PEFT is not installed",
            why="without it the base model alone would be recorded",
            hint="pip install 'traceformer[peft]'",
        ) from error


def _give_the_same(wrapper: nn.Module, model: Any) -> bool:
    """Whether both give the same bits on a few tokens, in eval mode."""
    table = model.get_input_embeddings().weight
    ids = torch.arange(1, 6, device=table.device)[None] % table.shape[0]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.inference_mode(), evaluating(wrapper):
        return torch.equal(wrapper(**inputs)[0], model(**inputs)[0])
