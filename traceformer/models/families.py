"""One row per family of models: everything that this package knows of it, by its config's `model_type`.

To add a family, add a row to one of the files of `table` and run `traceformer check FAMILY`: the algebra proves it or
names what is wrong. `family.py` says what a row is made of, `blocks` has the blocks. Nothing outside `models` names a
family.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from traceformer.errors import NotFound, Unsupported
from traceformer.models.family import Architecture, Family
from traceformer.models.table.decoders import DECODERS
from traceformer.models.table.encoder_decoders import ENCODER_DECODERS
from traceformer.models.table.encoders import ENCODERS
from traceformer.models.table.experts import EXPERTS

__all__ = ["FAMILIES", "architecture_of", "family_of"]

FAMILIES: Mapping[str, Family] = {**DECODERS, **EXPERTS, **ENCODERS, **ENCODER_DECODERS}


def family_of(config: Any) -> Family:
    """Returns the row of a model's family, by the `model_type` of its config (an object, or a config.json's dict).

    Raises:
        Unsupported: there is no row for this family, or it is not right for this config.
    """
    model_type = _stated(config, "model_type", None)
    row = FAMILIES.get(model_type)
    if row is None:
        raise Unsupported(
            f"no architecture row for model type {model_type!r}",
            why=f"rows exist for {', '.join(sorted(FAMILIES))}",
            hint="`traceformer check` on the model finds one, and proves it; what needs a readout needs a row in "
            "traceformer/models/table (CONTRIBUTING.md says how)",
        )
    for each in row.requires:
        stated = _stated(config, each.setting, each.allowed[0])
        if not each.is_met(stated):
            raise Unsupported(
                f"a model of type {model_type!r} whose config says {each.setting} {stated!r}",
                why=each.why,
                hint=f"such models are supported where it is {' or '.join(map(repr, each.allowed))}",
            )
    return row


def architecture_of(config: Any, like: str | None = None) -> Architecture:
    """Returns how a model of this config (an object, or a config.json's dict) is built, by its family's row.

    Args:
        config: Its flags count, too.
        like: Another family whose row to take.

    Raises:
        Unsupported: there is no row for its family, or it is not right for this config.
        NotFound: there is none for `like`.
    """
    if like is not None and like not in FAMILIES:
        near = get_close_matches(like, FAMILIES, n=1)
        raise NotFound(f"no row of a family {like!r}", hint=near[0] if near else f"there are {', '.join(FAMILIES)}")
    found = (family_of(config) if like is None else FAMILIES[like]).blocks
    while not isinstance(found, Architecture):
        found = found.choose(_stated(config, found.flag, found.default))
    return found


def _stated(config: Any, name: str, default: Any) -> Any:
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)
