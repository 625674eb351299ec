"""A row as it stands in Python: what a file of `table` and one of `blocks` take in."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from traceformer.models.blocks import decoders, encoder_decoders, encoders, hybrids, outside
from traceformer.models.family import Architecture, Tap
from traceformer.models.mechanisms import configs_of_layers
from traceformer.models.part import is_composite, text_config, text_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["written_architecture", "written_row"]

_WIDTH = 120


def written_row(model: "PreTrainedModel", architecture: Architecture) -> str:
    """Returns the blocks of a model's row as a file of `blocks` has them, and its entry in one of `table`.

    What only a person can say, its readout and a config for a tiny model, is begun with what its config says.
    """
    # Sizes that differ by layer are for a person to state.
    config: Any = configs_of_layers(text_config(model.config))[0]
    family, same = str(config.model_type), _constant(architecture)
    constant = family.upper().replace("-", "_").replace(".", "_")
    blocks = "" if same else f"{constant} = {written_architecture(architecture)}\n\n"
    kind = "rotary" if _has_rotary(model) else "learned"
    sizes = {name: value for name in _SIZES if isinstance(value := getattr(config, name, None), int)}
    entry = _Call(
        "Family",
        {
            "blocks": _Name(same or f"blocks.{constant}"),
            "positions": _Call("Positions", {"": kind}),
            "tiny": _Call(
                "Tiny", {"": type(text_part(model) if is_composite(model.config) else model).__name__, " ": sizes}
            ),
        },
    )
    start = f"    {_quoted(family)}: "
    return f"{blocks}{start}{_laid_out(entry, 4, len(start) + 1)},\n"


_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "max_position_embeddings", "pad_token_id"),
)


def written_architecture(architecture: Architecture) -> str:
    """Returns the expression that makes this, with the names of `family.py`, laid out as the formatter does."""
    return _laid_out(_expression(architecture), 0, 1)


def _constant(architecture: Architecture) -> str | None:
    """The name of the same blocks, where a family has them."""
    for alias, file in {"blocks": (decoders, hybrids, encoders, encoder_decoders), "outside": (outside,)}.items():
        for each in file:
            for name in each.__all__:
                if getattr(each, name) == architecture:
                    return f"{alias}.{name}"
    return None


def _has_rotary(model: "PreTrainedModel") -> bool:
    return any("rotary" in type(module).__name__.lower() for module in model.modules())


class _Name(str):
    """What stands in the text as it is."""


class _Call:
    """A call: what is called, and its arguments by name; a name of spaces alone is positional."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.name, self.arguments = name, arguments


def _expression(value: Any) -> Any:
    """The value as calls, mappings and plain values; what is as it is by default is left out."""
    if isinstance(value, Tap):
        if value == Tap(value.path, "input"):
            return _Call("into", {"": value.path})
        given = {name: own for name, own in value._asdict().items() if own != value._field_defaults.get(name)}
        return _Call("Tap", {"": given.pop("path"), **given})
    if is_dataclass(value) and not isinstance(value, type):
        return _Call(type(value).__name__, dict(_arguments(value)))
    if isinstance(value, Mapping):
        return {name: _expression(own) for name, own in value.items()}
    return value


def _arguments(value: Any) -> Iterator[tuple[str, Any]]:
    empty: Any = type(value)
    for number, own in enumerate(fields(empty)):
        given = getattr(value, own.name)
        has_default = own.default is not own.default_factory  # both are MISSING where there is none
        default = own.default_factory() if callable(own.default_factory) else own.default
        if not has_default or given != default:
            yield (" " * number if not has_default else own.name), _expression(given)


def _laid_out(value: Any, indent: int, used: int) -> str:
    """The text of a value, on one line where that is short enough, else an entry a line."""
    line = _on_one_line(value)
    if indent + used + len(line) <= _WIDTH or not isinstance(value, _Call | Mapping):
        return line
    deeper = " " * (indent + 4)
    if isinstance(value, _Call):
        parts = [(f"{name}=" if name.strip() else "", own) for name, own in value.arguments.items()]
        opened, closed = f"{value.name}(", ")"
    else:
        parts = [(f"{_quoted(name)}: ", own) for name, own in value.items()]
        opened, closed = "{", "}"
    lines = [f"{deeper}{name}{_laid_out(own, indent + 4, len(name) + 1)}," for name, own in parts]
    return "\n".join((opened, *lines, f"{' ' * indent}{closed}"))


def _on_one_line(value: Any) -> str:
    if isinstance(value, _Name):
        return str(value)
    if isinstance(value, _Call):
        given = value.arguments.items()
        parts = (f"{name}={_on_one_line(own)}" if name.strip() else _on_one_line(own) for name, own in given)
        return f"{value.name}({', '.join(parts)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_quoted(name)}: {_on_one_line(own)}' for name, own in value.items())}}}"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """The text in double quotes, as the formatter has it."""
    plain = repr(text)
    return plain if '"' in text else f'"{plain[1:-1]}"'
