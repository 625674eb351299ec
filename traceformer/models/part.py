"""Which part of a model is recorded: of several models in one, the one that reads and writes text.

A composite's config holds a config for each of its models; the sizes and the row are those of the text model's, and the
paths of a row count from the module whose config that is. An encoder-decoder may hold a config for each of its stacks.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from traceformer.errors import Unreadable, Unsupported
from traceformer.sites import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "check_token_types",
    "is_composite",
    "placeholders",
    "stack_config",
    "start_token_of",
    "takes_positions",
    "text_config",
    "text_part",
    "text_prefix",
]

_PLACEHOLDER = re.compile(r"(image|audio|video)_token_(?:id|index)")
_OF_STACK: Mapping[Stack, str] = {"enc": "encoder", "dec": "decoder"}


def text_config(config: Any) -> Any:
    """Returns the config of the text model in a model: the model's own where it is no composite.

    Of a config.json's dict it is a dict, with what the file leaves out since it is so by default. An encoder-decoder's
    is its own, since its row has both stacks; `stack_config` has those of each.
    """
    if isinstance(config, Mapping):
        return _text_dict(config)  # pyright: ignore[reportUnknownArgumentType]
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "get_text_config"):
        return config
    try:
        return config.get_text_config()
    except ValueError:  # it has one for what it reads and one for what it writes
        return config.get_text_config(decoder=True)


def _text_dict(config: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(config.get("text_config"), Mapping) or config.get("is_encoder_decoder"):
        return config
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return text_config(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))).to_dict()


def stack_config(config: Any, stack: Stack) -> Any:
    """Returns the config that states the sizes of one stack of a model."""
    inner = getattr(config, _OF_STACK[stack], None) if getattr(config, "is_encoder_decoder", False) else None
    return text_config(inner if hasattr(inner, "model_type") else config)


def is_composite(config: Any) -> bool:
    """Returns whether a model is made of several models, one of which reads and writes text."""
    return text_config(config) is not config


def text_part(model: "PreTrainedModel") -> Any:
    """Returns the module that the paths of a row count from: the base model, or that of the text model in it.

    In a composite that is the outermost module whose config is the text model's; where the class made a copy of that
    config, the outermost one with a config of its kind.
    """
    base, config = model.base_model, text_config(model.config)
    if config is model.config:
        return base
    inner = [module for module in base.modules() if module is not base and hasattr(module, "config")]
    own = [module for module in inner if module.config is config]
    alike = [module for module in inner if type(module.config) is type(config)]
    found: Any = next(iter((*own, *alike)), base)
    return getattr(found, "base_model", found)


def placeholders(config: Any) -> Mapping[int, str]:
    """Returns the tokens that stand for something else than text, and for what: `image`, `audio` or `video`."""
    stated = config.to_dict().items()
    named = ((value, _PLACEHOLDER.fullmatch(name)) for name, value in stated if isinstance(value, int))
    return {value: match[1] for value, match in named if match is not None}


def start_token_of(config: Any) -> int | None:
    """Returns what an encoder-decoder's decoder begins with: the token stated, or its own config's first of a text."""
    stated: int | None = getattr(config, "decoder_start_token_id", None)
    own = getattr(config, _OF_STACK["dec"], None) if getattr(config, "is_encoder_decoder", False) else None
    return getattr(own, "bos_token_id", None) if stated is None else stated


def takes_positions(model: "PreTrainedModel") -> bool:
    """Returns whether a model is told where each token stands.

    Composites are not: theirs may count along several axes, or from one, and are their own affair.
    """
    return "position_ids" in inspect.signature(model.forward).parameters and not is_composite(model.config)


def check_token_types(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> None:
    """Refuses inputs that do not say which of their tokens are a prefix, of a model that looks both ways in one.

    Raises:
        Unsupported: they do not.
    """
    config = text_config(model.config)
    looks_both_ways = config is not model.config and getattr(config, "use_bidirectional_attention", None) is True
    if not looks_both_ways or inputs.get("token_type_ids") is not None:
        return
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        raise Unsupported(
            f"texts of {type(model).__name__} by themselves",
            why="without token_type_ids, which say what is its prefix, its tokens look at later ones under some "
            "implementations of attention and not under others",
            hint="what its processor returns with return_token_type_ids=True, in Python: record(model, batch)",
        )


def text_prefix(names: Iterable[str], token_embed: str, blocks: str) -> str:
    """Returns what stands before the paths of the text model in the names of a composite's tensors.

    Raises:
        Unreadable: there is no token embedding beside such blocks, or there are several.
    """
    known = set(names)
    ending, first = f"{token_embed}.weight", f"{blocks}.0."
    prefixes = {name.removesuffix(ending) for name in known if name == ending or name.endswith(f".{ending}")}
    found = [prefix for prefix in prefixes if any(name.startswith(f"{prefix}{first}") for name in known)]
    if len(found) != 1:
        said = " and ".join(sorted(found)) or "none"
        raise Unreadable("the weights of the text model cannot be told", why=f"{ending} beside {blocks}: {said}")
    return found[0]
