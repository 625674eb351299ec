"""One row per family of models: everything that this package knows of it, by its config's `model_type`.

To add a family, add a row to one of the files of `table` and run `traceformer check FAMILY`: the algebra proves it or
names what is wrong. `family.py` says what a row is made of, `blocks` has the blocks. Nothing outside `models` names a
family.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from traceformer.errors import NotFound, Unsupported
from traceformer.models.family import Architecture, Family, Requires, Tap
from traceformer.models.mechanisms import mechanisms_of, stated
from traceformer.models.part import text_config
from traceformer.models.table.decoders import DECODERS
from traceformer.models.table.encoder_decoders import ENCODER_DECODERS
from traceformer.models.table.encoders import ENCODERS
from traceformer.models.table.experts import EXPERTS
from traceformer.models.table.hybrids import HYBRIDS
from traceformer.sites import Stack

__all__ = ["FAMILIES", "architecture_of", "family_of", "own_family", "unmet", "with_scales"]

FAMILIES: Mapping[str, Family] = {**DECODERS, **EXPERTS, **HYBRIDS, **ENCODERS, **ENCODER_DECODERS}


def family_of(config: Any) -> Family:
    """Returns the row of a model's family, by the `model_type` of its config (an object, or a config.json's dict).

    Of a composite that is the family of its text model.

    Raises:
        Unsupported: there is no row for this family, or it is not right for this config.
    """
    config = text_config(config)
    model_type = stated(config, "model_type", None)
    row = _row_of(config)
    if row is None:
        raise Unsupported(
            f"no architecture row for model type {model_type!r}",
            why="; ".join(mechanisms_of(config)),
            hint="`traceformer check` on the model says what can be recorded of it, and finds a row that holds",
        )
    for each, setting in _unmet(row, config):
        raise Unsupported(
            f"a model of type {model_type!r} whose config says {each.setting} {setting!r}",
            why=each.why,
            hint=f"such models are supported where it is {' or '.join(map(repr, each.allowed))}",
        )
    return row


def own_family(config: Any) -> Family | None:
    """Returns the row of a model's family; None where there is none, or none that is right for this config."""
    config = text_config(config)
    row = _row_of(config)
    return None if row is None or any(_unmet(row, config)) else row


def unmet(config: Any) -> list[str]:
    """Returns why the row of a model's family is not right for it, in words; nothing where it is, or there is none."""
    config = text_config(config)
    row = _row_of(config)
    return (
        []
        if row is None
        else [f"its config says {own.setting} {said!r}: {own.why}" for own, said in _unmet(row, config)]
    )


def _row_of(config: Any) -> Family | None:
    model_type = stated(config, "model_type")
    return FAMILIES.get(model_type) if isinstance(model_type, str) else None


def _unmet(row: Family, config: Any) -> Iterator[tuple[Requires, Any]]:
    """Yields what the config says otherwise than the row requires."""
    for each in row.requires:
        setting = stated(config, each.setting, each.allowed[0])
        if not each.is_met(setting):
            yield each, setting


def architecture_of(config: Any, like: str | None = None) -> Architecture:
    """Returns how a model of this config (an object, or a config.json's dict) is built, by its family's row.

    Args:
        config: Its flags count, too.
        like: Another family whose row to take.

    Raises:
        Unsupported: there is no row for its family, or it is not right for this config.
        NotFound: there is none for `like`.
    """
    if like is not None and str(like) not in FAMILIES:
        near = get_close_matches(str(like), FAMILIES) or get_close_matches(str(like), FAMILIES, cutoff=0)
        raise NotFound(f"no row of a family {like!r}", hint=" or ".join(near))
    config = text_config(config)
    found = (family_of(config) if like is None else FAMILIES[like]).blocks
    while not isinstance(found, Architecture):
        found = found.choose(stated(config, found.flag, found.default))
    found = with_scales(found, config)
    is_whole = len(found.stacks) == 1 or stated(config, "is_encoder_decoder", True)
    return found if is_whole else _one_stack(found, "dec" if stated(config, "is_decoder") else "enc")


def with_scales(row: Architecture, config: Any) -> Architecture:
    """Returns the row with the numbers that this config states for what is named there; 1 where it states none."""
    named = {stack: own for stack, own in row.stacks.items() if isinstance(own.scale, str)}
    numbers = {stack: float(stated(config, str(own.scale), 1.0)) for stack, own in named.items()}
    scaled = {stack: replace(own, scale=numbers[stack]) for stack, own in named.items()}
    return replace(row, stacks={**row.stacks, **scaled}) if named else row


def _one_stack(whole: Architecture, stack: Stack) -> Architecture:
    """The decoder of an encoder-decoder by itself, as BartForCausalLM has it, or its encoder."""
    row = whole.stacks[stack]
    if row.cross is not None and row.attention.post_norm is not None:  # then there is no norm behind cross-attention
        row = replace(row, mlp={**row.mlp, "resid_mid": Tap(row.attention.post_norm)})
    return replace(whole, stacks={stack: replace(row, cross=None)})
