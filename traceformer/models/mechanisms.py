"""What a config says that its model has and this package has no place for, in words: a refusal names it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from traceformer.errors import Unsupported
from traceformer.models.part import text_config

__all__ = [
    "attending_layers",
    "attends",
    "configs_of_layers",
    "full_up_to",
    "layer_config",
    "mechanisms_of",
    "stated",
    "unstated",
]

_ATTENDS = ("attention", "hybrid")  # in what a config calls a layer; but linear attention is a recurrence
_RECURS = ("linear_attention", "mamba", "conv", "recurrent")


def stated(config: Any, name: str, default: Any = None) -> Any:
    """Returns what a config (an object, or a config.json's dict) says, or the default where it says nothing.

    Raises:
        Unsupported: it says it of each layer anew, and not the same.
    """
    if isinstance(config, Mapping):
        return config.get(name, default)
    try:
        return getattr(config, name, default)
    except RuntimeError as error:  # transformers' AmbiguousGlobalPerLayerAttributeError
        raise Unsupported(
            f"the layers of this {config.model_type!r} model do not all have the same {name}",
            why="its config says it layer by layer (per_layer_config), and an array here has one shape for all layers",
            hint="such models cannot be recorded yet",
        ) from error


def configs_of_layers(config: Any) -> Sequence[Any]:
    """Returns the config of each layer where settings differ by layer, and otherwise the one that all have."""
    return [*config.per_layer_config] if getattr(config, "is_heterogeneous", False) else [config]


def layer_config(config: Any, layer: int | None) -> Any:
    """Returns what a config says of one layer: itself where its layers do not differ, or none is meant."""
    each = configs_of_layers(config)
    return each[layer] if layer is not None and layer < len(each) > 1 else config


def unstated(config: Any, *names: str) -> Unsupported:
    """Returns the error for a config that states none of the sizes with these names, and says where they may be."""
    inner = {name: each for name, each in vars(config).items() if hasattr(each, "model_type")}
    if inner:
        parts = ", ".join(inner)
        return Unsupported(
            f"a model of type {config.model_type!r} is made of several models, and is not recorded as a whole",
            why=f"the sizes of each are in a config of its own: {parts}",
            hint="its text part alone can be, if it is a model of its own: load the whole with transformers, then "
            "load_model(whole.get_decoder(), tokenizer)",
        )
    if "vocab_size" in names:
        return Unsupported(
            f"a model of type {config.model_type!r} has no vocabulary of tokens",
            why="its config states no vocab_size",
            hint="such models cannot be recorded yet",
        )
    return Unsupported(
        f"the config of model type {config.model_type!r} states none of {', '.join(names)}",
        why="it may not be a text transformer",
    )


def attending_layers(config: Any, n_layers: int) -> tuple[int, ...] | None:
    """Returns the layers that have attention, by what a config calls each; None where all have, as far as it says."""
    numbers, period = stated(config, "attn_layer_indices"), stated(config, "attn_layer_period")
    if numbers:
        return tuple(numbers)
    if isinstance(period, int) and period > 1:  # Jamba's: what its class calls each layer is not in a config.json
        return tuple(range(stated(config, "attn_layer_offset"), n_layers, period))
    kinds = stated(config, "layer_types") or stated(config, "layers_block_type") or ()
    if len(kinds) != n_layers or all(map(attends, kinds)):
        return None
    return tuple(layer for layer, kind in enumerate(kinds) if attends(kind))


def full_up_to(config: Any) -> int | None:
    """Returns up to how many tokens a model attends to all of them, and beyond to blocks; None for any number.

    BigBird's blocks are chosen at random, and the first text that is shorter switches its model to full attention.
    """
    if stated(config, "attention_type") != "block_sparse":
        return None
    return (5 + 2 * config.num_random_blocks) * config.block_size


def mechanisms_of(config: Any) -> list[str]:
    """Returns what a config says of its model that no row can describe yet, each in a few words."""
    return [*_mechanisms(text_config(config))]


def _mechanisms(config: Any) -> Iterator[str]:
    streams = next((n for name in ("hc_mult", "hc_count", "altup_num_inputs") if (n := stated(config, name))), 1)
    if isinstance(streams, int) and streams > 1:
        yield f"{streams} residual streams"


def attends(kind: str) -> bool:
    """Returns whether a layer has attention that a config calls this: `full_attention`, but not `linear_attention`."""
    return any(word in kind for word in _ATTENDS) and not any(word in kind for word in _RECURS)
